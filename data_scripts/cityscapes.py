"""Cityscapes (Cordts et al., CVPR 2016): the source domain of the paper.

python data_scripts/cityscapes.py [--root data/cityscapes] {instructions,download,extract,check}
"""

import sys

import dataset
from dataset import Archive, Dataset, Part

from zodi.labels import CITYSCAPES_IDS

SIZE = (2048, 1024)


def part(name: str, count: int) -> Part:
    """Train or val; train ids are made in memory from the label ids."""
    return Part(name, f"leftImg8bit/{name}", f"gtFine/{name}", "_leftImg8bit.png", "_gtFine_labelIds.png", count, SIZE)


CITYSCAPES = Dataset(
    name="cityscapes",
    title="Cityscapes: streets of 50 cities by day, 2975 images for training, 500 for validation.",
    label_set=CITYSCAPES_IDS,
    parts=(part("train", 2975), part("val", 500)),
    archives=(Archive("leftImg8bit_trainvaltest.zip", limit=13), Archive("gtFine_trainvaltest.zip", limit=3)),
    instructions="""\
1. Register at cityscapes-dataset.com (free for research).
2. In DIR, with the official downloader, which asks for your own account and keeps no password unless you tell it to:
     pip install cityscapesscripts
     csDownload -d DIR leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip        (11 GB and 241 MB)
   or in the browser.
3. python data_scripts/cityscapes.py --root DIR extract
4. python data_scripts/cityscapes.py --root DIR check""",
)

if __name__ == "__main__":
    sys.exit(dataset.main(CITYSCAPES))
