"""A scan of the public port's TLS, and certificates of the sites; against the real process."""

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.supernode.connection import make_http_client, make_site_context
from client.supernode.failures import FleetError, Outlook, explain_transport
from client.supernode.fleet import Fleet
from fedmed.config.client import ClientConfig, load_client_config
from fedmed.keys import Authority, make_site_key, read_private_key, read_public_key
from server.superlink.control import Control
from tests.server.support.real_link import Link, running_link

HELLO = "/v1/fedmed/hello"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

WEAK = {  # of TLS 1.2, by what is wrong with them
    "RSA key exchange": ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA"],
    "CBC and SHA-1": ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES128-SHA"],
    "CBC": ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA384"],
    "3DES": ["DES-CBC3-SHA", "ECDHE-ECDSA-DES-CBC3-SHA"],
    "no encryption": ["NULL-SHA", "NULL-SHA256", "ECDHE-ECDSA-NULL-SHA"],
    "anonymous": ["ADH-AES128-SHA256", "AECDH-AES128-SHA", "ADH-AES256-GCM-SHA384"],
    "export": ["EXP-RC4-MD5", "EXP-DES-CBC-SHA"],
    "finite field DH": ["DHE-RSA-AES128-GCM-SHA256"],
    "RC4": ["RC4-SHA", "ECDHE-ECDSA-RC4-SHA"],
}


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with running_link(tmp_path_factory.mktemp("plain") / "link") as (started, _):
        yield started


def make_context(link: Link, **settings: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(link.folder / "ca.pem")
    for name, value in settings.items():
        setattr(context, name, value)
    return context


def shake_hands(link: Link, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", link.public_port), timeout=5)
    try:
        return context.wrap_socket(raw, server_hostname="127.0.0.1")
    except BaseException:
        raw.close()
        raise


@pytest.mark.parametrize("name", ["TLSv1", "TLSv1_1"])
def test_old_versions_are_refused(link: Link, name: str) -> None:
    version = ssl.TLSVersion[name]
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        context = make_context(link, minimum_version=version, maximum_version=version)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake_hands(link, context)


def test_the_new_version_is_taken_and_the_one_before_if_asked_for(link: Link) -> None:
    with shake_hands(link, make_context(link)) as connection:
        assert connection.version() == "TLSv1.3"
        assert connection.compression() is None
    with shake_hands(link, make_context(link, maximum_version=ssl.TLSVersion.TLSv1_2)) as connection:
        assert connection.version() == "TLSv1.2"
        name, _, bits = connection.cipher() or ("", "", 0)
        assert name.startswith("ECDHE-ECDSA-")
        assert "GCM" in name or "CHACHA20" in name
        assert bits >= 128


@pytest.mark.parametrize("kind", WEAK)
def test_weak_ciphers_are_refused(link: Link, kind: str) -> None:
    context = make_context(link, maximum_version=ssl.TLSVersion.TLSv1_2)
    tried = 0
    for name in WEAK[kind]:
        with suppress(ssl.SSLError):  # this machine's OpenSSL may not even know it
            context.set_ciphers(f"{name}:@SECLEVEL=0")
            tried += 1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                shake_hands(link, context)
    if not tried:
        pytest.skip("this OpenSSL cannot offer them")


def test_the_certificate_is_for_these_names_and_dates_and_signed_by_the_authority(link: Link) -> None:
    with shake_hands(link, make_context(link)) as connection:
        shown = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert 364 < (shown.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400 <= 365
    assert shown.not_valid_before_utc < datetime.now(UTC)
    shown.verify_directly_issued_by(x509.load_pem_x509_certificate((link.folder / "ca.pem").read_bytes()))
    assert isinstance(shown.public_key(), ec.EllipticCurvePublicKey)
    raw = socket.create_connection(("127.0.0.1", link.public_port), timeout=5)
    with raw, pytest.raises(ssl.SSLCertVerificationError):
        make_context(link).wrap_socket(raw, server_hostname="other.example.org")


def test_plain_http_gets_no_answer(link: Link) -> None:
    with socket.create_connection(("127.0.0.1", link.public_port), timeout=5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        with suppress(ConnectionError):
            while block := plain.recv(4096):
                answer += block
    assert b"HTTP/" not in answer


@needs_openssl
def test_openssl_finds_no_renegotiation_no_compression_and_no_old_version(link: Link) -> None:
    def connect(*options: str, typed: bytes = b"") -> tuple[int, str]:
        found = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{link.public_port}", "-CAfile", link.folder / "ca.pem",
             *options],
            input=typed, capture_output=True, timeout=20, check=False,
        )  # fmt: skip
        return found.returncode, (found.stdout + found.stderr).decode(errors="replace")

    code, said = connect("-tls1_2", "-comp")
    assert code == 0
    assert "Compression: NONE" in said
    assert "Verify return code: 0 (ok)" in said
    # "R" at the beginning of a line asks s_client to renegotiate.
    code, said = connect("-tls1_2", typed=b"R\n")
    assert "no renegotiation" in said or code != 0
    code, said = connect("-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert code != 0
    code, said = connect("-tls1_3")
    assert "TLSv1.3" in said


# tls: mutual


class Mutual:
    """A server that wants certificates, and kits of sites."""

    def __init__(self, folder: Path, link: Link, control: Control) -> None:
        self.folder, self.link, self.control = folder, link, control
        self.authority = Authority.load(link.folder)

    def make_site(self, name: str, certificate_of: str | None = None, authority: Authority | None = None) -> Path:
        """Make a kit; its certificate may be of another site's key, or of another authority."""
        kit = self.folder / name
        make_site_key(kit, name)
        key = read_public_key(kit / "site.pub" if certificate_of is None else self.folder / certificate_of / "site.pub")
        (authority or self.authority).issue_site_certificate(kit / "site.crt", name, key)
        shutil.copy(self.link.folder / "ca.pem", kit / "ca.pem")
        server = f"127.0.0.1:{self.link.public_port}"
        (kit / "client.yaml").write_text(
            f"name: {name}\nserver: {server}\ndata: {{source: phantom}}\ncertificate: site.crt\n"
        )
        return kit

    def config(self, name: str, **changes: Any) -> ClientConfig:
        return load_client_config(self.folder / name / "client.yaml").model_copy(update=changes)

    def allow(self, *names: str) -> None:
        keys = {name: read_public_key(self.folder / name / "site.pub") for name in names}
        self.control.sync_sites(keys, lambda problem: None)

    def refused(self) -> list[str]:
        """Return reasons of refusals, once the newest has been written."""
        end = time.monotonic() + 5
        while not self.link.refused and time.monotonic() < end:
            time.sleep(0.05)
        return [line["reason"] for line in self.link.refused]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutual]:
    folder = tmp_path_factory.mktemp("mutual")
    more = {"mutual_tls": True, "authority": str(folder / "link" / "ca.pem")}
    with running_link(folder / "link", more=more) as (link, control):
        made = Mutual(folder, link, control)
        for name in ("north", "south", "stranger"):
            made.make_site(name)
        made.allow("north", "south")
        yield made


@pytest.fixture
def mutual(started: Mutual) -> Mutual:
    (started.link.folder / "refused.jsonl").write_text("")
    return started


def say_hello(config: ClientConfig) -> str:
    with Fleet(config) as fleet:
        return str(fleet.hello()["site"])


def fail(config: ClientConfig) -> FleetError:
    with pytest.raises(FleetError) as caught:
        say_hello(config)
    assert "\n" not in str(caught.value)
    return caught.value


def test_sites_with_their_certificates_come_in(mutual: Mutual) -> None:
    assert say_hello(mutual.config("north")) == "north"
    assert say_hello(mutual.config("south")) == "south"


def test_without_a_certificate_the_handshake_fails_and_both_sides_say_why(mutual: Mutual) -> None:
    error = fail(mutual.config("north", certificate=None))
    assert "wants a certificate of this site" in str(error)
    assert "Write certificate: site.crt in client.yaml" in str(error)
    assert error.outlook is Outlook.RETRY_SLOWLY
    assert any("it shows no certificate in the TLS handshake" in reason for reason in mutual.refused())
    assert {line["address"] for line in mutual.link.refused} == {"127.0.0.1"}


def test_a_certificate_of_another_authority_fails_in_the_handshake(mutual: Mutual, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other")
    other.issue_site_certificate(tmp_path / "other.crt", "north", read_public_key(mutual.folder / "north/site.pub"))
    error = fail(mutual.config("north", certificate=str(tmp_path / "other.crt")))
    assert "did not accept what it was shown" in str(error)
    assert any("this federation's authority has not signed" in reason for reason in mutual.refused())


def test_the_servers_own_certificate_is_none_of_a_site(mutual: Mutual) -> None:
    context = make_context(mutual.link)
    context.load_cert_chain(mutual.link.folder / "server.pem", mutual.link.folder / "server.key")
    with_kit = make_site_context(mutual.config("north"), read_private_key(mutual.folder / "north/site.key"))
    answers = []
    for one in (context, with_kit):
        answers.append(b"")
        with suppress(ssl.SSLError, ConnectionError), shake_hands(mutual.link, one) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            answers[-1] = connection.recv(8)
    assert answers == [b"", b"HTTP/1.1"]


def test_another_sites_certificate_with_the_own_signature_is_refused(mutual: Mutual) -> None:
    """South has an own certificate, and tries to send what north's key has signed, as if that key were stolen."""
    north, south = mutual.config("north"), mutual.config("south")
    client, _ = make_http_client(south, read_private_key(Path(south.key)))
    from client.supernode.signature import RequestSignature

    client.auth = RequestSignature(read_private_key(Path(north.key)))
    with client:
        answer = client.post(f"https://{south.server}{HELLO}", content=b"{}")
    assert answer.status_code == 401
    assert "certificate of this connection is of another site" in json.loads(answer.content)["detail"]
    assert mutual.refused() == ["its certificate for TLS is of another site than its signature"]


def test_a_certificate_alone_lets_nobody_in_and_the_list_revokes(mutual: Mutual) -> None:
    error = fail(mutual.config("stranger"))  # of this authority, but not on the list
    assert "does not accept this site" in str(error)
    mutual.allow("north")
    try:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            with suppress(FleetError):
                say_hello(mutual.config("south"))
                time.sleep(0.1)
                continue
            break
        assert "does not accept this site" in str(fail(mutual.config("south")))
    finally:
        mutual.allow("north")


def test_a_certificate_for_another_key_is_found_before_anything_is_sent(mutual: Mutual) -> None:
    from fedmed.errors import KeyFileError

    with pytest.raises(KeyFileError, match="is for another key than that of this site"):
        Fleet(mutual.config("north", certificate=str(mutual.folder / "south/site.crt")))


def test_an_alert_of_tls_1_2_is_explained_as_well() -> None:
    cause = ssl.SSLError(1, "alert")
    cause.reason = "SSLV3_ALERT_BAD_CERTIFICATE"
    error = httpx.ReadError("cut")
    error.__cause__ = cause
    assert "wants a certificate of this site" in str(explain_transport(error, "server:1", None))


def test_public_keys_of_certificates_are_those_of_the_kits(mutual: Mutual) -> None:
    from server.superlink.tls import read_public_key as read_key

    shown = x509.load_pem_x509_certificate((mutual.folder / "north/site.crt").read_bytes())
    own = read_private_key(mutual.folder / "north/site.key").public_key()
    assert read_key(shown.public_bytes(Encoding.DER)) == own.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert read_key(None) is None
    assert read_key(b"no certificate") is None
