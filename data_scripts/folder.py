"""Writing a data set folder, in the layout that `zodi.datasets` reads, from images and label files elsewhere.

What it was made from is written beside it, so that changed files or mappings are never mistaken for what is there.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dataset import SHOWN
from PIL import Image
from tqdm.auto import tqdm

from zodi.datasets import INFO_FILE, dataset_info, read_pair
from zodi.labels import LabelSet
from zodi.support.files import atomic_path, file_stamp, printable, read_json, to_plain, write_json
from zodi.support.pictures import MAX_PIXELS

SOURCES_FILE = "sources.json"
WRITERS = 8

# Part -> (key, image file, label file) of every sample.
Splits = Mapping[str, Sequence[tuple[str, Path, Path]]]


def write_folder(
    root: str | Path,
    info: Mapping[str, Any],
    splits: Splits,
    label_set: LabelSet,
    size: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write a data set folder from files elsewhere, completely or not at all; does nothing when it is already there.

    Args:
        root: folder to make.
        info: for `dataset.json`: name, source, domains; label set, size and counts are added.
        splits: part -> (key, image file, label file) of every sample.
        label_set: meaning of the label files' pixel values; class indices are written.
        size: (height, width) in pixels that everything is resized to.
        max_pixels: width times height of the largest image that is read.

    Raises:
        ValueError: if `root` holds another data set (names what differs), if two samples of a part have the same key,
            or if a file cannot be used; names it.
    """
    root, written = Path(root), label_set.written()
    info = {**info, "height": size[0], "width": size[1]} | {name: len(samples) for name, samples in splits.items()}
    info |= {"label_set": written.name, "labels": written.to_dict()}
    sources = {"meaning of the label files": label_set.hash, **_files_of(splits)}
    if (root / INFO_FILE).exists():
        differing = _differences(root, to_plain(info), to_plain(sources))
        if differing:
            shown = ", ".join(map(printable, differing[:SHOWN]))
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            raise ValueError(
                f"{root} holds another data set (what differs: {shown}{more}); delete it or choose another folder"
            )
        return
    with atomic_path(root) as temporary, ThreadPoolExecutor(WRITERS) as pool:

        def write(split: str, key: str, image: Path, label: Path) -> None:
            arrays = read_pair(image, label, label_set, size, max_pixels)
            for part, array in zip(("images", "labels"), arrays, strict=True):
                file = temporary / split / part / f"{key}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)

        for split, samples in splits.items():
            for part in ("images", "labels"):
                (temporary / split / part).mkdir(parents=True)
            jobs = [pool.submit(write, split, *sample) for sample in samples]
            for job in tqdm(jobs, split, unit="frame"):
                job.result()
        write_json(temporary / SOURCES_FILE, sources)
        write_json(temporary / INFO_FILE, info)


def _files_of(splits: Splits) -> dict[str, list]:
    """Name, size and time of change of every sample's files."""
    files: dict[str, list] = {}
    first: dict[str, Path] = {}
    for split, samples in splits.items():
        for key, *pair in samples:
            name = f"{split}/{key}"
            if name in first:
                raise ValueError(
                    f"{printable(pair[0])}: found the key {key!a} again, expected one image of that name in {split}, "
                    f"which is {printable(first[name])}; rename one of them"
                )
            first[name] = pair[0]
            files[name] = [[path.name, *file_stamp(path)[:2]] for path in pair]
    return files


def _differences(root: Path, info: Mapping[str, Any], sources: Mapping[str, Any]) -> list[str]:
    """Names of what differs in an existing folder, in its description or in what it was made from."""
    if not (root / SOURCES_FILE).exists():
        return [f"no {SOURCES_FILE} says what it was made from"]
    made_from = read_json(root / SOURCES_FILE)
    pairs = [(dataset_info(root), info), (made_from if isinstance(made_from, dict) else {}, sources)]
    return [name for found, wanted in pairs for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
