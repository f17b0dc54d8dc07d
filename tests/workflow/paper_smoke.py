"""Everything that PROFILE=paper reads, tiny: data in the official layouts and a checkpoint like Stable Diffusion.

    python tests/workflow/paper_smoke.py --out results/paper-smoke/data

Scenes of the miniature's renderer are written as Cityscapes, ACDC and GTA5 lay out their files, random checkpoints of
Stable Diffusion's, SegFormer's and Mask2Former's classes are saved beside them, and the paper's data script makes the
data set from them.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from zodi import diffusion
from zodi.diffusion import TransferDefaults
from zodi.labels import CITYSCAPES_IDS
from zodi.miniature import scenes
from zodi.support.files import atomic_path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "data_scripts"))
import paper
import tiny
import tiny_networks

CITY = "aachen"


def frame(seed: int, domain: str, image_file: Path, label_file: Path, size: tuple[int, int]) -> None:
    """Write a rendered scene as image and label ids of the size (width, height)."""
    scene = scenes.render(seed, domain, 64, 128)
    ids = np.zeros(256, np.uint8)
    ids[: CITYSCAPES_IDS.num_classes] = sum(CITYSCAPES_IDS.values, ())
    for file in (image_file, label_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).resize(size).save(image_file)
    Image.fromarray(ids[scene.label]).resize(size, Image.Resampling.NEAREST).save(label_file)


def write_sources(root: Path) -> None:
    """The three data sets in their official layouts."""
    seeds = iter(scenes.TEST_SEEDS)
    for part, count in (("train", 4), ("val", 2)):
        for i in range(count):
            name = f"{part}/{CITY}/{CITY}_{i:06d}_000019"
            images, labels = root / "cityscapes" / "leftImg8bit", root / "cityscapes" / "gtFine"
            frame(
                next(seeds),
                "clear",
                images / f"{name}_leftImg8bit.png",
                labels / f"{name}_gtFine_labelIds.png",
                (256, 128),
            )
        for i in range(2):
            name = f"night/{part}/GOPR0351/GOPR0351_{part}_{i:06d}"
            images, labels = root / "acdc" / "rgb_anon", root / "acdc" / "gt"
            frame(
                next(seeds),
                "night",
                images / f"{name}_rgb_anon.png",
                labels / f"{name}_gt_labelIds.png",
                paper.acdc.SIZE,
            )
    for i in range(1, 5):
        frame(next(seeds), "game", root / f"gta5/images/{i:05d}.png", root / f"gta5/labels/{i:05d}.png", (192, 104))


def main() -> int:
    """Command line; returns the exit code of the paper's data script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="data set folder to make; the rest goes beside it")
    out = parser.parse_args().out
    with atomic_path(out.parent / "source") as temporary:
        write_sources(temporary)
    defaults = TransferDefaults(num_inference_steps=2, short_side=64)
    diffusion.save(replace(tiny.stable_diffusion(), defaults=defaults), out.parent / "model")
    for name in ("segformer", "mask2former"):
        with atomic_path(out.parent / "networks" / name) as temporary:
            tiny_networks.save(getattr(tiny_networks, name)(), temporary)
    sys.argv = ["paper.py", "prepare", "--root", str(out.parent / "source"), "--domains", "night", "game"]
    sys.argv += ["--out", str(out), "--height", "64", "--width", "128"]
    return paper.main()


if __name__ == "__main__":
    sys.exit(main())
