"""Which epoch counts? A training run is scored after every epoch; each rule then names the epoch that it would choose.

"best_synthetic" is what zero-shot adaptation may do: it looks at held-out source images that were transferred, never at
the target. "best_target" looks at the target's labels and is an oracle; the authors' program keeps that epoch.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from torch import nn

from zodi.datasets import FolderDataset
from zodi.evaluation import evaluate
from zodi.segmentation import SegmentationNetwork, load_network, save_network
from zodi.support.files import atomic_path

# The split that a rule looks at; "last" looks at none.
RULES = {"last": None, "best_source": "source", "best_synthetic": "synthetic", "best_target": "target"}
EPOCHS_FILE = "epochs.csv"


class EpochSelection:
    """A callback for `zodi.adaptation.train` that scores every epoch and keeps the best network of each rule.

    Args:
        splits: held-out data sets by the names in `RULES`: "source", "synthetic", "target"; rules whose split is
            missing are left out. Others are scored too, and no rule looks at them.
        steps_per_epoch: see `zodi.adaptation.epoch_length`.
        out: folder of `epochs.csv` and of the networks; a resumed run continues with what is there.
        batch_size: images per pass in the evaluation.
        every: epochs from one score to the next; a divisor of their number, or else the last one is not scored.
    """

    def __init__(
        self,
        splits: Mapping[str, FolderDataset],
        steps_per_epoch: int,
        out: str | Path,
        batch_size: int = 1,
        every: int = 1,
    ) -> None:
        self.splits = dict(splits)
        self.steps_per_epoch = steps_per_epoch
        self.out = Path(out)
        self.batch_size = batch_size
        self.every = every

    def __call__(self, step: int, network: nn.Module) -> None:
        """Score the network if an epoch that counts has just ended."""
        if step == 0:
            # A new run, so what an earlier one with other settings left must not count.
            (self.out / EPOCHS_FILE).unlink(missing_ok=True)
        if step == 0 or step % (self.every * self.steps_per_epoch):
            return
        epoch = step // self.steps_per_epoch
        earlier = self.scores()
        # A resumed run passes epochs that were scored before it was interrupted.
        earlier = earlier[earlier["epoch"] < epoch]
        now = {
            name: evaluate(network, split, split.label_set, self.batch_size)["miou"]
            for name, split in self.splits.items()
        }
        for rule, split in RULES.items():
            if split in now and not (earlier[split] >= now[split]).any():
                save_network(network, self.out / rule)
        scores = pd.DataFrame([*earlier.to_dict("records"), {"epoch": epoch} | now])
        with atomic_path(self.out / EPOCHS_FILE) as temporary:
            scores.to_csv(temporary, index=False)

    def scores(self) -> pd.DataFrame:
        """mIoU in percent of every finished epoch: column `epoch`, from 1, and one for each split."""
        file = self.out / EPOCHS_FILE
        return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["epoch", *self.splits], dtype=float)

    def table(self) -> pd.DataFrame:
        """One line per rule: the `epoch` that it chooses and the mIoU of that epoch on every split.

        Raises:
            ValueError: if no epoch is finished.
        """
        return choose_epochs(self.scores())

    def network(self, rule: str) -> SegmentationNetwork:
        """The network that a rule has kept; "last" keeps none: it is what `train` returns."""
        return load_network(self.out / rule)


def choose_epochs(scores: pd.DataFrame) -> pd.DataFrame:
    """The epoch that every rule chooses; the earliest of several equal ones.

    Args:
        scores: from `EpochSelection.scores`.

    Returns:
        Columns `rule` and those of `scores`, without rules whose split was not scored.
    """
    if scores.empty:
        raise ValueError("no finished epoch to choose from; train at least one whole epoch")
    rows = []
    for rule, split in RULES.items():
        if split is None:
            rows.append({"rule": rule} | scores.iloc[-1].to_dict())
        elif split in scores:
            rows.append({"rule": rule} | scores.loc[scores[split].idxmax()].to_dict())
    return pd.DataFrame(rows).astype({"epoch": int})
