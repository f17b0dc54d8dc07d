"""The Snakemake workflow: what it plans for the profiles, and how it runs, resumes and fails on stand-in notebooks."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import reproduce
import yaml

from zodi.studies.table_rows import table_rows

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "workflow" / "profiles"
PARAMETERS = {
    "01_domain_gap": ["data", "variant", "network", "seed", "changes", "out"],
    "04_transferring_a_data_set": ["data", "domain", "method", "limit", "out"],
    "05_adaptation": ["data", "synth", "domain", "variant", "network", "seed", "changes", "out"],
    "A3_tables": ["results", "out"],
}
# Never run, but followed: what these modules say decides whether a job is stale.
MODULES = {
    "05_adaptation": ("zodi/adaptation.py", "zodi/support/plots.py"),
    "A3_tables": ("zodi/studies/tables.py", "zodi/support/plots.py"),
}
MODULE = '"""What it is for."""\n\nVALUE = 1\n'
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
if False:
    {imports}

# %%
import json
import time
from pathlib import Path

folder = Path(out)
if Path("sleep").exists():
    (folder / ".0123.partial").mkdir(parents=True, exist_ok=True)
    time.sleep(600)
folder.mkdir(parents=True, exist_ok=True)
if Path("fail").exists():
    (folder / "half_done").touch()
    raise RuntimeError("on purpose")
_ = (folder / "main.md").write_text("| the table |")
_ = (folder / "weights.safetensors").write_bytes(bytes(100))
_ = (folder / "metrics.json").write_text(json.dumps({{name: globals()[name] for name in {names}}}))
"""
DATA_SCRIPT = """import json, pathlib, sys
folder = pathlib.Path(sys.argv[-1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "image.png").write_bytes(bytes(100))
(folder / "dataset.json").write_text(json.dumps(sys.argv[1:]))
"""
PROFILE = {
    "results": "results/tiny",
    "data": "data_scripts/streets.py --train 1",
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


OWN_DATA = PROFILE | {
    "results": "results/own",
    "data": "data_scripts/streets.py --root {source}",
    "source_needs": ["frames"],
    "variants": ["source_only"],
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
        (
            "smoke",
            {"data": 1, "start": 1, "miniature": 1, "published": 1, "transfer": 2, "source_only": 1, "adapt": 3}
            | {"redrawn": 1},
        ),
        ("mini", {"data": 1, "transfer": 4, "source_only": 6, "adapt": 18, "tables": 1}),
        (
            "full",
            {"data": 1, "start": 1, "miniature": 1, "published": 1, "transfer": 30, "source_only": 15, "adapt": 90}
            | {"redrawn": 3, "tables": 1, "images": 1, "quality": 1},
        ),
        ("camvid", {"data": 1, "transfer": 3, "source_only": 3, "adapt": 9, "candidate": 3, "photographs": 1}),
        ("estimation", {"data": 1, "transfer": 43, "candidate": 20, "estimation": 1}),
        ("images", {"data": 1, "transfer": 30, "images": 1}),
        ("quality", {"data": 1, "transfer": 30, "train": 143, "images": 1, "quality": 1}),
        (
            "quality-smoke",
            {"data": 1, "transfer": 39, "train": 50, "candidate": 7, "images": 1, "quality": 1, "estimation": 1},
        ),
        (
            "paper",
            {"data": 1, "published": 1, "transfer_shard": 40, "transfer": 10, "source_only": 36, "adapt": 90},
        ),
        (
            "paper-smoke",
            {"data": 1, "published": 1, "transfer_shard": 8, "transfer": 4, "source_only": 9, "adapt": 12},
        ),
    ],
)
def test_profile_plans_one_job_a_point_of_its_grid(profile, jobs, tmp_path):
    tables = {} if {"estimation", "images"} & jobs.keys() else {"tables": 1}
    assert plan(profile, tmp_path) == jobs | tables | {"all": 1}


def test_a_row_takes_more_networks_and_each_has_settings_of_its_own(tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--dry-run", "--nolock", "-p"]
    command += ["--configfile", "workflow/profiles/paper-smoke.yaml", "--config", f"results={tmp_path}", "--cores", "1"]
    targets = ["Segformer-mit_b0", "DPT-tu-vit_tiny_patch16_224", "hf-results-paper-smoke-networks-segformer"]
    files = [f"{tmp_path}/runs/weather/{name}/seed1/metrics.json" for name in (*targets, "PaperRefineNet-resnet18")]
    result = subprocess.run([*command, *files], cwd=ROOT, check=True, capture_output=True, text=True)
    words = [shlex.split(line.strip()) for line in result.stdout.splitlines() if "--parameters" in line]
    given = [json.loads(line[line.index("--parameters") + 1]) for line in words]
    found = {settings["network"]: settings for settings in given}
    folder = "hf:../results/paper-smoke/networks/segformer"
    assert {*found} == {"Segformer/mit_b0", "DPT/tu-vit_tiny_patch16_224", folder, "PaperRefineNet/resnet18"}
    assert all(settings["variant"] == "weather" for settings in given)
    recipes = {name: settings["recipe"] for name, settings in found.items()}
    assert recipes.pop("PaperRefineNet/resnet18") == "paper" and {*recipes.values()} == {"transformer"}
    common = yaml.safe_load((PROFILES / "paper-smoke.yaml").read_text())["parameters"]["source_only"]["changes"]
    assert found["Segformer/mit_b0"]["changes"] == common
    assert found["DPT/tu-vit_tiny_patch16_224"]["changes"] == common | {"lora_rank": 2}
    assert found[folder]["changes"] == common | {"weights": "auto"}


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
    assert settings["variants"] == [name for name in table_rows() if name in settings["variants"]]


@pytest.mark.parametrize("profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_profiles_name_rows_of_the_table_in_its_order(profile):
    variants = reproduce.read_profile(profile)["variants"]
    assert variants == [name for name in table_rows() if name in variants]


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
    (root / "workflow" / "profiles" / "own.yaml").write_text(yaml.safe_dump(OWN_DATA))
    shutil.copy(ROOT / "Makefile", root)
    # The environment of this test, under the name that the Makefile expects.
    (root / ".venv" / "bin").mkdir(parents=True)
    python = root / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    for folder in ("notebooks", "data_scripts", "zodi"):
        (root / folder).mkdir()
    for name in ("__init__.py", "rows.py", "domains.py"):
        shutil.copy(ROOT / "zodi" / name, root / "zodi" / name)
    (root / "zodi" / "weights").mkdir()
    (root / "zodi" / "weights" / "segmenter_mini.safetensors").touch()
    (root / "zodi" / "support").mkdir()
    for name in ("__init__.py", "files.py"):
        shutil.copy(ROOT / "zodi" / "support" / name, root / "zodi" / "support" / name)
    (root / "zodi" / "studies").mkdir()
    for name in ("__init__.py", "table_rows.py"):
        shutil.copy(ROOT / "zodi" / "studies" / name, root / "zodi" / "studies" / name)
    for module in {name for names in MODULES.values() for name in names}:
        (root / module).parent.mkdir(exist_ok=True)
        (root / module).write_text(MODULE)
    (root / "data_scripts" / "streets.py").write_text(DATA_SCRIPT)
    for name, names in PARAMETERS.items():
        modules = [module.removesuffix(".py").replace("/", ".") for module in MODULES.get(name, ())]
        imports = f"import {', '.join(modules)}" if modules else "pass"
        parameters = "\n".join(f"{name} = 0" for name in names)
        text = NOTEBOOK.format(parameters=parameters, names=names, imports=imports)
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
        assert "04_transferring_a_data_set.py, cell 4: RuntimeError: on purpose" in result.stderr
        log = project / "results/tiny/notebooks/transfer/night/stochastic_inversion.ipynb"
        assert "on purpose" in log.read_text()
        assert not metrics(project)
        assert (project / "results/tiny/transfer/night/stochastic_inversion/half_done").exists()

    def test_goes_on_where_it_stopped(self, project):
        (project / "notebooks" / "fail").unlink()
        result = make(project)
        assert result.returncode == 0, result.stderr
        assert "5 of 5 steps (100%) done" in result.stderr
        lines = result.stdout.splitlines()
        assert lines[0] == "4 jobs are new, 0 are stale, 0 follow" and lines[3] == "| the table |"
        assert "jobs side by side" in lines[1] and lines[2].startswith("expected time: ")
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
        (project / "zodi" / "adaptation.py").touch()
        assert make(project).returncode == 0
        assert metrics(project) == before

    def test_prose_comments_and_docstrings_make_nothing_stale(self, project):
        before = metrics(project)
        with (project / "notebooks" / "05_adaptation.py").open("a") as file:
            file.write("\n# %% [markdown]\n# More prose.\n")
        (project / "zodi" / "adaptation.py").write_text(MODULE.replace("What it is for", "What else") + "# why\n")
        (project / "zodi" / "studies" / "tables.py").write_text("# first\n" + MODULE)
        result = make(project)
        assert result.returncode == 0 and "0 jobs are new, 0 are stale, 0 follow" in result.stdout
        assert metrics(project) == before

    def test_what_only_draws_counts_for_figures_only(self, project):
        before = metrics(project)
        (project / "zodi" / "support" / "plots.py").write_text(MODULE.replace("1", "2"))
        result = make(project, "--dry-run")
        assert "0 jobs are new, 1 are stale, 0 follow" in result.stdout
        assert "results/tiny/tables: zodi/support/plots.py has changed" in result.stdout
        assert re.findall("^tables .*", result.stdout + result.stderr, re.MULTILINE) == [f"{'tables':<16}{1:>6}"]
        assert metrics(project) == before
        assert make(project).returncode == 0
        after = metrics(project)
        assert [path for path in after if after[path] != before[path]] == ["tables/metrics.json"]

    def test_a_changed_module_makes_its_jobs_stale_and_says_so(self, project):
        before = metrics(project)
        (project / "zodi" / "adaptation.py").write_text(MODULE.replace("1", "2"))
        result = make(project, "--dry-run")
        run = "runs/zodi_no_similarity/night/Unet-tu-resnet10t/seed7"
        assert f"stale: results/tiny/{run}: zodi/adaptation.py has changed" in result.stdout
        assert "1 are stale, 1 follow" in result.stdout and "results/tiny/stale" in result.stdout
        result = make(project)
        assert result.returncode == 0, result.stderr
        after = metrics(project)
        unchanged = {path for path in before if after[path] == before[path]}
        assert unchanged == {*before} - {f"{run}/metrics.json", "tables/metrics.json"}

    def test_what_is_outdated_is_moved_aside_and_not_deleted(self, project):
        with (project / "notebooks" / "04_transferring_a_data_set.py").open("a") as file:
            file.write("\nchanged = True\n")
        result = make(project)
        assert result.returncode == 0, result.stderr
        transfer = "transfer/night/stochastic_inversion"
        assert not (project / "results/tiny" / transfer / "half_done").exists()
        (aside,) = (project / "results/tiny/stale" / transfer).iterdir()
        assert (aside / "half_done").exists()
        assert f"moved aside to {aside.relative_to(project)}" in result.stderr
        assert "notebooks/04_transferring_a_data_set.py has changed" in result.stderr

    def test_refuses_parameters_that_the_notebook_does_not_have(self, project):
        before = metrics(project)
        profile = PROFILE | {"parameters": PROFILE["parameters"] | {"tables": {"colour": "red"}}}
        (project / "workflow" / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(profile))
        result = make(project)
        assert result.returncode == 1
        assert "notebooks/A3_tables.py: unknown parameters ['colour']" in result.stderr
        assert set(before) - set(metrics(project)) == {"tables/metrics.json"}

    def test_makes_again_what_was_changed_since_it_was_made(self, project):
        (project / "workflow" / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(PROFILE))
        assert make(project).returncode == 0
        results = project / "results/tiny"
        run = results / "runs/zodi_no_similarity/night/Unet-tu-resnet10t/seed7"
        partner = results / "runs/source_only/Unet-tu-resnet10t/seed7"
        log = results / "notebooks/tables.ipynb"
        true, table = json.loads((run / "metrics.json").read_text()), log.read_text()
        (run / "metrics.json").write_text(json.dumps(true | {"seed": 99.9}))
        (partner / "weights.safetensors").unlink()
        (results / "data" / "image.png").write_bytes(bytes(50))
        log.write_text(table[:100])
        expected = [
            f"{run.relative_to(project)}/metrics.json: found ",
            f"{partner.relative_to(project)}/weights.safetensors: cannot be read (No such file or directory)",
            "results/tiny/data/image.png: found 50 bytes, expected 100",
            "results/tiny/notebooks/tables.ipynb: found an incomplete notebook",
        ]
        plan = make(project, "--dry-run").stdout
        assert [line for line in expected if f"changed since it was made: {line}" not in plan] == []
        assert json.loads((run / "metrics.json").read_text())["seed"] == 99.9
        result = make(project)
        assert result.returncode == 0, result.stderr
        assert [line for line in expected if f"changed since it was made: {line}" not in result.stdout] == []
        assert json.loads((run / "metrics.json").read_text()) == true
        assert (partner / "weights.safetensors").stat().st_size == 100
        assert (results / "data" / "image.png").stat().st_size == 100
        assert json.loads(log.read_text())["cells"]
        assert any((results / "stale" / run.relative_to(results)).glob("*/metrics.json"))
        assert "0 jobs are new, 0 are stale, 0 follow" in make(project).stdout

    @pytest.mark.parametrize("lost", ["metrics.json", "image", "all"])
    def test_misses_what_later_results_were_made_from(self, project, lost):
        transfer = project / "results/tiny/transfer/night/stochastic_inversion"
        if lost == "all":
            shutil.rmtree(transfer)
        elif lost == "image":
            (transfer / "weights.safetensors").unlink()
            # Stopped before it was made again.
            assert reproduce.stale.damaged_runs(transfer) != {}
            reproduce.stale.set_aside(project / "results/tiny", transfer, {"weights.safetensors": "is gone"})
        else:
            (transfer / "metrics.json").unlink()
        result = make(project)
        assert result.returncode == 0, result.stderr
        assert "1 jobs are new, 0 are stale, 2 follow" in result.stdout
        assert reproduce.stale.damage(transfer) == {} and (transfer / "weights.safetensors").exists()
        assert "0 jobs are new, 0 are stale, 0 follow" in make(project).stdout

    def test_a_stage_refuses_what_was_changed_since_it_was_made(self, project):
        file = project / "results/tiny/runs/source_only/Unet-tu-resnet10t/seed7/metrics.json"
        whole = file.read_text()
        file.write_text(whole.replace("7", "8"))
        command = [sys.executable, "workflow/run_notebook.py", "notebooks/A3_tables.py", "log.ipynb"]
        command += ["--results", "results/tiny", "--out", "results/tiny/again", "--inputs", file.relative_to(project)]
        result = subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)
        file.write_text(whole)
        assert result.returncode == 2 and not (project / "results/tiny/again").exists()
        (line,) = result.stderr.splitlines()
        assert "seed7/metrics.json: found other content than the run wrote; `make reproduce`" in line

    def test_only_one_run_at_a_time(self, project):
        with reproduce.lock(project / "results" / "tiny"):
            result = make(project)
        assert result.returncode == 2
        assert "another run is writing there" in result.stderr


@pytest.fixture
def sleeping(project) -> Iterator[tuple[subprocess.Popen, list[psutil.Process]]]:
    """A run whose notebooks sleep, and all its processes, once a kernel is among them."""
    shutil.rmtree(project / "results" / "tiny", ignore_errors=True)
    (project / "notebooks" / "sleep").touch()
    command = [sys.executable, "workflow/reproduce.py", "tiny"]
    run = subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 90
    while not any((project / "results" / "tiny").glob("**/.0123.partial")):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end, "no notebook has begun"
        time.sleep(0.2)
    family = psutil.Process(run.pid).children(recursive=True)
    assert any("ipykernel_launcher" in " ".join(process.cmdline()) for process in family)
    yield run, family
    run.kill()
    run.communicate()
    (project / "notebooks" / "sleep").unlink(missing_ok=True)
    shutil.rmtree(project / "results" / "tiny", ignore_errors=True)


def left(family: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after a while."""
    return [process for process in psutil.wait_procs(family, timeout=seconds)[1] if process.status() != "zombie"]


@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [(signal.SIGINT, False, 130), (signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGHUP, True, 129)],
)
def test_a_run_that_is_stopped_takes_everything_with_it(sleeping, number, whole_group, code):
    run, family = sleeping
    (os.killpg if whole_group else os.kill)(run.pid, number)
    remaining = left(family, 1.0)
    output, errors = run.communicate(timeout=30)
    assert remaining == [] and run.returncode == code
    assert errors.splitlines()[-1] == "stopped: what is finished is kept, and the same command continues from there"
    assert "Traceback" not in output + errors


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children outlive a killed parent, and keep the lock")
def test_a_killed_run_takes_everything_with_it_and_the_next_one_goes_on(project, sleeping):
    run, family = sleeping
    run.kill()
    assert left(family, 3.0) == []
    # What it had left half-written is there; now the notebooks no longer sleep.
    (project / "notebooks" / "sleep").unlink()
    result = make(project)
    assert result.returncode == 0, result.stderr
    assert "| the table |" in result.stdout
    assert not any((project / "results" / "tiny").glob("**/*.partial"))


def test_jobs_that_outlive_their_run_keep_the_next_one_out(tmp_path):
    job = "import time; print('up', flush=True); time.sleep(600)"
    # As Snakemake starts jobs: all files closed but the three standard ones.
    snakemake = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {job!r}], close_fds=True)"
    with reproduce.lock(tmp_path) as held:
        child = subprocess.Popen([sys.executable, "-c", snakemake], stdin=held, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "up\n"
        child.wait()
    with pytest.raises(ValueError, match="another run is writing there"), reproduce.lock(tmp_path):
        pass
    (orphan,) = [process for process in psutil.process_iter(["cmdline"]) if job in (process.info["cmdline"] or [])]
    orphan.kill()
    psutil.wait_procs([orphan], timeout=10)
    child.stdout.close()
    with reproduce.lock(tmp_path):
        pass


NAMES = [
    "h #x",
    "k: y",
    "{x}",
    "{",
    "yes",
    "12",
    "[1]",
    'it\'s "q"',
    "$(touch pwned) `touch pwned`; touch pwned",
    "ü 雪\n",
]


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_handed_over_as_they_are(project, name, tmp_path):
    folder = tmp_path / name
    (folder / "frames").mkdir(parents=True)
    given = tmp_path / "given.json"
    given.write_text(json.dumps(reproduce.given_settings(str(folder), "mini")))
    made = project / "results" / "own" / "data" / "dataset.json"
    shutil.rmtree(made.parent, ignore_errors=True)
    command = reproduce.snakemake_command(["own"], given, 1, "")
    result = subprocess.run([*command, "--", made.relative_to(project)], cwd=project, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(made.read_text()) == ["--root", str(folder), "--out", "results/own/data"]
    assert not (project / "pwned").exists()


def test_make_hands_paths_over_as_they_are(project, tmp_path):
    name = 'h #x: {y} it\'s "q" $(touch pwned) `touch pwned`; touch pwned $$ 雪'
    (tmp_path / name / "frames").mkdir(parents=True)
    command = ["make", "-o", ".venv/.done", "reproduce", "PROFILE=own", f"DATA={tmp_path / name}"]
    result = subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    made = project / "results" / "own" / "data" / "dataset.json"
    assert json.loads(made.read_text())[:2] == ["--root", str(tmp_path / name)]
    assert not (project / "pwned").exists()


COMMANDS = "it's; touch pwned \" $(touch pwned) $(shell touch pwned) `touch pwned` $$"


@pytest.mark.parametrize("where", ["command line", "environment"])
@pytest.mark.parametrize("name", ["PROFILE", "CORES", "CLUSTER", "DATA"])
def test_make_refuses_what_is_none_before_a_shell_reads_it(project, name, where):
    command = ["make", "-o", ".venv/.done", "reproduce", *(["PROFILE=own"] if name != "PROFILE" else [])]
    environment = os.environ | ({name: COMMANDS} if where == "environment" else {})
    command += [f"{name}={COMMANDS}"] if where == "command line" else []
    result = subprocess.run(command, cwd=project, check=False, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert result.stderr.splitlines()[0].startswith(f"error: {name}={COMMANDS}: ")
    assert not (project / "pwned").exists()


def test_make_refuses_a_model_that_is_not_there():
    command = ["make", "-o", ".venv/.done", "quality", f"MODEL={COMMANDS}"]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.splitlines()[0].startswith(f"error: model {COMMANDS}: not in the hub's cache")
    assert not (ROOT / "pwned").exists()


def test_notebooks_that_run_side_by_side_keep_apart(tmp_path):
    twin = tmp_path / "echo.py"
    twin.write_text(NOTEBOOK.format(parameters="out = ''\nseed = 0", names=["seed"], imports="pass"))
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
            "PROFILE=nothing: no such profile; expected one of ablations, camvid, estimation, full, images",
        ),
        ("camvid", "", "PROFILE=camvid needs your copy of the data set"),
        ("camvid", "no/such/folder", "DATA=no/such/folder: no such folder"),
        ("camvid", "EMPTY", "found no train/, trainannot/, test/, testannot/ in it"),
        ("mini", "EMPTY", "makes its own data; leave DATA out"),
        ("../profiles/mini", None, "PROFILE=../profiles/mini: no such profile"),
        ("with_diffusion/camvid", None, "PROFILE=with_diffusion/camvid: no such profile"),
        ("a\nb", None, r"PROFILE='a\nb': no such profile"),
    ],
)
def test_wrong_arguments_give_one_message(profile, data, message, tmp_path, monkeypatch, capsys):
    data = str(tmp_path) if data == "EMPTY" else data
    arguments = ["reproduce.py", profile, *(["--data", data] if data is not None else [])]
    monkeypatch.setattr(sys, "argv", arguments)
    assert reproduce.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--cores=abc", "CORES=abc: expected a whole number of at least 1"),
        ("--cores=0", "CORES=0: expected a whole number of at least 1"),
        ("--cores=1.5", "CORES=1.5: expected a whole number of at least 1"),
        ("--cluster=slum", "CLUSTER=slum: no such cluster; expected nothing or one of slurm"),
        ("--cluster=../profiles/slurm", "CLUSTER=../profiles/slurm: no such cluster"),
    ],
)
def test_wrong_options_give_one_message(option, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "mini", option])
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
