"""Data sets on disk: folders of images and label maps, paired by file name.

A data set folder holds `dataset.json`, `train/` (the labelled source images), `test/DOMAIN/` for every domain and, for
the oracle only, `train_DOMAIN/`. Each of these has `images/` and `labels/`; label files are 8-bit PNGs of class ids.
"""

import copy
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from zodi import scenes
from zodi.domains import SOURCE, TARGETS
from zodi.labels import CITYSCAPES, LabelSet, get_label_set
from zodi.runs import atomic_path, read_json, to_plain, write_json

INFO_FILE = "dataset.json"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Sample:
    """An image uint8 (H, W, 3), its label map uint8 (H, W) of class ids, and its name within the data set."""

    image: np.ndarray
    label: np.ndarray
    key: str


def find_files(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files below `folder` by key, their relative path without suffix, sorted.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if two files have the same key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with images ({', '.join(suffixes)})")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path.is_file():
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in files:
                raise ValueError(f"{path}: same name as {files[key].name}; names must differ in more than the suffix")
            files[key] = path
    return files


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Image file -> uint8 (H, W, 3), resized to `size` (height, width) by Lanczos when given.

    Raises:
        ValueError: if it cannot be read; names the file.
    """
    image = _open(path).convert("RGB")
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    return np.array(image)


def read_label(path: Path, label_set: LabelSet, size: tuple[int, int] | None = None) -> np.ndarray:
    """Label file -> uint8 (H, W) of class ids, resized to `size` (height, width) by nearest neighbour when given.

    Raises:
        ValueError: if it cannot be read or holds values that the label set does not know; names the file.
    """
    image = _open(path)
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.NEAREST)
    return label_set.to_train_ids(np.array(image), str(path))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error}); replace the file or remove it") from error


class FolderDataset:
    """Images and their label maps, paired by name: `images/a/b.jpg` belongs to `labels/a/b.png`.

    Args:
        images, labels: folders. Labels without an image are ignored, so a folder of transferred images may hold a part.
        label_set: meaning of the labels' pixel values.
        size: (height, width) in pixels that everything is resized to; None = as it is.
        cache: keep decoded samples in memory.

    Raises:
        FileNotFoundError: if a folder is missing, empty, or images have no label; names the first ten.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path,
        label_set: LabelSet,
        size: tuple[int, int] | None = None,
        cache: bool = True,
    ) -> None:
        self.label_set = label_set
        self.size = size
        self.images_folder = Path(images)
        self._images, self._labels = find_files(images), find_files(labels, (".png",))
        self.keys = list(self._images)
        self._cache: dict[int, Sample] | None = {} if cache else None
        if not self.keys:
            raise FileNotFoundError(f"{images}: no images found; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        missing = [key for key in self.keys if key not in self._labels]
        if missing:
            raise FileNotFoundError(
                f"{labels}: no label map for {len(missing)} of {len(self.keys)} images, for example "
                f"{', '.join(f'{key}.png' for key in missing[:10])}; labels need the names of their images"
            )

    def only(self, keys: Sequence[str]) -> "FolderDataset":
        """The samples of these keys, in the order of the data set.

        Raises:
            ValueError: if none is there.
        """
        part, wanted = copy.copy(self), set(keys)
        part.keys = [key for key in self.keys if key in wanted]
        part._cache = {} if self._cache is not None else None
        if not part.keys:
            raise ValueError(f"{self.images_folder}: none of the {len(keys)} names is there; expected {self.keys[:3]}")
        return part

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        key = self.keys[index]
        image = read_image(self._images[key], self.size)
        label = read_label(self._labels[key], self.label_set, self.size)
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{self._labels[key]}: found size {label.shape[1]}x{label.shape[0]}, expected that of its image "
                f"{self._images[key].name}, {image.shape[1]}x{image.shape[0]}"
            )
        sample = Sample(image, label, key)
        if self._cache is not None:
            self._cache[index] = sample
        return sample

    def file_stamps(self) -> list[list[int]]:
        """Size and time of change of every image and label file: they tell whether a copy is still up to date."""
        stats = [path.stat() for key in self.keys for path in (self._images[key], self._labels[key])]
        return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


class PackedDataset:
    """What `pack` wrote: the samples of a data set in two memory-mapped arrays, shared by all worker processes.

    Raises:
        FileNotFoundError: if `folder` is not such a folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._index = read_json(self.folder / "index.json")
        self.label_set = get_label_set(self._index["label_set"])
        self.keys: list[str] = self._index["keys"]
        self._images = np.load(self.folder / "images.npy", mmap_mode="r")
        self._labels = np.load(self.folder / "labels.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        sample = Sample(np.array(self._images[index]), np.array(self._labels[index]), self.keys[index])
        if _checksum(sample) != self._index["checksums"][index]:
            raise ValueError(f"{self.folder}: the stored copy of {sample.key} is damaged; delete the folder")
        return sample


AnyDataset = FolderDataset | PackedDataset


def pack(dataset: FolderDataset, folder: str | Path | None = None, progress: bool = True) -> PackedDataset:
    """Decode and resize a data set once; later calls open what is there while its files have not changed.

    Args:
        dataset: images all of one size, after its `size` is applied.
        folder: where the arrays go, 4 bytes a pixel; all of it or nothing. None = `packed` beside the images' folder.
        progress: show a bar.

    Raises:
        ValueError: if the images differ in size; names the first that does.
    """
    folder = dataset.images_folder.parent / "packed" if folder is None else Path(folder)
    origin = {"label_set": dataset.label_set.name, "keys": dataset.keys, "size": dataset.size}
    origin = to_plain(origin | {"files": dataset.file_stamps()})
    if (folder / "index.json").exists() and origin.items() <= read_json(folder / "index.json").items():
        return PackedDataset(folder)
    height, width = dataset[0].label.shape
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        shape = (len(dataset), height, width)
        images = np.lib.format.open_memmap(temporary / "images.npy", "w+", np.uint8, (*shape, 3))
        labels = np.lib.format.open_memmap(temporary / "labels.npy", "w+", np.uint8, shape)
        checksums = []
        for index in tqdm(range(len(dataset)), "pack", unit="image", disable=not progress):
            sample = dataset[index]
            if sample.label.shape != (height, width):
                raise ValueError(
                    f"{sample.key}: found size {sample.label.shape[1]}x{sample.label.shape[0]}, expected "
                    f"{width}x{height} as the first image; give the data set a `size`"
                )
            images[index], labels[index] = sample.image, sample.label
            checksums.append(_checksum(sample))
        images.flush()
        labels.flush()
        write_json(temporary / "index.json", origin | {"checksums": checksums})
    return PackedDataset(folder)


def _checksum(sample: Sample) -> int:
    return zlib.crc32(sample.label.tobytes(), zlib.crc32(sample.image.tobytes()))


def dataset_info(root: str | Path) -> dict[str, Any]:
    """What `dataset.json` says: name, label_set, source, domains, and how the data set was made.

    Raises:
        FileNotFoundError: if `root` is not a data set folder.
    """
    file = Path(root) / INFO_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; expected a data set folder, made by `python data_scripts/miniature.py --out {root}`"
            " or another script of data_scripts/"
        )
    return read_json(file)


def open_split(root: str | Path, split: str, cache: bool = True, images: str | Path | None = None) -> FolderDataset:
    """A part of a data set folder: "train", "train_night" (oracle only) or "test/night".

    Args:
        root: the data set folder.
        split: the part.
        cache: keep decoded samples in memory.
        images: other images for the part's labels, for example transferred ones; None = its own.
    """
    folder = Path(root) / split
    label_set = get_label_set(dataset_info(root)["label_set"])
    return FolderDataset(images or folder / "images", folder / "labels", label_set, cache=cache)


# ---------------------------------------------------------------- writing data set folders

WRITERS = 8


def write_folder(
    root: str | Path,
    info: Mapping[str, Any],
    splits: Mapping[str, Sequence[tuple[str, Path, Path]]],
    label_set: LabelSet,
    size: tuple[int, int],
) -> None:
    """Write a data set folder from files elsewhere; all of it or nothing, and nothing again when it is there.

    Args:
        root: folder to make.
        info: for `dataset.json`: name, label_set, source, domains; size and counts are added.
        splits: part -> (key, image file, label file) of every sample.
        label_set: meaning of the label files' pixel values; class indices are written.
        size: (height, width) in pixels that everything is resized to.

    Raises:
        ValueError: if `root` holds another data set, or a file cannot be used; names it.
    """
    root = Path(root)
    info = {**info, "height": size[0], "width": size[1]} | {name: len(samples) for name, samples in splits.items()}
    if (root / INFO_FILE).exists():
        if dataset_info(root) != info:
            raise ValueError(f"{root} holds another data set; delete it or choose another folder")
        return
    with atomic_path(root) as temporary, ThreadPoolExecutor(WRITERS) as pool:

        def write(split: str, key: str, image: Path, label: Path) -> None:
            Image.fromarray(read_image(image, size)).save(temporary / split / "images" / f"{key}.png")
            Image.fromarray(read_label(label, label_set, size)).save(temporary / split / "labels" / f"{key}.png")

        for split, samples in splits.items():
            for part in ("images", "labels"):
                (temporary / split / part).mkdir(parents=True)
            jobs = [pool.submit(write, split, *sample) for sample in samples]
            for job in tqdm(jobs, split, unit="frame"):
                job.result()
        write_json(temporary / INFO_FILE, info)


# ---------------------------------------------------------------- the miniature as a data set folder


def write_miniature(
    root: str | Path,
    train: int,
    test: int,
    domains: Sequence[str] = TARGETS,
    height: int = 96,
    width: int = 192,
    progress: bool = True,
    held_out: int = 0,
) -> Path:
    """Render a miniature data set; all of it or nothing, and nothing again when it is there.

    Args:
        root: folder to make.
        train: number of source scenes, from `scenes.TRAIN_SEEDS`.
        test: number of test scenes in every domain, from `scenes.TEST_SEEDS`.
        domains: target domains.
        height, width: pixels.
        progress: show a bar.
        held_out: number of further source scenes, the part `val/`, which are neither trained on nor tested on.

    Raises:
        ValueError: if `root` holds a data set with other settings; names them.
    """
    root = Path(root)
    info = {
        "name": "miniature",
        "label_set": CITYSCAPES.name,
        "source": SOURCE,
        "domains": [SOURCE, *domains],
        "train": train,
        "test": test,
        "height": height,
        "width": width,
    } | ({"held_out": held_out} if held_out else {})
    if (root / INFO_FILE).exists():
        found = read_json(root / INFO_FILE)
        differing = [f"{key}: {found.get(key)} instead of {info[key]}" for key in info if found.get(key) != info[key]]
        if differing:
            raise ValueError(
                f"{root} holds another data set ({'; '.join(differing)}); delete it or choose another folder"
            )
        return root
    jobs = [
        (seed, f"train{'' if d == SOURCE else '_' + d}", d)
        for seed in scenes.TRAIN_SEEDS[:train]
        for d in info["domains"]
    ]
    jobs += [(seed, "val", SOURCE) for seed in scenes.TRAIN_SEEDS[train : train + held_out]]
    jobs += [(seed, f"test/{d}", d) for seed in scenes.TEST_SEEDS[:test] for d in info["domains"]]
    with atomic_path(root) as temporary:
        for split in sorted({split for _, split, _ in jobs}):
            (temporary / split / "images").mkdir(parents=True)
            (temporary / split / "labels").mkdir()
        for seed, split, domain in tqdm(jobs, "render", unit="image", disable=not progress):
            scene = scenes.render(seed, domain, height, width)
            Image.fromarray(scene.image).save(temporary / split / "images" / f"{seed}.png")
            Image.fromarray(scene.label).save(temporary / split / "labels" / f"{seed}.png")
        write_json(temporary / INFO_FILE, info)
    return root


def prepare(data: str | Path, train: int = 48, test: int = 24, domains: Sequence[str] = ("night", "snow")) -> Path:
    """`data` if it is a data set folder; otherwise a small miniature data set is rendered there first."""
    if not (Path(data) / INFO_FILE).exists():
        write_miniature(data, train, test, domains, progress=False)
    return Path(data)
