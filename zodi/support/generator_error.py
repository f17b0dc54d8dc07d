"""What is known of a generator's errors, as a file beside its weights."""

from dataclasses import dataclass
from pathlib import Path

from zodi.support.files import one_line, read_json


@dataclass(frozen=True)
class GeneratorError:
    """How far a generator's estimates are from the truth in a domain that nobody knows; measured in known ones.

    Attributes:
        generator: `zodi.diffusion.fingerprint` of the checkpoint.
        level: confidence level of the intervals, 0 .. 1.
        estimate: half width of the interval of an estimate, as a share of the network's score on the source images,
            0 .. 1: who scores more has more to lose.
        difference: half width of the interval of the difference of two networks' estimates, points of mIoU.
        domains, trainings: numbers of domains and of trained networks that it was measured on.
    """

    generator: str
    level: float
    estimate: float
    difference: float
    domains: int
    trainings: int

    def __post_init__(self) -> None:
        if not (0 < self.level < 1 and 0 <= self.estimate <= 1 and self.difference >= 0):
            raise ValueError(
                f"level={self.level}, estimate={self.estimate}, difference={self.difference}: expected a level between "
                "0 and 1, a share of the source's score, and points of at least 0"
            )


def read_error(file: str | Path) -> GeneratorError:
    """What was written of a generator's errors; raises ValueError, naming the file, if it is damaged."""
    found, advice = read_json(file), "delete it: intervals are of the sampling only without it"
    try:
        return GeneratorError(**found)
    except (TypeError, ValueError) as cause:
        raise ValueError(f"{file}: describes no generator's errors ({one_line(cause)}); {advice}") from cause
