"""One process at a time, one listener a port, and pauses between attempts."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmed.errors import ProcessError


@contextmanager
def single_instance(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock for as long as the block runs; the system releases it however the process ends.

    Parameters
    ----------
    lock_file : Path
        Made if it is missing; it stays, with the process id of its last holder.
    what : str
        What there can be one of, for the message: ``"A flower-client for site_01"``.

    Raises
    ------
    ProcessError
        Naming the process that holds it.
    """
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ProcessError(f"The lock file {lock_file} cannot be opened: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            text = f"{what} is running already: process {holder}. Use that one, or end it first: kill {holder}"
            raise ProcessError(text[:1].upper() + text[1:]) from None
        except OSError as error:
            raise ProcessError(
                f"The lock file {lock_file} cannot be locked ({error.strerror}); some network drives know no locks. "
                "Choose a folder on a local disk."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_port_free(host: str, port: int, key: str) -> None:
    """Check that this process may listen on an address.

    Parameters
    ----------
    host, port : str, int
        The address.
    key : str
        The setting that names it, for the message.

    Raises
    ------
    ProcessError
        If something else listens there, or the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: connections of the process before that are still closing are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise ProcessError(_explain_port(host, port, key, error)) from None


def _explain_port(host: str, port: int, key: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port taken: another process listens on {host}:{port}. See which one with: ss -ltnp 'sport = :{port}' "
            f"(or lsof -i :{port}). End it, or change '{key}'."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} may not be used by this user; ports below 1024 belong to root. Change '{key}'."
    return (
        f"This machine cannot listen on {host}:{port}: {error.strerror or error}. '{key}' must name an address of this "
        "machine; 0.0.0.0 stands for all of them."
    )


def find_free_port() -> int:
    """Return a port of the loopback interface on which nobody listens at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
