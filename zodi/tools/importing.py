"""Images that another program made, imported as a transferred data set like ours: matched, checked, audited.

    OUT/settings.json, manifest.jsonl, images/KEY.png, preview.png, report.json     as of `zodi.transfer_folder`
    OUT/audit.csv       per image: share of its labelled pixels in which a reference network finds the label
    OUT/classes.csv     per class: the reference's IoU
    OUT/labels/KEY.png  if the audit masks: class indices in which pixels that lost their label are void

Whoever made the images, the labels are those of the source images. A reference network trained on the source says where
they still hold: a pixel has lost its label if the reference finds it in the source image but not in the new one. That
is no proof, because the reference does not know the new domain either; the audit shows both numbers.
"""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from zodi.datasets import MASKED_LABELS, FolderDataset, find_files, read_image, read_pair
from zodi.evaluation import iou, predict
from zodi.labels import IGNORE_INDEX, LabelSet
from zodi.support.checks import check_network
from zodi.support.files import atomic_path, check_apart, check_disk, held, one_line, printable, write_json
from zodi.support.pictures import MAX_PIXELS, resized
from zodi.support.results import (
    PREVIEW_FILE,
    PREVIEW_ROWS,
    REPORT_FILE,
    bytes_needed,
    claim,
    finished_of,
    set_aside,
    sha256_of,
    write_image,
    write_preview,
)

AUDIT_FILE, CLASSES_FILE = "audit.csv", "classes.csv"
# Generators work at multiples of 8 or 64 pixels, so shapes may differ a little; a larger difference means another crop
# of the scene.
SHAPE_TOLERANCE = 0.02


@dataclass(frozen=True)
class ImportConfig:
    """Settings of an import.

    Attributes:
        name: how their images are named, with {key} for the source's path without its suffix: "{key}_fog" matches
            a/b_fog.jpg with a/b.png.
        origin: who made the images, for the record: a program, a model, a prompt.
    """

    name: str = "{key}"
    origin: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^{}]*\{key\}[^{}]*", self.name):
            raise ValueError(f"name {self.name!r}: expected {{key}} once, for example '{{key}}_fog'")


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        total: source images.
        done, skipped: images that this run and earlier runs imported.
        resized: of `done`, those that were resized to the size of their source.
        errors: message by key for images that could not be imported.
        unused: files in their folder that belong to no source image, at most ten.
    """

    total: int
    done: int
    skipped: int
    resized: int
    errors: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every source image has its counterpart."""
        return not self.errors


@dataclass(frozen=True)
class Audit:
    """What a reference network finds.

    Attributes:
        images: index key; `fidelity` and `fidelity_source`: share of the labelled pixels in which it finds the label in
            the new image and in its source, percent; `lost`: share of labelled pixels that lost their label, percent.
        classes: index class; `iou` and `iou_source`, percent; `lost`, percent of the class's pixels.
    """

    images: pd.DataFrame
    classes: pd.DataFrame

    def __str__(self) -> str:
        mean = self.images.mean()
        return (
            f"the reference finds {mean['fidelity']:.1f} % of the labelled pixels, {mean['fidelity_source']:.1f} % in "
            f"the source images; {mean['lost']:.1f} % lost their label"
        )


def import_folder(
    images: str | Path,
    source: str | Path,
    labels: str | Path,
    out: str | Path,
    label_set: LabelSet,
    config: ImportConfig | None = None,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Import images that another program made from source images; continues where an earlier run stopped.

    Args:
        images: folder of their images, see `ImportConfig.name`; those with their source's shape are resized to its
            size.
        source, labels: folders of the source images and of their label maps.
        out: folder of the result, which `adapt --synth` and `estimate --generated` read like a transfer's.
        label_set: meaning of the label maps' pixel values.
        config: the settings; None = the defaults.
        progress: show a progress bar.
        max_pixels: width times height of the largest image that is read.

    Returns:
        The report; an image that cannot be imported is an entry in `errors`; the rest is done.

    Raises:
        FileNotFoundError: if a folder is missing or has no images, or no name fits any source image.
        ValueError: if `out` is inside one of the folders, or holds images of other settings.
        OSError: if the disk has too little space.
    """
    images, source, labels, out = (Path(path).expanduser() for path in (images, source, labels, out))
    config = config or ImportConfig()
    check_apart(out, images, source, labels)
    theirs, sources, maps = find_files(images), find_files(source), find_files(labels, (".png",))
    for folder, found in ((images, theirs), (source, sources)):
        if not found:
            raise FileNotFoundError(f"{folder}: no images found")
    wanted = {key: config.name.format(key=key) for key in sources}
    if not any(name in theirs for name in wanted.values()):
        first, its = next(iter(wanted.items()))
        raise FileNotFoundError(
            f"{images}: found none of the {len(wanted)} images, for example {printable(its)} for {printable(first)}, "
            f"but {printable(next(iter(theirs)))}; say how they are named (--name '{{key}}_suffix')"
        )
    errors: dict[str, str] = {}
    done = resized_count = 0
    with held(out):
        settings = {"method": "import", "name": config.name, "origin": config.origin, "label_set": label_set.to_dict()}
        digest = claim(out, settings)
        files = {key: [theirs[name], maps[key]] for key, name in wanted.items() if name in theirs and key in maps}
        finished = finished_of(out, digest, {key: [*paths, sources[key]] for key, paths in files.items()})
        set_aside(out, finished, set())
        todo = [key for key in files if key not in finished]
        if todo:
            _forget_audit(out)
        check_disk(out, bytes_needed(sources[key] for key in todo), "Choose another folder or free some space.")
        for key, name in wanted.items():
            if name not in theirs:
                errors[key] = f"{printable(sources[key])}: no image {printable(name)} in {images}"
            elif key not in maps:
                errors[key] = f"{printable(sources[key])}: no label map, expected {labels / key}.png"
        with (out / "manifest.jsonl").open("a", encoding="utf-8") as lines:
            for key in tqdm(todo, "import", unit="image", disable=not progress):
                try:
                    image, was_resized = _matched(files[key][0], sources[key], maps[key], label_set, max_pixels)
                    line = write_image(out, key, image, sha256_of(*files[key], sources[key]), digest)
                except ValueError as error:
                    errors[key] = one_line(error)
                    continue
                # The leading line break ends a line that a killed run may have left unfinished.
                lines.write("\n" + json.dumps(line, ensure_ascii=False))
                lines.flush()
                done, resized_count = done + 1, resized_count + was_resized
        unused = sorted(printable(name) for name in {*theirs} - {*wanted.values()})[:10]
        report = ImportReport(len(sources), done, len(finished), resized_count, errors, unused)
        _preview(out, [key for key in files if key not in errors][:PREVIEW_ROWS], sources, maps, label_set, max_pixels)
        write_json(out / REPORT_FILE, report)
    return report


def _forget_audit(out: Path) -> None:
    """Delete what an audit said about other images."""
    shutil.rmtree(out / MASKED_LABELS, ignore_errors=True)
    for name in (AUDIT_FILE, CLASSES_FILE):
        (out / name).unlink(missing_ok=True)


def _matched(theirs: Path, source: Path, label: Path, label_set: LabelSet, max_pixels: int) -> tuple[np.ndarray, bool]:
    """Their image uint8 (H, W, 3) at the size of its source, and whether it was resized; ValueError names the file."""
    original, _ = read_pair(source, label, label_set, None, max_pixels)
    image = read_image(theirs, None, max_pixels)
    (height, width), (rows, columns) = original.shape[:2], image.shape[:2]
    if abs(columns * height - width * rows) > SHAPE_TOLERANCE * width * rows:
        raise ValueError(
            f"{printable(theirs)}: found {columns}x{rows} pixels, expected the shape of its source "
            f"{printable(source.name)}, {width}x{height}; labels fit no other crop of the scene"
        )
    was_resized = (rows, columns) != (height, width)
    return resized(image, (height, width), Image.Resampling.LANCZOS) if was_resized else image, was_resized


def _preview(
    out: Path, keys: list[str], sources: dict[str, Path], maps: dict[str, Path], label_set: LabelSet, max_pixels: int
) -> None:
    rows = []
    for key in keys:
        image, label = read_pair(sources[key], maps[key], label_set, None, max_pixels)
        rows.append([image, label_set.colorize(label), read_image(out / "images" / f"{key}.png", None, max_pixels)])
    write_preview(out / PREVIEW_FILE, rows)


# ---------------------------------------------------------------- are the labels still there?


def audit(
    out: str | Path,
    source: str | Path,
    labels: str | Path,
    label_set: LabelSet,
    reference: nn.Module,
    mask: bool = False,
    progress: bool = True,
) -> Audit:
    """Ask a reference network for the labels in transferred or imported images, and in their sources.

    Args:
        out: folder that `import_folder` or `zodi.transfer_folder` wrote; the tables go there.
        source, labels: folders of the source images and of their label maps.
        label_set: meaning of the label maps' pixel values.
        reference: network trained on the source; images float (B, 3, H, W) -> logits (B, C, H, W).
        mask: also write OUT/labels, in which pixels that lost their label are void; False = delete that folder.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if a folder is missing or empty.
        ValueError: if the reference has other classes.
    """
    check_network(reference, label_set.names)
    out = Path(out)
    new = FolderDataset(out / "images", labels, label_set, cache=False)
    old = FolderDataset(source, labels, label_set, cache=False).only(new.keys)
    count = label_set.num_classes
    lines, lost_of_class = [], np.zeros(count)
    found = np.zeros((2, count, count), np.int64)
    _forget_audit(out)
    with atomic_path(out / MASKED_LABELS) if mask else nullcontext() as masked:
        for index in tqdm(range(len(new)), "audit", unit="image", disable=not progress):
            sample, original = new[index], old[index]
            counted = sample.label != IGNORE_INDEX
            truth = sample.label[counted].astype(int)
            predicted = [predict(reference, part.image)[counted] for part in (sample, original)]
            right = [part == truth for part in predicted]
            lost = right[1] & ~right[0]
            shares = [100 * part.mean() if len(truth) else np.nan for part in (*right, lost)]
            lines.append((sample.key, *shares))
            found += [np.bincount(count * truth + part, minlength=count**2).reshape(count, count) for part in predicted]
            lost_of_class += np.bincount(truth[lost], minlength=count)
            if masked is not None:
                label = sample.label.copy()
                label[counted] = np.where(lost, IGNORE_INDEX, truth)
                file = masked / f"{sample.key}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(label).save(file)
    of_class = found[0].sum(1)
    values = {"iou": 100 * iou(found[0]), "iou_source": 100 * iou(found[1])}
    values["lost"] = 100 * lost_of_class / of_class.clip(1)
    classes = pd.DataFrame(values, index=pd.Index(label_set.names, name="class"))[of_class > 0]
    columns = ["key", "fidelity", "fidelity_source", "lost"]
    result = Audit(pd.DataFrame(lines, columns=columns).set_index("key"), classes)
    for name, table in {AUDIT_FILE: result.images, CLASSES_FILE: classes}.items():
        with atomic_path(out / name) as temporary:
            table.to_csv(temporary, float_format="%.2f")
    return result
