"""Your own labelled images as a data set folder, with a mapping of your label values to Cityscapes' classes.

    python data_scripts/own.py --images DIR --labels DIR --mapping FILE.yaml check
    python data_scripts/own.py --images DIR --labels DIR --mapping FILE.yaml prepare --out results/own/data
    ... --domain night --target-images DIR --target-labels DIR     where you have labelled target images to test on

Label maps are 8-bit PNGs with the names of their images. The mapping holds `classes:` (a Cityscapes class and your
pixel values for it, a line each) and `void:`. Every fifth image by name is kept for testing. The transfer takes any
prompt; a domain of the paper is only needed where target images are to be tested on.
"""

import argparse
import sys
from pathlib import Path

from dataset import ANY_SIZE, Pair, describe, problems_of_pairs

from zodi.datasets import find_files, write_folder
from zodi.domains import DOMAINS, SOURCE
from zodi.labels import CITYSCAPES, get_label_set

TEST_EVERY = 5


def named_pairs(images: Path, labels: Path) -> dict[str, Pair]:
    """Images and labels of the same relative name.

    Raises:
        FileNotFoundError: if a folder is missing or has no images.
        ValueError: if labels are missing; names the first ten.
    """
    found, label_files = find_files(images), find_files(labels, (".png",))
    if not found:
        raise FileNotFoundError(f"{images}: no images found")
    missing = [key for key in found if key not in label_files]
    if missing:
        raise ValueError(f"{labels}: no label map for {len(missing)} of {len(found)} images: {', '.join(missing[:10])}")
    return {key.replace("/", "_"): (image, label_files[key]) for key, image in found.items()}


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
    parser.add_argument("--images", type=Path, required=True, help="folder of images; subfolders are kept in the names")
    parser.add_argument("--labels", type=Path, required=True, help="folder of label maps")
    parser.add_argument("--mapping", default="cityscapes", help="a mapping file.yaml or a known label set")
    parser.add_argument("--domain", choices=[name for name in DOMAINS if name != SOURCE], help="of the target images")
    parser.add_argument("--target-images", type=Path, help="folder of labelled target images, for testing only")
    parser.add_argument("--target-labels", type=Path, help="their label maps")
    parser.add_argument("--out", type=Path, default=Path("results/own/data"), help="data set folder to make")
    parser.add_argument("--height", type=int, default=512, help="pixels (default: 512)")
    parser.add_argument("--width", type=int, default=1024, help="pixels (default: 1024)")
    options = parser.parse_args()
    try:
        label_set = get_label_set(options.mapping)
        given = [options.domain, options.target_images, options.target_labels]
        if any(given) and not all(given):
            raise ValueError("--domain, --target-images and --target-labels belong together: give all three or none")
        source = named_pairs(options.images, options.labels)
        target = named_pairs(options.target_images, options.target_labels) if options.domain else {}
        if options.verb == "check":
            jobs = [(pair, ANY_SIZE) for pair in [*source.values(), *target.values()]]
            problems = problems_of_pairs(jobs, label_set, "check")
            if problems:
                print(f"not right\n{describe(problems)}", file=sys.stderr)
                return 1
            print(f"complete and right: {len(source)} source and {len(target)} target images")
            return 0
        domains = [SOURCE, options.domain] if options.domain else [SOURCE]
        info = {"name": "own", "label_set": CITYSCAPES.name, "source": SOURCE, "domains": domains}
        splits = splits_of(source, target, options.domain)
        write_folder(options.out, info, splits, label_set, (options.height, options.width))
        print(f"data set: {options.out}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
