"""The miniature as a data set folder, in the layout that `zodi.datasets` reads."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from zodi.datasets import INFO_FILE, dataset_info
from zodi.domains import SOURCE, TARGETS
from zodi.labels import CITYSCAPES
from zodi.miniature import scenes
from zodi.support.files import atomic_path, write_json


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
    """Render a miniature data set, completely or not at all; does nothing when it is already there.

    Args:
        root: folder to make.
        train: number of source scenes, from `scenes.TRAIN_SEEDS`.
        test: number of test scenes in every domain, from `scenes.TEST_SEEDS`.
        domains: target domains.
        height, width: pixels.
        progress: show a progress bar.
        held_out: number of further source scenes, in `val/`, used neither for training nor for testing.

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
        found = dataset_info(root)
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
        write_json(temporary / INFO_FILE, info | {"labels": CITYSCAPES.to_dict()})
    return root


def prepare(data: str | Path, train: int = 48, test: int = 24, domains: Sequence[str] = ("night", "snow")) -> Path:
    """`data` if it is a data set folder; otherwise a small miniature data set is rendered there first."""
    if not (Path(data) / INFO_FILE).exists():
        write_miniature(data, train, test, domains, progress=False)
    return Path(data)
