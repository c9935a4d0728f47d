"""Signals that end a process in good order."""

import signal
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A person or the system asked this process to end."""


def raise_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise :class:`Stopped` in the main thread, so that ``finally`` blocks run.

    SIGHUP (a closed terminal) stays ignored where it was ignored, as under ``nohup``. Wait in short steps: Python
    notices a signal that comes just before a long sleep only after it.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)
