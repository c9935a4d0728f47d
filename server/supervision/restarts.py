"""How often and how soon processes that have ended are started again."""

import time
from collections.abc import Callable

from fedmed.errors import ProcessError
from fedmed.processes import Backoff

MAX_RESTARTS = 5
WELL_AFTER_S = 300.0


class Restarts:
    """Counts restarts; a long time without one makes the count begin anew.

    Parameters
    ----------
    clock : callable
        Seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._backoff = Backoff(first_s=1.0, longest_s=30.0, reset_after_s=WELL_AFTER_S, clock=clock)
        self._count = 0
        self._up_since: float | None = None

    def note_start(self) -> None:
        """Note that everything is up."""
        self._up_since = self._clock()
        self._backoff.succeeded()

    def count(self, problem: str) -> float:
        """Count one more restart and return the seconds to wait before it.

        Parameters
        ----------
        problem : str
            A sentence.

        Raises
        ------
        ProcessError
            If there were too many.
        """
        if self._up_since is not None and self._clock() - self._up_since >= WELL_AFTER_S:
            self._count = 0
        self._up_since = None
        self._count += 1
        if self._count > MAX_RESTARTS:
            raise ProcessError(
                f"{problem} This was failure {self._count} in a row, so nothing is started again. Everything up to "
                "the last closed round is saved."
            )
        return self._backoff.next()
