"""Processes that end when the one that started them ends, however that happens."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import psutil

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class Stopped(BaseException):
    """A signal asks this process to end; `code` is the exit code that says so."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` when Ctrl-C is pressed, the terminal is closed or the process is asked to end."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # Signals that are ignored, as under nohup, stay ignored.
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def exit_code_of(run: Callable[[], int]) -> int:
    """Run a command that may be stopped at any time; any error is one line on stderr.

    Returns:
        What `run` returns; 2 for wrong arguments or a file that cannot be used; 128 plus the signal's number if
        stopped, along with everything that was started.
    """
    try:
        with stoppable():
            return run()
    except Stopped as stopped:
        end_descendants()
        print("stopped: what is finished is kept, and the same command continues from there", file=sys.stderr)
        return stopped.code
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def die_with_parent() -> None:
    """Have the system kill this process when its parent is gone; Linux only, does nothing elsewhere.

    That does not cover what it starts: every process has to ask for itself.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def tied() -> dict[str, Any]:
    """Options of `subprocess` for a child that dies with this process and does not receive the terminal's Ctrl-C."""
    return {"start_new_session": True, "preexec_fn": die_with_parent}


def end_descendants(seconds: float = 0.4) -> None:
    """End everything that this process has started, and its descendants, in any process group: ask, then kill.

    Args:
        seconds: how long they may take to end on their own.
    """
    children = psutil.Process(os.getpid()).children()
    for child in children:
        # Stopped, so that it starts nothing new meanwhile.
        with suppress(psutil.NoSuchProcess):
            child.suspend()
    everyone = psutil.Process(os.getpid()).children(recursive=True)
    for process in everyone:
        if process not in children:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
    psutil.wait_procs([process for process in everyone if process not in children], timeout=seconds)
    for process in everyone:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(everyone, timeout=seconds)
