"""Files that are complete or absent: atomic writes, JSON for what we keep, and folders shared by processes.

Loads neither torch nor numpy.
"""

import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks; there the leftovers of killed runs stay.
    fcntl = None

LOCK_FILE = ".lock"
DIGESTS_FILE = "digests.json"
# Smaller files are quicker to read than to cache.
CACHED_FROM_BYTES = 2**26
# How libraries that raise no OSError say that a disk is full: torch, safetensors.
_FULL = ("unexpected pos", "No space left on device", "Disk quota exceeded")

# ---------------------------------------------------------------- complete or absent


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write to a temporary name and rename onto `path` at the end, so that nobody ever sees a half-written result.

    Args:
        path: the file or folder to make; parents are created. An existing file or folder there is replaced.

    Yields:
        A path in the same folder (same file system, same suffix) that does not exist yet: write a file or make a
        folder there. If the block raises, it is deleted and `path` stays as it was.

    Raises:
        FileNotFoundError: if the block ends without having written anything.
        OSError: naming `path`, if the disk is full, whatever the block itself raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name is short and not derived from the file's, which may be as long as the file system allows.
    workspace = path.parent / f".{secrets.token_hex(4)}.partial"
    workspace.mkdir()
    temporary = workspace / path.name
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"{path}: nothing was written to the temporary path {temporary}")
        if path.is_dir():
            # A folder cannot be renamed onto one that has content: move the old one out of the way first.
            path.rename(workspace / "replaced")
        temporary.replace(path)
    except Exception as error:
        if not is_disk_full(error):
            raise
        full = OSError(
            f"{path}: cannot be written, the disk is full ({one_line(error.__cause__ or error)}); free some space and "
            "run the same command again"
        )
        full.errno = errno.ENOSPC
        raise full from (error.__cause__ or error)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def clear_leftovers(folder: str | Path) -> int:
    """Delete what killed runs left of `atomic_path` below `folder`, where nobody else may write; returns how many."""
    leftovers = [path for path in Path(folder).rglob(".*.partial") if not path.is_symlink()]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


# ---------------------------------------------------------------- JSON


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically; NaN becomes null because JSON has no NaN.

    Args:
        path: file to write; parents are created.
        value: dicts, lists, strings, numbers, None, dataclasses, paths, numpy scalars and arrays, torch tensors.

    Returns:
        The path written.
    """
    path = Path(path)
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        # A name that is not UTF-8 is written as the JSON escape that restores it.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def create_json(path: str | Path, value: Any) -> bool:
    """Like `write_json`, but only the first of all processes writes: never replaces a file.

    Returns:
        Whether this call wrote it; if not, another process's complete file is there.
    """
    path = Path(path)
    if path.exists():
        return False
    temporary = path.parent / f".{secrets.token_hex(4)}.partial"
    write_json(temporary, value)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links.
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(temporary.read_text(encoding="utf-8"))
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not JSON; names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the stage that writes it first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from None


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of a file with one JSON value per line; lines that are not JSON, as killed runs leave, are skipped."""
    values = []
    # Only "\n" ends a line: names may contain what Unicode counts as one.
    for line in Path(path).read_bytes().split(b"\n"):
        with suppress(ValueError, RecursionError):
            values.append(json.loads(line))
    return values


def to_plain(value: Any) -> Any:
    """Turn dataclasses, mappings, paths, numpy and torch values into JSON's types; NaN and infinity become None.

    Raises:
        TypeError: for anything else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's and torch's, without loading either
        return to_plain(value.tolist())
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")


# ---------------------------------------------------------------- messages


def folder_name(name: str) -> str:
    """A network's name as one part of a path: `DeepLabV3Plus-tu-resnet10t` for `DeepLabV3Plus/tu-resnet10t`."""
    return re.sub(r"[/:\\]+", "-", name)


def one_line(error: BaseException) -> str:
    """An error's message as one printable line of at most 300 characters; its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(text if len(text) <= 300 else f"{text[:297]}...")


def printable(text: object) -> str:
    """The text, with bytes of names that are not UTF-8 written as escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


# ---------------------------------------------------------------- folders and disks


def check_apart(out: str | Path, *inputs: str | Path) -> None:
    """Refuse a folder of results that is, contains or is inside a folder of inputs, with links resolved.

    Raises:
        ValueError: naming both.
    """
    results = Path(out).resolve()
    for folder in inputs:
        found = Path(folder).resolve()
        if results == found or results in found.parents or found in results.parents:
            raise ValueError(
                f"{out}: found results and the input {folder} in one place, expected separate folders, so that no "
                "result is read as input or written over it; choose another folder"
            )


def check_disk(folder: str | Path, needed: int, advice: str = "Free some space or choose another folder.") -> None:
    """Refuse to start a run whose results may not fit on the disk.

    Args:
        folder: where it would be written; it need not exist yet.
        needed: bytes.
        advice: what to do, a sentence.

    Raises:
        OSError: if fewer bytes are free; names the folder and both numbers.
    """
    existing = Path(folder).resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{folder}: not enough disk space, up to {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are "
            f"free. {advice}"
        )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's quota on it, is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(text in str(error) for text in _FULL)


@contextmanager
def disk_full_named(path: str | Path) -> Iterator[None]:
    """Turn whatever a library raises when the disk is full into one OSError that names the file."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise OSError(
            f"{path}: the disk is full ({one_line(error)}). What was saved before is kept: free some space and run "
            "the same command again"
        ) from error


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Hold a folder that several processes may write to; whichever finds it free clears the leftovers of killed ones.

    The system releases the hold of a killed process. Where a file system has no locks, leftovers stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clear_leftovers(folder)
        except (OSError, AttributeError):
            pass
        with suppress(OSError, AttributeError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


# ---------------------------------------------------------------- digests of large files


def file_stamp(path: str | Path) -> list[int]:
    """Size and times of change, which differ once a file has been rewritten."""
    stat = Path(path).stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def cached_digest(path: str | Path, compute: Callable[[Path], str]) -> str:
    """`compute` of a file; for large files the result is kept in XDG_CACHE_HOME/zodi until their stamp changes.

    A cache that cannot be read or written costs time, never an error.
    """
    path = Path(path).resolve()
    stamp = file_stamp(path)
    if stamp[0] < CACHED_FROM_BYTES:
        return compute(path)
    known: dict[str, Any] = {}
    cache = None
    with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zodi" / DIGESTS_FILE
        found = read_json(cache)
        known = found if isinstance(found, dict) else {}
    match known.get(str(path)):
        case {"stamp": known_stamp, "digest": str(digest)} if known_stamp == stamp:
            return digest
    digest = compute(path)
    if cache is not None and file_stamp(path) == stamp:
        kept = {name: entry for name, entry in known.items() if os.path.exists(name)}
        with suppress(OSError):
            write_json(cache, kept | {str(path): {"stamp": stamp, "digest": digest}})
    return digest
