"""Pauses that grow while something fails."""

import time
from collections.abc import Callable


class Backoff:
    """Growing pauses between attempts: doubled after every failure, short again after a long success.

    Parameters
    ----------
    first_s, longest_s : float
        First and longest pause in seconds.
    reset_after_s : float
        Seconds for which an attempt must have gone well for the pauses to begin anew. What ends sooner (a process
        that starts and crashes, a line that comes and goes) counts as one more failure.
    clock : callable
        For tests.
    """

    def __init__(
        self,
        first_s: float = 1.0,
        longest_s: float = 30.0,
        reset_after_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._reset_after_s = reset_after_s
        self._clock = clock
        self._next_s = first_s
        self._well_since: float | None = None

    def next(self) -> float:
        """Return the seconds to wait after a failure."""
        if self._well_since is not None and self._clock() - self._well_since >= self._reset_after_s:
            self._next_s = self._first_s
        self._well_since = None
        pause = min(self._next_s, self._longest_s)
        self._next_s = pause * 2
        return pause

    def succeeded(self) -> None:
        """Note that the attempt goes well; may be called again and again."""
        if self._well_since is None:
            self._well_since = self._clock()
