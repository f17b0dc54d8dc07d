"""The house: which folder may import which, no circles, and a method that is read in one sitting."""

import ast
import re
from pathlib import Path

import zodi

ROOT = Path(zodi.__file__).parent
# From the ground up; a folder imports from those before it only.
FLOORS = ("support", "networks", "generators", "method", "tools", "miniature", "studies")
MODULES = 14
LINES = 3900
BESIDE = ("__init__", "__main__")


def floor(file: Path) -> str:
    folder = file.relative_to(ROOT).parts[0]
    if folder == "__main__.py":
        # The command line calls what people do with the method.
        return "tools"
    return folder if folder in FLOORS else "method"


def imports(file: Path) -> set[Path]:
    """Files of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            path = ROOT.parent.joinpath(*name.split("."))
            found |= {candidate for candidate in (path.with_suffix(".py"), path / "__init__.py") if candidate.is_file()}
    return {path for path in found if path.is_relative_to(ROOT)}


FILES = sorted(ROOT.rglob("*.py"))
GRAPH = {file: imports(file) for file in FILES}


def test_imports_go_down_only():
    wrong = [
        f"{file.relative_to(ROOT)} imports {target.relative_to(ROOT)}"
        for file, targets in GRAPH.items()
        for target in targets
        if FLOORS.index(floor(target)) > FLOORS.index(floor(file)) and target != ROOT / "__init__.py"
    ]
    assert wrong == []


def test_there_is_no_circle():
    done: set[Path] = set()

    def visit(file: Path, path: tuple[Path, ...]) -> None:
        assert file not in path, " -> ".join(str(step.relative_to(ROOT)) for step in (*path, file))
        if file not in done:
            for target in GRAPH[file]:
                visit(target, (*path, file))
            done.add(file)

    for file in FILES:
        visit(file, ())
    assert len(done) == len(FILES)


def test_the_method_is_small():
    files = [file for file in FILES if floor(file) == "method"]
    modules = [file.stem for file in files if file.stem not in BESIDE]
    files = [file for file in files if file.stem not in BESIDE]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert len(modules) <= MODULES, modules
    assert lines <= LINES, f"{lines} lines"


def test_the_reading_order_names_every_module_of_the_method():
    modules = {file.stem for file in FILES if floor(file) == "method"} - {*BESIDE}
    readme = (ROOT.parent / "README.md").read_text(encoding="utf-8")
    for text in (zodi.__doc__, readme):
        order = re.findall(r"`(?:zodi\.)?(\w+)`", text)
        assert modules <= set(order), sorted(modules - set(order))


def test_tests_mirror_the_folders():
    tests = Path(__file__).parent
    assert all(
        (tests / name).is_dir() and list((tests / name).glob("test_*.py")) for name in FLOORS if name != "method"
    )
