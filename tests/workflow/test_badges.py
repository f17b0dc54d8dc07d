"""The repository's address stands in pyproject.toml; badges and Colab cells follow it."""

import json
import re
import shutil
from pathlib import Path

import badges
import jupytext
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TWINS = sorted((ROOT / "notebooks").glob("*.py"))


def expected_badge(name: str) -> str:
    return f"[![Open in Colab]({badges.BADGE})]({badges.badge(name)})"


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_notebook_has_its_badge_and_the_colab_cell(twin):
    cells = jupytext.read(twin).cells
    assert expected_badge(twin.stem) in cells[0].source
    assert badges.bootstrap() in twin.read_text(encoding="utf-8")


def test_the_colab_cell_is_inert_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(badges.bootstrap(), {})
    assert not list(tmp_path.iterdir())


def test_readme_has_a_badge_for_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [twin.stem for twin in TWINS if f"]({badges.badge(twin.stem)})" not in readme] == []
    assert readme.count(badges.BADGE) == len(TWINS)


def test_citation_agrees_with_pyproject():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    slug, tag = badges.address()
    assert citation["repository-code"] == f"https://github.com/{slug}"
    assert f"v{citation['version']}" == tag


def test_another_repository_changes_every_address_and_nothing_else(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in ("README.md", "CITATION.cff", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for file in (*TWINS, *(twin.with_suffix(".ipynb") for twin in TWINS)):
        shutil.copy(file, tmp_path / "notebooks")
    before = {file: file.read_text(encoding="utf-8") for file in tmp_path.rglob("*") if file.is_file()}
    old, tag = badges.address(tmp_path)

    assert badges.rewrite(tmp_path) == []
    changed = badges.rewrite(tmp_path, "someone/fork")
    assert set(changed) == set(before)
    for file in before:
        text = file.read_text(encoding="utf-8")
        assert old not in text
        assert text.replace("someone/fork", old).replace("-q fork/", f"-q {old.split('/')[1]}/") == before[file]
        if file.suffix == ".ipynb":
            assert re.search(
                rf"--branch {re.escape(tag)} https://github.com/someone/fork", json.dumps(json.loads(text))
            )
    badges.rewrite(tmp_path, old)
    assert {file: file.read_text(encoding="utf-8") for file in before} == before


def test_a_new_version_moves_badges_and_cells(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in ("README.md", "CITATION.cff", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(TWINS[0], tmp_path / "notebooks")
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(re.sub(r'version = ".*"', 'version = "7.8.9"', project, count=1))
    badges.rewrite(tmp_path)
    text = (tmp_path / "notebooks" / TWINS[0].name).read_text(encoding="utf-8")
    assert "/blob/v7.8.9/notebooks/" in text and "--branch v7.8.9 " in text
    assert "version: 7.8.9" in (tmp_path / "CITATION.cff").read_text(encoding="utf-8")


def test_a_wrong_repository_is_refused(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with pytest.raises(ValueError, match="expected owner/name"):
        badges.rewrite(tmp_path, "https://github.com/owner/name")
