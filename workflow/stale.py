"""What a job depends on, and what happens to results that depend on something else.

A job's code is its notebook or command and the modules that it imports, followed statically. Comments, docstrings, a
notebook's prose and its cells for readers do not count, and modules that only draw count only for jobs whose result is
a figure. Every job records in its folder what it was made from, `inputs.json`, and at its end what it has made,
`outputs.json`. What an outdated run left there, and what is no longer as it was made, is moved aside, never deleted.
"""

import ast
import fcntl
import functools
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import twins

from zodi.support.files import clear_leftovers, read_json, write_json

ROOT = Path(__file__).parent.parent
INPUTS_FILE = "inputs.json"
OUTPUTS_FILE = "outputs.json"
# The files that end a run, whoever makes them; a run without one is not finished.
ENDS = ("metrics.json", "dataset.json")
# Entries of metrics.json that differ from run to run and change nothing.
NO_RESULT = ("seconds", "environment")
# These are compared by content, everything else by size.
TEXT = (".json", ".jsonl", ".csv", ".md")
# What later stages may add to a run's folder, and what is no longer useful.
NOT_MADE = ("packed", "stale")
# These determine what a figure looks like, but no number.
DRAWING = ("zodi/support/plots.py", "zodi/support/explore.py")


def code_of(entry: str, draws: bool = True, root: Path = ROOT) -> dict[str, str]:
    """The files of code that a job runs, each with a digest of what it says.

    Args:
        entry: a script or text twin, relative to `root`, or `FILE:COMMAND` for the function `_COMMAND` of a file and
            what it calls there.
        draws: whether the job's result is a figure.
        root: the checkout.

    Raises:
        ValueError: if there is no such file or function.
    """
    found = dict(_code_of(entry, root))
    return found if draws else {path: digest for path, digest in found.items() if path not in DRAWING}


@functools.cache
def _code_of(entry: str, root: Path) -> tuple[tuple[str, str], ...]:
    path, _, function = entry.partition(":")
    found: dict[str, str] = {}
    waiting = [root / path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(root).as_posix()
        if name in found:
            continue
        nodes = _nodes(file, function if name == path else "")
        found[name] = hashlib.sha256("\n".join(map(ast.dump, nodes)).encode()).hexdigest()[:12]
        waiting += [target for module in _imported(nodes) for target in _files(module, file.parent, root)]
    return tuple(sorted(found.items()))


def _nodes(file: Path, function: str) -> list[ast.AST]:
    """The statements of a file without docstrings, or its imports and a function with all that it calls in the file."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); expected the code of a job") from None
    tree = ast.parse(twins.computation(text) if file.parent.name == "notebooks" else text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            # A statement that is only a constant does nothing; `...` alone leaves an empty body, which is hashed too.
            del body[0]
    if not function:
        return tree.body
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if f"_{function}" not in functions:
        raise ValueError(f"{file}: found no function _{function}, expected one of {sorted(functions)}")
    reached, waiting = set(), [f"_{function}"]
    while waiting:
        name = waiting.pop()
        if name in functions and name not in reached:
            reached.add(name)
            waiting += [node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)]
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imports + [functions[name] for name in sorted(reached)]


def _imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names of modules that may be imported; `from a import b` may mean `a.b`."""
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(module: str, folder: Path, root: Path) -> list[Path]:
    """Our files that importing a module runs: its packages' and its own; scripts import their neighbours."""
    parts = module.split(".")
    if parts[0] != "zodi":
        neighbours = (folder / f"{parts[0]}.py", root / "data_scripts" / f"{parts[0]}.py")
        return [file for file in neighbours if file.is_file()]
    packages = [root.joinpath(*parts[:count], "__init__.py") for count in range(1, len(parts) + 1)]
    return [file for file in (*packages, root.joinpath(*parts).with_suffix(".py")) if file.is_file()]


# ---------------------------------------------------------------- what a run was made from


def made_from(entry: str, draws: bool, inputs: Iterable[Path], parameters: Any) -> dict[str, Any]:
    """What determines a job's result: its code, its parameters, and the content of its input files."""
    digests = {str(path): hashlib.sha256(_content(path)).hexdigest()[:12] for path in inputs}
    code = code_of(entry, draws)
    return {"entry": entry, "draws": draws, "code": code, "parameters": parameters, "inputs": digests}


def _content(path: Path) -> bytes:
    """What a file says; for a run's metrics.json, without how long the run took and on which machine."""
    content = path.read_bytes()
    if path.name not in ENDS:
        return content
    try:
        found = json.loads(content)
    except ValueError:
        return content
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if key not in NO_RESULT}
    return json.dumps(found, sort_keys=True).encode()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What has changed between two results of `made_from`, one phrase each, with code and files that only one has."""
    if not old.keys() >= {"entry", "draws", "code", "parameters", "inputs"}:
        return ["it was made by an earlier version of the workflow"]
    phrases = []
    for kind in ("code", "inputs", "parameters"):
        before, after = (x[kind] if isinstance(x[kind], dict) else {"the command": x[kind]} for x in (old, new))
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                values = f" ({before.get(name)!r} -> {after.get(name)!r})" if kind == "parameters" else ""
                phrases.append(f"{name} has changed{values}")
    return phrases


def why(out: Path) -> list[str]:
    """What has changed since the run in `out` was made; its parameters are assumed to be the same."""
    file = out / INPUTS_FILE
    if not file.exists():
        return []
    old = _read(file)
    try:
        new = made_from(old["entry"], old["draws"], map(Path, old["inputs"]), old["parameters"])
    except KeyError:
        return differences(old, {})
    except (OSError, ValueError) as error:
        return [str(error)]
    return differences(old, new)


def _read(file: Path) -> dict[str, Any]:
    """A record of ours; {} if it is damaged."""
    try:
        found = read_json(file)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def claim(results: Path, out: Path, now: dict[str, Any], alone: bool = True) -> None:
    """Make `out` the folder of a run: one with the same code, inputs and parameters continues, another is moved aside.

    Args:
        results: the profile's results folder; what is moved goes to `stale/` there, and a line on stderr says so.
        out: the run's folder, below `results`.
        now: from `made_from`.
        alone: whether no other job writes to the folder now; if so, files that killed runs left half-written are
            deleted.
    """
    file = out / INPUTS_FILE
    with _alone(results):
        if file.exists():
            changed = differences(_read(file), now)
            if changed:
                aside = _aside(results, out)
                aside.parent.mkdir(parents=True, exist_ok=True)
                out.rename(aside)
                print(f"moved aside to {aside}: {'; '.join(changed)}", file=sys.stderr)
        out.mkdir(parents=True, exist_ok=True)
        if alone:
            clear_leftovers(out)
        (out / OUTPUTS_FILE).unlink(missing_ok=True)
        write_json(file, now)


def _aside(results: Path, out: Path) -> Path:
    """The path of a new folder for what is moved out of a run's folder."""
    aside = results / "stale" / out.relative_to(results) / time.strftime("%Y-%m-%d-%H%M%S")
    names = (aside, *(aside.with_name(f"{aside.name}-{count}") for count in range(2, 1000)))
    return next(path for path in names if not path.exists())


@contextmanager
def _alone(results: Path) -> Iterator[None]:
    """Shards of one transfer start side by side; one of them moves the folder."""
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".claim").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------- what a run has made


def record(
    out: Path, end: str, now: dict[str, Any], notebook: Path | None = None, took: dict[str, Any] | None = None
) -> None:
    """Record what a finished run has made, with sizes and, for text files, checksums: `OUT/outputs.json`.

    Args:
        out: the run's folder.
        end: name of the file in it that ends the run.
        now: from `made_from`; written again, because a stage may have replaced the whole folder.
        notebook: the executed notebook, which is elsewhere.
        took: the job's `rule` and its `seconds`, if they are known.

    Raises:
        ValueError: if the run has not written the file that ends it.
    """
    if not (out / end).is_file():
        raise ValueError(f"{out / end}: found no such file, expected the run to write it at its end; see its log")
    write_json(out / INPUTS_FILE, now)
    files = {name: _state(out / name) for name in sorted(_made(out))}
    log = None if notebook is None else Path(os.path.relpath(notebook, out)).as_posix()
    write_json(out / OUTPUTS_FILE, {"end": end, "notebook": log, "files": files} | (took or {}))


def _made(out: Path) -> Iterator[str]:
    """Names of the files in a run's folder, except hidden ones and our records."""
    for folder, folders, files in os.walk(out):
        folders[:] = [name for name in folders if name[0] != "." and name not in NOT_MADE]
        relative = Path(folder).relative_to(out)
        names = [(relative / name).as_posix() for name in files if name[0] != "."]
        yield from (name for name in names if name not in (INPUTS_FILE, OUTPUTS_FILE))


def _state(file: Path) -> dict[str, Any]:
    """Size of a file and, for a text file, its checksum."""
    state: dict[str, Any] = {"bytes": file.stat().st_size}
    if file.suffix in TEXT:
        state["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return state


def damage(out: Path) -> dict[str, str]:
    """What is no longer as a finished run made it: file, relative to `out` -> what was found.

    A run without a record, from an earlier version of the workflow or unfinished, has none.
    """
    if not (out / OUTPUTS_FILE).is_file():
        return {}
    made = _read(out / OUTPUTS_FILE)
    if not isinstance(made.get("files"), dict) or "notebook" not in made:
        return {OUTPUTS_FILE: "found a damaged record"}
    found = {name: _difference(out / name, state) for name, state in made["files"].items()}
    if made["notebook"] is not None:
        found[made["notebook"]] = _notebook_problem(out / made["notebook"])
    return {name: problem for name, problem in found.items() if problem}


def _difference(file: Path, state: dict[str, Any]) -> str:
    try:
        if (size := file.stat().st_size) != state["bytes"]:
            return f"found {size} bytes, expected {state['bytes']}"
        return "" if _state(file) == state else "found other content than the run wrote"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _notebook_problem(file: Path) -> str:
    # Its size may change: Jupyter saves a notebook that is only viewed.
    try:
        return "" if read_json(file)["cells"] else "found no cells"
    except FileNotFoundError:
        return "is gone"
    except (OSError, ValueError, KeyError, TypeError):
        return "found an incomplete notebook"


def check_inputs(inputs: Iterable[Path]) -> None:
    """Check that runs whose results are read are still as they were made.

    Args:
        inputs: files, each in the folder of the run that made it.

    Raises:
        ValueError: naming the first file that is not.
    """
    for folder in dict.fromkeys(file.parent for file in inputs if file.name in ENDS):
        for name, problem in damage(folder).items():
            raise ValueError(
                f"{os.path.normpath(folder / name)}: {problem}; `make reproduce` with the same settings makes it again"
            )


def seconds_by_rule(results: Path) -> dict[str, float]:
    """How long the finished jobs below `results` took, outdated ones too: rule -> median, seconds."""
    found: dict[str, list[float]] = {}
    for folder, folders, files in os.walk(results):
        if OUTPUTS_FILE not in files:
            continue
        # A run's folder holds no other run.
        folders.clear()
        made = _read(Path(folder) / OUTPUTS_FILE)
        if made.get("rule") and isinstance(made.get("seconds"), int | float):
            found.setdefault(made["rule"], []).append(made["seconds"])
    return {rule: statistics.median(values) for rule, values in found.items()}


def unfinished(results: Path) -> list[Path]:
    """Missing files below `results` that end a run, although it was started or another one was made from it.

    Snakemake does not notice while the results that were made from them are there.
    """
    gone: set[Path] = set()
    for folder, folders, files in os.walk(results):
        # A run's folder holds no other run.
        folders[:] = [] if INPUTS_FILE in files else [x for x in folders if x[0] != "." and x not in NOT_MADE]
        if INPUTS_FILE not in files:
            continue
        if not set(ENDS) & set(files):
            gone |= {Path(folder) / name for name in ENDS}
        inputs = _read(Path(folder) / INPUTS_FILE).get("inputs")
        # Recorded as seen from the checkout.
        gone |= {file for name in inputs or () if results in (file := ROOT / name).parents and not file.exists()}
    return sorted(gone)


def damaged_runs(results: Path) -> dict[Path, dict[str, str]]:
    """Every run below `results` that is no longer as it was made: its folder -> `damage`."""
    runs = {}
    for folder, folders, files in os.walk(results):
        # A run's folder holds no other run.
        folders[:] = [] if OUTPUTS_FILE in files else [x for x in folders if x[0] != "." and x not in NOT_MADE]
        if OUTPUTS_FILE in files and (problems := damage(Path(folder))):
            runs[Path(folder)] = problems
    return dict(sorted(runs.items()))


def set_aside(results: Path, out: Path, problems: dict[str, str]) -> Path:
    """Move away what is damaged and the file that ends the run: the run is made again and continues from the rest.

    Args:
        results: the profile's results folder; what is moved goes to `stale/` there.
        out: the run's folder, below `results`.
        problems: from `damage`.

    Returns:
        Where it is now.
    """
    with _alone(results):
        aside = _aside(results, out)
        aside.mkdir(parents=True)
        for name in dict.fromkeys((*problems, *ENDS, OUTPUTS_FILE)):
            file = out / name
            if file.is_file():
                # The executed notebook is outside the folder.
                target = aside / (file.name if ".." in Path(name).parts else name)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    return aside
