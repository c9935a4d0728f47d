"""Repeats what failed because of the network, and says so once per outage."""

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from client.supernode.failures import FleetError, Outlook
from fedmed.processes import Backoff

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_SLOW_PAUSE_S = 60.0
_WELL_AFTER_S = 10.0
_AGAIN = {Outlook.RETRY: " Trying again.", Outlook.RETRY_SLOWLY: " Trying again from time to time."}

_T = TypeVar("_T")
_logger = logging.getLogger("fedmed.supernode")


class Tell(Protocol):
    """Tells the supervisor what happens: the kind of event, one line for a person, numbers."""

    def __call__(self, event: str, text: str, **values: str | float) -> None:
        """Tell it."""


class Retry:
    """Waits for a server that is away.

    Parameters
    ----------
    tell : Tell
        Hears of the beginning and the end of an outage.
    server : str
        For messages.
    """

    def __init__(self, tell: Tell, server: str) -> None:
        self._tell, self._server = tell, server
        self._backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _WELL_AFTER_S)
        self._lost_at: float | None = None
        self._told: set[str] = set()

    def repeat(self, call: Callable[[], _T], deadline: float = float("inf")) -> _T:
        """Repeat a request until it succeeds.

        Raises
        ------
        FleetError
            If trying again is useless, or the deadline (:func:`time.monotonic` seconds) has passed.
        """
        while True:
            try:
                result = call()
            except FleetError as failure:
                if not failure.is_passing or time.monotonic() > deadline:
                    raise
                self.wait(failure)
            else:
                self.note_success()
                return result

    def note_failure(self, failure: FleetError, more: str | None = None) -> None:
        """Tell of a failure, and that it is tried again, if it is the first of its kind in an outage."""
        more = _AGAIN.get(failure.outlook, "") if more is None else more
        _logger.warning("%s", failure)
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._told.clear()
        if str(failure) not in self._told:
            self._told.add(str(failure))
            self._tell("lost", f"{failure}{more}")

    def wait(self, failure: FleetError) -> None:
        """Tell of a failure and wait for a while, longer each time."""
        self.note_failure(failure)
        time.sleep(_SLOW_PAUSE_S if failure.outlook is Outlook.RETRY_SLOWLY else self._backoff.next())

    def note_success(self) -> None:
        """Tell that an outage has ended, if there was one."""
        self._backoff.succeeded()
        if self._lost_at is not None:
            seconds = time.monotonic() - self._lost_at
            self._lost_at = None
            self._tell("connected", f"The connection to {self._server} is back after {seconds:.0f} s.")
