"""Lines for a terminal or a log that the other side can cause as often as it likes.

The first of a kind is shown at once, the same again as a count once a minute, and what is different each time as a
number beyond a few lines a minute.
"""

import time
from collections.abc import Callable

EVERY_S = 60.0
MOST_LINES = 10
"""Different ones in that time."""
_SHOWN = 500


class RepeatedLines:
    """Lets lines through, and counts those that it does not.

    Parameters
    ----------
    every_s : float
        Seconds between two counts.
    most : int
        Different lines in that time.
    clock : callable
        Seconds, for tests.
    """

    def __init__(
        self, every_s: float = EVERY_S, most: int = MOST_LINES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_s, self._most, self._clock = every_s, most, clock
        self._again: dict[str, int] = {}
        self._others = 0
        self._end = 0.0

    def take(self, text: str, times: int = 1) -> list[str]:
        """Return what is to be shown now of a line that has come, once or several times."""
        lines = self.poll()
        if not self._again and not self._others:
            self._end = self._clock() + self._every_s
        text = text[:_SHOWN]
        if text in self._again:
            self._again[text] += times
        elif len(self._again) < self._most:
            self._again[text] = times - 1
            lines.append(text)
        else:
            self._others += times
        return lines

    def poll(self) -> list[str]:
        """Return the counts that are due."""
        return self.flush() if (self._again or self._others) and self._clock() >= self._end else []

    def flush(self) -> list[str]:
        """Return all counts that were not shown yet, and begin anew with them."""
        lines = [f"{text} (the same again {number:,} times)" for text, number in self._again.items() if number]
        if self._others:
            lines.append(f"{self._others:,} further lines of this kind are not shown.")
        # What goes on is known; what has not come again begins anew.
        self._again = {text: 0 for text, number in self._again.items() if number}
        self._others, self._end = 0, self._clock() + self._every_s
        return lines
