"""Files are read as a viewer shows them, label maps as an editor means them; damaged ones give a ValueError."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zodi.datasets import FolderDataset, find_files, read_image, read_label, read_pair
from zodi.labels import CITYSCAPES
from zodi.support import pictures

RNG = np.random.default_rng(0)
STREET = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
LABEL = RNG.integers(0, 19, (6, 8), dtype=np.uint8)
ORIENTATION = 0x0112


def with_orientation(array: np.ndarray, orientation: int, file: Path, **options) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(array).save(file, exif=exif, **options)
    return file


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, STREET),
        (3, STREET[::-1, ::-1]),
        (6, np.rot90(STREET, -1)),
        (8, np.rot90(STREET)),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_images_are_turned_as_their_exif_data_say(orientation, shown, suffix, tmp_path):
    file = with_orientation(
        STREET, orientation, tmp_path / f"street{suffix}", **{"lossless": True} if suffix == ".webp" else {}
    )
    assert np.array_equal(read_image(file), shown)


def test_labels_are_turned_too_and_a_turned_image_fits_its_upright_label(tmp_path):
    label = with_orientation(LABEL, 6, tmp_path / "label.png")
    assert np.array_equal(read_label(label, CITYSCAPES), np.rot90(LABEL, -1))
    image = with_orientation(STREET, 6, tmp_path / "image.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(LABEL, -1))).save(tmp_path / "upright.png")
    _, upright = read_pair(image, tmp_path / "upright.png", CITYSCAPES)
    assert np.array_equal(upright, np.rot90(LABEL, -1))
    Image.fromarray(LABEL).save(tmp_path / "sideways.png")
    with pytest.raises(ValueError, match=r"sideways\.png: found size 8x6, expected that of its image image\.png, 6x8"):
        read_pair(image, tmp_path / "sideways.png", CITYSCAPES)


@pytest.mark.parametrize("kind", [np.uint8, "<u2", ">u2"])
@pytest.mark.parametrize(
    ("orientation", "turned"), [(2, np.fliplr), (5, np.transpose), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)]
)
def test_grey_tiffs_on_their_side_keep_their_pixels(kind, orientation, turned, tmp_path):
    """Pillow maps those into memory when it knows the file's name, with rows of a wrong length."""
    values = np.arange(48, dtype=kind).reshape(6, 8)
    file = with_orientation(values, orientation, tmp_path / "grey.tif")
    assert np.array_equal(np.asarray(pictures.open_picture(file)), turned(values))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_data_that_cannot_be_read_turn_nothing(suffix, tmp_path):
    file = tmp_path / f"street{suffix}"
    Image.fromarray(STREET).save(file, exif=b"Exif\0\0nothing of that kind")
    assert read_image(file).shape == STREET.shape


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep = (np.arange(48).reshape(6, 8) * 1300).astype(np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        found = read_image(tmp_path / name)
        assert np.abs(found[..., 0] - deep / 257).max() <= 0.5 and (found == found[..., :1]).all()
    Image.fromarray(np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif: found pixels of type 'F', expected 8 or 16 bits"):
        read_image(tmp_path / "float.tif")


def test_pixels_without_a_known_brightest_value_are_refused_by_name(tmp_path):
    Image.fromarray(np.arange(48, dtype=np.int32).reshape(6, 8)).save(tmp_path / "long.tif")
    with pytest.raises(ValueError, match=r"long\.tif: found pixels of type 'I', expected 8 or 16 bits"):
        read_image(tmp_path / "long.tif")
    Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8)).save(tmp_path / "deep.tif")
    content = (tmp_path / "deep.tif").read_bytes()
    # An entry of a TIFF: tag, type 3 (16 bits), one value.
    for name, tag, value in (("white at 0", 262, 0), ("12 bits", 258, 12)):
        entry = content.index(tag.to_bytes(2, "little") + b"\3\0\1\0\0\0")
        changed = content[: entry + 8] + value.to_bytes(2, "little") + content[entry + 10 :]
        (tmp_path / f"{name}.tif").write_bytes(changed)
        with pytest.raises(ValueError, match=rf"{name}\.tif: .*found a TIFF with \d+ bits and photometric"):
            read_image(tmp_path / f"{name}.tif")


def test_a_cmyk_jpeg_looks_as_it_was_printed(tmp_path):
    color = np.full((8, 8, 3), (200, 60, 20), np.uint8)
    Image.fromarray(color).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "print.jpg").astype(int) - color).max() <= 4


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_pixel_becomes_rgb(mode, tmp_path):
    image = Image.fromarray(np.repeat(np.uint8([[0], [255]]), 4, 1)).convert("RGB").convert(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file)
    assert read_image(file)[:, 0].tolist() == [[0] * 3, [255] * 3]


def test_what_is_transparent_lies_on_white(tmp_path):
    pixels = np.zeros((1, 2, 4), np.uint8)
    pixels[0, 1, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").tolist() == [[[255] * 3, [0] * 3]]


def palette_label(colors: list[tuple[int, int, int]], indices: np.ndarray, file: Path) -> Path:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putpalette([value for color in colors for value in color])
    image.putdata(indices.ravel().tolist())
    image.save(file)
    return file


def test_grey_palettes_give_grey_values_and_colour_palettes_indices(tmp_path):
    values = np.unique(LABEL)
    # What a program does that makes files smaller: only values that occur, in another order.
    order = RNG.permutation(len(values))
    shuffled = values[order]
    indices = np.argsort(shuffled)[np.searchsorted(np.sort(shuffled), LABEL)]
    grey = palette_label([(int(v),) * 3 for v in shuffled], indices, tmp_path / "grey.png")
    assert np.array_equal(read_label(grey, CITYSCAPES), LABEL)
    colour = palette_label(list(CITYSCAPES.colors), LABEL, tmp_path / "colour.png")
    assert np.array_equal(read_label(colour, CITYSCAPES), LABEL)


def test_a_whole_grey_palette_gives_all_its_values(tmp_path):
    """All 256 indices occur; in 8 bits, the number after the last one would be 0."""
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    file = palette_label([(255 - grey,) * 3 for grey in range(256)], indices, tmp_path / "label.png")
    assert np.array_equal(pictures.as_values(pictures.open_picture(file), "label.png"), 255 - indices)


def test_colour_palettes_keep_indices_though_no_two_reds_are_alike(tmp_path):
    file = palette_label([(3, 0, 0), (2, 9, 0), (1, 0, 9)], np.array([[0, 1, 2]]), tmp_path / "label.png")
    assert read_label(file, CITYSCAPES).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("greys", [[0] * 19, [0, 0, 0, 9, 9, 9], [7, 7, 7, 8]])
def test_grey_palettes_that_tell_nothing_apart_leave_the_indices(greys, tmp_path):
    """All black, with greys that are alike: nothing that was made of grey values without loss."""
    indices = np.arange(min(len(greys), 4), dtype=np.uint8).reshape(1, -1)
    file = palette_label([(grey,) * 3 for grey in greys], indices, tmp_path / "label.png")
    assert read_label(file, CITYSCAPES).tolist() == indices.tolist()


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_values_in_fewer_bits_are_those_of_the_eight_bit_file(bits, tmp_path):
    """A program that makes files smaller writes 0, 85, 170, 255 in 2 bits, and 0, 17, 34 .. in 4."""
    step = 255 // (2**bits - 1)
    values = np.arange(0, 256, step, dtype=np.uint8)
    packed = np.packbits(np.unpackbits((values // step)[:, None], axis=1)[:, 8 - bits :].ravel())
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"\0" + packed.tobytes())), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    (tmp_path / "label.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert pictures.as_values(pictures.open_picture(tmp_path / "label.png"), "label.png").tolist() == [values.tolist()]


def test_one_bit_labels_are_called_that(tmp_path):
    Image.fromarray(LABEL > 9).save(tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"label\.png: found a 1-bit image, expected an 8-bit label map"):
        read_label(tmp_path / "label.png", CITYSCAPES)


def test_only_named_formats_are_opened_whatever_a_file_is_called(tmp_path):
    (tmp_path / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EOF\n")
    Image.fromarray(STREET).save(tmp_path / "film.gif")
    (tmp_path / "film.gif").rename(tmp_path / "film.png")
    for name in ("drawing.png", "film.png"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as an image \(found none of the formats PNG"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_large_pictures_are_read_when_that_is_allowed(suffix, tmp_path):
    file = tmp_path / f"large{suffix}"
    Image.new("RGB", (40, 30)).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(file, max_pixels=1200).shape == (30, 40, 3)
        with pytest.raises(ValueError, match=rf"large\{suffix}: .*found 40x30 pixels, expected at most 1,199"):
            read_image(file, max_pixels=1199)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_what_the_user_allows_counts_more_than_pillows_limit(suffix, tmp_path, monkeypatch):
    file = tmp_path / f"large{suffix}"
    Image.new("RGB", (40, 30)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=rf"large\{suffix}: "):
            read_image(file, max_pixels=100)
        assert read_image(file, max_pixels=1200).shape == (30, 40, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_damaged_files_give_a_value_error_with_their_name(suffix, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(STREET).save(whole)
    content = whole.read_bytes()
    rng = np.random.default_rng(1)
    messages = []
    for number in range(120):
        damaged = bytearray(content[: rng.integers(len(content))] if number % 3 == 0 else content)
        for _ in range(rng.integers(1, 4)):
            if damaged:
                damaged[rng.integers(len(damaged))] = rng.integers(256)
        file = tmp_path / f"damaged{suffix}"
        file.write_bytes(damaged)
        try:
            read_image(file, max_pixels=1_000_000)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(file) in message and "\n" not in message for message in messages)


# ---------------------------------------------------------------- folders


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(STREET).save(file, format="png")


def test_hidden_files_and_folders_are_not_data(tmp_path):
    touch(
        tmp_path / "a.png", tmp_path / "._a.png", tmp_path / ".ipynb_checkpoints" / "b.png",
        tmp_path / ".a.png.x1y2.partial" / "a.png", tmp_path / "sub" / ".hidden" / "c.png", tmp_path / "sub" / "d.tif",
    )  # fmt: skip
    assert list(find_files(tmp_path)) == ["a", "sub/d"]


def test_linked_folders_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere" / "a.png", tmp_path / "data" / "b.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    assert list(find_files(tmp_path / "data")) == ["b", "linked/a"]


def test_a_folder_that_is_linked_within_counts_once_under_its_own_name(tmp_path):
    touch(tmp_path / "z" / "a.png", tmp_path / "m" / "b.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "m" / "z").symlink_to(tmp_path / "z")
    assert list(find_files(tmp_path)) == ["m/b", "z/a"]


def test_a_link_upwards_brings_in_nothing_from_beside_the_folder(tmp_path):
    touch(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.png", tmp_path / "elsewhere" / "b.png")
    (tmp_path / "images" / "up").symlink_to(tmp_path)
    (tmp_path / "images" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    assert list(find_files(tmp_path / "images")) == ["a", "out/b"]


def test_links_upwards_from_places_that_links_lead_to_bring_in_nothing(tmp_path):
    """One leads above where it lies, the other above the folder that is read."""
    touch(tmp_path / "home" / "images" / "a.png", tmp_path / "home" / "labels" / "a.png")
    touch(tmp_path / "other" / "deep" / "b.png", tmp_path / "other" / "c.png")
    (tmp_path / "home" / "images" / "out").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "other" / "deep" / "up").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "deep" / "home").symlink_to(tmp_path / "home")
    assert list(find_files(tmp_path / "home" / "images")) == ["a", "out/b"]


def test_a_link_to_nowhere_is_named_and_a_pipe_is_not_waited_for(tmp_path):
    touch(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere.png")
    found = find_files(tmp_path)
    assert list(found) == ["a", "c"]
    with pytest.raises(ValueError, match=r"c\.png: cannot be read as an image .*No such file"):
        read_image(found["c"])


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path, monkeypatch):
    touch(tmp_path / "a.png", tmp_path / "locked" / "b.png")
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="locked"):
        find_files(tmp_path)


def test_pictures_that_are_passed_over_are_named(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "phone.HEIC", tmp_path / "raw" / "b.nef", tmp_path / "web.jfif")
    (tmp_path / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"3 pictures are passed over, for example phone\.HEIC, raw/b\.nef, web\.jfif"):
        assert list(find_files(tmp_path)) == ["a"]


def test_names_in_other_unicode_forms_belong_together(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    touch(tmp_path / "images" / f"{composed}.png", tmp_path / "both" / f"{composed}.png")
    (tmp_path / "labels").mkdir()
    Image.fromarray(LABEL).save(tmp_path / "labels" / f"{decomposed}.png")
    assert FolderDataset(tmp_path / "images", tmp_path / "labels", CITYSCAPES).keys == [composed]
    touch(tmp_path / "both" / f"{decomposed}.png")
    if len(list((tmp_path / "both").iterdir())) == 2:  # some file systems know one form only
        with pytest.raises(
            ValueError, match=r"'cafe\\u0301\.png'.*'caf\\xe9\.png'|'caf\\xe9\.png'.*'cafe\\u0301\.png'"
        ):
            find_files(tmp_path / "both")


def test_names_that_are_not_utf8_can_be_told(tmp_path):
    name = os.fsdecode(b"bad\xff.png")
    try:
        touch(tmp_path / "images" / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "labels").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        FolderDataset(tmp_path / "images", tmp_path / "labels", CITYSCAPES)
    assert str(caught.value).encode("utf-8")
    (tmp_path / "images" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read") as unreadable:
        pictures.open_picture(tmp_path / "images" / name)
    assert str(unreadable.value).encode("utf-8")
