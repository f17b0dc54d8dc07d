"""Folders of images that several runs fill: claimed for one set of settings, with a line for every complete image.

OUT/settings.json     settings, their hash, and what the run was computed with
OUT/manifest*.jsonl   one line per image: its key, file, size and checksums
OUT/images/KEY.png    the images
OUT/stale/            images that no line vouches for
OUT/preview.png       some of the images, as a grid
OUT/report.json       what the last run did
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from zodi.support.files import atomic_path, create_json, read_json, read_json_lines, to_plain
from zodi.support.pictures import stored_size
from zodi.support.runs import environment, settings_hash

SETTINGS_FILE = "settings.json"
REPORT_FILE = "report.json"
PREVIEW_FILE = "preview.png"
PREVIEW_ROWS = 4
PREVIEW_HEIGHT = 160
_RECORD = {"key": str, "file": str, "bytes": int, "sha256": str, "source_sha256": str, "settings_hash": str}

# ---------------------------------------------------------------- settings


def claim(out: Path, settings: dict[str, Any], device: str | None = None) -> str:
    """Write the settings into `out`, or refuse if others are there; returns their hash.

    Args:
        out: the folder.
        settings: everything that decides the result.
        device: what the first run computes on, see `zodi.support.runs.environment`; others may continue on another.
    """
    file, digest = out / SETTINGS_FILE, settings_hash(settings)
    if create_json(file, {"settings": settings, "settings_hash": digest, "environment": environment(device)}):
        return digest
    found = read_settings(out)
    if settings_hash(found) != digest:
        first, *more = _differences(found, to_plain(settings))
        differing = "; ".join([first, *more[:4], *([f"and {len(more) - 4} more"] if more[4:] else [])])
        raise ValueError(
            f"{out} holds images of another transfer ({differing}). Choose another folder, delete it, or ask "
            "for the settings that are there."
        )
    return digest


def read_settings(out: Path) -> dict[str, Any]:
    """The settings that a folder was claimed for.

    Raises:
        FileNotFoundError: if it was not.
        ValueError: if the file holds something else.
    """
    found = read_json(out / SETTINGS_FILE)
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise ValueError(f"{out / SETTINGS_FILE}: found no settings of a transfer; choose another folder or delete it")
    return found["settings"]


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted({*old, *new}):
        there, asked = old.get(name), new.get(name)
        if isinstance(there, dict) and isinstance(asked, dict):
            yield from _differences(there, asked, f"{prefix}{name}.")
        elif there != asked:
            yield f"{prefix}{name}: {_shown(there)} there, {_shown(asked)} asked for"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# ---------------------------------------------------------------- records


def read_manifest(out: str | Path) -> dict[str, dict[str, Any]]:
    """Records of the finished images of a transferred folder, by key, from all shards; the last one counts."""
    return {key: records[-1] for key, records in read_records(Path(out).expanduser()).items()}


def finished_keys(out: str | Path) -> list[str]:
    """Keys of the images that a transferred folder vouches for: made with its settings, and complete.

    Raises:
        FileNotFoundError: if it has no settings.
        ValueError: if they are damaged.
    """
    out = Path(out).expanduser()
    digest = settings_hash(read_settings(out))
    return sorted(key for key, records in read_records(out).items() if _is_finished(out, records, digest))


def vouched_keys(out: str | Path, keys: list[str]) -> list[str]:
    """Those of `keys` that the manifest of a folder vouches for, warning about the others; all if there is none.

    Raises:
        FileNotFoundError, ValueError: as `finished_keys`.
    """
    out = Path(out).expanduser()
    if not any(out.glob("manifest*.jsonl")):
        return keys
    finished = {*finished_keys(out)}
    others = [key for key in keys if key not in finished]
    if others:
        warnings.warn(
            f"{out}: left out {len(others)} of {len(keys)} images that its manifest does not vouch for, for example "
            f"{others[0]}; run the transfer again",
            stacklevel=2,
        )
    return [key for key in keys if key in finished]


def read_records(out: Path) -> dict[str, list[dict[str, Any]]]:
    """All well-formed records by key."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(out.glob("manifest*.jsonl")):
        for record in read_json_lines(file):
            is_right = isinstance(record, dict) and all(isinstance(record.get(k), v) for k, v in _RECORD.items())
            if is_right and record["file"] == image_file(record["key"]):
                found.setdefault(record["key"], []).append(record)
    return found


def image_file(key: str) -> str | None:
    """Where an image is in the folder; None for a name that would lead out of it."""
    path = PurePosixPath(key)
    return None if path.is_absolute() or ".." in path.parts else f"images/{key}.png"


def finished_of(out: Path, settings_digest: str, sources: dict[str, list[Path]]) -> set[str]:
    """The keys of the images that are finished and whose source files, by key, have not changed since."""
    records = read_records(out)
    return {key for key, files in sources.items() if _is_finished(out, records.get(key, []), settings_digest, files)}


def _is_finished(
    out: Path, records: list[dict[str, Any]], settings_digest: str, sources: list[Path] | None = None
) -> bool:
    """Whether one of an image's records describes the file that is there now."""
    try:
        file = out / records[0]["file"] if records else out
        found = {"bytes": file.stat().st_size, "settings_hash": settings_digest}
        if not any(found.items() <= record.items() for record in records):
            return False
        found["sha256"] = sha256_of(file)
        if sources is not None:
            found["source_sha256"] = sha256_of(*sources)
    except (OSError, ValueError):
        return False
    return any(found.items() <= record.items() for record in records)


def set_aside(out: Path, finished: set[str], others: set[str]) -> list[str]:
    """Move files that look like results, but that no line vouches for, to OUT/stale; returns their names.

    Args:
        out: the folder.
        finished: keys of the images to keep.
        others: keys that belong to other shards, which may be writing them now.
    """
    moved, kept = [], {f"{key}.png" for key in finished | others}
    for file in sorted((out / "images").rglob("*")):
        name = file.relative_to(out / "images")
        if file.is_file() and name.as_posix() not in kept and not any(part[0] == "." for part in name.parts):
            (out / "stale" / name).parent.mkdir(parents=True, exist_ok=True)
            file.replace(out / "stale" / name)
            moved.append(name.as_posix())
    return moved


def write_image(out: Path, key: str, result: np.ndarray, source_sha256: str, settings_digest: str) -> dict[str, Any]:
    """Write the image; returns its record for the manifest."""
    file = out / "images" / f"{key}.png"
    with atomic_path(file) as temporary:
        Image.fromarray(result).save(temporary)
    (out / "stale" / f"{key}.png").unlink(missing_ok=True)
    return {
        "key": key,
        "file": image_file(key),
        "width": result.shape[1],
        "height": result.shape[0],
        "bytes": file.stat().st_size,
        "sha256": sha256_of(file),
        "source_sha256": source_sha256,
        "settings_hash": settings_digest,
    }


def bytes_needed(images: Iterable[Path]) -> int:
    """Bytes that images of the size of these may need when they are written, at most three per pixel.

    Unreadable images count as none: they are reported when their turn comes.
    """
    needed = 0
    for path in images:
        with suppress(ValueError):
            needed += 3 * prod(stored_size(path))
    return needed


def sha256_of(*files: Path) -> str:
    """Checksum of the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- preview


def write_preview(file: Path, rows: list[list[np.ndarray]], height: int = PREVIEW_HEIGHT) -> None:
    """Write a grid of images uint8 (H, W, 3) of any sizes, each resized to `height` pixels; none without rows."""
    cells = [[_cell(Image.fromarray(image), height) for image in row] for row in rows]
    if not cells:
        return
    sheet = Image.new("RGB", (max(sum(c.width for c in row) for row in cells), height * len(cells)), "white")
    for index, row in enumerate(cells):
        left = 0
        for cell in row:
            sheet.paste(cell, (left, height * index))
            left += cell.width
    with atomic_path(file) as temporary:
        sheet.save(temporary)


def _cell(image: Image.Image, height: int) -> Image.Image:
    # A strip is shown a pixel wide, or squeezed, rather than not at all.
    width = min(max(1, round(image.width * height / image.height)), 8 * height)
    return image.resize((width, height))
