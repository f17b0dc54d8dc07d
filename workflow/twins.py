"""The part of a notebook that the grid runs: its computation, without the cells that are only for readers.

A cell with the tag `reader` draws, explains or tries something out. No other cell needs it, so a grid of a hundred runs
leaves it out. The notebook stays one file, and whoever opens it sees and runs all of it.
"""

import re

READER = "reader"
_CELL = re.compile(r"^(?=# %%)", re.MULTILINE)
_TAGS = re.compile(r"# %%.*\btags=\[(?P<tags>[^]]*)\]")


def computation(text: str) -> str:
    """A py:percent text twin without the cells that are tagged `reader`.

    Args:
        text: of the twin; lines that start with `# %%` start a cell.

    Returns:
        The rest, unchanged; the text itself if nothing is tagged.
    """
    return "".join(cell for cell in _CELL.split(text) if READER not in _tags(cell))


def _tags(cell: str) -> list[str]:
    found = _TAGS.match(cell)
    return re.findall(r"[\w-]+", found["tags"]) if found else []
