"""Transfer of a whole folder of images: resumable at any instant, checked, and honest about what failed.

The result is a folder:

    OUT/settings.json     settings, their hash, and what the run was computed with
    OUT/manifest*.jsonl   one line per finished image: its file, size and checksums (one file per shard)
    OUT/images/KEY.png    the transferred images, named like their sources
    OUT/stale/            images that no line vouches for any more, because their source is gone or has changed
    OUT/preview.png       source | layout | result of the first few
    OUT/report.json       what the last run did and what it could not do

An image counts as finished only when its line is in the manifest and the checksums of the file and of its sources still
agree, so a run that was killed continues where it stopped.

What is reproducible: an image's result depends on its files, the settings and the number of images of its working size
in its batch. Whatever the order, the other images and the shard, the file is the same bit for bit on one machine. A
different number of images in the batch, or of threads, changes the order of floating-point sums: single values differ
by one grey level. "photometric" has no batches.
"""

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from zodi.datasets import find_files, read_image, read_pair
from zodi.diffusion import Generator, fingerprint
from zodi.labels import LabelSet
from zodi.support.files import check_apart, check_disk, held, is_disk_full, one_line, printable, write_json
from zodi.support.pictures import MAX_PIXELS
from zodi.support.results import (
    PREVIEW_FILE,
    PREVIEW_ROWS,
    REPORT_FILE,
    bytes_needed,
    claim,
    finished_of,
    set_aside,
    sha256_of,
    write_image,
    write_preview,
)
from zodi.support.runs import device_text
from zodi.transfer import WITHOUT_LAYOUT, WITHOUT_MODEL, TransferConfig, check_steps, transfer_images, working_size

# An image with its layout image and its second map, each None where there is none.
_Pictures = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
# Source files -> pictures, see `_read_pictures`.
_ReadPictures = Callable[[list[Path]], _Pictures]
# Threads that decode, encode and write files while the networks compute.
IO_THREADS = 4
# The short side is resized to a fixed length, so a narrow strip would become larger than any memory.
LONGEST_SHAPE = 16


@dataclass(frozen=True)
class TransferReport:
    """What a run of `transfer_folder` did.

    Attributes:
        total: images asked for.
        done: images transferred by this run.
        skipped: images that an earlier run had finished.
        errors: message by key for the images that could not be done.
        seconds: wall time.
        stale: files that are now in OUT/stale because no finished line vouches for them, and that were not made again.
        stopped: the error that ended the run early; empty if there was none.
    """

    total: int
    done: int
    skipped: int
    errors: dict[str, str]
    seconds: float
    stale: list[str] = field(default_factory=list)
    stopped: str = ""

    @property
    def ok(self) -> bool:
        """Whether every image is there."""
        return not self.errors and not self.stopped


def transfer_folder(
    model: Generator | None,
    images_dir: str | Path,
    labels_dir: str | Path | None,
    out: str | Path,
    config: TransferConfig,
    label_set: LabelSet,
    batch_size: int = 8,
    shard: tuple[int, int] | None = None,
    limit: int | None = None,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    second_maps: str | Path | None = None,
) -> TransferReport:
    """Transfer the images of a folder; continues where an earlier run with the same settings stopped.

    Args:
        model: from `zodi.diffusion.load`; None only for "photometric".
        images_dir: folder of images of any size; subfolders are kept.
        labels_dir: folder of label maps named like their images; None only for methods without a layout.
        out: folder of the result.
        config: settings of the transfer.
        label_set: meaning of the label maps' pixel values.
        batch_size: images that go through the networks together; changes single values by one grey level.
        shard: (i, n): do every n-th image, starting with the i-th, so that n processes can share a folder without
            coordination.
        limit: do only the first so many images; None = all.
        progress: show a progress bar.
        max_pixels: width times height of the largest image that is read.
        second_maps: folder of maps named like their images, for a model with a second ControlNet.

    Returns:
        The report. An image that cannot be done is an entry in `errors`; the rest is done.

    Raises:
        FileNotFoundError: if a folder is missing or has no images.
        ValueError: if the strength takes no step, `out` holds results of other settings (names what differs), is inside
            one of the other folders or holds one, or the networks' output is not finite.
        OSError: if the disk has too little space (says how much is needed) or is full; what is done is kept.
    """
    start = time.monotonic()
    images_dir, out = Path(images_dir).expanduser(), Path(out).expanduser()
    labels_dir = None if labels_dir is None else Path(labels_dir).expanduser()
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size={batch_size}, limit={limit}: expected at least 1")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard={shard}: expected (i, n) with 0 <= i < n")
    check_steps(config)
    maps_dir = None if second_maps is None else Path(second_maps).expanduser()
    check_apart(out, *filter(None, (images_dir, labels_dir, maps_dir)))
    images = find_files(images_dir)
    if not images:
        raise FileNotFoundError(f"{images_dir}: no images found")
    # Files that belong to an image, by key: what they are, their folder, and which are there.
    beside = []
    if labels_dir is not None:
        beside.append(("label map", labels_dir, find_files(labels_dir, (".png",))))
    elif config.method not in WITHOUT_LAYOUT:
        raise ValueError(f"method {config.method!r} needs a layout for every image: give the folder of label maps")
    if maps_dir is not None:
        if labels_dir is None:
            raise ValueError(f"{maps_dir}: second maps without label maps; give the folder of label maps too")
        beside.append(("second map", maps_dir, find_files(maps_dir)))

    sources = {key: [path, *(found.get(key) for *_, found in beside)] for key, path in images.items()}
    # Links below the folders may lead anywhere.
    check_apart(out, *{path.resolve() for paths in sources.values() for path in paths if path is not None})

    first, step = shard or (0, 1)
    keys, own = list(images)[:limit][first::step], list(images)[first::step]
    name = "manifest.jsonl" if shard is None else f"manifest-{first}-of-{step}.jsonl"
    settings, device = run_settings(model, config, label_set), model and device_text(model.device, model.dtype)
    read = partial(_read_pictures, label_set=label_set, max_pixels=max_pixels)
    with held(out):
        run = _Run(out, out / name, claim(out, settings, device), {}, {})
        for key in keys:
            if printable(key) != key:
                run.errors[printable(key)] = printable(f"{images[key]}: the name is not UTF-8; rename the file")
            elif None in sources[key]:
                what, where, _ = beside[sources[key].index(None) - 1]
                run.errors[key] = f"{images[key]}: no {what}, expected {where / key}.png"
            else:
                run.sources[key] = sources[key]
        finished = finished_of(out, run.settings_hash, {key: sources[key] for key in own if None not in sources[key]})
        moved = set_aside(out, finished, set(images) - set(own))
        todo = [key for key in run.sources if key not in finished]
        skipped = len(run.sources) - len(todo)
        stopped = ""
        try:
            advice = f"{len(todo)} images need it: free some space, choose another folder, or use a limit."
            check_disk(out, bytes_needed(images[key] for key in todo), advice)
            bar = tqdm(total=len(run.sources), initial=skipped, unit="image", disable=not progress)
            with bar, ThreadPoolExecutor(IO_THREADS) as pool:
                _transfer(run, pool, bar, model, todo, config, read, batch_size)
            if run.done or not (out / PREVIEW_FILE).exists():
                _try_preview(run, read)
        except BaseException as error:
            stopped = one_line(error)
            raise
        finally:
            stale = [printable(file) for file in moved if (out / "stale" / file).exists()]
            seconds = round(time.monotonic() - start, 1)
            report = TransferReport(len(keys), run.done, skipped, run.errors, seconds, stale, stopped)
            with suppress(*([OSError] if stopped else [])):
                write_json(out / REPORT_FILE, report)
    if stale:
        warnings.warn(
            f"{out / 'images'}: found {len(stale)} images whose source is gone or has changed, or of other settings, "
            f"for example {stale[0]}; they are now in {out / 'stale'}: look at them or delete them",
            stacklevel=2,
        )
    return report


@dataclass
class _Run:
    """What a run knows: its folder, the settings' hash, source files by key, and what has become of them."""

    out: Path
    manifest: Path
    settings_hash: str
    sources: dict[str, list[Path]]
    errors: dict[str, str]
    done: int = 0

    def fail(self, key: str, error: BaseException) -> None:
        """Note an image that cannot be done, with the name of its file."""
        text = one_line(error)
        named = any(printable(path) in text for path in self.sources[key])
        self.errors[key] = text if named else f"{printable(self.sources[key][0])}: {text}"

    def record(self, writing: dict[str, Future]) -> None:
        """Wait for images to be written, then add their lines: a line in the manifest always means a complete image."""
        full = None
        for key, future in writing.items():
            try:
                # The leading line break ends a line that a killed run may have left unfinished.
                line = "\n" + json.dumps(future.result(), ensure_ascii=False)
                with self.manifest.open("a", encoding="utf-8") as lines:
                    lines.write(line)
                self.done += 1
            except Exception as error:
                if is_disk_full(error):
                    full = error
                else:
                    self.fail(key, error)
        writing.clear()
        if full is not None:
            raise OSError(
                f"{self.out}: the disk is full ({one_line(full)}). What is finished is kept: free some space and run "
                "the same command again"
            ) from full


def _transfer(
    run: _Run,
    pool: ThreadPoolExecutor,
    bar: tqdm,
    model: Generator | None,
    todo: list[str],
    config: TransferConfig,
    read: _ReadPictures,
    batch_size: int,
) -> None:
    """Batch after batch: the next one is read and the previous one is written while the networks compute."""
    writing: dict[str, Future] = {}
    try:
        for keys, reading in _read_ahead(pool, todo, batch_size, run.sources, config, read):
            batch = {}
            for key, future in zip(keys, reading, strict=True):
                try:
                    batch[key] = future.result()
                except Exception as error:  # of any type: the libraries raise many, and one file must not end a run
                    run.fail(key, error)
            results = _transfer_batch(model, batch, config, batch_size)
            # The previous batch's files have had a whole batch's time to be written.
            run.record(writing)
            for key, result in results.items():
                if isinstance(result, Exception):
                    run.fail(key, result)
                else:
                    writing[key] = pool.submit(write_image, run.out, key, result, batch[key][1], run.settings_hash)
            bar.update(len(keys))
    finally:
        run.record(writing)


# ---------------------------------------------------------------- settings


def run_settings(model: Generator | None, config: TransferConfig, label_set: LabelSet) -> dict[str, Any]:
    """Everything that decides the result besides the input files."""
    colors = zip(label_set.names, label_set.values, label_set.colors, strict=True)
    classes = {name: {"values": values, "color": color} for name, values, color in colors}
    meaning = {"classes": classes, "void": label_set.void_values}
    settings = dataclasses.asdict(config) | {"label_set": meaning, "model": None}
    if model is not None:
        weights = {"model": model.name, "model_fingerprint": fingerprint(model), "dtype": str(model.dtype)}
        settings |= weights
        # No entry without them, so that folders of earlier versions can be continued.
        settings |= {"lora": model.lora} if model.lora else {}
        settings |= {"second_weight": model.second.weight} if model.second else {}
    return settings


# ---------------------------------------------------------------- reading, networks, disk, preview

# Pictures, and the checksum of their files.
_Read = tuple[_Pictures, str]


def _read_ahead(
    pool: ThreadPoolExecutor,
    keys: list[str],
    batch_size: int,
    sources: dict[str, list[Path]],
    config: TransferConfig,
    read: _ReadPictures,
) -> Iterator[tuple[list[str], list[Future]]]:
    """Batches of keys whose files are being read, the next batch's already started."""
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]

    def start(batch: list[str]) -> list[Future]:
        return [pool.submit(_read_sources, sources[key], config, read) for key in batch]

    following = start(batches[0]) if batches else []
    for index, batch in enumerate(batches):
        reading, following = following, start(batches[index + 1]) if index + 1 < len(batches) else []
        yield batch, reading


def _read_sources(sources: list[Path], config: TransferConfig, read: _ReadPictures) -> _Read:
    # The checksum comes first: should a file change now, its image will be done again.
    checksum = sha256_of(*sources)
    pictures = read(sources)
    height, width = pictures[0].shape[:2]
    if config.method not in WITHOUT_MODEL and max(height, width) > LONGEST_SHAPE * min(height, width):
        rows, columns = working_size(height, width, config.short_side, config.multiple)
        raise ValueError(
            f"{sources[0]}: found {width}x{height} pixels, which the networks would work on at {columns}x{rows}; "
            f"expected a shape of at most {LONGEST_SHAPE}:1. Crop the image"
        )
    return pictures, checksum


def _read_pictures(sources: list[Path], label_set: LabelSet, max_pixels: int) -> _Pictures:
    """Image uint8 (H, W, 3), its layout image and its second map of the same size."""
    if len(sources) == 1:
        return read_image(sources[0], None, max_pixels), None, None
    image, label = read_pair(*sources[:2], label_set, None, max_pixels)
    second = read_image(sources[2], None, max_pixels) if len(sources) > 2 else None
    if second is not None and second.shape != image.shape:
        height, width = image.shape[:2]
        raise ValueError(
            f"{sources[2]}: found size {second.shape[1]}x{second.shape[0]}, expected that of its image "
            f"{sources[0].name}, {width}x{height}"
        )
    return image, label_set.colorize(label), second


def _transfer_batch(
    model: Generator | None, batch: dict[str, _Read], config: TransferConfig, batch_size: int
) -> dict[str, np.ndarray | Exception]:
    """Results by key; if a batch does not fit into memory, each image by itself; for one that fails, its error."""
    rows = list(batch.items())
    if model is not None and model.compiled:
        # It would be compiled again for a smaller last batch.
        rows += rows[-1:] * (batch_size - len(rows))
    images, *maps = zip(*(pictures for _, (pictures, _) in rows), strict=True) if rows else ((), (), ())
    layouts, seconds = (None if any(each is None for each in group) else [*group] for group in maps)
    # Models with one ControlNet, the usual case, are called as before.
    more = () if seconds is None or not rows else (seconds,)
    try:
        results = transfer_images(model, [*images], layouts, [key for key, _ in rows], config, *more)
        return dict(zip(batch, results, strict=False))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        failed = MemoryError(one_line(error))
    if len(batch) == 1:
        return dict.fromkeys(batch, failed)
    alone = [_transfer_batch(model, {key: read}, config, 1) for key, read in batch.items()]
    return {key: result for results in alone for key, result in results.items()}


def _try_preview(run: _Run, read: _ReadPictures) -> None:
    """Write the preview; one that fails is an entry in the report."""
    try:
        shown = [key for key in run.sources if key not in run.errors][:PREVIEW_ROWS]
        _preview(run.out, {key: run.sources[key] for key in shown}, read)
    except Exception as error:
        run.errors[PREVIEW_FILE] = f"{run.out / PREVIEW_FILE}: cannot be made ({one_line(error)}); the images are there"


def _preview(out: Path, sources: dict[str, list[Path]], read: _ReadPictures) -> None:
    """A grid, one row per image: source | layout | second map | result."""
    rows = []
    for key, paths in sources.items():
        result = read_image(out / "images" / f"{key}.png")
        rows.append([cell for cell in (*read(paths), result) if cell is not None])
    write_preview(out / PREVIEW_FILE, rows)
