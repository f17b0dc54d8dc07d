"""Run one command of the grid in a folder that belongs to it; its output goes to a log.

    python workflow/run_command.py zodi/__main__.py:transfer --results results/full --out results/full/transfer/night \\
        --log results/full/logs/night.log --inputs results/full/data/dataset.json -- -m zodi transfer --images ...

The entry says whose code determines the result, see `stale.code_of`. What an outdated run left in the folder is moved
aside. What the run has made is recorded beside it, so that the stages that read it can check it. The exit code is the
command's; 2: wrong arguments or damaged inputs, nothing was run.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import processes
import stale


def main(arguments: list[str]) -> int:
    """Command line; returns the exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[split + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", help="FILE or FILE:COMMAND of the code")
    parser.add_argument("--rule", default="", help="the job's rule, recorded with the time it took")
    parser.add_argument("--results", type=Path, required=True, help="the profile's results folder")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--log", type=Path, required=True, help="where the command's output goes")
    parser.add_argument("--output", type=Path, help="the file that ends the run; a shard's is outside the folder")
    parser.add_argument("--inputs", type=Path, nargs="*", default=[], help="files that determine the result")
    parser.add_argument("--identity", default="", help="what distinguishes this run from others (default: the command)")
    options = parser.parse_args(arguments[:split])
    if not command:
        parser.error("expected the command after --")
    # A folder that shards share is recorded, and cleared of leftovers, by the job that collects them.
    is_whole = options.output is not None and options.out in options.output.parents
    try:
        stale.check_inputs(options.inputs)
        now = stale.made_from(options.entry, False, options.inputs, options.identity or " ".join(command))
        stale.claim(options.results, options.out, now, alone=is_whole)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with options.log.open("w", encoding="utf-8") as log:
        code = subprocess.run(
            [sys.executable, *command],
            check=False,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=processes.die_with_parent,
        ).returncode
    if code == 0 and is_whole:
        try:
            took = {"rule": options.rule, "seconds": round(time.perf_counter() - start, 1)}
            stale.record(options.out, options.output.name, now, took=took)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    elif code:
        # The last lines say what went wrong; the rest is in the log.
        print("\n".join(options.log.read_text(encoding="utf-8").splitlines()[-5:]), file=sys.stderr)
    return code


if __name__ == "__main__":
    processes.die_with_parent()
    sys.exit(main(sys.argv[1:]))
