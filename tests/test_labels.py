"""Label sets: ids, class indices and colours, there and back."""

import json

import numpy as np
import pytest

from zodi.labels import (
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_IDS,
    IGNORE_INDEX,
    LABEL_SETS,
    LabelSet,
    get_label_set,
    read_mapping,
)

each_set = pytest.mark.parametrize("label_set", LABEL_SETS.values(), ids=LABEL_SETS)


def all_classes(label_set):
    return np.append(np.arange(label_set.num_classes), IGNORE_INDEX).astype(np.uint8).reshape(1, -1)


@each_set
def test_colours_and_back(label_set):
    ids = np.random.default_rng(0).choice(all_classes(label_set)[0], (40, 60))
    layout = label_set.colorize(ids)
    assert np.array_equal(label_set.from_colors(layout, "layout.png"), ids)
    assert (layout[ids == IGNORE_INDEX] == 0).all()


@each_set
def test_every_value_of_a_file_is_a_class_or_void(label_set):
    raw = np.array([[*sum(label_set.values, ()), *label_set.void_values]], np.uint8)
    expected = [*range(label_set.num_classes), *[IGNORE_INDEX] * len(label_set.void_values)]
    assert label_set.to_train_ids(raw, "label.png")[0].tolist() == expected


def test_the_published_label_table_of_cityscapes():
    raw = np.arange(35, dtype=np.uint8)[None]
    train_ids = CITYSCAPES_IDS.to_train_ids(raw, "label.png")[0]
    for label_id, name in ((7, "road"), (11, "building"), (24, "person"), (26, "car"), (33, "bicycle")):
        assert CITYSCAPES.names[train_ids[label_id]] == name
    assert (train_ids[[0, 6, 9, 10, 14, 15, 16, 18, 29, 30, 34]] == IGNORE_INDEX).all()
    assert CITYSCAPES.colors[CITYSCAPES.names.index("car")] == (0, 0, 142)


def test_an_unknown_colour_is_named_with_file_and_pixel():
    layout = CITYSCAPES.colorize(np.zeros((3, 4), np.uint8))
    layout[1, 2] = (128, 64, 127)
    with pytest.raises(ValueError, match=r"street\.png: found the colour \(128, 64, 127\) at row 1, column 2"):
        CITYSCAPES.from_colors(layout, "street.png")
    layout[1, 2] = (255, 255, 255)
    with pytest.raises(ValueError, match="255, 255, 255"):
        CITYSCAPES.from_colors(layout, "street.png")
    with pytest.raises(ValueError, match="expected uint8"):
        CITYSCAPES.from_colors(layout[..., 0], "street.png")


def test_unknown_values_and_sets_are_named():
    with pytest.raises(ValueError, match=r"label\.png: found unknown label values \[77\]"):
        CITYSCAPES_IDS.to_train_ids(np.full((2, 2), 77, np.uint8), "label.png")
    with pytest.raises(ValueError, match="camvid"):
        get_label_set("kitti")
    assert get_label_set("camvid") is CAMVID


def test_a_mapping_reads_other_label_files_as_cityscapes_classes(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("classes:\n  road: [1, 2]\n  car: 9\nvoid: 0\n")
    label_set = get_label_set(str(file))
    raw = np.array([[0, 1, 2, 9, 255]], np.uint8)
    assert label_set.to_train_ids(raw, "label.png")[0].tolist() == [255, 0, 0, 13, 255]
    assert label_set.name == "mine" and label_set.names == CITYSCAPES.names
    with pytest.raises(ValueError, match=r"unknown label values \[3\]"):
        label_set.to_train_ids(np.array([[3]], np.uint8), "label.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: {street: 1}", "unknown classes \\['street'\\]"),
        ("classes: {road: 300}", "found the pixel values \\[300\\]"),
        ("classes: {road: [1, 2], car: 2}", "\\[2\\] are given more than once"),
        ("road: 1", "expected `classes:`"),
        ("classes: [", "cannot be read as YAML"),
        ("classes: {road: yes}", "found the pixel values \\[True\\]"),
    ],
)
def test_mappings_that_are_not_right(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_mapping(tmp_path / "mine.yaml")


def test_a_mapping_that_is_no_text_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"classes: {road: 1}  # stra\xdfe\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: cannot be read as YAML"):
        read_mapping(tmp_path / "mine.yaml")


# ---------------------------------------------------------------- content, conflicts


@each_set
def test_a_label_set_travels_as_its_content(label_set):
    content = json.loads(json.dumps(label_set.to_dict()))
    assert LabelSet.from_dict(content) == label_set
    for broken in (None, [], "cityscapes", {}, content | {"names": 3}, content | {"colors": [["a"]]}):
        with pytest.raises(ValueError, match=r"found no label set|invalid literal"):
            LabelSet.from_dict(broken)


def test_content_that_was_changed_is_refused():
    content = CITYSCAPES.to_dict()
    content["names"][0], content["names"][10] = content["names"][10], content["names"][0]
    with pytest.raises(ValueError, match=r"^data/dataset\.json: found no label set .*changed by hand"):
        LabelSet.from_dict(content, "data/dataset.json")
    del content["hash"]
    assert LabelSet.from_dict(content).names[0] == "sky"


def test_the_hash_is_that_of_the_content_not_of_the_name(tmp_path):
    hashes = {label_set.hash for label_set in LABEL_SETS.values()}
    assert len(hashes) == len(LABEL_SETS) and all(len(found) == 12 for found in hashes)
    content = [CITYSCAPES.names, CITYSCAPES.colors]
    assert LabelSet("x", *content, void_values=(40, 30)).hash == LabelSet("y", *content, void_values=(30, 40)).hash
    for name, values in (("a", "[1, 2]"), ("b", "[2, 1]"), ("c", "[1]")):
        (tmp_path / f"{name}.yaml").write_text(f"classes: {{road: {values}}}\nvoid: [0, 3]\n")
    first, same, other = (read_mapping(tmp_path / f"{name}.yaml").hash for name in "abc")
    assert first == same != other


def test_written_label_maps_hold_class_indices():
    assert CITYSCAPES_IDS.written() == CITYSCAPES == CITYSCAPES.written()
    written = CAMVID.written()
    assert (written.name, written.names) == ("camvid", CAMVID.names)
    assert written.to_train_ids(np.array([[10, 255]], np.uint8), "x")[0].tolist() == [10, 255]


def test_a_class_may_have_the_value_255(tmp_path):
    file = tmp_path / "mask.yaml"
    file.write_text("classes: {road: 255, car: 128}\nvoid: [0]\n")
    label_set = read_mapping(file)
    ids = label_set.to_train_ids(np.array([[0, 128, 255]], np.uint8), "mask.png")[0]
    assert [CITYSCAPES.names[i] if i != IGNORE_INDEX else None for i in ids] == [None, "car", "road"]
    file.write_text("classes: {road: 255}\nvoid: [255]\n")
    with pytest.raises(ValueError, match=r"the pixel values \[255\] are given more than once"):
        read_mapping(file)
    with pytest.raises(ValueError, match=r"\[7\] mean both a class and void"):
        LabelSet("x", ("road",), ((1, 2, 3),), void_values=(7,), raw_values=((7,),))
