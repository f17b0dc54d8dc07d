import json

import numpy as np
import pytest
from PIL import Image

from zodi.datasets import (
    FolderDataset,
    PackedDataset,
    dataset_info,
    label_set_of,
    open_split,
    pack,
    read_image,
)
from zodi.labels import CAMVID, CITYSCAPES, LabelSet
from zodi.miniature.dataset import prepare, write_miniature
from zodi.support.mislabelled import Mislabelled


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for key in ("a", "b/c"):
        write(tmp_path / "images" / f"{key}.png", rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        write(tmp_path / "labels" / f"{key}.png", rng.integers(0, 11, (20, 30), dtype=np.uint8))
    return tmp_path / "images", tmp_path / "labels"


def test_pairs_by_relative_name(folders):
    dataset = FolderDataset(*folders, CAMVID)
    assert dataset.keys == ["a", "b/c"]
    assert dataset[1].key == "b/c"
    assert dataset[0].image.shape == (20, 30, 3) and dataset[0].label.shape == (20, 30)
    assert dataset[0] is dataset[0]


def test_resizing_keeps_label_values(folders):
    sample = FolderDataset(*folders, CAMVID, size=(10, 12))[0]
    assert sample.image.shape == (10, 12, 3) and sample.label.shape == (10, 12)
    assert set(np.unique(sample.label)) <= {*range(11), 255}


def test_camvid_void_becomes_ignore(folders):
    write(folders[1] / "a.png", np.full((20, 30), 11, np.uint8))
    assert (FolderDataset(*folders, CAMVID)[0].label == 255).all()


def test_labels_without_image_are_allowed_images_without_label_are_not(folders):
    (folders[0] / "a.png").unlink()
    assert len(FolderDataset(*folders, CAMVID)) == 1
    (folders[1] / "b/c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no label map for 1 of 1 images.*b/c.png"):
        FolderDataset(*folders, CAMVID)


def test_unreadable_image_is_named(folders):
    (folders[0] / "a.png").write_bytes((folders[0] / "a.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"a.png: cannot be read"):
        FolderDataset(*folders, CAMVID)[0]


def test_size_mismatch_is_named(folders):
    write(folders[1] / "a.png", np.zeros((20, 31), np.uint8))
    with pytest.raises(ValueError, match=r"a.png: found size 31x20.*30x20"):
        FolderDataset(*folders, CAMVID)[0]


def test_unknown_label_values_are_named(folders):
    write(folders[1] / "a.png", np.full((20, 30), 77, np.uint8))
    with pytest.raises(ValueError, match=r"a.png: found unknown label values \[77\]"):
        FolderDataset(*folders, CAMVID)[0]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FolderDataset(tmp_path / "nowhere", tmp_path, CAMVID)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images found"):
        FolderDataset(tmp_path / "empty", tmp_path, CAMVID)


def test_same_name_twice_is_an_error(folders):
    write(folders[0] / "a.jpg", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ValueError, match="same name"):
        FolderDataset(*folders, CAMVID)


def test_miniature_folder(tmp_path):
    root = write_miniature(tmp_path / "mini", 2, 1, ["night"], 32, 64, progress=False)
    assert dataset_info(root)["domains"] == ["clear", "night"]
    train, night = open_split(root, "train"), open_split(root, "train_night")
    assert train.keys == night.keys == ["100000", "100001"]
    assert np.array_equal(train[0].label, night[0].label)
    assert train[0].image.mean() > 2 * night[0].image.mean()
    assert train[0].label.max() < CITYSCAPES.num_classes
    assert open_split(root, "test/night").keys == ["200000"]


def test_miniature_is_not_rendered_again_nor_mixed(tmp_path):
    root = write_miniature(tmp_path / "mini", 1, 1, ["night"], 32, 64, progress=False)
    before = (root / "dataset.json").stat().st_mtime_ns
    write_miniature(root, 1, 1, ["night"], 32, 64, progress=False)
    assert (root / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="train: 1 instead of 2"):
        write_miniature(root, 2, 1, ["night"], 32, 64, progress=False)


def test_prepare_keeps_what_is_there(tmp_path):
    root = prepare(tmp_path / "mini", train=1, test=1, domains=["fog"])
    info = json.loads((root / "dataset.json").read_text())
    assert prepare(root) == root
    assert json.loads((root / "dataset.json").read_text()) == info


def test_a_folder_without_dataset_json_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"zodi.miniature render"):
        open_split(tmp_path, "train")


def test_read_image_converts_to_rgb(tmp_path):
    write(tmp_path / "grey.png", np.full((4, 5), 9, np.uint8))
    assert read_image(tmp_path / "grey.png").shape == (4, 5, 3)


def test_a_packed_data_set_holds_the_same_samples_and_is_made_once(folders, tmp_path):
    dataset = FolderDataset(*folders, CAMVID, size=(10, 12))
    packed = pack(dataset, tmp_path / "packed", progress=False)
    assert packed.keys == dataset.keys and packed.label_set == CAMVID
    for i in range(len(dataset)):
        assert np.array_equal(packed[i].image, dataset[i].image) and np.array_equal(packed[i].label, dataset[i].label)
    written = (tmp_path / "packed" / "images.npy").stat().st_mtime_ns
    pack(FolderDataset(*folders, CAMVID, size=(10, 12)), tmp_path / "packed", progress=False)
    assert (tmp_path / "packed" / "images.npy").stat().st_mtime_ns == written


def test_a_packed_data_set_is_made_again_when_a_file_or_the_size_changes(folders, tmp_path):
    pack(FolderDataset(*folders, CAMVID, size=(10, 12)), tmp_path / "packed", progress=False)
    write(folders[0] / "a.png", np.zeros((20, 30, 3), np.uint8))
    packed = pack(FolderDataset(*folders, CAMVID, size=(10, 12)), tmp_path / "packed", progress=False)
    assert not packed[0].image.any()
    assert pack(FolderDataset(*folders, CAMVID), tmp_path / "packed", progress=False)[0].image.shape == (20, 30, 3)


def test_a_damaged_pack_and_mixed_sizes_are_named(folders, tmp_path):
    packed = pack(FolderDataset(*folders, CAMVID), tmp_path / "packed", progress=False)
    with (tmp_path / "packed" / "images.npy").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ValueError, match="copy of b/c is damaged"):
        _ = packed[1]
    write(folders[0] / "b/c.png", np.zeros((10, 30, 3), np.uint8))
    write(folders[1] / "b/c.png", np.zeros((10, 30), np.uint8))
    with pytest.raises(ValueError, match="b/c: found size 30x10, expected 30x20"):
        pack(FolderDataset(*folders, CAMVID), tmp_path / "mixed", progress=False)
    assert not (tmp_path / "mixed").exists()


# ---------------------------------------------------------------- label sets that travel with their data

MINE = LabelSet("mine", ("sky", "road"), ((1, 1, 1), (2, 2, 2)))


def test_a_data_set_is_opened_with_the_label_set_that_it_holds(folders):
    root = folders[0].parent
    (root / "train").mkdir()
    for folder in folders:
        folder.rename(root / "train" / folder.name)
    for label in (root / "train/labels").rglob("*.png"):
        write(label, np.ones((20, 30), np.uint8))
    (root / "dataset.json").write_text(json.dumps({"label_set": "cityscapes", "labels": MINE.to_dict()}))
    train = open_split(root, "train")
    assert train.label_set == label_set_of(root) == MINE and train.label_set.names[train[0].label[0, 0]] == "road"
    # As earlier versions wrote it, with a name only.
    (root / "dataset.json").write_text(json.dumps({"label_set": "camvid"}))
    assert open_split(root, "train").label_set == CAMVID


@pytest.mark.parametrize("content", ["[1]", "{}", '{"label_set": "camvid", "labels": {"names": ["sky"]}}'])
def test_a_description_without_a_label_set_is_named(content, tmp_path):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset\.json: found"):
        label_set_of(tmp_path)


def test_a_packed_data_set_is_made_again_for_other_classes_of_the_same_name(folders, tmp_path):
    renamed = LabelSet(CAMVID.name, CAMVID.names[::-1], CAMVID.colors, CAMVID.void_values)
    pack(FolderDataset(*folders, CAMVID), tmp_path / "packed", progress=False)
    assert pack(FolderDataset(*folders, renamed), tmp_path / "packed", progress=False).label_set == renamed
    assert PackedDataset(tmp_path / "packed").label_set == renamed
    index = json.loads((tmp_path / "packed" / "index.json").read_text())
    # A name alone does not say what the indices mean.
    (tmp_path / "packed" / "index.json").write_text(json.dumps(index | {"label_set": "camvid"}))
    with pytest.raises(ValueError, match=r"packed: found no label set"):
        PackedDataset(tmp_path / "packed")
    (tmp_path / "packed" / "index.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"index\.json: found no index of packed arrays; delete the folder"):
        PackedDataset(tmp_path / "packed")
    assert pack(FolderDataset(*folders, CAMVID), tmp_path / "packed", progress=False).label_set == CAMVID


def test_mislabelled_images_have_the_label_map_of_the_next_one_at_their_own_size(folders):
    write(folders[0] / "b/c.png", np.zeros((10, 30, 3), np.uint8))
    write(folders[1] / "b/c.png", np.tile(np.arange(10, dtype=np.uint8)[:, None], (1, 30)))
    dataset = FolderDataset(*folders, CAMVID)
    wrong = Mislabelled(dataset)
    assert len(wrong) == 2 and wrong.label_set is dataset.label_set
    assert [sample.key for sample in (wrong[0], wrong[1])] == ["a", "b/c"]
    assert np.array_equal(wrong[0].image, dataset[0].image)
    assert np.array_equal(wrong[0].label, np.repeat(dataset[1].label, 2, axis=0)), "twice as high"
    assert wrong[1].label.shape == (10, 30) and {*np.unique(wrong[1].label)} <= {*np.unique(dataset[0].label)}
    with pytest.raises(ValueError, match="found 1 images, expected at least two"):
        Mislabelled(dataset.only(["a"]))
