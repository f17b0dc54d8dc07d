"""Dark Zurich (Sakaridis et al., ICCV 2019): another night target, 50 labelled validation images.

python data_scripts/dark_zurich.py [--root data/dark_zurich] {instructions,download,extract,check}
"""

import sys

import dataset
from dataset import Archive, Dataset, Part

from zodi.labels import CITYSCAPES_IDS

ADDRESS = "https://data.vision.ee.ethz.ch/csakarid/shared/GCMA_UIoU/Dark_Zurich_val_anon.zip"

DARK_ZURICH = Dataset(
    name="dark_zurich",
    title="Dark Zurich, validation part: 50 images of Zurich at night.",
    label_set=CITYSCAPES_IDS,
    parts=(Part("val", "rgb_anon/val/night", "gt/val/night", "_rgb_anon.png", "_gt_labelIds.png", 50, (1920, 1080)),),
    archives=(Archive("Dark_Zurich_val_anon.zip", ADDRESS, limit=5),),
    instructions="""\
1. python data_scripts/dark_zurich.py --root DIR download     (from www.trace.ethz.ch/publications/2019/GCMA_UIoU)
2. python data_scripts/dark_zurich.py --root DIR extract
3. python data_scripts/dark_zurich.py --root DIR check""",
)

if __name__ == "__main__":
    sys.exit(dataset.main(DARK_ZURICH))
