"""Put the results of PROFILE=mini where readers see them: the record that notebook 04 reads, and the README's table.

    make reproduce && make record

The README's table is what stands between its two `record` comments; nobody types it.
"""

import re
import sys
from pathlib import Path

from zodi import tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "mini"
RECORD = ROOT / "notebooks" / "records" / "mini.csv"
README = ROOT / "README.md"
BETWEEN_MARKS = re.compile(r"(?<=<!-- record: made by `make record` -->\n).*?(?=<!-- end of record -->)", re.DOTALL)


def readme_with_table(readme: str, record: Path) -> str:
    """The text of the README with the main table of `record` between its marks.

    Raises:
        ValueError: if there is not exactly one place for it.
    """
    table = tables.main_table(tables.read_record(record)).to_markdown(disable_numparse=True)
    text, count = BETWEEN_MARKS.subn(f"\n{table}\n\n", readme)
    if count != 1:
        raise ValueError(f"README.md: found {count} pairs of record comments, expected one")
    return text


def main() -> int:
    """Command line; returns the exit code."""
    try:
        runs = tables.collect(RESULTS)
        if runs.empty:
            raise ValueError(f"{RESULTS}: no runs; `make reproduce` makes them")
        tables.write_record(runs, RECORD)
        README.write_text(readme_with_table(README.read_text(encoding="utf-8"), RECORD), encoding="utf-8")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {RECORD.relative_to(ROOT)}, the table of {README.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
