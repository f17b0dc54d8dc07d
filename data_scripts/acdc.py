"""ACDC (Sakaridis et al., ICCV 2021): streets at night and in snow, rain and fog, the paper's targets.

python data_scripts/acdc.py [--root data/acdc] {instructions,download,extract,check}
"""

import sys

import dataset
from dataset import Archive, Dataset, Part

from zodi.labels import CITYSCAPES_IDS

CONDITIONS = ("night", "snow", "rain", "fog")
# Images of train and val, as published.
COUNTS = {"night": (400, 106), "snow": (400, 100), "rain": (400, 100), "fog": (400, 100)}
SIZE = (1920, 1080)


def part(condition: str, name: str) -> Part:
    """Train or val of a condition. Sizes are not checked: a few frames differ, and `paper.py` leaves them out."""
    count = COUNTS[condition][("train", "val").index(name)]
    folders = (f"rgb_anon/{condition}/{name}", f"gt/{condition}/{name}")
    return Part(f"{condition}/{name}", *folders, "_rgb_anon.png", "_gt_labelIds.png", count)


ACDC = Dataset(
    name="acdc",
    title="ACDC: adverse conditions with Cityscapes' classes, 1600 images for training, 406 for validation.",
    label_set=CITYSCAPES_IDS,
    parts=tuple(part(condition, name) for condition in CONDITIONS for name in ("train", "val")),
    archives=(Archive("rgb_anon_trainvaltest.zip", limit=40), Archive("gt_trainval.zip", limit=5)),
    instructions="""\
1. Register at acdc.vision.ee.ethz.ch (free for research) and download into DIR, in the browser:
   rgb_anon_trainvaltest.zip and gt_trainval.zip
2. python data_scripts/acdc.py --root DIR extract
3. python data_scripts/acdc.py --root DIR check
The paper drops fog frames that are not 1920x1080; `paper.py` does so too and says how many.""",
)

if __name__ == "__main__":
    sys.exit(dataset.main(ACDC))
