"""Put results where readers see them: the records that the notebooks read, and the README's tables.

    make reproduce && make record      results/mini -> the README
    make reproduce PROFILE=full && make record                  results/full -> notebooks 05, A1 and A3, and the README
    make reproduce PROFILE=estimation && make record            results/estimation -> notebook 06
    make reproduce PROFILE=camvid DATA=path && make record      results/camvid -> notebook 08

`make records` does all of it. The README's tables, and the sentences on them, are what stands between its `record`
comments; nobody types them.
"""

import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from zodi import diffusion, estimation
from zodi.studies import estimates, evidence, findings, tables
from zodi.studies.quality import RESULT_TABLES
from zodi.support.files import read_json, write_json
from zodi.support.runs import METRICS_FILE

ROOT = Path(__file__).parent.parent
MINI = ROOT / "results" / "mini"
MINI_RECORD = ROOT / "notebooks" / "records" / "mini.csv"
FULL = ROOT / "results" / "full"
FULL_RECORD = ROOT / "notebooks" / "records" / "full.csv"
QUALITY = FULL / "quality"
QUALITY_RECORD = ROOT / "notebooks" / "records" / "quality"
ESTIMATION = ROOT / "results" / "estimation"
ESTIMATION_RECORD = ROOT / "notebooks" / "records" / "estimation"
TRIES = ROOT / "notebooks" / "records" / "tries.csv"
CAMVID = ROOT / "results" / "camvid"
CAMVID_RECORD = ROOT / "notebooks" / "records" / "camvid"
README = ROOT / "README.md"
MAIN_JOB = ROOT / "benchmarks" / "main_job.json"
DURATION = re.compile(r"(?<=`make reproduce` takes )[\d.]+ minutes on \d+ cores \([^;]*(?=; measured)")
# The README's tables: what their marks are called -> the record that they show.
SHOWN = {"record": MINI_RECORD, "full record": FULL_RECORD}
WIDTH = 120


def readme_with_table(readme: str, name: str, record: Path) -> str:
    """The text of the README with the main table of `record`, and what it says, between its marks.

    Args:
        readme: its text.
        name: what the marks are called, a key of `SHOWN`.
        record: the runs, from `zodi.studies.tables.write_record`.

    Raises:
        ValueError: if there is not exactly one place for it.
    """
    runs = tables.read_record(record)
    table = tables.main_table(runs).to_markdown(disable_numparse=True)
    says = textwrap.fill(findings.paragraph(runs), WIDTH, break_on_hyphens=False)
    marks = f"(?<=<!-- {name}: made by `make record` -->\n).*?(?=<!-- end of {name} -->)"
    text, count = re.subn(marks, lambda found: f"\n{table}\n\n{says}\n\n", readme, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"README.md: found {count} pairs of comments {name!r}, expected one")
    return text


def readme_with_duration(readme: str, measured: dict[str, Any]) -> str:
    """The text of the README with what the main job took, from `benchmarks/main_job.json`.

    Raises:
        ValueError: if there is not exactly one place for it.
    """
    half = "with" if measured["bfloat16"] else "without"
    where = f"{measured['machine']['processor']}, {half} bfloat16"
    text, count = DURATION.subn(f"{measured['minutes']:.1f} minutes on {measured['cores']} cores ({where}", readme)
    if count != 1:
        raise ValueError(f"README.md: found {count} sentences on what `make reproduce` takes, expected one")
    return text


def record_runs(results: Path, record: Path) -> bool:
    """The runs of a profile, if it was run to its end; returns whether it was."""
    if not (results / "tables" / METRICS_FILE).exists():
        print(f"{results.relative_to(ROOT)}: not run to its end, its record stays; PROFILE={results.name} makes it")
        return False
    tables.write_record(tables.collect(results), record)
    print(f"written: {record.relative_to(ROOT)}")
    return True


def record_readme() -> None:
    """The README's tables, from the records, and how long the main one takes to make, from the benchmark."""
    text = readme_with_duration(README.read_text(encoding="utf-8"), read_json(MAIN_JOB))
    for name, record in SHOWN.items():
        text = readme_with_table(text, name, record)
    README.write_text(text, encoding="utf-8")
    print(f"written: the tables of {README.name}, and what the first one takes")


def record_quality() -> None:
    """The tables of a whole measurement, if there is one."""
    if not (QUALITY / METRICS_FILE).exists() or not (QUALITY / "verdicts.csv").exists():
        print(f"{QUALITY.relative_to(ROOT)}: no measurement, its record stays; PROFILE=full makes it")
        return
    QUALITY_RECORD.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{table}.csv" for table in RESULT_TABLES), METRICS_FILE):
        shutil.copyfile(QUALITY / name, QUALITY_RECORD / name)
    print(f"written: {QUALITY_RECORD.relative_to(ROOT)}")


def record_estimation() -> None:
    """The scores of the candidates of PROFILE=estimation, if it was run to its end."""
    if not (ESTIMATION / "estimation" / METRICS_FILE).exists():
        print(f"{ESTIMATION.relative_to(ROOT)}: not run to its end, its record stays; PROFILE=estimation makes it")
        return
    found = estimates.judge(ESTIMATION, ESTIMATION_RECORD)
    intervals = estimates.interval_tries(found.last, "given")
    check_what_is_applied(found.correction, intervals)
    evidence.write_record(ESTIMATION, ESTIMATION_RECORD)
    record_tries(found.errors, intervals)
    error = estimates.measured_error(found.last, diffusion.fingerprint(diffusion.load("mini")))
    write_json(estimation.MINI_ERROR_FILE, error)
    print(f"written: {ESTIMATION_RECORD.relative_to(ROOT)}, {estimation.MINI_ERROR_FILE.relative_to(ROOT)}")


def check_what_is_applied(correction: str, intervals: pd.DataFrame) -> None:
    """Nothing is recorded of a correction or an interval that the tool does not apply.

    Args:
        correction: from `zodi.studies.estimates.judge`.
        intervals: from `zodi.studies.estimates.interval_tries`.

    Raises:
        ValueError: if another correction or interval is the one to apply; names it.
    """
    if correction != "raw":
        raise ValueError(
            f"{ESTIMATION.relative_to(ROOT)}: the correction {correction!r} may be applied, but zodi.estimation "
            "applies none, so nothing is recorded; make it apply this one first"
        )
    kept = [*intervals.index[intervals["kept"]]]
    if kept != [estimates.GIVEN]:
        raise ValueError(
            f"{ESTIMATION.relative_to(ROOT)}: of the intervals {kept or 'none'} holds and is the narrowest, but "
            f"zodi.estimation gives {estimates.GIVEN!r}, so nothing is recorded; make it give that one first"
        )


def record_tries(errors: pd.DataFrame, intervals: pd.DataFrame) -> None:
    """Corrections and intervals of the estimate among the tries, in place of what an earlier record said of them.

    Args:
        errors: from `zodi.studies.estimates.corrected_errors`.
        intervals: from `zodi.studies.estimates.interval_tries`.
    """
    known = pd.read_csv(TRIES, dtype=str)
    known = known[~known["try"].str.startswith((estimates.TRY, estimates.INTERVAL_TRY))]
    new = (estimates.tries(errors), estimates.interval_lines(intervals))
    pd.concat([known, *(lines.astype(str) for lines in new)]).to_csv(TRIES, index=False)


def record_camvid() -> None:
    """The runs and candidates of PROFILE=camvid, if it was run to its end."""
    if not (CAMVID / "photographs" / METRICS_FILE).exists():
        print(f"{CAMVID.relative_to(ROOT)}: not run to its end, its record stays; PROFILE=camvid makes it")
        return
    evidence.write_record(CAMVID, CAMVID_RECORD)
    tables.write_record(tables.collect(CAMVID), CAMVID_RECORD / "runs.csv")
    tables.collect_epochs(CAMVID).to_csv(CAMVID_RECORD / "epochs.csv", index=False, float_format="%.4f")
    print(f"written: {CAMVID_RECORD.relative_to(ROOT)}")


def main() -> int:
    """Command line; returns the exit code."""
    try:
        written = [record_runs(MINI, MINI_RECORD), record_runs(FULL, FULL_RECORD)]
        if any(written):
            record_readme()
        record_quality()
        record_estimation()
        record_camvid()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
