"""Looks at a server step by step: name, port, TLS. Tells apart what a library would call "connection failed".

The standard library's sockets, so that a fault of the connection cannot hide behind one of a library; but with the same
trust as the connection that is used later.
"""

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

from client.check.results import CheckFailedError
from client.supernode.connection import make_tls_context
from client.supernode.failures import find_tls_fault

TIMEOUT_S = 10.0
_MAX_HEAD_BYTES = 16384


@dataclass(frozen=True)
class ServerCertificate:
    """What a certificate says."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    """Host names and addresses that it is for."""
    begins: datetime
    ends: datetime

    def __str__(self) -> str:
        """Return it in one sentence."""
        span = f"from {self.begins:%Y-%m-%d %H:%M} to {self.ends:%Y-%m-%d %H:%M} UTC"
        return f"It is for: {', '.join(self.names) or 'no name'}; valid {span}; signed by '{self.issuer}'."


def find_addresses(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host name.

    Raises
    ------
    CheckFailedError
        If the name is not known.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise CheckFailedError(
            f"No address is known for the name '{host}'.",
            "Check the spelling of `server` in client.yaml. If it is right, ask your IT department whether this "
            "machine may look up names outside the hospital (DNS).",
        ) from None
    return sorted({str(address[0]) for *_, address in found})


@contextlib.contextmanager
def open_connection(host: str, port: int, timeout_s: float = TIMEOUT_S) -> Iterator[socket.socket]:
    """Connect to a port.

    Raises
    ------
    CheckFailedError
        If nothing listens there, or something on the way blocks it.
    """
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except TimeoutError:
        raise CheckFailedError(
            f"No answer from {host} port {port} within {timeout_s:g} s.",
            f"Usually a firewall drops the packets. Ask your IT department to allow outgoing TCP connections from this "
            f"machine to {host} port {port}, or set `proxy` in client.yaml if the hospital has one.",
        ) from None
    except ConnectionRefusedError:
        raise CheckFailedError(
            f"{host} refused the connection to port {port}: no program listens there, or a firewall rejects it.",
            "Ask the coordinating site whether flower-server is running, and compare the port in `server` with theirs.",
        ) from None
    except OSError as error:
        raise CheckFailedError(
            f"{host} port {port} cannot be reached: {error.strerror or error}.",
            "Check this machine's network connection, and with your IT department the way to the server.",
        ) from None
    with connection:
        yield connection


def check_tls(
    host: str, port: int, ca_file: Path, timeout_s: float = TIMEOUT_S, *, own: ssl.SSLContext | None = None
) -> tuple[str, ServerCertificate]:
    """Make a TLS connection that trusts one authority only.

    Parameters
    ----------
    host, port : str, int
        The server.
    ca_file : Path
        ServerCertificate of the authority, or several.
    timeout_s : float
        Longest wait for an answer.
    own : ssl.SSLContext, optional
        With the site's own certificate; default: none is shown.

    Returns
    -------
    version : str
        For example ``TLSv1.3``.
    certificate : ServerCertificate
        The server's.

    Raises
    ------
    CheckFailedError
        If the server does not speak TLS, or its certificate is of another authority, of other names or out of date.
    """
    context = make_tls_context(ca_file) if own is None else own
    with open_connection(host, port, timeout_s) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=host) as secure:
                data = secure.getpeercert(binary_form=True)
                assert data is not None, "a verified connection has a certificate"
                return str(secure.version()), _read_certificate(data)
        except TimeoutError:
            raise CheckFailedError(
                f"{host} port {port} accepts the connection but says nothing within {timeout_s:g} s.",
                "A firewall that inspects TLS often does this; ask IT to exempt this address. Otherwise the port is "
                "wrong.",
            ) from None
        except OSError as error:
            fault = find_tls_fault(error, f"{host}:{port}")
            is_refused = isinstance(error, ssl.SSLCertVerificationError)
            presented = _look_at_certificate(host, port, timeout_s) if is_refused else None
            raise CheckFailedError(f"{fault.found}{f' {presented}' if presented else ''}", fault.advice) from None


def read_date(host: str, port: int, ca_file: Path | None, timeout_s: float = TIMEOUT_S) -> datetime | None:
    """Return the ``Date`` of the server's answer to an unsigned request, in whole seconds; None if it gives none."""
    request = f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    with contextlib.suppress(OSError, CheckFailedError), open_connection(host, port, timeout_s) as connection:
        if ca_file is None:
            return _parse_date(_exchange(connection, request))
        context = make_tls_context(ca_file)
        with context.wrap_socket(connection, server_hostname=host) as secure:
            return _parse_date(_exchange(secure, request))
    return None


def _exchange(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD_BYTES and (block := connection.recv(4096)):
        head += block
    return head


def _parse_date(head: bytes) -> datetime | None:
    match = re.search(rb"(?im)^date:[ \t]*([^\r\n]+)", head)
    if match is None:
        return None
    try:
        return parsedate_to_datetime(match[1].decode("latin-1"))
    except ValueError:
        return None


def _look_at_certificate(host: str, port: int, timeout_s: float) -> ServerCertificate | None:
    """Return the certificate that the server presents, unchecked: it is only shown, and nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        contextlib.suppress(OSError, ValueError, CheckFailedError),
        open_connection(host, port, timeout_s) as connection,
        context.wrap_socket(connection, server_hostname=host) as unchecked,
    ):
        return _read_certificate(unchecked.getpeercert(binary_form=True) or b"")
    return None


def _read_certificate(data: bytes) -> ServerCertificate:
    certificate = x509.load_der_x509_certificate(data)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return ServerCertificate(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=(*names.get_values_for_type(x509.DNSName), *addresses),
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
    )
