"""The Snakemake workflow: what it plans for the profiles, and how it runs, resumes and fails on stand-in notebooks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import reproduce
import yaml

from zodi.adaptation import VARIANTS

ROOT = Path(__file__).parent.parent
PROFILES = ROOT / "workflow" / "profiles"
PARAMETERS = {
    "01_domain_gap": ["data", "variant", "network", "seed", "changes", "out"],
    "04_transferring_a_data_set": ["data", "domain", "method", "limit", "out"],
    "05_adaptation": ["data", "synth", "domain", "variant", "network", "seed", "changes", "out"],
    "A3_tables": ["results", "out"],
}
NOTEBOOK = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
{parameters}

# %%
import json
from pathlib import Path

folder = Path(out)
folder.mkdir(parents=True, exist_ok=True)
if Path("fail").exists():
    (folder / "half_done").touch()
    raise RuntimeError("on purpose")
_ = (folder / "main.md").write_text("| the table |")
_ = (folder / "metrics.json").write_text(json.dumps({{name: globals()[name] for name in {names}}}))
"""
DATA_SCRIPT = """import pathlib, sys
folder = pathlib.Path(sys.argv[-1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "dataset.json").write_text("{}")
"""
PROFILE = {
    "results": "results/tiny",
    "data": "data_scripts/miniature.py --train 1",
    "domains": ["night"],
    "variants": ["source_only", "zodi_no_similarity"],
    "networks": ["Unet/tu-resnet10t"],
    "seeds": [7],
    "parameters": {
        "source_only": {"changes": {"steps": 5}},
        "transfer": {"limit": 0},
        "adapt": {"changes": {"steps": 5}},
        "tables": {},
    },
}


def plan(profile: str, results: Path) -> dict[str, int]:
    """Number of jobs a rule that Snakemake would run for a profile with an empty results folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--dry-run", "--nolock"]
    command += ["--configfile", f"workflow/profiles/{profile}.yaml", "--config", f"results={results}", "--cores", "1"]
    result = subprocess.run([*command, "--quiet", "rules"], cwd=ROOT, check=True, capture_output=True, text=True)
    lines = (result.stdout + result.stderr).split("Job stats:")[-1].split("total")[0].splitlines()
    return {line.split()[0]: int(line.split()[1]) for line in lines if line.strip() and line.split()[-1].isdigit()}


@pytest.mark.parametrize(
    ("profile", "jobs"),
    [
        ("smoke", {"data": 1, "start": 1, "miniature": 1, "published": 1, "transfer": 2, "source_only": 1, "adapt": 3}),
        ("mini", {"data": 1, "start": 1, "miniature": 1, "published": 1, "transfer": 6, "source_only": 3, "adapt": 30}),
        (
            "full",
            {"data": 1, "start": 1, "miniature": 1, "published": 1, "transfer": 30, "source_only": 6, "adapt": 135},
        ),
        ("camvid", {"data": 1, "transfer": 3, "source_only": 3, "adapt": 9, "candidate": 3, "photographs": 1}),
        ("estimation", {"data": 1, "transfer": 21, "candidate": 12, "estimation": 1}),
        ("cleaning", {"data": 1, "transfer": 8, "candidate": 14, "estimation": 1}),
        (
            "paper",
            {"data": 1, "published": 1, "transfer_shard": 40, "transfer": 10, "source_only": 9, "adapt": 90},
        ),
        (
            "paper-smoke",
            {"data": 1, "published": 1, "transfer_shard": 8, "transfer": 4, "source_only": 2, "adapt": 12},
        ),
    ],
)
def test_profile_plans_one_job_a_point_of_its_grid(profile, jobs, tmp_path):
    tables = {} if "estimation" in jobs else {"tables": 1}
    assert plan(profile, tmp_path) == jobs | tables | {"all": 1}


def test_a_profile_takes_its_upgrade_where_this_machine_can(monkeypatch):
    profile = reproduce.read_profile("camvid")
    monkeypatch.setattr(reproduce, "has_graphics_card", lambda: False)
    names, settings, sentence = reproduce.with_upgrade("camvid", profile, "")
    assert names == ["camvid"] and settings == profile
    assert sentence.startswith("the transfer is the photometric change") and "graphics card" in sentence
    monkeypatch.setattr(reproduce, "has_graphics_card", lambda: True)
    monkeypatch.setattr(reproduce, "missing_models", lambda names: [f"model {names[0]}: not here"])
    names, _, sentence = reproduce.with_upgrade("camvid", profile, "")
    assert names == ["camvid"] and "model stable-diffusion-v1-5" in sentence
    monkeypatch.setattr(reproduce, "missing_models", lambda names: [])
    names, settings, sentence = reproduce.with_upgrade("camvid", profile, "")
    assert names == ["camvid", "with_diffusion/camvid"] and settings["gpu"] and "zodi" in settings["variants"]
    assert sentence == "the transfer is Stable Diffusion 1.5 with ControlNet"
    assert settings["variants"] == [name for name in VARIANTS if name in settings["variants"]]


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_profiles_name_rows_of_the_table_in_its_order(profile):
    variants = reproduce.read_profile(profile)["variants"]
    assert variants == [name for name in VARIANTS if name in variants]


def test_slurm_profile_is_accepted(tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--dry-run", "--nolock"]
    command += ["--profile", "workflow/profiles/slurm", "--configfile", "workflow/profiles/smoke.yaml"]
    result = subprocess.run(
        [*command, "--config", f"results={tmp_path}"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "runtime=120" in result.stdout + result.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A checkout with our workflow and stand-in notebooks, data script and module."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "workflow", root / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "workflow" / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(PROFILE))
    for folder in ("notebooks", "data_scripts", "zodi"):
        (root / folder).mkdir()
    (root / "zodi" / "__init__.py").touch()
    (root / "data_scripts" / "miniature.py").write_text(DATA_SCRIPT)
    for name, names in PARAMETERS.items():
        text = NOTEBOOK.format(parameters="\n".join(f"{name} = 0" for name in names), names=names)
        (root / "notebooks" / f"{name}.py").write_text(text)
    return root


def make(project: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "workflow/reproduce.py", "tiny", *options]
    return subprocess.run(command, cwd=project, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def metrics(project: Path) -> dict[str, float]:
    """Every metrics.json and when it was written."""
    results = project / "results" / "tiny"
    return {path.relative_to(results).as_posix(): path.stat().st_mtime for path in results.glob("**/metrics.json")}


class TestRun:
    """One run of the stand-in project, then what happens when it is called again."""

    def test_fails_with_a_clear_message_and_keeps_the_notebook(self, project):
        (project / "notebooks" / "fail").touch()
        result = make(project)
        assert result.returncode == 1
        assert "04_transferring_a_data_set.py, cell 3: RuntimeError: on purpose" in result.stderr
        log = project / "results/tiny/notebooks/transfer/night/stochastic_inversion.ipynb"
        assert "on purpose" in log.read_text()
        assert not metrics(project)
        assert (project / "results/tiny/transfer/night/stochastic_inversion/half_done").exists()

    def test_goes_on_where_it_stopped(self, project):
        (project / "notebooks" / "fail").unlink()
        result = make(project)
        assert result.returncode == 0, result.stderr
        assert "5 of 5 steps (100%) done" in result.stderr
        assert result.stdout.startswith("| the table |")
        assert "results/tiny/tables/main.md" in result.stdout
        assert sorted(metrics(project)) == [
            "runs/source_only/Unet-tu-resnet10t/seed7/metrics.json",
            "runs/zodi_no_similarity/night/Unet-tu-resnet10t/seed7/metrics.json",
            "tables/metrics.json",
            "transfer/night/stochastic_inversion/metrics.json",
        ]
        assert (project / "results/tiny/transfer/night/stochastic_inversion/half_done").exists()

    def test_notebooks_get_the_parameters_of_profile_and_grid(self, project):
        run = "runs/zodi_no_similarity/night/Unet-tu-resnet10t/seed7"
        assert json.loads((project / "results/tiny" / run / "metrics.json").read_text()) == {
            "data": "../results/tiny/data",
            "synth": "../results/tiny/transfer/night/stochastic_inversion",
            "domain": "night",
            "variant": "zodi_no_similarity",
            "network": "Unet/tu-resnet10t",
            "seed": 7,
            "changes": {"steps": 5},
            "out": f"../results/tiny/{run}",
        }

    def test_runs_nothing_again_when_nothing_changed(self, project):
        before = metrics(project)
        (project / "zodi" / "__init__.py").touch()
        assert make(project).returncode == 0
        assert metrics(project) == before

    def test_runs_again_what_depends_on_a_change_and_forgets_the_old_results(self, project):
        before = metrics(project)
        with (project / "notebooks" / "04_transferring_a_data_set.py").open("a") as file:
            file.write("\n# changed\n")
        result = make(project)
        assert result.returncode == 0, result.stderr
        after = metrics(project)
        assert [path for path in after if after[path] == before[path]] == [
            "runs/source_only/Unet-tu-resnet10t/seed7/metrics.json"
        ]
        assert not (project / "results/tiny/transfer/night/stochastic_inversion/half_done").exists()

    def test_refuses_parameters_that_the_notebook_does_not_have(self, project):
        before = metrics(project)
        profile = PROFILE | {"parameters": PROFILE["parameters"] | {"tables": {"colour": "red"}}}
        (project / "workflow" / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(profile))
        result = make(project)
        assert result.returncode == 1
        assert "notebooks/A3_tables.py: unknown parameters ['colour']" in result.stderr
        assert set(before) - set(metrics(project)) == {"tables/metrics.json"}

    def test_only_one_run_at_a_time(self, project):
        with reproduce.lock(project / "results" / "tiny"):
            result = make(project)
        assert result.returncode == 2
        assert "another run is writing there" in result.stderr


def test_notebooks_that_run_side_by_side_keep_apart(tmp_path):
    twin = tmp_path / "echo.py"
    twin.write_text(NOTEBOOK.format(parameters="out = ''\nseed = 0", names=["seed"]))
    outs = [tmp_path / str(seed) for seed in range(3)]
    command = [sys.executable, "workflow/run_notebook.py", twin]
    jobs = []
    for seed, out in enumerate(outs):
        options = [out / "log.ipynb", "--parameters", json.dumps({"seed": seed, "out": str(out)})]
        jobs.append(subprocess.Popen([*command, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True))
    messages = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], messages
    assert [json.loads((out / "metrics.json").read_text()) for out in outs] == [{"seed": seed} for seed in range(3)]
    assert not [message for message in messages if "Invalid" in message]


@pytest.mark.parametrize(
    ("profile", "data", "message"),
    [
        (
            "nothing",
            None,
            "PROFILE=nothing: no such profile; expected one of ablations, camvid, cleaning, estimation, full, mini",
        ),
        ("camvid", "", "PROFILE=camvid needs your copy of the data set"),
        ("camvid", "no/such/folder", "DATA=no/such/folder: no such folder"),
        ("camvid", "EMPTY", "found no train/, trainannot/, test/, testannot/ in it"),
        ("mini", "EMPTY", "makes its own data; leave DATA out"),
    ],
)
def test_wrong_arguments_give_one_message(profile, data, message, tmp_path, monkeypatch, capsys):
    data = str(tmp_path) if data == "EMPTY" else data
    arguments = ["reproduce.py", profile, *(["--data", data] if data is not None else [])]
    monkeypatch.setattr(sys, "argv", arguments)
    assert reproduce.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_paper_profile_lists_everything_that_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "paper", "--data", str(tmp_path)])
    monkeypatch.setattr(reproduce.shutil, "which", lambda name: None)
    assert reproduce.main() == 2
    message = capsys.readouterr().err
    for part in (
        "found no cityscapes/, acdc/, gta5/",
        "model stable-diffusion-v1-5",
        "control_v11p_sd15_seg",
        "nvidia-smi",
    ):
        assert part in message


def test_the_plan_sums_up_what_the_jobs_take():
    text = reproduce.plan({"data": 1, "adapt": 3}, {"adapt": {"hours": 2, "gigabytes": 0.5}})
    assert text.splitlines()[2].split() == ["adapt", "3", "6.0", "1.5"]
    assert text.splitlines()[-1].split() == ["total", "4", "6.0", "1.5"]


def test_make_passes_the_message_on():
    result = subprocess.run(
        ["make", "-o", ".venv/.done", "reproduce", "PROFILE=camvid"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: PROFILE=camvid needs your copy of the data set")
