"""The rows of the tables in their order: those that are trained, of `zodi.rows`, and those that only use what was.

Loads no torch, so that whoever only plans runs need not wait.
"""

from zodi.rows import ROWS, Row

# The transfer turned round: the network of "source_only", unchanged, on target images redrawn in the source's domain.
REDRAWN = Row("redrawn", "test-time transfer (target redrawn as source)", similarity_weight=0)
# The oracle ends every table.
TABLE_ROWS = {
    **{name: row for name, row in ROWS.items() if not row.true_target},
    REDRAWN.name: REDRAWN,
    **{name: row for name, row in ROWS.items() if row.true_target},
}
