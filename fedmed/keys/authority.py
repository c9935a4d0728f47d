"""The federation's own certificate authority."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmed.errors import KeyFileError
from fedmed.keys.certificates import load_key, or_now, parse_name, read_certificates
from fedmed.keys.files import refuse_existing, write_public
from fedmed.keys.pairs import parse_site_key
from fedmed.processes import private_folder, write_secret

AUTHORITY_DAYS = 20 * 365.25
_EARLIER = timedelta(hours=1)
"""Validity begins this much before a certificate is made, for sites whose clock is behind."""


class Authority:
    """A certificate authority of one federation: EC P-384, trusted by nobody but its sites.

    Its private key is needed only to issue or renew the server's certificate; between times it may be kept elsewhere.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: Path, *, now: datetime | None = None) -> "Authority":
        """Make ``ca.pem`` and ``ca.key``, valid for 20 years.

        Parameters
        ----------
        folder : Path
            Made if it is missing; private to its owner afterwards.
        now : datetime, optional
            Aware; when the validity begins.

        Raises
        ------
        KeyFileError
            If there is one already, or the folder cannot be written.
        """
        refuse_existing(folder, ["ca.key", "ca.pem"])
        private_folder(folder)
        key = ec.generate_private_key(ec.SECP384R1())
        # A number in the name keeps the authorities of two federations apart in messages of other programs.
        name = _name(f"fedmed authority {x509.random_serial_number() % 16**8:08x}")
        start = or_now(now)
        builder = _start_certificate(name, name, key.public_key(), start, start + timedelta(days=AUTHORITY_DAYS))
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA384())
        )
        write_secret(folder / "ca.key", _encode_key(key))
        write_public(folder / "ca.pem", certificate.public_bytes(Encoding.PEM))
        return cls(certificate, key)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """Read ``ca.pem`` and ``ca.key``.

        Raises
        ------
        KeyFileError
            If one is missing or damaged, others can read the key, or the two do not belong together.
        """
        certificate = read_certificates(folder / "ca.pem")[0]
        key = _read_key(folder / "ca.key")
        if key.public_key() != certificate.public_key():
            raise KeyFileError(
                f"{folder / 'ca.key'} is not the key of {folder / 'ca.pem'}. Put back the two that were made together."
            )
        return cls(certificate, key)

    def issue_server_certificate(
        self, folder: Path, names: Sequence[str], days: float = 365, *, now: datetime | None = None
    ) -> Path:
        """Write ``server.pem``, the server's certificate followed by the authority's, and ``server.key``.

        A key that is there is used again, so that the pair fits at every moment, also for a server that is running.

        Parameters
        ----------
        folder : Path
            Where the two files go; private to its owner afterwards.
        names : sequence of str
            Host names and addresses under which sites reach the server, at least one.
        days : float
            Validity; it ends with the authority's at the latest.
        now : datetime, optional
            Aware; when the validity begins.

        Returns
        -------
        Path
            ``server.pem``.

        Raises
        ------
        KeyFileError
            If the authority has expired, or a file cannot be read or written.
        ConfigError
            If a name is neither a host name nor an address.
        """
        assert names, "a certificate without a name is accepted by nobody"
        start, authority_end = or_now(now), self._certificate.not_valid_after_utc
        if authority_end <= start:
            raise KeyFileError(
                f"The federation's authority (ca.pem) expired on {authority_end:%Y-%m-%d}. Provision a new folder and "
                "send every site its new kit."
            )
        alternative_names = x509.SubjectAlternativeName([parse_name(name) for name in dict.fromkeys(names)])
        key = _read_or_make_key(private_folder(folder) / "server.key")
        end = min(start + timedelta(days=days), authority_end)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
        certificate = (
            _start_certificate(_name("fedmed server"), self._certificate.subject, key.public_key(), start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(alternative_names, critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA384())
        )
        chain = [one.public_bytes(Encoding.PEM) for one in (certificate, self._certificate)]
        write_public(folder / "server.pem", b"".join(chain))
        return folder / "server.pem"

    def issue_site_certificate(self, path: Path, name: str, public_line: str, *, now: datetime | None = None) -> Path:
        """Write the certificate with which a site shows who it is where the server wants ``tls: mutual``.

        It is good for a site only, not for a server, and as long as the authority: a site is revoked by the list.

        Parameters
        ----------
        path : Path
            The file.
        name : str
            The site.
        public_line : str
            Its public key in OpenSSH's form.
        now : datetime, optional
            Aware; when the validity begins.

        Raises
        ------
        KeyFileError
            If the key is none, or the file cannot be written.
        """
        key = parse_site_key(public_line, path)
        start = or_now(now)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
        certificate = (
            _start_certificate(
                _name(name), self._certificate.subject, key, start, self._certificate.not_valid_after_utc
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA384())
        )
        write_public(path, certificate.public_bytes(Encoding.PEM))
        return path


def _start_certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    """Return what the authority's and the server's certificate have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _EARLIER)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _encode_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        return _read_key(path)
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(path, _encode_key(key))
    return key


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(f"{path} is a key of another kind. Put back the one made by --provision.")
    return key
