"""The pages beside the notebooks: glossary, troubleshooting, syllabus. What they quote and link exists."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "notebooks").glob("*.md"))
TROUBLES = (ROOT / "notebooks" / "troubleshooting.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8")
# Notebooks whose header links the pages; the others follow.
LINKING = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))


def texts_of_the_code() -> set[str]:
    """Every constant text of the package and its scripts, f-strings in their constant parts."""
    files = [path for folder in ("zodi", "workflow", "data_scripts") for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_quoted_message_is_in_the_code():
    quoted = re.findall(r"```text\n(.+?)\n```", TROUBLES, re.DOTALL)
    assert len(quoted) == 10 == len(re.findall(r"^## \d+\. ", TROUBLES, re.MULTILINE))
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
