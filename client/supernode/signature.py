"""How this site signs its requests."""

import hashlib
import secrets
from base64 import b64encode
from collections.abc import Generator

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

# Touched internals: the headers in which Flower's SuperNode proves who it is. Flower's SuperLink checks them behind our
# gate, which itself wants our own signature, as Flower's covers the time alone.
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from fedmed.formats import SIGNED_REQUEST
from fedmed.protocol.signing import BODY_HEADER, FORMAT_HEADER, NONCE_HEADER, SIGNATURE_HEADER, make_signed_text


class RequestSignature(httpx.Auth):
    """Signs method, path, body, time and a number that is used once with the site's key.

    Parameters
    ----------
    key : EllipticCurvePrivateKey
        The site's.
    """

    requires_request_body = True

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public_key = b64encode(public_key_to_bytes(key.public_key())).decode()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the headers."""
        request.headers.update(self.sign(request.method, request.url.raw_path.decode("ascii"), request.content))
        yield request

    def sign(self, method: str, target: str, body: bytes) -> dict[str, str]:
        """Return the headers of a request.

        Parameters
        ----------
        method : str
            Of HTTP.
        target : str
            Path and query as they are sent.
        body : bytes
            All of it.
        """
        time, nonce, body_sha256 = now().isoformat(), secrets.token_hex(16), hashlib.sha256(body).hexdigest()
        text = make_signed_text(
            method, target, body_sha256=body_sha256, time=time, nonce=nonce, number=SIGNED_REQUEST.number
        )
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: self._public_key,
            TIMESTAMP_HEADER: time,
            FLEET_HTTP_SIGNATURE_HEADER: self._sign(time.encode()),
            FORMAT_HEADER: str(SIGNED_REQUEST.number),
            NONCE_HEADER: nonce,
            BODY_HEADER: body_sha256,
            SIGNATURE_HEADER: self._sign(text),
        }

    def _sign(self, text: bytes) -> str:
        return b64encode(sign_message(self._key, text)).decode()
