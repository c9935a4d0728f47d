"""Checks of the kit's files and of the state folder."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from client.check.context import CheckContext, CheckResult, NotApplicableError
from client.check.network import judge_expiry
from client.check.results import CheckFailedError
from client.hospital.site_key import open_site_key
from fedmed.keys import fingerprint, is_issued_by, is_locked
from fedmed.keys.certificates import read_certificates
from fedmed.processes import private_folder

_ASK_KIT = "Put back the file from the kit of this site, or ask the coordinating site for it."
_LEAST_FREE_BYTES = 2**30


def check_settings(context: CheckContext, name: str) -> CheckResult:
    """Say what client.yaml names; it has been read without error when this runs."""
    config = context.config
    found = f"site '{config.name}', server {config.server}, data from {config.data.source}"
    if config.insecure:
        return CheckResult(
            name,
            "warning",
            f"{found}; insecure: true",
            "There is no TLS: for tests on one machine only. Remove the line.",
        )
    if config.data.source == "phantom":
        return CheckResult(
            name, "warning", found, "The phantom's images are synthetic. For a real study, name your own under `data`."
        )
    return CheckResult(name, "ok", found)


def check_key(context: CheckContext, name: str) -> CheckResult:
    """Read the site's private key and show its fingerprint."""
    path = Path(context.config.key)
    key = open_site_key(context.config)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    lock = "locked by a passphrase" if is_locked(path) else "not locked by a passphrase"
    found = f"readable by its owner only, {lock}; fingerprint {fingerprint(line)}, as the coordinating site has it"
    return CheckResult(name, "ok", found)


def check_site_certificate(context: CheckContext, name: str) -> CheckResult:
    """Look whether the site's certificate, which tls: mutual wants, is for its key, of its authority and in date."""
    config = context.config
    if config.certificate is None:
        return CheckResult(name, "ok", "none is named; only a server with tls: mutual wants one")
    path = Path(config.certificate)
    shown = read_certificates(path)[0]
    if shown.public_key() != open_site_key(config).public_key():
        raise CheckFailedError(f"{path} is the certificate of another key than {config.key}.", _ASK_KIT)
    if not is_issued_by(path, Path(config.ca)):
        raise CheckFailedError(f"{path} is not signed by the authority in {config.ca}.", _ASK_KIT)
    return judge_expiry(name, shown.not_valid_after_utc, "Ask the coordinating site for a new one.")


def check_release_key(context: CheckContext, name: str) -> CheckResult:
    """Read the public key with which released models are signed."""
    path = Path(context.config.release_key)
    text = _read(path)
    try:
        key = load_ssh_public_key(text.strip())
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise CheckFailedError(f"{path} is no Ed25519 public key, with which released models are signed.", _ASK_KIT)
    return CheckResult(name, "ok", f"fingerprint {fingerprint(text.decode())}")


def check_authority(context: CheckContext, name: str) -> CheckResult:
    """Read the certificate of the authority that the server's must be signed by."""
    if context.config.insecure:
        raise NotApplicableError("client.yaml says `insecure: true`: there is no TLS.")
    path = Path(context.config.ca)
    try:
        certificates = x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise CheckFailedError(f"{path} holds no certificate.", _ASK_KIT) from None
    if len(certificates) == 1:
        return judge_expiry(name, certificates[0].not_valid_after_utc, "Ask the coordinating site for new kits.")
    valid = sum(certificate.not_valid_after_utc > datetime.now(UTC) for certificate in certificates)
    found = f"{len(certificates)} certificates, {valid} of them not expired"
    return CheckResult(name, "ok", found) if valid else CheckResult(name, "failed", found, _ASK_KIT)


def check_state(context: CheckContext, name: str) -> CheckResult:
    """Look whether the state folder can be written, and the room on its disk."""
    state_dir = private_folder(Path(context.config.state_dir))
    free = shutil.disk_usage(state_dir).free
    found = f"can be written, for its owner only; {free / 2**30:.1f} GiB free"
    if free < _LEAST_FREE_BYTES:
        return CheckResult(name, "warning", found, "Free some space, or choose another disk with `state_dir`.")
    return CheckResult(name, "ok", found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckFailedError(f"{path} cannot be read: {error.strerror}.", _ASK_KIT) from None
