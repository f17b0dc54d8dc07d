"""Your own labelled images as a data set folder, with a mapping of your label values to Cityscapes' classes.

    python data_scripts/own.py --images DIR --labels DIR --mapping FILE.yaml check
    python data_scripts/own.py --images DIR --labels DIR --mapping FILE.yaml prepare --out results/own/data
    ... --domain night --target-images DIR --target-labels DIR     if you have labelled target images to test on

Label maps are 8-bit PNGs named like their images. The mapping holds `classes:` (one line for each Cityscapes class,
with your pixel values for it) and `void:`. Every fifth image by name is kept for testing. The transfer takes any
prompt; a domain of the paper is only needed to test on target images.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import command
from dataset import SHOWN, THREADS, Pair, Problems, describe
from folder import write_folder
from tqdm import tqdm

from zodi.datasets import INFO_FILE, find_files, read_pair
from zodi.domains import DOMAINS, SOURCE
from zodi.labels import IGNORE_INDEX, LabelSet, get_label_set
from zodi.support.files import check_apart, printable
from zodi.support.options import folder
from zodi.support.pictures import MAX_PIXELS

TEST_EVERY = 5
# Part of the reader's message -> kind of problem.
KINDS = {"unknown label values": "unknown label values", "expected that of its image": "label of another size"}


def named_pairs(images: Path, labels: Path) -> dict[str, Pair]:
    """Images and labels with the same relative name.

    Raises:
        FileNotFoundError: if a folder is missing or has no images.
        ValueError: if labels are missing; names the first ten.
    """
    found, label_files = find_files(images), find_files(labels, (".png",))
    if not found:
        raise FileNotFoundError(f"{images}: no images found")
    missing = [printable(key) for key in found if key not in label_files]
    if missing:
        names = ", ".join(missing[:SHOWN])
        raise ValueError(f"{printable(labels)}: no label map for {len(missing)} of {len(found)} images: {names}")
    return {key: (image, label_files[key]) for key, image in found.items()}


def problems_of(pairs: Sequence[Pair], label_set: LabelSet, max_pixels: int = MAX_PIXELS) -> Problems:
    """What is wrong with images and labels, by kind; they are read as `prepare` reads them."""

    def problem_of(pair: Pair) -> tuple[str, str] | None:
        try:
            _, label = read_pair(*pair, label_set, None, max_pixels)
        except ValueError as error:
            kind = next((kind for part, kind in KINDS.items() if part in str(error)), "file that cannot be used")
            return kind, str(error)
        return None if (label != IGNORE_INDEX).any() else ("label without any class", printable(pair[1]))

    problems: Problems = defaultdict(list)
    with ThreadPoolExecutor(THREADS) as pool:
        for found in tqdm(pool.map(problem_of, pairs), "check", len(pairs), unit="image"):
            if found:
                problems[found[0]].append(found[1])
    return dict(problems)


def splits_of(source: dict[str, Pair], target: dict[str, Pair], domain: str) -> dict[str, list[tuple[str, Path, Path]]]:
    """Parts of the data set folder: every fifth source image for testing, all target images for testing."""
    samples = [(key, *pair) for key, pair in source.items()]
    if len(samples) < 2:
        raise ValueError(f"found {len(samples)} labelled images, expected at least 2: one to train on, one to test on")
    splits = {
        "train": [sample for index, sample in enumerate(samples) if index % TEST_EVERY],
        f"test/{SOURCE}": samples[::TEST_EVERY],
    }
    return splits | ({f"test/{domain}": [(key, *pair) for key, pair in target.items()]} if target else {})


def main() -> int:
    """Command line; returns the exit code: 0 done, 1 files have problems, 2 nothing was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("check", "prepare"))
    parser.add_argument(
        "--images", type=folder, required=True, help="folder of images; subfolders are kept in the names"
    )
    parser.add_argument("--labels", type=folder, required=True, help="folder of label maps")
    parser.add_argument("--mapping", default="cityscapes", help="a mapping file.yaml or a known label set")
    parser.add_argument("--domain", choices=[name for name in DOMAINS if name != SOURCE], help="of the target images")
    parser.add_argument("--target-images", type=folder, help="folder of labelled target images, for testing only")
    parser.add_argument("--target-labels", type=folder, help="their label maps")
    parser.add_argument("--out", type=folder, default=Path("results/own/data"), help="data set folder to make")
    parser.add_argument("--height", type=int, default=512, help="pixels (default: 512)")
    parser.add_argument("--width", type=int, default=1024, help="pixels (default: 1024)")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="pixels of the largest image that is read")
    options = parser.parse_args()
    return command.run(lambda: _do(options))


def _do(options: argparse.Namespace) -> int:
    """The verb that was asked for; returns the exit code."""
    label_set = get_label_set(options.mapping)
    given = [options.domain, options.target_images, options.target_labels]
    if any(given) and not all(given):
        raise ValueError("--domain, --target-images and --target-labels belong together: give all three or none")
    source = named_pairs(options.images, options.labels)
    target = named_pairs(options.target_images, options.target_labels) if options.domain else {}
    pairs = [*source.values(), *target.values()]
    if options.verb == "check":
        problems = problems_of(pairs, label_set, options.max_pixels)
        if problems:
            print(f"not correct\n{describe(problems)}", file=sys.stderr)
            return 1
        print(f"complete and correct: {len(source)} source and {len(target)} target images")
        return 0
    check_apart(options.out, *filter(None, (options.images, options.labels, *given[1:])))
    domains = [SOURCE, options.domain] if options.domain else [SOURCE]
    info = {"name": "own", "source": SOURCE, "domains": domains}
    splits = splits_of(source, target, options.domain)
    # An existing data set has been checked already, and is compared with its files by their stamps.
    problems = {} if (options.out / INFO_FILE).exists() else problems_of(pairs, label_set, options.max_pixels)
    if problems:
        raise ValueError(f"not correct, nothing was written\n{describe(problems)}")
    write_folder(options.out, info, splits, label_set, (options.height, options.width), options.max_pixels)
    print(f"data set: {printable(options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
