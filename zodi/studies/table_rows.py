"""The rows of the tables in their order: those that are trained, of `zodi.rows`, and those that only use what was.

Loads no torch, so that whoever only plans runs need not wait.
"""

from zodi.rows import ROWS, Row

# The transfer turned round: the network of "source_only", unchanged, on target images redrawn in the source's domain.
REDRAWN = Row("redrawn", "test-time transfer (target redrawn as source)", similarity_weight=0)


def table_rows() -> dict[str, Row]:
    """All rows by name, in the order of the tables, the oracle last; a row added to `ROWS` is among them."""
    rows = ROWS | {REDRAWN.name: REDRAWN}
    return dict(sorted(rows.items(), key=lambda item: item[1].true_target))
