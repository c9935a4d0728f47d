"""What a site signs with each of its requests, and how a request is refused.

Flower's own signature covers the time alone. Whoever saw one request, for example a firewall that inspects TLS, could
make others with it until that time is over. So a site signs method, path, body, time and a number that is used once.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

SIGNATURE_HEADER = "x-fedmed-signature"
"""Base64 of the signature (ECDSA with SHA-256) of :func:`make_signed_text`."""
FORMAT_HEADER = "x-fedmed-format"
"""Number of the form of the signed text; see :data:`fedmed.formats.SIGNED_REQUEST`."""
NONCE_HEADER = "x-fedmed-nonce"
"""16 random bytes in hexadecimal, used once."""
BODY_HEADER = "x-fedmed-body-sha256"
"""SHA-256 of the body in hexadecimal, so that the signature can be checked before the body is read."""
PROBLEM_HEADER = "x-fedmed-problem"
"""In an answer that refuses: one of :data:`REFUSALS`."""

NONCE = re.compile(r"[0-9a-f]{32}")
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

Problem = Literal["format", "key", "unknown", "signature", "clock", "restarted", "replayed", "body", "certificate"]
"""Why a request is refused."""


@dataclass(frozen=True)
class Refusal:
    """How one kind of request is refused."""

    status: int
    """Of HTTP."""
    at_server: str
    """For the coordinating site's log, after the address and the key."""
    detail: str
    """In the answer, for whoever reads it without fedmed."""


REFUSALS: dict[Problem, Refusal] = {
    "format": Refusal(
        426,
        "its requests are signed in another form than here; both sides need the same version of fedmed",
        "requests are signed in another form here; install the version of fedmed of the coordinating site",
    ),
    "key": Refusal(401, "it shows no key", "no signature of a site"),
    "unknown": Refusal(401, "its key is unknown or revoked", "unknown or revoked site"),
    "signature": Refusal(
        401,
        "its signature is wrong: method, path or body were changed on the way, or it does not have the key",
        "the signature does not fit this method, path and body",
    ),
    "clock": Refusal(401, "its clock differs", "the clocks differ, or the request is old"),
    "restarted": Refusal(
        503, "it was signed before this server started, and could be a repetition", "signed before the server started"
    ),
    "replayed": Refusal(401, "it is the repetition of an earlier request", "this request came before"),
    "body": Refusal(401, "its body is not the one that was signed", "the body is not the one that was signed"),
    "certificate": Refusal(
        401,
        "its certificate for TLS is of another site than its signature",
        "the certificate of this connection is of another site than the signature",
    ),
}


def make_signed_text(method: str, target: str, *, body_sha256: str, time: str, nonce: str, number: int) -> bytes:
    """Return what is signed; no part can hold the line breaks that separate them, as HTTP allows none.

    Parameters
    ----------
    method : str
        Of HTTP, in capitals.
    target : str
        Path and query as they are sent, percent-encoded.
    body_sha256 : str
        SHA-256 of the body, hexadecimal.
    time : str
        When it was signed, ISO 8601.
    nonce : str
        Hexadecimal.
    number : int
        Of the format.
    """
    return "\n".join((f"fedmed request {number}", method, target, body_sha256, time, nonce)).encode("latin-1")
