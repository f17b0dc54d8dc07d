"""The paper's data: Cityscapes (source), ACDC (night, snow, rain, fog) and GTA5 (game), in their official layouts.

    python data_scripts/paper.py instructions
    python data_scripts/paper.py --root DIR check
    python data_scripts/paper.py --root DIR prepare --out results/paper/data

DIR holds cityscapes/, acdc/ and gta5/, each as its archives unpack. Training is on Cityscapes' train part, test/clear
on its val part, the targets' tests on ACDC's val parts and on frames of GTA5; train_DOMAIN (oracle only) on ACDC's
train parts and the other frames of GTA5. Everything is resized once, images by Lanczos, labels by nearest neighbour.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from zodi.datasets import read_image, read_label, write_folder
from zodi.domains import SOURCE, TARGETS
from zodi.labels import CITYSCAPES, CITYSCAPES_IDS

ACDC_SIZE = (1920, 1080)
GTA5_TEST_FRAMES = 1000
THREADS = 8
INSTRUCTIONS = f"""\
Make a folder DIR with these three, as their archives unpack:
  DIR/cityscapes/  leftImg8bit/{{train,val}}/CITY/*_leftImg8bit.png  (leftImg8bit_trainvaltest.zip, 11 GB)
                   gtFine/{{train,val}}/CITY/*_gtFine_labelIds.png    (gtFine_trainvaltest.zip, 241 MB)
                   register at cityscapes-dataset.com, 2975 + 500 frames
  DIR/acdc/        rgb_anon/CONDITION/{{train,val}}/SEQUENCE/*_rgb_anon.png  (rgb_anon_trainvaltest.zip)
                   gt/CONDITION/{{train,val}}/SEQUENCE/*_gt_labelIds.png     (gt_trainval.zip)
                   register at acdc.vision.ee.ethz.ch; CONDITION is night, snow, rain, fog
  DIR/gta5/        images/*.png, labels/*.png  (ten parts each, download.visinf.tu-darmstadt.de/data/from_games)
The game's test set is every n-th frame by name, n such that {GTA5_TEST_FRAMES} remain, or the frames that the FILE
of --gta5-test names, one a line. Then: python data_scripts/paper.py --root DIR check"""

Pair = tuple[Path, Path]


# ---------------------------------------------------------------- official layouts


def _pairs(root: Path, image_end: str, labels_root: Path, label_end: str) -> list[Pair]:
    """Images below `root` with the labels of the same relative name below `labels_root`, sorted by name."""
    pairs = []
    for image in sorted(root.rglob(f"*{image_end}")):
        name = image.name.removesuffix(image_end)
        pairs.append((image, labels_root / image.parent.relative_to(root) / f"{name}{label_end}"))
    return pairs


def cityscapes_splits(root: Path) -> dict[str, list[Pair]]:
    """Train and val of Cityscapes; `root` holds leftImg8bit/ and gtFine/."""

    def part(name: str) -> list[Pair]:
        return _pairs(root / "leftImg8bit" / name, "_leftImg8bit.png", root / "gtFine" / name, "_gtFine_labelIds.png")

    return {"train": part("train"), "test/clear": part("val")}


def acdc_splits(root: Path, domain: str) -> dict[str, list[Pair]]:
    """Train and val of one condition of ACDC; `root` holds rgb_anon/ and gt/."""

    def part(name: str) -> list[Pair]:
        pairs = _pairs(
            root / "rgb_anon" / domain / name, "_rgb_anon.png", root / "gt" / domain / name, "_gt_labelIds.png"
        )
        kept = [pair for pair in pairs if _size(pair[0]) == ACDC_SIZE]
        if len(kept) < len(pairs):
            # As in the authors' program.
            print(f"{root}/rgb_anon/{domain}/{name}: {len(pairs) - len(kept)} frames are not 1920x1080, left out")
        return kept

    return {f"train_{domain}": part("train"), f"test/{domain}": part("val")}


def gta5_splits(root: Path, test_names: Sequence[str] | None) -> dict[str, list[Pair]]:
    """Frames of GTA5 for testing and the rest; frames whose label has another size are left out, a known defect."""
    pairs = _pairs(root / "images", ".png", root / "labels", ".png")
    kept = [(image, label) for image, label in pairs if not label.exists() or _size(image) == _size(label)]
    if len(kept) < len(pairs):
        print(f"{root}: {len(pairs) - len(kept)} frames have labels of another size, left out")
    if test_names is None:
        every = max(2, len(kept) // GTA5_TEST_FRAMES)
        names = {image.stem for image, _ in kept[::every][:GTA5_TEST_FRAMES]}
    else:
        names = set(test_names)
        unknown = sorted(names - {image.stem for image, _ in kept})
        if unknown:
            raise ValueError(f"{root}: found no frames {unknown[:10]} of the list of test frames")
    return {
        "train_game": [pair for pair in kept if pair[0].stem not in names],
        "test/game": [pair for pair in kept if pair[0].stem in names],
    }


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def all_splits(root: Path, domains: Sequence[str], test_names: Sequence[str] | None) -> dict[str, list[Pair]]:
    """Pairs (image, label) of every part of the data set folder.

    Raises:
        ValueError: listing everything that is missing.
    """
    splits = cityscapes_splits(root / "cityscapes")
    for domain in domains:
        splits |= gta5_splits(root / "gta5", test_names) if domain == "game" else acdc_splits(root / "acdc", domain)
    problems = [f"no frames for {name}" for name, pairs in splits.items() if not pairs]
    for name, pairs in splits.items():
        missing = [label for _, label in pairs if not label.is_file()]
        if missing:
            problems.append(f"{name}: {len(missing)} of {len(pairs)} labels missing, for example {missing[0]}")
    if problems:
        raise ValueError(
            f"{root}: not complete:\n  " + "\n  ".join(problems) + "\nSee `python data_scripts/paper.py instructions`."
        )
    return splits


# ---------------------------------------------------------------- verbs


def check(splits: dict[str, list[Pair]]) -> None:
    """Read every image and label.

    Raises:
        ValueError: naming the first ten files that cannot be used.
    """

    def problem(pair: Pair) -> str | None:
        try:
            size = read_image(pair[0]).shape[:2]
            found = read_label(pair[1], CITYSCAPES_IDS).shape
        except ValueError as error:
            return str(error)
        return None if found == size else f"{pair[1]}: found size {found[::-1]}, expected {size[::-1]}"

    pairs = [pair for part in splits.values() for pair in part]
    with ThreadPoolExecutor(THREADS) as pool:
        problems = [text for text in tqdm(pool.map(problem, pairs), "check", len(pairs), unit="frame") if text]
    if problems:
        raise ValueError(f"{len(problems)} files cannot be used:\n" + "\n".join(problems[:10]))
    print(", ".join(f"{name}: {len(part)} frames" for name, part in splits.items()))


def prepare(splits: dict[str, list[Pair]], domains: Sequence[str], out: Path, height: int, width: int) -> None:
    """Write a data set folder; all of it or nothing, and nothing again when it is there.

    Raises:
        ValueError: if `out` holds another data set.
    """

    def key(image: Path) -> str:
        return image.stem.removesuffix("_leftImg8bit").removesuffix("_rgb_anon")

    info = {"name": "paper", "label_set": CITYSCAPES.name, "source": SOURCE, "domains": [SOURCE, *domains]}
    named = {name: [(key(image), image, label) for image, label in pairs] for name, pairs in splits.items()}
    write_folder(out, info, named, CITYSCAPES_IDS, (height, width))


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("instructions", "check", "prepare"))
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with cityscapes/, acdc/, gta5/")
    parser.add_argument("--domains", nargs="+", choices=TARGETS, default=list(TARGETS), help="target domains")
    parser.add_argument("--gta5-test", type=Path, help="file with the names of the game's test frames, one a line")
    parser.add_argument("--out", type=Path, default=Path("results/paper/data"), help="data set folder to make")
    parser.add_argument("--height", type=int, default=512, help="pixels")
    parser.add_argument("--width", type=int, default=1024, help="pixels")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "instructions":
            print(INSTRUCTIONS)
            return 0
        names = arguments.gta5_test and arguments.gta5_test.read_text(encoding="utf-8").split()
        splits = all_splits(arguments.root, arguments.domains, names)
        if arguments.verb == "check":
            check(splits)
        else:
            prepare(splits, arguments.domains, arguments.out, arguments.height, arguments.width)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
