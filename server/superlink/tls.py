"""TLS of the public port: what is offered, the server's certificate, and, if wanted, certificates of the sites."""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only. Those of TLS 1.3 are all of this kind."""
NO_CERTIFICATE = (
    "it shows no certificate in the TLS handshake, which 'tls: mutual' demands (a kit from before that setting, or no "
    "site at all)"
)
OTHER_CERTIFICATE = "it shows a certificate in the TLS handshake that this federation's authority has not signed"

log = logging.getLogger("fedmed.superlink")


def harden(context: ssl.SSLContext) -> None:
    """Allow TLS 1.2 and 1.3 only, without weak ciphers, compression and renegotiation."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION


def demand_certificates(context: ssl.SSLContext, authority: Path, on_refused: Callable[[str, bytes], None]) -> None:
    """Let only those finish the handshake who show a certificate of the federation's authority.

    Parameters
    ----------
    context : ssl.SSLContext
        Of the listener.
    authority : Path
        Certificate of the authority.
    on_refused : callable
        Is told why somebody was refused, while the data of that connection is handled, and gets the alert in which TLS
        tells the other side: asyncio closes the connection without sending it.

    Raises
    ------
    OSError
        If the certificate of the authority cannot be read.
    """
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority)

    class Handshake(ssl.SSLObject):
        """Says why it has failed; asyncio keeps that to itself."""

        outgoing: ssl.MemoryBIO

        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except ssl.SSLCertVerificationError:
                on_refused(OTHER_CERTIFICATE, self.outgoing.read())
                raise
            except ssl.SSLError as error:
                if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
                    on_refused(NO_CERTIFICATE, self.outgoing.read())
                raise

    wrap_bio = context.wrap_bio

    def wrap(incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *more: Any, **settings: Any) -> ssl.SSLObject:
        made = wrap_bio(incoming, outgoing, *more, **settings)
        assert isinstance(made, Handshake), "the context makes no other"
        made.outgoing = outgoing
        return made

    context.sslobject_class = Handshake
    context.wrap_bio = wrap  # type: ignore[method-assign]


def read_public_key(certificate: bytes | None) -> bytes | None:
    """Return the public key (DER) of a certificate (DER), None without one."""
    if not certificate:
        return None
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return None


class CertificateFiles:
    """The server's certificate, read again whenever its file has changed; open connections keep the old one.

    Parameters
    ----------
    context : ssl.SSLContext
        Used for all new connections.
    certificate, key : Path
        The files.
    """

    def __init__(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        self._context, self._files = context, (certificate, key)
        self._seen = self._look()

    def reload_if_changed(self) -> bool:
        """Read the files again if they have changed, and return whether they are in use now."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self._context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:  # written at this very moment, or no pair
            log.warning("the new certificate cannot be used yet: %s", type(error).__name__)
            return False
        log.info("the new certificate is in use")
        return True

    def _look(self) -> list[int]:
        return [path.stat().st_mtime_ns if path.is_file() else 0 for path in self._files]
