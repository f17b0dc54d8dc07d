"""Render the miniature's data set: procedural street scenes in clear weather and in target domains.

python data_scripts/miniature.py --out results/mini/data --train 150 --test 100 --domains night snow
"""

import argparse
import sys
from pathlib import Path

from zodi.datasets import write_miniature
from zodi.domains import TARGETS


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="data set folder to make")
    parser.add_argument("--train", type=int, default=150, help="source scenes")
    parser.add_argument("--test", type=int, default=100, help="test scenes in every domain")
    parser.add_argument("--held-out", type=int, default=0, help="further source scenes, in val/; for estimates")
    parser.add_argument("--domains", nargs="+", choices=TARGETS, default=list(TARGETS), help="target domains")
    parser.add_argument("--height", type=int, default=96, help="pixels")
    parser.add_argument("--width", type=int, default=192, help="pixels")
    arguments = vars(parser.parse_args())
    try:
        write_miniature(arguments.pop("out"), **arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
