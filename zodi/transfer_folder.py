"""Transfer of a whole folder of images: resumable at any instant, checked, and honest about what failed.

The result is a folder:

    OUT/settings.json     settings, their hash, and what the run was computed with
    OUT/manifest*.jsonl   one line a finished image: its file, size and checksums (one file a shard)
    OUT/images/KEY.png    the transferred images, named like their sources
    OUT/preview.png       source | layout | result of the first few
    OUT/report.json       what the last run did and what it could not do

An image counts as finished only when its line is in the manifest and the checksums of the file and of its sources
still agree, so a run that was killed goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from zodi.datasets import find_files, read_image, read_label
from zodi.diffusion import DiffusionModel, fingerprint
from zodi.labels import LabelSet
from zodi.runs import atomic_path, environment, read_json, settings_hash, to_plain, write_json
from zodi.transfer import WITHOUT_LAYOUT, TransferConfig, transfer_images

SETTINGS_FILE = "settings.json"
REPORT_FILE = "report.json"
PREVIEW_FILE = "preview.png"
PREVIEW_ROWS = 4
PREVIEW_HEIGHT = 160
# Threads that decode, encode and write files while the networks compute.
IO_THREADS = 4


@dataclass(frozen=True)
class TransferReport:
    """What a run of `transfer_folder` did.

    Attributes:
        total: images asked for.
        done: images transferred by this run.
        skipped: images that an earlier run had finished.
        errors: message by key for the images that could not be done.
        seconds: wall time.
    """

    total: int
    done: int
    skipped: int
    errors: dict[str, str]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every image is there."""
        return not self.errors


def transfer_folder(
    model: DiffusionModel | None,
    images_dir: str | Path,
    labels_dir: str | Path | None,
    out: str | Path,
    config: TransferConfig,
    label_set: LabelSet,
    batch_size: int = 8,
    shard: tuple[int, int] | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> TransferReport:
    """Transfer the images of a folder; goes on where an earlier run with the same settings stopped.

    Args:
        model: from `zodi.diffusion.load`; None only for "photometric".
        images_dir: folder of images of any size; subfolders are kept.
        labels_dir: folder of label maps with the names of their images; None only for methods without a layout.
        out: folder of the result.
        config: settings of the transfer.
        label_set: meaning of the label maps' pixel values.
        batch_size: images that go through the networks together; does not change the result.
        shard: (i, n): do every n-th image from the i-th on, so that n processes share a folder without coordination.
        limit: do the first so many images only; None = all.
        progress: show a bar.

    Returns:
        The report. An image that cannot be done is an entry in `errors`; the rest is done.

    Raises:
        FileNotFoundError: if a folder is missing or has no images.
        ValueError: if `out` holds results of other settings; names what differs.
        OSError: if the disk has not enough space; says how much is needed.
    """
    start = time.monotonic()
    images_dir, out = Path(images_dir), Path(out)
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size={batch_size}, limit={limit}: expected at least 1")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard={shard}: expected (i, n) with 0 <= i < n")
    images = find_files(images_dir)
    if not images:
        raise FileNotFoundError(f"{images_dir}: no images found")
    labels = None
    if labels_dir is not None:
        labels = find_files(labels_dir, (".png",))
    elif config.method not in WITHOUT_LAYOUT:
        raise ValueError(f"method {config.method!r} draws a layout for every image: give the folder of label maps")

    keys = list(images)[:limit]
    if shard is not None:
        keys = keys[shard[0] :: shard[1]]
    manifest = out / ("manifest.jsonl" if shard is None else f"manifest-{shard[0]}-of-{shard[1]}.jsonl")
    digest = _claim(out, run_settings(model, config, label_set))

    errors: dict[str, str] = {}
    sources: dict[str, list[Path]] = {}
    for key in keys:
        if labels is not None and key not in labels:
            errors[key] = f"{images[key]}: no label map, expected {Path(labels_dir) / key}.png"
        else:
            sources[key] = [images[key]] + ([labels[key]] if labels is not None else [])
    finished = read_manifest(out)
    todo = [key for key in sources if not _is_finished(out, finished.get(key), sources[key])]
    _check_disk(out, [images[key] for key in todo])

    done = 0
    bar = tqdm(total=len(sources), initial=len(sources) - len(todo), unit="image", disable=not progress)
    with bar, ThreadPoolExecutor(IO_THREADS) as pool:
        writing: list[Future] = []
        for keys_read, reading in _read_ahead(pool, todo, batch_size, sources, label_set):
            batch = {}
            for key, future in zip(keys_read, reading, strict=True):
                try:
                    batch[key] = future.result()
                except ValueError as error:
                    errors[key] = str(error)
            # A compiled model would be compiled anew for a last batch that is smaller.
            rows = _filled(list(batch.items()), batch_size) if model is not None and model.compiled else batch.items()
            layouts = None if labels is None else [layout for _, (_, layout) in rows]
            results = transfer_images(
                model, [image for _, (image, _) in rows], layouts, [key for key, _ in rows], config
            )[: len(batch)]
            # The files of the batch before this one had the time of a whole batch to be written.
            _record(manifest, writing)
            writing = [
                pool.submit(_write_result, out, key, result, sources[key], digest)
                for key, result in zip(batch, results, strict=True)
            ]
            done += len(batch)
            bar.update(len(keys_read))
        _record(manifest, writing)

    report = TransferReport(len(keys), done, len(sources) - len(todo), errors, round(time.monotonic() - start, 1))
    if done or not (out / PREVIEW_FILE).exists():
        _write_preview(out, [(key, sources[key]) for key in sources if key not in errors], label_set)
    write_json(out / REPORT_FILE, report)
    return report


# ---------------------------------------------------------------- settings


def run_settings(model: DiffusionModel | None, config: TransferConfig, label_set: LabelSet) -> dict[str, Any]:
    """Everything that decides the result besides the input files."""
    settings = dataclasses.asdict(config) | {"label_set": label_set.name, "model": None}
    if model is not None:
        weights = {"model": model.name, "model_fingerprint": fingerprint(model), "dtype": str(model.dtype)}
        settings |= weights
    return settings


def _claim(out: Path, settings: dict[str, Any]) -> str:
    """Write the settings into `out`, or refuse if others are there; returns their hash."""
    digest = settings_hash(settings)
    file = out / SETTINGS_FILE
    if not file.exists():
        write_json(file, {"settings": settings, "settings_hash": digest, "environment": environment()})
        return digest
    found = read_json(file)
    if found["settings_hash"] != digest:
        old, new = found["settings"], to_plain(settings)
        differing = [
            f"{name}: {old.get(name)!r} there, {new.get(name)!r} asked for"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        raise ValueError(
            f"{out} holds images of another transfer ({'; '.join(differing)}). Choose another folder or delete it."
        )
    return digest


# ---------------------------------------------------------------- manifest


def read_manifest(out: str | Path) -> dict[str, dict[str, Any]]:
    """Records of the finished images of a transferred folder, by key, from all shards; the last one counts."""
    records = {}
    for file in sorted(Path(out).glob("manifest*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                # A run that was killed while it wrote; the image of that line is done again.
                continue
            records[record["key"]] = record
    return records


def _is_finished(out: Path, record: dict[str, Any] | None, sources: list[Path]) -> bool:
    if record is None:
        return False
    file = out / record["file"]
    return file.is_file() and _sha256(file) == record["sha256"] and _sha256(*sources) == record["source_sha256"]


def _write_result(out: Path, key: str, result: np.ndarray, sources: list[Path], settings_digest: str) -> dict[str, Any]:
    """Write the image; returns its record for the manifest."""
    file = out / "images" / f"{key}.png"
    with atomic_path(file) as temporary:
        Image.fromarray(result).save(temporary)
    return {
        "key": key,
        "file": file.relative_to(out).as_posix(),
        "width": result.shape[1],
        "height": result.shape[0],
        "bytes": file.stat().st_size,
        "sha256": _sha256(file),
        "source_sha256": _sha256(*sources),
        "settings_hash": settings_digest,
    }


def _record(manifest: Path, writing: list[Future]) -> None:
    """Wait for images to be written, then add their lines: a line in the manifest always means a whole image."""
    for future in writing:
        record = future.result()
        # The leading line break ends a line that a killed run may have left unfinished.
        with manifest.open("a", encoding="utf-8") as lines:
            lines.write("\n" + json.dumps(record, ensure_ascii=False))


def _sha256(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- reading, disk, preview


def _filled(rows: list, size: int) -> list:
    """As many rows as `size`, the last one over and over."""
    return rows + rows[-1:] * (size - len(rows))


def _read_ahead(
    pool: ThreadPoolExecutor, keys: list[str], batch_size: int, sources: dict[str, list[Path]], label_set: LabelSet
) -> Iterator[tuple[list[str], list[Future]]]:
    """Batches of keys with the reading of their files under way, the next batch's already started."""
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]

    def start(batch: list[str]) -> list[Future]:
        return [pool.submit(_read_pair, sources[key], label_set) for key in batch]

    following = start(batches[0]) if batches else []
    for index, batch in enumerate(batches):
        reading, following = following, start(batches[index + 1]) if index + 1 < len(batches) else []
        yield batch, reading


def _read_pair(sources: list[Path], label_set: LabelSet) -> tuple[np.ndarray, np.ndarray | None]:
    """Image uint8 (H, W, 3) and its layout image of the same size, None without a label map."""
    image = read_image(sources[0])
    if len(sources) == 1:
        return image, None
    label = read_label(sources[1], label_set)
    if label.shape != image.shape[:2]:
        raise ValueError(
            f"{sources[1]}: found size {label.shape[1]}x{label.shape[0]}, expected that of its image "
            f"{sources[0].name}, {image.shape[1]}x{image.shape[0]}"
        )
    return image, label_set.colorize(label)


def _check_disk(out: Path, images: list[Path]) -> None:
    """Refuse to start when the results, at most three bytes a pixel, may not fit."""
    needed = 0
    for path in images:
        try:
            with Image.open(path) as image:
                needed += 3 * image.width * image.height
        except (OSError, UnidentifiedImageError):
            # It will be reported, with its name, when its turn comes.
            continue
    free = shutil.disk_usage(out).free
    if needed > free:
        raise OSError(
            f"{out}: not enough disk space, {len(images)} images need up to {needed / 1e9:.2f} GB and "
            f"{free / 1e9:.2f} GB are free. Free some space, choose another folder, or use a limit."
        )


def _write_preview(out: Path, sources: list[tuple[str, list[Path]]], label_set: LabelSet) -> None:
    """A grid, one row an image: source | layout | result."""
    rows = []
    for key, paths in sources[:PREVIEW_ROWS]:
        image, layout = _read_pair(paths, label_set)
        result = read_image(out / "images" / f"{key}.png")
        cells = [Image.fromarray(cell) for cell in (image, layout, result) if cell is not None]
        rows.append([c.resize((round(c.width * PREVIEW_HEIGHT / c.height), PREVIEW_HEIGHT)) for c in cells])
    if not rows:
        return
    sheet = Image.new("RGB", (max(sum(c.width for c in row) for row in rows), PREVIEW_HEIGHT * len(rows)), "white")
    for index, row in enumerate(rows):
        left = 0
        for cell in row:
            sheet.paste(cell, (left, PREVIEW_HEIGHT * index))
            left += cell.width
    with atomic_path(out / PREVIEW_FILE) as temporary:
        sheet.save(temporary)
