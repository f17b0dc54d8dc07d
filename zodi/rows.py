"""The rows of the tables: what each one trains on. The workflow, the command line and the tables read it here.

Loads neither torch nor diffusers, so that code that only plans runs need not wait.
"""

from dataclasses import dataclass
from typing import Any

from zodi.domains import DOMAINS, SOURCE

SIMILARITY_WEIGHT = 0.1
# ZoDi's transfer with one setting changed, see `zodi.transfer.TransferConfig`; used like the name of a method.
ABLATIONS: dict[str, dict[str, Any]] = {
    "clear_prompt": {"prompt": DOMAINS[SOURCE].prompt},
    "paper_noise": {"noise": "paper", "seed": 42},
    "aligned": {"align": True},
    "ade20k": {"palette": "ade20k"},
    **{f"strength_{percent}": {"strength": percent / 100} for percent in (30, 50, 70, 90)},
}


@dataclass(frozen=True)
class Row:
    """A row of the tables: one way to train a network.

    Attributes:
        name: identifier in paths, in files and on the command line, where it is called the variant.
        label: what readers see.
        method: how the synthesized images were made: a method of `zodi.transfer` or a key of `ABLATIONS`; None = the
            row has none.
        similarity_weight: w of the loss; 0 = no similarity term.
        length: training steps, as a multiple of other rows'.
        source: whether it trains on the source images as well.
        true_target: whether the true target images take the place of the synthesized ones; no zero-shot method may.
        faithful_only: whether synthesized images that lost their layout are left out, which needs a reference network.
        augmentation: how the source image itself is changed, differently at every step, to take the synthesized image's
            place: a key of `zodi.support.augmentations.AUGMENTATIONS`; "" = it is not.
    """

    name: str
    label: str
    method: str | None = None
    similarity_weight: float = SIMILARITY_WEIGHT
    length: int = 1
    source: bool = True
    true_target: bool = False
    faithful_only: bool = False
    augmentation: str = ""

    @property
    def adapted(self) -> bool:
        """Whether a training run is for one target domain; that of another row counts for every domain."""
        return self.method is not None or self.true_target

    @property
    def images_per_sample(self) -> int:
        """Images that a sample of a batch stands for: 2 with pairs, else 1."""
        return int(self.source) + int(self.adapted or bool(self.augmentation))


ROWS = {
    row.name: row
    for row in (
        Row("source_only", "source only", similarity_weight=0),
        # Every other row sees two images per step, so this one gets twice the steps: as many images.
        Row("source_only_long", "source only, as many images", similarity_weight=0, length=2),
        # The baselines that know no domain: what anybody would try first.
        Row("randaugment", "RandAugment, colours", augmentation="randaugment"),
        Row("augmix", "AugMix, colours", augmentation="augmix"),
        Row("weather", "random weather", augmentation="weather"),
        Row("photometric_no_similarity", "photometric, no similarity", "photometric", 0),
        Row("photometric", "photometric", "photometric"),
        Row("clear_prompt", "clear prompt", "clear_prompt"),
        Row("vae_round_trip", "VAE round trip", "vae_round_trip"),
        Row("sdedit", "SDEdit", "sdedit"),
        Row("controlnet_only", "ControlNet only", "controlnet_only"),
        Row("synth_only", "ZoDi's images alone", "stochastic_inversion", 0, source=False),
        Row("paper_noise", "ZoDi, same noise for all images", "paper_noise"),
        Row("aligned", "ZoDi, encoding time aligned", "aligned"),
        Row("ade20k", "ZoDi, layout in ADE20K's colours", "ade20k"),
        *(Row(f"strength_{s}", f"ZoDi, strength 0.{s // 10}", f"strength_{s}") for s in (30, 50, 70, 90)),
        Row("zodi_no_similarity", "ZoDi, no similarity", "stochastic_inversion", 0),
        Row("zodi_faithful", "ZoDi, faithful images only", "stochastic_inversion", faithful_only=True),
        Row("zodi", "ZoDi", "stochastic_inversion"),
        Row("oracle", "oracle (true target images)", similarity_weight=0, true_target=True),
    )
}


def get_row(name: str) -> Row:
    """The row called `name`; raises ValueError naming the known ones."""
    if name not in ROWS:
        raise ValueError(f"variant {name!r}: no such row of the tables; expected one of {list(ROWS)}")
    return ROWS[name]
