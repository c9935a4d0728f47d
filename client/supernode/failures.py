"""Why a request to the server failed, and whether it makes sense to try again: one clear line each."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from enum import Enum

import httpx
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.error import FlowerError

from fedmed.errors import ConnectionRefusedByServerError
from fedmed.protocol.signing import PROBLEM_HEADER

# What Flower's node authentication allows: the site's clock 5 s ahead, 305 s behind.
_MOST_AHEAD_S, _MOST_BEHIND_S = 5.0, 300.0
_SERVER_BUSY, _BUSY = range(500, 600), {408, 425, 429}
_UNAUTHORIZED, _FORBIDDEN, _PROXY_LOGIN, _PRECONDITION_FAILED, _TOO_LARGE = 401, 403, 407, 412, 413


class Outlook(Enum):
    """What to do about a failure."""

    RETRY = "retry"
    """It passes by itself."""
    RETRY_SLOWLY = "retry slowly"
    """Somebody has to act, but not at this site."""
    UNKNOWN_SITE = "unknown site"
    """The server does not accept this site's signature; it lets nobody ask before it knows its sites."""
    NOT_ACTIVATED = "not activated"
    """The site is known, but not let in now: it is connected already, or so the server thinks."""
    RUN_OVER = "run over"
    """Nobody waits for this message any more."""
    FATAL = "fatal"
    """Somebody has to change something at this site."""


class FleetError(ConnectionRefusedByServerError):
    """A request to the server failed.

    Parameters
    ----------
    text : str
        For the person at this site. Whether somebody tries again is said by who does.
    outlook : Outlook
        What to do about it.
    """

    def __init__(self, text: str, outlook: Outlook) -> None:
        super().__init__(text)
        self.outlook = outlook

    @property
    def is_passing(self) -> bool:
        """Whether to try again."""
        return self.outlook in {Outlook.RETRY, Outlook.RETRY_SLOWLY}


@dataclass(frozen=True)
class TlsFault:
    """What is wrong with the server's TLS, for a site that connects and for ``--check``."""

    found: str
    advice: str
    outlook: Outlook = Outlook.RETRY


# The keys are OpenSSL's codes for a refused certificate (openssl/x509_vfy.h).
_REFUSED_CERTIFICATES = {
    9: TlsFault(
        "The certificate of {server} is not valid yet by the clock of this machine.",
        "Check this machine's date and time (NTP).",
        Outlook.RETRY_SLOWLY,
    ),
    10: TlsFault(
        "The certificate of {server} has expired.",
        "Ask the coordinating site to renew it (starting flower-server again does); this site's kit stays as it is. If "
        "it should be valid, check this machine's date and time.",
        Outlook.RETRY_SLOWLY,
    ),
    62: TlsFault(
        "The certificate of {server} is for another name than '{host}'.",
        "Write one of its names after 'server' in client.yaml (flower-client --check lists them), or have the name "
        "added: alternative_names in server.yaml.",
        Outlook.FATAL,
    ),
}
_REFUSED_CERTIFICATES[64] = _REFUSED_CERTIFICATES[62]  # the same of an IP address
_OTHER_AUTHORITY = TlsFault(
    "The certificate of {server} is not signed by the authority in the file 'ca' of client.yaml ({reason}).",
    "If its signer is a product of the hospital's network (TLS inspection), ask IT to exempt this address. Otherwise "
    "ca.pem is of another federation: ask the coordinating site for this site's kit.",
    Outlook.FATAL,
)
_CUT = TlsFault(
    "The connection to {server} was cut during the TLS handshake.",
    "A firewall that inspects TLS often does this; ask IT to exempt this address. Otherwise ask the coordinating site "
    "whether flower-server is running.",
)
_WANTS_CERTIFICATE = TlsFault(
    "{server} wants a certificate of this site and did not accept what it was shown ({reason}): it has tls: mutual.",
    "Write certificate: site.crt in client.yaml, with the site.crt that the coordinating site has made for this site's "
    "key; if it stands there, ask them for a new one.",
    Outlook.RETRY_SLOWLY,
)
_NO_TLS = TlsFault(
    "{server} does not speak TLS as expected ({reason}).",
    "Compare the port in 'server' with that of the coordinating site. Another program may be listening there, or the "
    "server runs with 'insecure: true'.",
)


def find_tls_fault(error: OSError, server: str) -> TlsFault:
    """Return what a TLS handshake that failed means.

    Parameters
    ----------
    error : OSError
        What was raised.
    server : str
        ``host:port``.
    """
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    fault = _NO_TLS
    if isinstance(error, ssl.SSLCertVerificationError):
        fault, reason = _REFUSED_CERTIFICATES.get(error.verify_code, _OTHER_AUTHORITY), error.verify_message
    elif "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA")):
        fault = _WANTS_CERTIFICATE
    elif isinstance(error, ssl.SSLEOFError | ConnectionError):
        fault = _CUT
    return replace(fault, found=fault.found.format(server=server, host=server.rpartition(":")[0], reason=reason))


def _to_error(fault: TlsFault) -> FleetError:
    return FleetError(f"{fault.found} {fault.advice}", fault.outlook)


def explain_transport(error: httpx.RequestError, server: str, proxy: str | None) -> FleetError:
    """Return what a failed connection means.

    Parameters
    ----------
    error : httpx.RequestError
        What was raised.
    server : str
        ``host:port``.
    proxy : str, optional
        ``host:port`` of the HTTP proxy on the way, without its password.
    """
    for cause in _causes(error):
        is_alert = isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or "")
        if is_alert or isinstance(cause, ssl.SSLCertVerificationError):
            assert isinstance(cause, OSError), "both are"
            return _to_error(find_tls_fault(cause, server))
    way = f"{server} through the proxy {proxy}" if proxy else server
    if isinstance(error, httpx.ProxyError):
        return _explain_proxy(error, server, proxy)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return _explain_connect(error, server, proxy)
    if isinstance(error, httpx.TimeoutException):
        return FleetError(f"The connection to {way} stalled.", Outlook.RETRY)
    return FleetError(f"The connection to {way} was cut.", Outlook.RETRY)


def explain_status(response: httpx.Response, server: str, fingerprint: str) -> FleetError:
    """Return what an answer that is an error means.

    Parameters
    ----------
    response : httpx.Response
        The answer.
    server : str
        ``host:port``.
    fingerprint : str
        Of this site's public key, to read out over the phone.
    """
    status = response.status_code
    problem = response.headers.get(PROBLEM_HEADER)
    if problem in _PROBLEMS:
        text, outlook = _PROBLEMS[problem]
        return FleetError(text.format(server=server), outlook)
    if status == _UNAUTHORIZED:
        return _explain_unauthorized(response, server, fingerprint)
    if status == _FORBIDDEN and FlowerError.from_json(response.text) is not None:
        return FleetError("The server no longer waits for this.", Outlook.RUN_OVER)
    if status in _SERVER_BUSY or status in _BUSY:
        text = f"{server} cannot answer at the moment (HTTP {status})."
        return FleetError(text, Outlook.RETRY)
    if status in _REFUSALS:
        text, outlook = _REFUSALS[status]
        return FleetError(text.format(server=server), outlook)
    return FleetError(
        f"What listens at {server} answered HTTP {status}, which flower-server of this version does not. Compare the "
        "address in client.yaml and the version of fedmed with those of the coordinating site.",
        Outlook.FATAL,
    )


_CHANGED_ON_THE_WAY = (
    "{server} refused a request of this site because {what} is not what this site has signed: something on the way "
    "changed it, perhaps a proxy, or a firewall that inspects TLS. Ask IT to exempt this address."
)
_PROBLEMS: dict[str, tuple[str, Outlook]] = {
    "format": (
        "{server} runs another version of fedmed than this site: requests are signed in another form there. Install "
        "the same version on both sides; the coordinating site says which (flower-server --version).",
        Outlook.FATAL,
    ),
    "signature": (_CHANGED_ON_THE_WAY.replace("{what}", "method, path or body"), Outlook.RETRY_SLOWLY),
    "body": (_CHANGED_ON_THE_WAY.replace("{what}", "the body"), Outlook.RETRY_SLOWLY),
    "replayed": (
        "{server} refused a request of this site because it came there before: something on the way repeats requests, "
        "perhaps a proxy.",
        Outlook.RETRY,
    ),
    "restarted": (
        "{server} was started a moment ago and takes no request that was signed before. If this stays, the "
        "clock of this machine is behind: set it (NTP).",
        Outlook.RETRY,
    ),
    "certificate": (
        "{server} refused this site because the certificate of its connection is of another site than its key. Put "
        "'certificate' and 'key' of client.yaml back as the kit had them, or ask the coordinating site for a new kit.",
        Outlook.FATAL,
    ),
}
"""By what the server's answer names (:data:`fedmed.protocol.signing.REFUSALS`); others are explained by status."""
_REFUSALS = {
    _PRECONDITION_FAILED: ("{server} does not let this site in at the moment.", Outlook.NOT_ACTIVATED),
    _FORBIDDEN: (
        "Something on the way to {server} forbids the connection (HTTP 403), perhaps a firewall: ask IT.",
        Outlook.RETRY_SLOWLY,
    ),
    _TOO_LARGE: (
        "{server}, or something on the way there, refuses a message of this size (HTTP 413). If a firewall or a proxy "
        "limits uploads, ask IT to raise the limit for this address to 10 MB.",
        Outlook.RETRY_SLOWLY,
    ),
}


def _clock_ahead_s(response: httpx.Response) -> float | None:
    """Return by how many seconds, to one, this machine's clock is ahead of the server's; None if it says no time.

    The server dates its answer when the request arrives, and may hold the answer back: what counts is when this site
    signed.
    """
    try:
        date = parsedate_to_datetime(response.headers.get("date", ""))
        signed = datetime.fromisoformat(response.request.headers.get(TIMESTAMP_HEADER, ""))
    except (ValueError, RuntimeError):  # RuntimeError: no request belongs to the answer
        return None
    return (signed - date).total_seconds() if date.tzinfo and signed.tzinfo else None


def _explain_unauthorized(response: httpx.Response, server: str, fingerprint: str) -> FleetError:
    ahead = _clock_ahead_s(response)
    if ahead is not None and not -_MOST_BEHIND_S < ahead - 1.0 < _MOST_AHEAD_S - 1.0:
        direction = "ahead of" if ahead > 0 else "behind"
        text = (
            f"{server} refused this site because the clock of this machine is {abs(ahead):.0f} s {direction} the "
            "server's; up to 5 s ahead is allowed. Set the clock (NTP) and start again."
        )
    else:
        text = (
            f"{server} does not accept this site: its key {fingerprint} is unknown there or was revoked, or the clocks "
            "differ. Read this fingerprint out to the coordinating site; they add a site with flower-server --add-site."
        )
    return FleetError(text, Outlook.UNKNOWN_SITE)


def _explain_proxy(error: httpx.ProxyError, server: str, proxy: str | None) -> FleetError:
    # The text of the error is the proxy's answer, such as "407 Proxy Authentication Required"; it holds no password.
    if str(error).startswith(str(_PROXY_LOGIN)):
        return FleetError(
            f"The proxy {proxy} asks for a user name and a password. Leave 'proxy' in client.yaml empty and set the "
            "environment variable HTTPS_PROXY to http://user:password@host:port.",
            Outlook.FATAL,
        )
    return FleetError(f"The proxy {proxy} does not connect to {server} ({error}). Ask IT to allow it.", Outlook.RETRY)


def _explain_connect(error: httpx.RequestError, server: str, proxy: str | None) -> FleetError:
    target = f"the proxy {proxy}" if proxy else server
    text = f"{target} cannot be reached."
    if isinstance(error, httpx.ConnectTimeout):
        text = f"No answer from {target}: a firewall may block the way."
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            text = f"No address is known for {target}: the name is wrong, or this machine has no DNS."
        elif isinstance(cause, ConnectionRefusedError):
            text = f"Nothing listens at {target}: flower-server is not running, or a firewall refuses the connection."
        elif isinstance(cause, ssl.SSLError):
            return _to_error(find_tls_fault(cause, server))
    return FleetError(text, Outlook.RETRY)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
