"""The pages beside the notebooks: glossary, troubleshooting, syllabus. What they quote and link exists."""

import argparse
import ast
import functools
import itertools
import json
import re
from pathlib import Path

import jupytext
import pytest
import yaml

from zodi import __main__ as method
from zodi.adaptation import RECIPES
from zodi.labels import LABEL_SETS
from zodi.miniature import __main__ as miniature
from zodi.studies import __main__ as studies
from zodi.transfer import METHODS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "notebooks").glob("*.md"))
TROUBLES = (ROOT / "notebooks" / "troubleshooting.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8")
# Notebooks whose header links the pages; the others follow.
LINKING = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))


PROGRAMS = {"zodi": method.COMMANDS, "zodi.miniature": miniature.COMMANDS, "zodi.studies": studies.COMMANDS}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The text of a page; of a notebook its cells of text."""
    if page.suffix == ".md":
        return read(page)
    return "\n".join(cell.source for cell in jupytext.read(page).cells if cell.cell_type == "markdown")


def texts_of_the_code() -> set[str]:
    """Every constant text of the package and its scripts, f-strings in their constant parts."""
    files = [path for folder in ("zodi", "workflow", "data_scripts") for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_quoted_message_is_in_the_code():
    quoted = re.findall(r"```text\n(.+?)\n```", TROUBLES, re.DOTALL)
    assert len(quoted) == 11 == len(re.findall(r"^## \d+\. ", TROUBLES, re.MULTILINE))
    texts = texts_of_the_code()
    for message in quoted:
        parts = [part for part in message.split("…") if re.search(r"[a-z]{3}", part)]
        assert parts and "\n" not in message, message
        for part in parts:
            assert any(part.strip() in text for text in texts), f"no message of the code has {part!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert text.startswith("# ") and len(links) >= 3
    assert not [link for link in links if not (page.parent / link).exists()]


def test_commands_of_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: ([\w-]+)$", makefile, flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"`make ([\w-]+)", text)) <= targets, page.name
        scripts = re.findall(r"python (data_scripts/\w+\.py)", text)
        assert not [name for name in scripts if not (ROOT / name).is_file()], page.name


@functools.cache
def options_of_the_code() -> set[str]:
    """Every option of the package's commands and of the scripts for data sets."""
    found = set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', "".join(map(read, (ROOT / "data_scripts").glob("*.py")))))
    for command in itertools.chain.from_iterable(commands.values() for commands in PROGRAMS.values()):
        parser = argparse.ArgumentParser(add_help=False)
        command.add_options(parser)
        found |= {option for action in parser._actions for option in action.option_strings}
    return found


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda path: path.stem)
def test_commands_and_options_that_a_page_quotes_exist(page):
    text = prose(page)
    for program, name in re.findall(r"python -m (zodi[.\w]*) ([a-z]+)", text):
        assert name in PROGRAMS[program]
    # Where an option is named, it stands in a span of code.
    spans = re.findall(r"`([^`\n]+)`|^((?:\.venv/bin/)?python .+)$", text, re.MULTILINE)
    named = {option for span in spans for option in re.findall(r"(?<!\S)(--[a-z][\w-]*)", " ".join(span))}
    assert not named - options_of_the_code()
    verbs = re.findall(r"python data_scripts/(\w+)\.py(?: --\w+ \S+)* (\w+)", text)
    for script, verb in verbs:
        scripts = ("".join(read(ROOT / "data_scripts" / f"{name}.py")) for name in (script, "dataset"))
        assert f'"{verb}"' in "".join(scripts), (script, verb)


def test_names_that_troubleshooting_gives_exist():
    """Values of options, settings and notebook parameters, as a reader would type them."""
    assert "cityscapes_ids" in LABEL_SETS and "`--label-set cityscapes_ids`" in TROUBLES
    for name, known in {"camvid": LABEL_SETS, "vae_round_trip": METHODS, "transformer": RECIPES}.items():
        assert name in known and re.search(rf"\b{name}\b", TROUBLES), name
    (profiles,) = re.findall(r"The profiles (.+?) need none", TROUBLES)
    names = re.findall(r"`(\w+)`", profiles)
    assert len(names) == 3
    for name in names:
        profile = yaml.safe_load(read(ROOT / "workflow" / "profiles" / f"{name}.yaml"))
        assert str(profile["data"]).startswith("-m zodi.miniature"), name
    (setting,) = re.findall(r"set `(\w+ = \w+)` in\n?\s*\[notebook 11\]", TROUBLES)
    assert f"{setting.split()[0]}: bool" in read(ROOT / "notebooks" / "11_stable_diffusion.py")
    assert any("colour label image must be converted to class ids first" in text for text in texts_of_the_code())


def test_the_glossary_explains_each_word_once():
    words = re.findall(r"^\| ([^|]+) \|", GLOSSARY, re.MULTILINE)
    words = [word.strip() for word in words if word.strip() not in ("word", "symbol") and "---" not in word]
    assert len(words) == len({*words}) > 50
    for word in ("$z_t$", "regret", "fidelity", "candidate", "held-out images", "oracle", "GAP", "`train_id`", "$s$"):
        assert word in words, word


def test_the_syllabus_uses_every_notebook_of_the_course():
    text = (ROOT / "notebooks" / "syllabus.md").read_text(encoding="utf-8")
    course = [path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")]
    assert not [name for name in course if name not in text]


@pytest.mark.parametrize("name", LINKING)
def test_a_notebook_links_glossary_and_troubleshooting(name):
    text = (ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    assert "(glossary.md)" in text and "(troubleshooting.md)" in text


def test_the_readme_links_the_pages():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in PAGES if f"(notebooks/{page.name})" not in readme]


def test_devcontainer_names_what_exists():
    file = ROOT / ".devcontainer" / "devcontainer.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    assert {"name", "image", "postCreateCommand", "customizations"} <= {*settings}
    lowest = re.search(r"^python:(3\.\d+)-", settings["image"])[1]
    assert tuple(map(int, lowest.split("."))) >= (3, 11)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([\w-]+)", settings["postCreateCommand"]):
        assert f".PHONY: {target}" in makefile
    code = settings["customizations"]["vscode"]
    assert "ms-toolsai.jupyter" in code["extensions"]
    interpreter = code["settings"]["python.defaultInterpreterPath"]
    assert interpreter.removeprefix("${containerWorkspaceFolder}/") == ".venv/bin/python", "where make puts it"
    opened = settings["customizations"]["codespaces"]["openFiles"]
    assert opened and not [name for name in opened if not (ROOT / name).is_file()]
