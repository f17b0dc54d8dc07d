"""How all data scripts behave on the command line: one line for an error, exit codes."""

import io
import sys
from collections.abc import Callable
from http.client import HTTPException


def run(main: Callable[[], int]) -> int:
    """Call `main` and turn what the user can fix into one message.

    Args:
        main: returns the exit code.

    Returns:
        The exit code of `main`; 2 after an error, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that is not UTF-8 can be used but not printed as it is.
            stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except (ValueError, OSError, HTTPException) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2
