"""Which data sets and weights are here, and what to do next.

python data_scripts/status.py [--root data]
"""

import argparse
import shlex
import sys
from pathlib import Path

import acdc
import camvid
import cityscapes
import command
import dark_zurich
import dataset
import gta5
import nighttime_driving
import weights
from tabulate import tabulate

from zodi.support.options import folder

DATASETS = (
    (cityscapes.CITYSCAPES, "cityscapes.py"),
    (acdc.ACDC, "acdc.py"),
    (gta5.GTA5, "gta5.py"),
    (dark_zurich.DARK_ZURICH, "dark_zurich.py"),
    (nighttime_driving.NIGHTTIME_DRIVING, "nighttime_driving.py"),
    (camvid.CAMVID_FRAMES, "camvid.py"),
)


def status_of(found: dataset.Dataset, script: str, root: Path) -> tuple[str, str, str, str]:
    """(name, state, size, what to do next) of a data set, from the names of its files alone."""
    call = f"python data_scripts/{script} --root {shlex.quote(str(root))}"
    archives = [archive for archive in found.archives if (root / archive.file).is_file()]
    if not root.is_dir():
        return found.name, "missing", "-", f"{call} instructions"
    problems = [lines for part in found.parts for lines in dataset.problems_of_files(root, part).values()]
    size = f"{sum(path.stat().st_size for path in root.rglob('*') if path.is_file()) / 1e9:.1f} GB"
    if not problems:
        return found.name, "present", size, f"{call} check"
    return found.name, "incomplete", size, f"{call} {'extract' if archives else 'instructions'}"


def rows(root: Path) -> list[tuple[str, str, str, str]]:
    """One line for every data set and all weights."""
    lines = [status_of(found, script, root / found.name) for found, script in DATASETS]
    for found in weights.all_weights():
        state = "present" if found.find() else "missing"
        lines.append(
            (found.name, state, found.size, f"python data_scripts/weights.py {'check' if found.find() else 'download'}")
        )
    return lines


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=folder, default=Path("data"), help="folder of the data sets (default: data)")
    print(tabulate(rows(parser.parse_args().root), ("what", "state", "size", "next"), tablefmt="simple"))
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
