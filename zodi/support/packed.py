"""Decoded images in memory-mapped arrays, which many worker processes share; every row has a checksum."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from zodi.support.files import atomic_path, read_json, write_json

INDEX_FILE = "index.json"


class PackedArrays:
    """What `pack_arrays` wrote to a folder; `index` is what it was made from.

    Raises:
        FileNotFoundError: if `folder` is not such a folder.
        ValueError: if its index was not written by `pack_arrays`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = _index(self.folder)
        if not {"arrays", "checksums", "keys"} <= self.index.keys():
            raise ValueError(f"{self.folder / INDEX_FILE}: found no index of packed arrays; delete the folder")
        self.arrays = [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in self.index["arrays"]]

    def __getitem__(self, index: int) -> list[np.ndarray]:
        rows = [np.array(array[index]) for array in self.arrays]
        if _checksum(rows) != self.index["checksums"][index]:
            key = self.index["keys"][index]
            raise ValueError(f"{self.folder}: the stored copy of {key} is damaged; delete the folder")
        return rows


def is_packed(folder: Path, origin: dict[str, Any]) -> bool:
    """Whether a folder holds what was made from `origin`."""
    return (folder / INDEX_FILE).exists() and origin.items() <= _index(folder).items()


def _index(folder: Path) -> dict[str, Any]:
    found = read_json(folder / INDEX_FILE)
    return found if isinstance(found, dict) else {}


def pack_arrays(
    folder: Path, names: Sequence[str], rows: Callable[[int], Sequence[np.ndarray]], origin: dict[str, Any], bar: bool
) -> None:
    """Write arrays with one row per key, completely or not at all.

    Args:
        folder: where they go, `NAME.npy`.
        names: of the arrays.
        rows: index -> a row of each array, uint8, all of the same shape.
        origin: what they are made from, plain JSON, with the rows' `keys`.
        bar: show a progress bar.

    Raises:
        ValueError: if rows differ in shape; names the first that does.
    """
    keys, first = origin["keys"], rows(0)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        arrays = [
            np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", np.uint8, (len(keys), *row.shape))
            for name, row in zip(names, first, strict=True)
        ]
        checksums = []
        for index in tqdm(range(len(keys)), "pack", unit="image", disable=not bar):
            found = rows(index)
            if [row.shape for row in found] != [row.shape for row in first]:
                (height, width), (rows_wanted, columns) = found[0].shape[:2], first[0].shape[:2]
                raise ValueError(
                    f"{keys[index]}: found size {width}x{height}, expected {columns}x{rows_wanted} like the first; "
                    "give the data set a `size`"
                )
            for array, row in zip(arrays, found, strict=True):
                array[index] = row
            checksums.append(_checksum(found))
        for array in arrays:
            array.flush()
        write_json(temporary / INDEX_FILE, origin | {"arrays": list(names), "checksums": checksums})


def _checksum(rows: Sequence[np.ndarray]) -> int:
    checksum = 0
    for row in rows:
        checksum = zlib.crc32(row.tobytes(), checksum)
    return checksum
