"""What a certificate says."""

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedmed.errors import ConfigError, KeyFileError
from fedmed.keys.files import read_public
from fedmed.processes import read_secret

_HOST_NAME = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}))*")


def certificate_expiry(pem_file: Path) -> datetime:
    """Return when the first certificate of a file expires, aware, in UTC.

    Raises
    ------
    KeyFileError
        If the file is missing or holds no certificate.
    """
    return read_certificates(pem_file)[0].not_valid_after_utc


def days_left(pem_file: Path, now: datetime | None = None) -> float:
    """Return in how many days the first certificate of a file expires; negative when it has.

    Raises
    ------
    KeyFileError
        If the file is missing or holds no certificate.
    """
    return (certificate_expiry(pem_file) - or_now(now)) / timedelta(days=1)


def certificate_names(pem_file: Path) -> list[str]:
    """Return the host names and addresses for which the first certificate of a file is valid.

    Raises
    ------
    KeyFileError
        If the file is missing or holds no certificate.
    """
    extensions = read_certificates(pem_file)[0].extensions
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def find_lacking_names(pem_file: Path, names: Sequence[str]) -> list[str]:
    """Return those of some host names and addresses for which the first certificate of a file is not valid.

    Wildcards are not followed.

    Raises
    ------
    KeyFileError
        If the file is missing or holds no certificate.
    ConfigError
        If a name is neither a host name nor an address.
    """
    held = {name.lower() for name in certificate_names(pem_file)}
    return [name for name in names if str(parse_name(name).value).lower() not in held]


def is_issued_by(pem_file: Path, ca_file: Path) -> bool:
    """Return whether the first certificate of a file is signed by one of ``ca_file``; dates are not looked at.

    Raises
    ------
    KeyFileError
        If a file is missing or holds no certificate.
    """
    certificate = read_certificates(pem_file)[0]
    return any(_is_signed_by(certificate, authority) for authority in read_certificates(ca_file))


def is_pair(pem_file: Path, key_file: Path) -> bool:
    """Return whether a private key belongs to the first certificate of a file.

    Raises
    ------
    KeyFileError
        If a file is missing or damaged, or others can read the key.
    """
    return load_key(key_file).public_key() == read_certificates(pem_file)[0].public_key()


def parse_name(name: str) -> x509.DNSName | x509.IPAddress:
    """Return a host name or an address as certificates hold it.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        ascii_name = ""
    if len(ascii_name) > 253 or not _HOST_NAME.fullmatch(ascii_name):
        raise ConfigError(
            f"'{name}' is neither a host name nor an address, so no certificate can be made for it. Allowed in "
            "'address' (before the port) and 'alternative_names': for example fedmed.example.org or 192.0.2.7."
        )
    return x509.DNSName(ascii_name)


def or_now(now: datetime | None) -> datetime:
    """Return a moment in UTC, by default this one."""
    return datetime.now(UTC) if now is None else now.astimezone(UTC)


def load_key(path: Path) -> PrivateKeyTypes:
    """Read a private key in PEM form, of any kind.

    Raises
    ------
    KeyFileError
        If it is missing, damaged, has a passphrase, or others can read it.
    """
    data = read_secret(path)
    try:
        return load_pem_private_key(data, None)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        NotImplementedError,
    ):  # the library's words may hold parts of the key
        raise KeyFileError(
            f"{path} cannot be used: it is damaged or locked by a passphrase. Put back the one made by --provision."
        ) from None


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read all certificates of a file.

    Raises
    ------
    KeyFileError
        If it is missing or holds none.
    """
    try:
        return x509.load_pem_x509_certificates(read_public(path))
    except ValueError:
        raise KeyFileError(f"{path} holds no certificate in PEM form, or is damaged. Put back the original.") from None


def _is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
