"""Ports of this machine: whether one is free, and one that is."""

import errno
import socket

from fedmed.errors import ProcessError


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
