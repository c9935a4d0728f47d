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
from fedmed.keys import fingerprint, read_private_key
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
    key = read_private_key(Path(context.config.key))
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return CheckResult(
        name, "ok", f"readable by its owner only; fingerprint {fingerprint(line)}, as the coordinating site has it"
    )


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
