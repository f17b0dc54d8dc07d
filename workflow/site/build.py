"""Build the course's site from README, executed notebooks and docstrings, without a network: `make site`.

    python workflow/site/build.py build/site

FOLDER and its neighbour FOLDER-source are deleted first. Sphinx needs one source tree, so the neighbour gets copies
arranged as in the repository: the links between README and notebooks work unchanged. No notebook is executed. Every
warning counts as an error in the exit code; the pages are built anyway.
"""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

ROOT = Path(__file__).parents[2]
IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?://)([^)\s]+)\)")


def short_title(page: Path) -> str:
    """The title of a notebook or of a page up to the colon, for the sidebar.

    Raises:
        ValueError: if its first line is not a title.
    """
    text = page.read_text(encoding="utf-8")
    first = ("".join(json.loads(text)["cells"][0]["source"]) if page.suffix == ".ipynb" else text).splitlines()[0]
    if not first.startswith("# "):
        raise ValueError(f"{page}: found {first!r} in its first line, expected a title like '# 05 · Name: subtitle'")
    return first.removeprefix("# ").partition(":")[0]


def toctree(caption: str, entries: list[str]) -> str:
    """A part of the sidebar."""
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])


def collect_course(source: Path) -> None:
    """README with its images, notebooks, the pages beside them, and a landing page: the README and a list of all."""
    readme = ROOT / "README.md"
    files = [readme, *sorted(path for kind in ("*.ipynb", "*.md") for path in (ROOT / "notebooks").glob(kind))]
    files += [ROOT / path for path in IMAGE.findall(readme.read_text(encoding="utf-8"))]
    for file in files:
        copy = source / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    parts = {"Course": [], "Appendix": [], "Help": []}
    for path in (path for path in files if path.parent.name == "notebooks"):
        part = "Help" if path.suffix == ".md" else "Appendix" if path.name.startswith("A") else "Course"
        parts[part].append(f"{short_title(path)} <notebooks/{path.stem}>")
    trees = [toctree(caption, entries) for caption, entries in {**parts, "Reference": ["api/index"]}.items()]
    text = "\n".join(["```{include} README.md", "```", "", *trees])
    (source / "index.md").write_text(text, encoding="utf-8")


def public_modules() -> list[str]:
    """The public modules of `zodi`, as `transfer` and `support.runs`, folder by folder."""
    paths = [path.relative_to(ROOT / "zodi").with_suffix("") for path in (ROOT / "zodi").rglob("[!_]*.py")]
    return [".".join(path.parts) for path in sorted(paths, key=lambda path: (path.parent != Path(), path.parts))]


def collect_reference(source: Path) -> None:
    """One page per public module of `zodi`, and their list: the method first, then what is around it."""
    folder = source / "api"
    folder.mkdir()
    rows: dict[str, list[str]] = {}
    for module in public_modules():
        name, file = f"zodi.{module}", ROOT / "zodi" / f"{module.replace('.', '/')}.py"
        page = [name, "=" * len(name), "", f".. automodule:: {name}", "   :members:", ""]
        (folder / f"{module}.rst").write_text("\n".join(page), encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        summary = docstring.partition("\n\n")[0].replace("\n", " ")
        rows.setdefault(name.rpartition(".")[0], []).append(f":doc:`{name} <{module}>`\n   {summary}")
    title = "The package zodi"
    text = [title, "=" * len(title), "", ".. toctree::", "   :hidden:", "   :glob:", "", "   *", ""]
    for package, entries in rows.items():
        heading = "The method" if package == "zodi" else package
        text += [heading, "-" * len(heading), "", *entries, ""]
    text += ["All names from A to Z: :ref:`genindex`.", ""]
    (folder / "index.rst").write_text("\n".join(text), encoding="utf-8")


def main(folder: Path) -> int:
    """Build the site into `folder`; returns Sphinx's exit code."""
    source = folder.with_name(f"{folder.name}-source")
    for old in (folder, source):
        shutil.rmtree(old, ignore_errors=True)
    source.mkdir(parents=True)
    collect_course(source)
    collect_reference(source)
    options = ["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), "-d", str(source / ".doctrees")]
    code = sphinx_build([*options, str(source), str(folder)])
    print(f"{folder / 'index.html'}: {'built' if code == 0 else 'built with the warnings above'}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except ValueError as error:
        sys.exit(f"error: {error}")
