"""How much a site may ask for and send at a time."""

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

MAX_REQUESTS_PER_SITE = 16
MAX_WAITING_PER_SITE = 2


class TooManyRequests(Exception):  # noqa: N818  (a site's mistake, not ours)
    """A site has too many requests under way."""


class ReplyTooLarge(Exception):  # noqa: N818  (a site's mistake, not ours)
    """A site sends more bytes as one reply than it may."""


class ConcurrencyLimiter:
    """Counts the requests of each site that are under way; belongs to one event loop."""

    def __init__(self) -> None:
        self._all: Counter[int] = Counter()
        self._waiting: Counter[int] = Counter()

    @contextmanager
    def count(self, node_id: int, *, waits: bool) -> Iterator[None]:
        """Count a request until it is answered.

        Parameters
        ----------
        node_id : int
            The site.
        waits : bool
            Whether the request asks for a message, and so may be held back for long.

        Raises
        ------
        TooManyRequests
            If it is one too many.
        """
        if self._all[node_id] >= MAX_REQUESTS_PER_SITE or (waits and self._waiting[node_id] >= MAX_WAITING_PER_SITE):
            raise TooManyRequests
        counters = [self._all, self._waiting] if waits else [self._all]
        for counter in counters:
            counter[node_id] += 1
        try:
            yield
        finally:
            for counter in counters:
                counter[node_id] -= 1
                if not counter[node_id]:
                    del counter[node_id]


class UploadedBytes:
    """Counts what has come in for each upload, that is one reply of a site; used by many threads."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, session_id: str, num_bytes: int, most_bytes: int | None) -> None:
        """Count bytes that are to be stored.

        Raises
        ------
        ReplyTooLarge
            If there were more than allowed then; they are not counted.
        """
        with self._lock:
            total = self._counts.get(session_id, 0) + num_bytes
            if most_bytes is not None and total > most_bytes:
                raise ReplyTooLarge
            self._counts[session_id] = total

    def take_back(self, session_id: str, num_bytes: int) -> None:
        """Do not count bytes that were not stored after all."""
        with self._lock:
            left = self._counts.pop(session_id, 0) - num_bytes
            if left > 0:
                self._counts[session_id] = left

    def forget(self, session_id: str) -> None:
        """Forget an upload that has ended."""
        with self._lock:
            self._counts.pop(session_id, None)

    def keep_only(self, session_ids: Collection[str]) -> None:
        """Forget all other uploads."""
        with self._lock:
            self._counts = {one: count for one, count in self._counts.items() if one in session_ids}

    def __len__(self) -> int:
        """Return the number of uploads that are remembered."""
        return len(self._counts)
