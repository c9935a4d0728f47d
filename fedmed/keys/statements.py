"""What a site signs with its own key beside its requests: statements, as that it has seen the head of a log."""

import base64

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

_ALGORITHM = ec.ECDSA(hashes.SHA384())


def sign_statement(key: ec.EllipticCurvePrivateKey, data: bytes) -> str:
    """Return a site's ECDSA signature (SHA-384) of some bytes, in base64."""
    return base64.b64encode(key.sign(data, _ALGORITHM)).decode()


def is_signed_by(public_line: str, data: bytes, signature: str) -> bool:
    """Return whether a signature of :func:`sign_statement` was made with the private half of a site's key.

    Parameters
    ----------
    public_line : str
        ``TYPE BASE64`` in OpenSSH's form.
    data : bytes
        What was signed.
    signature : str
        From outside, so that it may be anything.
    """
    try:
        key = load_ssh_public_key(public_line.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(base64.b64decode(signature, validate=True), data, _ALGORITHM)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):  # binascii.Error is a ValueError
        return False
    return True
