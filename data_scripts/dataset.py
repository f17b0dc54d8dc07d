"""What all data sets have in common: parts in an official layout, archives, and four verbs.

    python data_scripts/NAME.py [--root DIR] {instructions,download,extract,check}

`download` fetches what is available without an account and continues where it was stopped, `extract` unpacks the
archives in DIR, `check` reads every file and says what is missing, superfluous or wrong, the first ten of each kind.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import command
import numpy as np
from archives import download, extract, problem_of
from tqdm import tqdm

from zodi.labels import LabelSet
from zodi.support.files import printable
from zodi.support.options import folder as user_folder
from zodi.support.pictures import as_values, open_picture, walk

THREADS = 8
SHOWN = 10
VERBS = ("instructions", "download", "extract", "check")

Pair = tuple[Path, Path]
Problems = dict[str, list[str]]


@dataclass(frozen=True)
class Part:
    """Images and their label files.

    Attributes:
        name: of the part, used in messages.
        images, labels: folders below the data set's root; an image's label has its relative name.
        image_end, label_end: how the names end; what comes before is the same for both.
        count: how many images there must be; 0 = any number except none.
        size: (width, height) in pixels that they must have; None = any, but the same as their labels'.
    """

    name: str
    images: str
    labels: str
    image_end: str = ".png"
    label_end: str = ".png"
    count: int = 0
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Archive:
    """An archive of a data set.

    Attributes:
        file: its name, in the data set's root.
        url: where it can be downloaded without an account; "" = only with one.
        checksum: MD5 or SHA-256, if published; none is for the data sets here.
        limit: GB that it may unpack to.
        inside: a folder of the archive that is treated as its root, with "/" at its end.
        into: folder below the data set's root that its files go to.
    """

    file: str
    url: str = ""
    checksum: str | None = None
    limit: float = 100.0
    inside: str = ""
    into: str = ""


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: of its folder.
        title: what it is, and who made it.
        label_set: meaning of its label files.
        parts: what it must contain.
        archives: what it comes in.
        instructions: how to get it.
    """

    name: str
    title: str
    label_set: LabelSet
    parts: tuple[Part, ...]
    archives: tuple[Archive, ...]
    instructions: str


# For files without an official layout.
ANY_SIZE = Part("any", "", "")

# ---------------------------------------------------------------- files


def pairs(root: Path, part: Part) -> list[Pair]:
    """Images of a part with the label files that they should have, sorted by name."""
    found = []
    for image in sorted(path for path in walk(root / part.images) if path.name.endswith(part.image_end)):
        name = image.name.removesuffix(part.image_end)
        folder = root / part.labels / image.parent.relative_to(root / part.images)
        found.append((image, folder / f"{name}{part.label_end}"))
    return found


def problems_of_files(root: Path, part: Part) -> Problems:
    """What the names alone reveal: missing and superfluous files."""
    problems = defaultdict(list)
    for folder in (part.images, part.labels):
        if not (root / folder).is_dir():
            problems["folder missing"].append(str(root / folder))
    if problems:
        return problems
    found = pairs(root, part)
    if (part.count and len(found) != part.count) or not found:
        wanted = part.count or "some"
        problems["wrong number of images"].append(f"{root / part.images}: found {len(found)}, expected {wanted}")
    labels = {label for _, label in found}
    problems["image without label"] = [f"{image}: expected {label}" for image, label in found if not label.is_file()]
    existing = sorted(path for path in walk(root / part.labels) if path.name.endswith(part.label_end))
    problems["label without image"] = [str(label) for label in existing if label not in labels]
    partial = [path for folder in (part.images, part.labels) for path in walk(root / folder) if ".part" in path.name]
    problems["half-written file"] = sorted(map(str, partial))
    return {kind: lines for kind, lines in problems.items() if lines}


def problems_of_pair(pair: Pair, part: Part, label_set: LabelSet) -> Problems:
    """What reading an image and its label reveals: truncation, another size, another type, unknown values."""
    problems: Problems = {}
    image, label = (_read(path) for path in pair)
    for path, read, kind in ((pair[0], image, "image"), (pair[1], label, "label")):
        if isinstance(read, str):
            problems[f"unreadable {kind}"] = [f"{path}: {read}"]
    if problems:
        return problems
    if image.ndim != 3 or image.dtype != np.uint8:
        problems["image of a wrong type"] = [f"{pair[0]}: found {image.dtype} {image.shape}, expected 8-bit colour"]
    size = image.shape[1::-1]
    if part.size is not None and size != part.size:
        problems["image of a wrong size"] = [
            f"{pair[0]}: found {size[0]}x{size[1]}, expected {part.size[0]}x{part.size[1]}"
        ]
    if label.shape[1::-1] != size:
        other = label.shape[1::-1]
        problems["label of another size"] = [
            f"{pair[1]}: found {other[0]}x{other[1]}, its image has {size[0]}x{size[1]}"
        ]
    try:
        ids = label_set.to_train_ids(label, str(pair[1]))
    except ValueError as error:
        kind = "label of a wrong type" if label.ndim != 2 or label.dtype != np.uint8 else "unknown label values"
        return problems | {kind: [str(error)]}
    if (ids == 255).all():
        problems["label without any class"] = [str(pair[1])]
    return problems


def problems_of_pairs(
    jobs: Sequence[tuple[Pair, Part]], label_set: LabelSet, title: str, progress: bool = True
) -> Problems:
    """`problems_of_pair` of many, by kind."""
    problems: Problems = defaultdict(list)
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(lambda job: problems_of_pair(*job, label_set), jobs)
        for result in tqdm(results, title, len(jobs), unit="image", disable=not progress):
            for kind, lines in result.items():
                problems[kind] += lines
    return dict(problems)


def _read(path: Path) -> np.ndarray | str:
    """The pixels as they are stored, or what is wrong."""
    try:
        return as_values(open_picture(path), printable(path))
    except ValueError as error:
        size = path.stat().st_size if path.exists() else 0
        return f"cannot be read, {size} bytes ({error})"


# ---------------------------------------------------------------- verbs


def check(dataset: Dataset, root: Path, progress: bool = True) -> Problems:
    """All problems of a data set, by kind; empty if it is complete and correct."""
    problems: Problems = defaultdict(list)
    jobs = []
    for part in dataset.parts:
        found = problems_of_files(root, part)
        for kind, lines in found.items():
            problems[kind] += lines
        if "folder missing" not in found:
            jobs += [(pair, part) for pair in pairs(root, part) if pair[1].is_file()]
    # No kind of problem is found both by names and by reading.
    return dict(problems) | problems_of_pairs(jobs, dataset.label_set, f"check {dataset.name}", progress)


def describe(problems: Mapping[str, Sequence[str]]) -> str:
    """The first lines of each kind, with their number."""
    lines = []
    for kind, found in problems.items():
        lines.append(f"{kind}: {len(found)}")
        lines += [f"  {line}" for line in found[:SHOWN]]
        lines += [f"  ... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "\n".join(lines)


def fetch(dataset: Dataset, root: Path) -> None:
    """Download the archives that need no account; says which of them cannot be verified to be the right ones.

    Raises:
        ValueError: if there is none, with the instructions.
    """
    open_archives = [archive for archive in dataset.archives if archive.url]
    if not open_archives:
        raise ValueError(f"{dataset.name} cannot be downloaded by a script.\n{dataset.instructions}")
    for archive in open_archives:
        print(f"{archive.file}: {archive.url}", flush=True)
        if archive.checksum is None:
            way = " and plain http can be changed in transit" if archive.url.startswith("http:") else ""
            print(
                f"  no checksum is published{way}: it cannot be verified that it is the authors' file, only that it is "
                "complete; `check` compares names, numbers and sizes",
                flush=True,
            )
        download(archive.url, root / archive.file, archive.checksum)


def unpack(dataset: Dataset, root: Path) -> None:
    """Extract the archives found in `root`; says which ones are not there.

    Raises:
        ValueError: if none of them is there, or one does not have its published checksum.
    """
    there = [archive for archive in dataset.archives if (root / archive.file).is_file()]
    missing = [archive.file for archive in dataset.archives if archive not in there]
    unfinished = [f"{file}.part" for file in missing if (root / f"{file}.part").is_file()]
    hint = f"; found {', '.join(unfinished)}, not finished: `download` continues" if unfinished else ""
    if not there:
        raise ValueError(f"{root}: found none of the archives {', '.join(missing)}{hint}\n{dataset.instructions}")
    for archive in there:
        file = root / archive.file
        problem = problem_of(file, archive.file, archive.checksum) if archive.checksum else None
        if problem:
            raise ValueError(f"{file}: {problem}; `download` fetches it again")
        files = extract(file, root / archive.into, int(archive.limit * 1e9), archive.inside)
        print(f"{archive.file}: {len(files)} files")
    if missing:
        print(f"not here and so not extracted: {', '.join(missing)}{hint}", file=sys.stderr)


def main(
    dataset: Dataset,
    arguments: Sequence[str] | None = None,
    prepare: Callable[[Path, Path, int, int], None] | None = None,
    size: tuple[int, int] = (0, 0),
) -> int:
    """Command line of a data set.

    Args:
        dataset: the data set.
        arguments: of the command line; None = those of the process.
        prepare: for data sets used on their own, a fifth verb: write the data set folder (root, out, height, width).
        size: (height, width) of it.

    Returns:
        The exit code: 0 done, 1 the check found problems, 2 nothing was done.
    """
    parser = argparse.ArgumentParser(description=f"{dataset.title}\n\n{dataset.instructions}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("verb", choices=VERBS + (("prepare",) if prepare else ()))
    parser.add_argument(
        "--root", type=user_folder, default=Path("data") / dataset.name, help=f"(default: data/{dataset.name})"
    )
    if prepare:
        parser.add_argument(
            "--out", type=user_folder, default=Path(f"results/{dataset.name}/data"), help="folder to make"
        )
        parser.add_argument("--height", type=int, default=size[0], help=f"pixels (default: {size[0]})")
        parser.add_argument("--width", type=int, default=size[1], help=f"pixels (default: {size[1]})")
    options = parser.parse_args(arguments)
    return command.run(lambda: _do(dataset, options, prepare))


def _do(dataset: Dataset, options: argparse.Namespace, prepare: Callable[[Path, Path, int, int], None] | None) -> int:
    """The verb that was asked for; returns the exit code."""
    match options.verb:
        case "instructions":
            print(f"{dataset.title}\n\n{dataset.instructions}")
        case "download":
            options.root.mkdir(parents=True, exist_ok=True)
            fetch(dataset, options.root)
        case "extract":
            unpack(dataset, options.root)
        case "prepare":
            prepare(options.root, options.out, options.height, options.width)
        case "check":
            problems = check(dataset, options.root)
            if problems:
                print(f"{options.root}: not complete\n{describe(problems)}", file=sys.stderr)
                return 1
            counts = ", ".join(f"{part.name}: {len(pairs(options.root, part))} images" for part in dataset.parts)
            print(f"{options.root}: complete and correct ({counts})")
    return 0
