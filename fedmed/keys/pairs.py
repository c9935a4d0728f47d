"""Key pairs: a site's identity (ECDSA), the signature of released models and of a person who decides (Ed25519).

Public keys have OpenSSH's form; so have private ones without a passphrase. With one they have the form PKCS 8, which
other programs read as well, since OpenSSH's own needs a package that fedmed does without.
"""

import base64
import binascii
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHPrivateKeyTypes,
    SSHPublicKeyTypes,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedmed.errors import KeyFileError
from fedmed.keys.files import read_public, refuse_existing, write_public
from fedmed.processes import private_folder, read_secret, write_secret

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_WANTED = "an ECDSA key on the curve P-256, P-384 or P-521, in OpenSSH's form or, with a passphrase, in that of PKCS 8"
_HOW = "Such a pair is made by: flower-client --make-key NAME"
_UNLOCK = (
    "Start the command at a terminal, which asks for it; for a service name a file with 'key_passphrase_file' in "
    "client.yaml (an operator: with --passphrase-file), mode 0600, or set the environment variable "
    "FEDMED_KEY_PASSPHRASE."
)
_RELEASE_KEY = "Put back the release.key made by --provision; the sites trust no other."
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError)  # of a damaged key
_OPENSSH = b"BEGIN OPENSSH PRIVATE KEY"


def make_site_key(folder: Path, name: str, passphrase: bytes | None = None) -> str:
    """Make ``site.key`` and ``site.pub``, EC P-384, and return the fingerprint.

    Parameters
    ----------
    folder : Path
        Made if it is missing; private to its owner afterwards.
    name : str
        Name of the site, the comment of the public line.
    passphrase : bytes, optional
        Locks the private key; default: its mode 0600 alone protects it.

    Raises
    ------
    KeyFileError
        If there is one already, or the folder cannot be written.
    """
    return _make_pair(folder, "site", name, ec.generate_private_key(ec.SECP384R1()), passphrase)


def make_release_key(folder: Path) -> str:
    """Make ``release.key`` and ``release.pub``, Ed25519, and return the fingerprint.

    Raises
    ------
    KeyFileError
        If there is one already, or the folder cannot be written.
    """
    return _make_pair(folder, "release", "fedmed-release", ed25519.Ed25519PrivateKey.generate())


def make_operator_key(folder: Path, name: str, passphrase: bytes | None = None) -> str:
    """Make ``NAME.key`` and ``NAME.pub`` of a person who decides on releases, Ed25519, and return the fingerprint.

    Raises
    ------
    KeyFileError
        If there is one already, or the folder cannot be written.
    """
    return _make_pair(folder, name, f"fedmed-operator-{name}", ed25519.Ed25519PrivateKey.generate(), passphrase)


def is_locked(path: Path) -> bool:
    """Return whether a private key needs a passphrase.

    Raises
    ------
    KeyFileError
        If it is missing, or can be read by others.
    """
    data = read_secret(path)
    try:
        (load_ssh_private_key if _OPENSSH in data else load_pem_private_key)(data, None)
    except TypeError:  # how the library says that a passphrase is needed
        return True
    except (ValueError, UnsupportedAlgorithm, NotImplementedError):
        return False  # damaged, which whoever reads it says
    return False


def read_private_key(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Read a site's private key.

    Raises
    ------
    KeyFileError
        If it is missing, damaged, of another kind, locked by another passphrase, or can be read by others.
    """
    key = _read_private(path, f"Allowed: {_WANTED}. {_HOW}", passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVES):
        raise KeyFileError(f"{path} is a key of another kind. Allowed: {_WANTED}. {_HOW}")
    return key


def read_public_key(path: Path) -> str:
    """Read a site's public key.

    Returns
    -------
    str
        The OpenSSH line ``TYPE BASE64`` without comment, so that equal keys are equal texts.

    Raises
    ------
    KeyFileError
        If it is missing, damaged or of another kind.
    """
    data = read_public(path)
    if b"PRIVATE KEY" in data:
        raise KeyFileError(
            f"{path} is a private key, which must not leave its site. Ask for the public part, whose name ends in "
            ".pub; if the private part came over a network, have a new pair made."
        )
    key = parse_site_key(data, path)
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def parse_site_key(line: bytes | str, source: Path) -> ec.EllipticCurvePublicKey:
    """Return a site's public key.

    Parameters
    ----------
    line : bytes or str
        In OpenSSH's form.
    source : Path
        For messages.

    Raises
    ------
    KeyFileError
        If it is damaged or of another kind.
    """
    data = line.encode() if isinstance(line, str) else line
    key = _parse_public(data, source, f"Allowed: the public part of {_WANTED}, one line 'ecdsa-sha2-… BASE64'. {_HOW}")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise KeyFileError(f"{source} is a key of another kind. Allowed: the public part of {_WANTED}. {_HOW}")
    return key


def fingerprint(public_line: str) -> str:
    """Return ``SHA256:…`` of an OpenSSH public line, as ``ssh-keygen -l`` prints it.

    Raises
    ------
    KeyFileError
        If the text is no such line.
    """
    try:
        blob = base64.b64decode(public_line.split()[1], validate=True)
    except (IndexError, binascii.Error):
        raise KeyFileError(f"'{public_line[:40]}' is no public key. Allowed: one line 'TYPE BASE64'.") from None
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def sign(private_path: Path, data: bytes, passphrase: bytes | None = None, advice: str = _RELEASE_KEY) -> str:
    """Return the Ed25519 signature of some bytes, in base64.

    Parameters
    ----------
    private_path : Path
        The private key.
    data : bytes
        What is signed.
    passphrase : bytes, optional
        Of the key.
    advice : str
        What to do about a key that cannot be used.

    Raises
    ------
    KeyFileError
        If the key is missing, damaged, of another kind, locked by another passphrase, or can be read by others.
    """
    key = _read_private(private_path, advice, passphrase)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyFileError(f"{private_path} is no Ed25519 key. {advice}")
    return base64.b64encode(key.sign(data)).decode()


def check_signature(public_path: Path, data: bytes, signature: str) -> None:
    """Check a signature of :func:`sign`.

    Raises
    ------
    KeyFileError
        If it does not fit, or the public key is missing, damaged or of another kind.
    """
    advice = "Put back the release.pub of the kit."
    key = _parse_public(read_public(public_path), public_path, advice)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise KeyFileError(f"{public_path} is no Ed25519 key. {advice}")
    try:
        key.verify(base64.b64decode(signature, validate=True), data)
    except (InvalidSignature, ValueError):  # binascii.Error is a ValueError
        raise KeyFileError(
            f"The signature does not fit {public_path}: the content was changed on its way, or signed by somebody "
            "else. It is not used. Ask the coordinating site whether the release.pub of your kit is still theirs."
        ) from None


def _make_pair(
    folder: Path,
    name: str,
    comment: str,
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    passphrase: bytes | None = None,
) -> str:
    refuse_existing(folder, [f"{name}.key", f"{name}.pub"])
    private_folder(folder)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    if passphrase is None:
        data = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    else:
        data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    write_secret(folder / f"{name}.key", data)
    write_public(folder / f"{name}.pub", f"{line} {comment}\n".encode())
    return fingerprint(line)


def _read_private(path: Path, advice: str, passphrase: bytes | None = None) -> PrivateKeyTypes | SSHPrivateKeyTypes:
    data = read_secret(path)
    load = load_ssh_private_key if _OPENSSH in data else load_pem_private_key
    is_encrypted = is_locked(path)
    if is_encrypted and passphrase is None:
        raise KeyFileError(f"{path} is locked by a passphrase, and none was given. {_UNLOCK}")
    try:
        return load(data, passphrase if is_encrypted else None)
    except _UNREADABLE as error:  # the library's words may hold parts of the key
        if is_encrypted and isinstance(error, UnsupportedAlgorithm):
            reason = f"has a passphrase in OpenSSH's form. Type: ssh-keygen -p -m PKCS8 -f '{path}'"
        elif is_encrypted:
            reason = "was not opened by this passphrase. Type the right one; if it is lost, have a new key made."
        else:
            reason = f"cannot be used: it is damaged. {advice}"
        raise KeyFileError(f"{path} {reason}") from None


def _parse_public(data: bytes, path: Path, advice: str) -> SSHPublicKeyTypes:
    try:
        return load_ssh_public_key(data.strip())
    except _UNREADABLE:
        raise KeyFileError(f"{path} is no public key, or is damaged. {advice}") from None
