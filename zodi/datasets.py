"""Data sets on disk: folders of images and label maps, paired by file name.

A data set folder holds `dataset.json`, `train/` (the labelled source images), `test/DOMAIN/` for every domain and, for
the oracle only, `train_DOMAIN/`. Each of these has `images/` and `labels/`; label files are 8-bit PNGs of class ids.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zodi.labels import LabelSet, get_label_set
from zodi.support import pictures
from zodi.support.files import file_stamp, printable, read_json, to_plain
from zodi.support.packed import PackedArrays, is_packed, pack_arrays

INFO_FILE = "dataset.json"
# Beside transferred images: label maps in which pixels that lost their label are void.
MASKED_LABELS = "labels"
IMAGE_SUFFIXES = pictures.SUFFIXES


@dataclass(frozen=True)
class Sample:
    """An image uint8 (H, W, 3), its label map uint8 (H, W) of class ids, and its name within the data set."""

    image: np.ndarray
    label: np.ndarray
    key: str


def find_files(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files below `folder` by key, their relative path without suffix, sorted; hidden ones are not data.

    Warns, when looking for images, about pictures that are passed over because of their format.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if two files have the same key.
    """
    if suffixes == IMAGE_SUFFIXES:
        pictures.warn_of_passed_over(Path(folder))
    return pictures.files_by_key(Path(folder), suffixes)


def read_image(path: Path, size: tuple[int, int] | None = None, max_pixels: int = pictures.MAX_PIXELS) -> np.ndarray:
    """Image file -> uint8 (H, W, 3) as a viewer shows it, resized to `size` (height, width) by Lanczos when given.

    Raises:
        ValueError: if it cannot be read or has more than `max_pixels`; names the file.
    """
    image = np.array(pictures.as_rgb(pictures.open_picture(path, max_pixels), printable(path)))
    return pictures.resized(image, size, Image.Resampling.LANCZOS)


def read_label(
    path: Path, label_set: LabelSet, size: tuple[int, int] | None = None, max_pixels: int = pictures.MAX_PIXELS
) -> np.ndarray:
    """Label file -> uint8 (H, W) of class ids, resized to `size` (height, width) by nearest neighbour when given.

    Raises:
        ValueError: if it cannot be read or holds values that the label set does not know; names the file.
    """
    source = printable(path)
    values = pictures.as_values(pictures.open_picture(path, max_pixels), source)
    return pictures.resized(label_set.to_train_ids(values, source), size, Image.Resampling.NEAREST)


def read_pair(
    image_file: Path,
    label_file: Path,
    label_set: LabelSet,
    size: tuple[int, int] | None = None,
    max_pixels: int = pictures.MAX_PIXELS,
) -> tuple[np.ndarray, np.ndarray]:
    """`read_image` and `read_label` of files that belong together; raises ValueError if their own sizes differ."""
    image = read_image(image_file, None, max_pixels)
    label = read_label(label_file, label_set, None, max_pixels)
    if label.shape != image.shape[:2]:
        raise ValueError(
            f"{printable(label_file)}: found size {label.shape[1]}x{label.shape[0]}, expected that of its image "
            f"{printable(image_file.name)}, {image.shape[1]}x{image.shape[0]}"
        )
    image = pictures.resized(image, size, Image.Resampling.LANCZOS)
    return image, pictures.resized(label, size, Image.Resampling.NEAREST)


class _Fingerprint:
    def fingerprint(self) -> str:
        """12 hexadecimal digits that differ for other files, changed files, and other meanings of their labels."""
        content = [self.label_set.to_dict(), self.keys, self.size, self.file_stamps()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


class FolderDataset(_Fingerprint):
    """Images and their label maps, paired by name: `images/a/b.jpg` belongs to `labels/a/b.png`.

    Args:
        images, labels: folders. Labels without an image are ignored, so a folder of transferred images may hold some of
            them.
        label_set: meaning of the labels' pixel values.
        size: (height, width) in pixels that everything is resized to; None = not resized.
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
                f"{', '.join(printable(f'{key}.png') for key in missing[:10])}; labels must be named like their images"
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
            raise ValueError(
                f"{self.images_folder}: found none of the {len(keys)} names; expected names like {self.keys[:3]}"
            )
        return part

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        key = self.keys[index]
        sample = Sample(*read_pair(self._images[key], self._labels[key], self.label_set, self.size), key)
        if self._cache is not None:
            self._cache[index] = sample
        return sample

    def check_sizes(self, smallest: tuple[int, int]) -> None:
        """Raises ValueError, naming the first, if an image is smaller than (height, width); reads headers only."""
        for key in self.keys:
            width, height = self.size[::-1] if self.size else pictures.stored_size(self._images[key])
            if height < smallest[0] or width < smallest[1]:
                # Unless it is stored on its side.
                height, width = self[self.keys.index(key)].label.shape
            _check_size(self._images[key], (height, width), smallest)

    def file_stamps(self) -> list[list[int]]:
        """Size and time of change of every image and label file: they tell whether a copy is still up to date."""
        return [file_stamp(path)[:2] for key in self.keys for path in (self._images[key], self._labels[key])]


class PackedDataset(_Fingerprint):
    """What `pack` wrote: the samples of a data set in two memory-mapped arrays, shared by all worker processes.

    Raises:
        FileNotFoundError: if `folder` is not such a folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.packed = PackedArrays(folder)
        self.label_set = LabelSet.from_dict(self.packed.index["label_set"], printable(folder))
        self.keys: list[str] = self.packed.index["keys"]
        self.size: tuple[int, int] | None = self.packed.index["size"] and tuple(self.packed.index["size"])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        return Sample(*self.packed[index], self.keys[index])

    def check_sizes(self, smallest: tuple[int, int]) -> None:
        """See `FolderDataset.check_sizes`."""
        _check_size(self.packed.folder, self.packed.arrays[1].shape[1:], smallest)

    def file_stamps(self) -> list[list[int]]:
        """Those of the data set that was packed."""
        return self.packed.index["files"]


AnyDataset = FolderDataset | PackedDataset


def pack(dataset: FolderDataset, folder: str | Path | None = None, progress: bool = True) -> PackedDataset:
    """Decode and resize a data set once; later calls open what is there while its files have not changed.

    Args:
        dataset: images all of the same size, after its `size` is applied.
        folder: where the arrays go, 4 bytes per pixel, written completely or not at all. None = `packed` beside the
            images' folder.
        progress: show a progress bar.

    Raises:
        ValueError: if the images differ in size; names the first that does.
    """
    folder = dataset.images_folder.parent / "packed" if folder is None else Path(folder)
    origin = {"label_set": dataset.label_set.to_dict(), "keys": dataset.keys, "size": dataset.size}
    origin = to_plain(origin | {"files": dataset.file_stamps()})

    def rows(index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = dataset[index]
        return sample.image, sample.label

    if not is_packed(folder, origin):
        pack_arrays(folder, ("images", "labels"), rows, origin, progress)
    return PackedDataset(folder)


def _check_size(path: Path, size: tuple[int, int], smallest: tuple[int, int]) -> None:
    if size[0] < smallest[0] or size[1] < smallest[1]:
        raise ValueError(
            f"{printable(path)}: found {size[1]}x{size[0]} pixels, crop={tuple(smallest)} is larger than the images; "
            "choose a smaller crop or leave the image out"
        )


def dataset_info(root: str | Path) -> dict[str, Any]:
    """What `dataset.json` says: name, label_set, source, domains, and how the data set was made.

    Raises:
        FileNotFoundError: if `root` is not a data set folder.
        ValueError: if the file says something else.
    """
    file = Path(root) / INFO_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; expected a data set folder, made by `python -m zodi.miniature render --out {root}`"
            " or another script of data_scripts/"
        )
    info = read_json(file)
    if not isinstance(info, dict) or "label_set" not in info:
        raise ValueError(f"{file}: found {str(info)[:80]}, expected a data set with its label set; prepare it again")
    return info


def open_split(root: str | Path, split: str, cache: bool = True, images: str | Path | None = None) -> FolderDataset:
    """A part of a data set folder: "train", "train_night" (oracle only) or "test/night".

    Args:
        root: the data set folder.
        split: the part.
        cache: keep decoded samples in memory.
        images: other images for the part's labels, for example transferred ones; None = its own.
    """
    folder = Path(root) / split
    return FolderDataset(images or folder / "images", folder / "labels", label_set_of(root), cache=cache)


def synthesized(synth: str | Path, labels: str | Path, label_set: LabelSet) -> FolderDataset:
    """Transferred or imported images with their sources' labels, or with the masked ones that an audit wrote.

    Args:
        synth: folder that `zodi.transfer_folder` or `zodi.tools.importing` wrote.
        labels: folder of the source images' label maps.
        label_set: meaning of their pixel values.
    """
    masked = Path(synth) / MASKED_LABELS
    if masked.is_dir():
        return FolderDataset(Path(synth) / "images", masked, label_set.written())
    return FolderDataset(Path(synth) / "images", labels, label_set)


def label_set_of(root: str | Path) -> LabelSet:
    """The label set of a data set folder: by its content, or by its name where only that is known."""
    info = dataset_info(root)
    labels = info.get("labels")  # earlier versions kept a name only
    return LabelSet.from_dict(labels, printable(Path(root) / INFO_FILE)) if labels else get_label_set(info["label_set"])
