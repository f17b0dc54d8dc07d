"""The paper's data: Cityscapes (source), ACDC (night, snow, rain, fog) and GTA5 (game), in their official layouts.

    python data_scripts/paper.py instructions
    python data_scripts/paper.py --root DIR check
    python data_scripts/paper.py --root DIR prepare --out results/paper/data

DIR holds cityscapes/, acdc/ and gta5/, each as its archives unpack. Training uses Cityscapes' train part, test/clear
its val part, the targets' tests ACDC's val parts and frames of GTA5, and train_DOMAIN (oracle only) ACDC's train parts
and the other frames of GTA5. Everything is resized once, images by Lanczos, labels by nearest neighbour.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import acdc
import cityscapes
import command
import gta5
from dataset import ANY_SIZE, Pair, describe, pairs, problems_of_pairs
from folder import write_folder

from zodi.domains import SOURCE, TARGETS
from zodi.labels import CITYSCAPES, CITYSCAPES_IDS
from zodi.support.options import folder
from zodi.support.pictures import stored_size

GTA5_TEST_FRAMES = 1000
INSTRUCTIONS = f"""\
Make a folder DIR with three data sets; each script says how:
  python data_scripts/cityscapes.py --root DIR/cityscapes instructions
  python data_scripts/acdc.py --root DIR/acdc instructions
  python data_scripts/gta5.py --root DIR/gta5 instructions
The game's test set is every n-th frame by name, n such that {GTA5_TEST_FRAMES} remain, or the frames that the FILE
of --gta5-test names, one per line. Then:
  python data_scripts/paper.py --root DIR check"""


# ---------------------------------------------------------------- official layouts


def cityscapes_splits(root: Path) -> dict[str, list[Pair]]:
    """Train and val of Cityscapes."""
    train, val = cityscapes.CITYSCAPES.parts
    return {"train": pairs(root, train), "test/clear": pairs(root, val)}


def acdc_splits(root: Path, domain: str) -> dict[str, list[Pair]]:
    """Train and val of one condition of ACDC."""

    def part(name: str) -> list[Pair]:
        found = pairs(root, acdc.part(domain, name))
        kept = [pair for pair in found if stored_size(pair[0]) == acdc.SIZE]
        if len(kept) < len(found):
            # As in the authors' program.
            print(f"{root}, {domain}/{name}: {len(found) - len(kept)} frames are not 1920x1080, left out")
        return kept

    return {f"train_{domain}": part("train"), f"test/{domain}": part("val")}


def gta5_splits(root: Path, test_names: Sequence[str] | None) -> dict[str, list[Pair]]:
    """Frames of GTA5 for testing and the rest; frames whose label has another size are left out, a known defect."""
    found = pairs(root, gta5.GTA5.parts[0])
    kept = [(image, label) for image, label in found if not label.exists() or stored_size(image) == stored_size(label)]
    if len(kept) < len(found):
        print(f"{root}: {len(found) - len(kept)} frames have labels of another size, left out")
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


def listed_names(file: Path) -> list[str]:
    """Names of frames, one per line.

    Raises:
        ValueError: if the file is not text, or holds no name.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: found bytes that are not UTF-8, expected names of frames, one per line") from error
    if not names:
        raise ValueError(f"{file}: found nothing, expected names of frames, one per line")
    return names


def all_splits(root: Path, domains: Sequence[str], test_names: Sequence[str] | None) -> dict[str, list[Pair]]:
    """Pairs (image, label) of every part of the data set folder.

    Raises:
        ValueError: listing everything that is missing.
    """
    splits = cityscapes_splits(root / "cityscapes")
    for domain in domains:
        splits |= gta5_splits(root / "gta5", test_names) if domain == "game" else acdc_splits(root / "acdc", domain)
    problems = [f"no frames for {name}" for name, part in splits.items() if not part]
    for name, part in splits.items():
        missing = [label for _, label in part if not label.is_file()]
        if missing:
            problems.append(f"{name}: {len(missing)} of {len(part)} labels missing, for example {missing[0]}")
    if problems:
        raise ValueError(
            f"{root}: not complete:\n  " + "\n  ".join(problems) + "\nSee `python data_scripts/paper.py instructions`."
        )
    return splits


# ---------------------------------------------------------------- verbs


def check(splits: dict[str, list[Pair]]) -> None:
    """Read every image and label that is used.

    Raises:
        ValueError: with the first files of each kind of problem.
    """
    jobs = [(pair, ANY_SIZE) for part in splits.values() for pair in part]
    problems = problems_of_pairs(jobs, CITYSCAPES_IDS, "check")
    if problems:
        raise ValueError(f"some files cannot be used\n{describe(problems)}")
    print(", ".join(f"{name}: {len(part)} frames" for name, part in splits.items()))


def prepare(splits: dict[str, list[Pair]], domains: Sequence[str], out: Path, height: int, width: int) -> None:
    """Write a data set folder, completely or not at all; does nothing when it is already there.

    Raises:
        ValueError: if `out` holds another data set.
    """

    def key(image: Path) -> str:
        return image.stem.removesuffix("_leftImg8bit").removesuffix("_rgb_anon")

    info = {"name": "paper", "label_set": CITYSCAPES.name, "source": SOURCE, "domains": [SOURCE, *domains]}
    named = {name: [(key(image), image, label) for image, label in part] for name, part in splits.items()}
    write_folder(out, info, named, CITYSCAPES_IDS, (height, width))


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("instructions", "check", "prepare"))
    parser.add_argument("--root", type=folder, default=Path("data"), help="folder with cityscapes/, acdc/, gta5/")
    parser.add_argument("--domains", nargs="+", choices=TARGETS, default=list(TARGETS), help="target domains")
    parser.add_argument("--gta5-test", type=folder, help="file with the names of the game's test frames, one per line")
    parser.add_argument("--out", type=folder, default=Path("results/paper/data"), help="data set folder to make")
    parser.add_argument("--height", type=int, default=512, help="pixels")
    parser.add_argument("--width", type=int, default=1024, help="pixels")
    arguments = parser.parse_args()
    if arguments.verb == "instructions":
        print(INSTRUCTIONS)
        return 0
    names = arguments.gta5_test and listed_names(arguments.gta5_test)
    splits = all_splits(arguments.root, arguments.domains, names)
    if arguments.verb == "check":
        check(splits)
    else:
        prepare(splits, arguments.domains, arguments.out, arguments.height, arguments.width)
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
