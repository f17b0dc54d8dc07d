"""Nighttime Driving (Dai and Van Gool, ITSC 2018): another night target, 50 labelled test images.

python data_scripts/nighttime_driving.py [--root data/nighttime_driving] {instructions,download,extract,check}
"""

import sys

import dataset
from dataset import Archive, Dataset, Part

from zodi.labels import CITYSCAPES_IDS

ADDRESS = "https://data.vision.ee.ethz.ch/daid/NighttimeDriving/NighttimeDrivingTest.zip"

NIGHTTIME_DRIVING = Dataset(
    name="nighttime_driving",
    title="Nighttime Driving, test part: 50 images of Zurich at night.",
    label_set=CITYSCAPES_IDS,
    parts=(
        Part(
            "test",
            "leftImg8bit/test/night",
            "gtCoarse_daytime_trainvaltest/test/night",
            "_leftImg8bit.png",
            "_gtCoarse_labelIds.png",
            50,
            (1920, 1080),
        ),
    ),
    archives=(Archive("NighttimeDrivingTest.zip", ADDRESS, limit=5, inside="NighttimeDrivingTest/"),),
    instructions="""\
1. python data_scripts/nighttime_driving.py --root DIR download     (from people.ee.ethz.ch/~daid/NightDriving)
2. python data_scripts/nighttime_driving.py --root DIR extract
3. python data_scripts/nighttime_driving.py --root DIR check""",
)

if __name__ == "__main__":
    sys.exit(dataset.main(NIGHTTIME_DRIVING))
