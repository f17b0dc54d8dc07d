"""Set-up files: the lock, environment.yml, the Makefile and what is installed with the package."""

import re
import subprocess
import tomllib
from pathlib import Path

import conda_environment
import pytest
import record
import yaml

from zodi.studies.quality import read_results

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_lock_has_a_hash_for_every_package_and_nothing_but_names_versions_and_hashes():
    requirements = re.split(r"\n(?! )", LOCK.rstrip("\n"))
    pattern = re.compile(r"[a-z0-9._-]+==[\w.!+]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+")
    assert [text for text in requirements if not pattern.fullmatch(text)] == []
    assert "://" not in LOCK


def test_lock_satisfies_every_direct_dependency():
    def numbers(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", version)]

    locked = conda_environment.locked_versions(LOCK)
    project = PROJECT["project"]
    for group in [project["dependencies"], *project["optional-dependencies"].values()]:
        for requirement in group:
            name, lowest = requirement.split(">=")
            assert numbers(locked[name]) >= numbers(lowest), f"{requirement}: run `make lock`"


def test_environment_yml_says_the_versions_of_the_lock():
    found = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert found == conda_environment.environment(), "run `make lock`"
    (pip,) = [item["pip"] for item in found["dependencies"] if isinstance(item, dict)]
    assert f"torch=={conda_environment.locked_versions(LOCK)['torch']}" in pip


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (\w+)$", text, flags=re.MULTILINE)) - {"python"}
    assert {
        "setup",
        "lab",
        "reproduce",
        "quality",
        "record",
        "test",
        "lint",
        "lock",
        "sync",
        "notebooks",
        "clean",
    } <= targets
    result = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert targets == set(re.findall(r"^  (\w+) ", result.stdout, flags=re.MULTILINE))


def test_ci_calls_the_tests_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text(encoding="utf-8").splitlines()[-2:] == ["make test", "make test-browser"]


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_record_without_results_leaves_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    paths = ("MINI", "MINI_RECORD", "FULL", "FULL_RECORD", "QUALITY", "QUALITY_RECORD", "README")
    paths += ("ESTIMATION", "ESTIMATION_RECORD", "CAMVID")
    for name in paths:
        monkeypatch.setattr(record, name, tmp_path / name.lower())
    assert record.main() == 0
    assert capsys.readouterr().out.count("its record stays") == 5 and not list(tmp_path.iterdir())


def test_record_of_a_measurement_is_a_copy_of_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "QUALITY", tmp_path / "quality")
    monkeypatch.setattr(record, "QUALITY_RECORD", tmp_path / "records" / "quality")
    (tmp_path / "quality").mkdir()
    for name in ("images.csv", "mIoU.csv", "gap_closed.csv", "similarity.csv", "verdicts.csv", "metrics.json"):
        (tmp_path / "quality" / name).write_text(f"a\n{name}\n")
    record.record_quality()
    assert (tmp_path / "records" / "quality" / "verdicts.csv").read_text() == "a\nverdicts.csv\n"
    assert list(read_results(tmp_path / "records" / "quality")) == list(record.RESULT_TABLES)
    with pytest.raises(FileNotFoundError, match="make quality"):
        read_results(tmp_path / "empty")


def test_links_and_commands_of_the_readme_exist():
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert len(links) > 6 and not [link for link in links if not (ROOT / link).exists()]
    badges = re.findall(r"blob/[\w.]+/([\w/]+\.ipynb)", README)
    assert sorted(badges) == sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*.ipynb"))
    targets = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
    assert targets <= set(re.findall(r"^\.PHONY: (\w+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    profiles = set(re.findall(r"PROFILE=(\w+)", README)) - {"PROFILE"}
    assert not [name for name in profiles if not (ROOT / "workflow" / "profiles" / f"{name}.yaml").exists()]


def test_weights_are_package_data():
    weights = sorted((ROOT / "zodi" / "weights").glob("**/*.safetensors"))
    assert {"segmenter_mini.safetensors", "diffusion_pytorch_model.safetensors"} <= {path.name for path in weights}
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["zodi"]
    packaged = {path for pattern in patterns for path in (ROOT / "zodi").glob(pattern)}
    assert set(weights) <= packaged
