"""The domains of the paper: a prompt and a strength each (Section 4.1 of the paper and the authors' settings)."""

from dataclasses import dataclass

PROMPT_SUFFIX = ", best quality"
NEGATIVE_PROMPT = "lower quality, worst quality"


@dataclass(frozen=True)
class Domain:
    """A visual domain.

    Attributes:
        name: identifier used on the command line, in paths and in tables.
        prompt: text that describes it, without `PROMPT_SUFFIX`.
        strength: share of the diffusion's 1000 timesteps that the transfer goes back, 0 .. 1.
    """

    name: str
    prompt: str
    strength: float


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("clear", "driving in clear weather", 0.65),
        Domain("night", "driving at night", 0.90),
        Domain("snow", "driving in snow", 0.65),
        Domain("rain", "driving under rain", 0.65),
        Domain("fog", "driving in fog", 0.60),
        Domain("game", "driving in a game", 0.60),
        Domain("dusk", "driving at dusk", 0.65),
    )
}
SOURCE = "clear"
TARGETS = ("night", "snow", "rain", "fog", "game")


def get_domain(name: str) -> Domain:
    """The domain called `name`; raises ValueError naming the known ones."""
    if name not in DOMAINS:
        raise ValueError(f"unknown domain {name!r}; expected one of {list(DOMAINS)}")
    return DOMAINS[name]
