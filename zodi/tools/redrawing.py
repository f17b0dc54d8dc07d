"""The transfer turned round: target photographs are redrawn in the source's domain, for a network that stays as it is.

Nothing is trained. The layout comes from the network's own prediction on the photograph, or there is none; labels are
never looked at. So the photograph changes sides, and not the network (J. Gao et al., *Back to the Source*, CVPR 2023,
did it for classification).

    OUT/layout/KEY.png    what the network saw in the photograph: class indices, or void everywhere
    OUT/redrawn/          the photographs in the source's domain, as `zodi.transfer_folder` writes them
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from zodi.datasets import find_files, read_image
from zodi.diffusion import DiffusionModel
from zodi.domains import SOURCE
from zodi.evaluation import predict
from zodi.labels import IGNORE_INDEX, LabelSet
from zodi.support.checks import check_network
from zodi.support.files import atomic_path, check_apart
from zodi.transfer import prompt_config
from zodi.transfer_folder import TransferReport, transfer_folder

LAYOUTS = ("predicted", "none")
LAYOUT_FOLDER, REDRAWN_FOLDER = "layout", "redrawn"


def redraw_target(
    network: nn.Module,
    images: str | Path,
    out: str | Path,
    model: DiffusionModel,
    label_set: LabelSet,
    layout: str = "predicted",
    prompt: str = SOURCE,
    progress: bool = True,
    **changes: Any,
) -> TransferReport:
    """Redraw target photographs in the source's domain.

    Args:
        network: trained on the source; images float (B, 3, H, W), ImageNet-normalised -> logits (B, C, H, W).
        images: folder of the photographs; no labels are needed.
        out: folder of the result; the same settings go on there.
        model: the diffusion model.
        label_set: the network's classes.
        layout: "predicted" = what the network sees in the photograph; "none" = void everywhere, which draws black.
        prompt: the source's domain, a name of `zodi.domains` or a description.
        progress: show bars.
        changes: settings of the transfer, for example `strength`, see `zodi.transfer.prompt_config`.

    Raises:
        FileNotFoundError: if there are no photographs.
        ValueError: for another layout, a network of other classes, or a folder that holds other settings.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: expected one of {LAYOUTS}")
    check_network(network, label_set.names)
    images, out = Path(images), Path(out)
    check_apart(out, images)
    photographs = find_files(images)
    if not photographs:
        raise FileNotFoundError(f"{images}: no images found")
    for key, file in tqdm(photographs.items(), "layout", unit="image", disable=not progress):
        image = read_image(file)
        label = predict(network, image) if layout == "predicted" else np.full(image.shape[:2], IGNORE_INDEX, np.uint8)
        with atomic_path(out / LAYOUT_FOLDER / f"{key}.png") as temporary:
            Image.fromarray(label).save(temporary)
    config = prompt_config(prompt, model.defaults, **changes)
    folders = (images, out / LAYOUT_FOLDER, out / REDRAWN_FOLDER)
    return transfer_folder(model, *folders, config, label_set.written(), progress=progress)
