"""Image files as a viewer shows them: upright, in 8 bits; and pixel values as an editor of label maps means them.

Only the formats that are named here are opened, whatever a file is called, so that no other program is ever started.
"""

import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from zodi.support.files import one_line, printable

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Pictures of other kinds, which whoever puts them into a folder expects to be read.
OTHER_SUFFIXES = (
    *(".jfif", ".jpe", ".jif", ".apng", ".dib", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx"),
    *(".gif", ".tga", ".pbm", ".ppm", ".pgm", ".pnm", ".pcx", ".exr", ".hdr", ".psd", ".svg", ".eps", ".pdf", ".raw"),
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srw", ".pef", ".orf", ".rw2", ".rwl", ".raf", ".3fr"),
)
# Tags of TIFF.
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
BLACK_IS_ZERO = 1
# Width times height of a picture: as large as today's cameras make, but no decompression bomb.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485


def open_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture, decoded and turned upright as its EXIF data say.

    Args:
        path: PNG, JPEG, WebP, BMP or TIFF.
        max_pixels: the largest width times height that is decoded.

    Raises:
        ValueError: if it cannot be read or is larger; names the file.
    """
    # Pillow's WebP decoder checks a limit of its own, which is shared by all threads: it is only ever raised.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    with _named(path), Path(path).open("rb") as stream:
        image = _recognised(stream)
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"found {width}x{height} pixels, expected at most {max_pixels:,}; make it smaller or allow more "
                "(--max-pixels)"
            )
        _check_depth(image)
        image.load()
        return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    try:
        image.getexif()
    except Exception:  # of any type; viewers, too, ignore EXIF data that cannot be read
        return image.copy()
    return ImageOps.exif_transpose(image)


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Turn whatever Pillow's decoders raise on damaged files, a dozen types, into a ValueError with the file's name."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{printable(path)}: cannot be read as an image ({one_line(error)}); replace the file or remove it"
        ) from error


def _recognised(stream: BinaryIO) -> Image.Image:
    """The image of a file in one of `FORMATS`, only its header read. Pillow's own `open` warns about large ones."""
    Image.init()
    start = stream.read(16)
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(start) is True:
            stream.seek(0)
            # Given a file name, Pillow maps grey TIFFs into memory and mixes up the pixels of those on their side.
            return factory(stream)
    raise ValueError(f"found none of the formats {', '.join(FORMATS)} in it")


def _check_depth(image: Image.Image) -> None:
    """Refuse TIFFs with 12 bits, or with white at 0, which Pillow decodes as if they were ordinary ones."""
    tags = getattr(image, "tag_v2", {})
    bits, white = tags.get(BITS_PER_SAMPLE, (16,)), tags.get(PHOTOMETRIC, BLACK_IS_ZERO)
    if image.mode.startswith("I;16") and (bits != (16,) or white != BLACK_IS_ZERO):
        raise ValueError(
            f"found a TIFF with {bits[0]} bits and photometric {white}, expected 16 bits and 1; convert it"
        )


def stored_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture as it is stored, from its header alone.

    Raises:
        ValueError: if the header cannot be read; names the file.
    """
    with _named(path), Path(path).open("rb") as stream:
        return _recognised(stream).size


def as_rgb(image: Image.Image, source: str) -> Image.Image:
    """8-bit RGB of a picture: 16 bits are scaled down, transparent parts become white.

    Raises:
        ValueError: for pixels that have no known brightest value; names the file.
    """
    if image.mode.startswith(("I", "F")):
        if not image.mode.startswith("I;16"):
            raise ValueError(f"{source}: found pixels of type {image.mode!r}, expected 8 or 16 bits; convert the file")
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    with _named(source):
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getextrema()[3][0] < 255:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def resized(array: np.ndarray, size: tuple[int, int] | None, resampling: Image.Resampling) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) resized to `size` (height, width); unchanged if it has it or `size` is None."""
    if size is None or array.shape[:2] == tuple(size):
        return array
    return np.array(Image.fromarray(array).resize(size[::-1], resampling))


def as_values(image: Image.Image, source: str) -> np.ndarray:
    """The numbers that a label editor has written: uint8 (H, W) for 8-bit files, as stored for others.

    A file with a palette holds indices. If the colours of the palette are greys, no two alike, a program that shrinks
    files has put them there, and the grey values are meant.

    Raises:
        ValueError: for 1-bit files, in which there is no telling what 1 means; names the file.
    """
    if image.mode == "1":
        raise ValueError(f"{source}: found a 1-bit image, expected an 8-bit label map; convert it to 8 bits")
    values = np.array(image)
    if image.mode == "P":
        colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        used = int(values.max()) + 1
        greys = colors[:used, 0]
        # An all-black palette, or one that ends before the indices do, is not the work of such a program.
        if (colors == colors[:, :1]).all() and len({*greys.tolist()}) == used:
            return greys[values]
    return values


# ---------------------------------------------------------------- files of a folder


def walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, hidden ones left out. Every folder is visited once, a linked one only if it is elsewhere.

    A folder that does not exist holds nothing.

    Raises:
        OSError: if a folder may not be read.
    """
    root = Path(os.path.realpath(folder))
    seen: set[Path] = set()
    starts = [folder]
    while starts:
        for place, folders, files in os.walk(starts.pop(0), onerror=_refuse):
            real = Path(os.path.realpath(place))
            folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
            if real in seen:
                continue
            seen.add(real)
            links = [Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
            for link in links:
                # A link upwards would bring in what is beside the folder, for example its labels.
                above = Path(os.path.realpath(link))
                starts += [] if real.is_relative_to(above) or root.is_relative_to(above) else [link]
            yield from (Path(place, name) for name in files if not name.startswith("."))


def _refuse(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def files_by_key(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files with one of the suffixes by key: their relative path without suffix, in Unicode's composed form; sorted.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if two files have the same key; names both.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{printable(folder)}: no such folder; expected one with images ({', '.join(suffixes)})"
        )
    files: dict[str, Path] = {}
    for path in sorted(path for path in walk(folder) if path.suffix.lower() in suffixes):
        if path.exists() and not path.is_file():
            continue  # reading from a pipe would wait
        key = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if key in files:
            raise ValueError(
                f"{printable(path)}: same name as {printable(files[key].name)}"
                + (f" (written {path.name!a} and {files[key].name!a})" if path.suffix == files[key].suffix else "")
                + "; names must differ in more than the suffix"
            )
        files[key] = path
    return files


def warn_of_passed_over(folder: Path) -> None:
    """Warn about pictures below a folder in formats that are not read; names the first ten."""
    others = sorted(path for path in walk(folder) if path.suffix.lower() in OTHER_SUFFIXES)
    if others:
        names = ", ".join(printable(path.relative_to(folder)) for path in others[:10])
        warnings.warn(
            f"{printable(folder)}: {len(others)} pictures are passed over, for example {names}; expected "
            f"{', '.join(SUFFIXES)}",
            stacklevel=3,
        )
