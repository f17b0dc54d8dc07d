"""GTA5 (Richter et al., ECCV 2016, "Playing for Data"): streets of a game with Cityscapes' classes.

python data_scripts/gta5.py [--root data/gta5] {instructions,download,extract,check}
"""

import sys

import dataset
from dataset import Archive, Dataset, Part

from zodi.labels import CITYSCAPES_IDS

ADDRESS = "https://download.visinf.tu-darmstadt.de/data/from_games/data"

GTA5 = Dataset(
    name="gta5",
    title="GTA5: 24966 frames of a game.",
    label_set=CITYSCAPES_IDS,
    parts=(Part("all", "images", "labels", count=24966),),
    archives=tuple(
        Archive(f"{number:02d}_{what}.zip", f"{ADDRESS}/{number:02d}_{what}.zip", limit=10)
        for number in range(1, 11)
        for what in ("images", "labels")
    ),
    instructions=f"""\
1. python data_scripts/gta5.py --root DIR download     (twenty archives from {ADDRESS}, 57 GB)
2. python data_scripts/gta5.py --root DIR extract
3. python data_scripts/gta5.py --root DIR check
Label files are palette images whose indices are Cityscapes' label ids. A few frames have labels of another size: the
check names them, and `paper.py` leaves them out.""",
)

if __name__ == "__main__":
    sys.exit(dataset.main(GTA5))
