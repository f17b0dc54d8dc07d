"""What tests of figures share."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

from zodi.support import plots


@pytest.fixture
def theme() -> Iterator[None]:
    """The course's theme, and no figure left open."""
    plots.use_theme()
    yield
    plt.close("all")
