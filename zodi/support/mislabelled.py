"""Images with the label maps of other images: what is left of a network's score if a transfer loses the layout."""

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from PIL import Image


class Labelled(Protocol):
    """What is needed of a data set: samples with `image` uint8 (H, W, 3) and `label` uint8 (H, W), and its classes."""

    label_set: Any

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Any:
        """One sample."""


class Mislabelled:
    """Every image of a data set with the label map of the next one.

    Args:
        dataset: at least two images; a label map of another size is resized to its new image.

    Raises:
        ValueError: if there is only one image.
    """

    def __init__(self, dataset: Labelled) -> None:
        if len(dataset) < 2:
            raise ValueError(f"found {len(dataset)} images, expected at least two: no other has a label map to lend")
        self.dataset = dataset
        self.label_set = dataset.label_set

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample, other = self.dataset[index], self.dataset[(index + 1) % len(self)]
        size = sample.label.shape[::-1]
        label = np.array(Image.fromarray(other.label).resize(size, Image.Resampling.NEAREST))
        return replace(sample, label=label)
