import os
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedmed.errors import ConfigError, KeyFileError
from fedmed.keys import (
    Authority,
    certificate_expiry,
    certificate_names,
    check_signature,
    days_left,
    find_lacking_names,
    fingerprint,
    is_issued_by,
    is_pair,
    make_release_key,
    make_site_key,
    read_private_key,
    read_public_key,
    sign,
)
from fedmed.processes import write_secret

NAMES = ["fedmed.example.org", "127.0.0.1", "::1"]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: no oracle")
needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed: no oracle"
)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def shake_hands(server_folder: Path, ca_file: Path, host: str) -> None:
    """Do a TLS handshake in memory; raises what the client raises."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server_folder / "server.pem", server_folder / "server.key")
    client_context = ssl.create_default_context(cafile=str(ca_file))
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(down, up, server_hostname=host)
    server = server_context.wrap_bio(up, down, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in {client, server} - done:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    assert client.version() == "TLSv1.3"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A folder with an authority and a certificate of its."""
    Authority.create(tmp_path / "server").issue_server_certificate(tmp_path / "server", NAMES)
    return tmp_path / "server"


# Certificates


@pytest.mark.parametrize("host", NAMES)
def test_clients_that_trust_only_our_authority_accept_the_server(server: Path, host: str) -> None:
    shake_hands(server, server / "ca.pem", host)


def test_another_authority_is_refused(server: Path, tmp_path: Path) -> None:
    Authority.create(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        shake_hands(server, tmp_path / "other" / "ca.pem", NAMES[0])
    assert is_issued_by(server / "server.pem", server / "ca.pem")
    assert not is_issued_by(server / "server.pem", tmp_path / "other" / "ca.pem")


@pytest.mark.parametrize("host", ["other.example.org", "127.0.0.2"])
def test_another_name_is_refused(server: Path, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(Hostname|IP address) mismatch"):
        shake_hands(server, server / "ca.pem", host)


def test_an_expired_certificate_is_refused_and_a_renewed_one_is_accepted(server: Path) -> None:
    authority = Authority.load(server)
    now = datetime.now(UTC)
    authority.issue_server_certificate(server, NAMES, days=30, now=now - timedelta(days=31))
    assert days_left(server / "server.pem") == pytest.approx(-1, abs=0.01)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        shake_hands(server, server / "ca.pem", NAMES[0])
    authority.issue_server_certificate(server, NAMES)
    shake_hands(server, server / "ca.pem", NAMES[0])


def test_a_server_certificate_cannot_sign_another(server: Path, tmp_path: Path) -> None:
    # A server whose key was stolen must not be able to make certificates that sites accept.
    forged = tmp_path / "forged"
    forged.mkdir()
    shutil.copy(server / "server.pem", forged / "ca.pem")
    shutil.copy(server / "server.key", forged / "ca.key")
    Authority.load(forged).issue_server_certificate(forged, ["evil.example.org"])
    chain = (forged / "server.pem").read_bytes() + (server / "server.pem").read_bytes()
    (forged / "server.pem").write_bytes(chain)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        shake_hands(forged, server / "ca.pem", "evil.example.org")


@needs_openssl
def test_openssl_agrees(server: Path) -> None:
    pem = server / "server.pem"
    assert "OK" in run(
        "openssl", "verify", "-x509_strict", "-CAfile", server / "ca.pem", "-verify_hostname", NAMES[0], pem
    )
    text = run("openssl", "x509", "-noout", "-text", "-in", pem)
    assert "DNS:fedmed.example.org, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1" in text
    assert "TLS Web Server Authentication" in text
    assert "secp384r1" in text
    end = run("openssl", "x509", "-noout", "-enddate", "-in", pem).strip().removeprefix("notAfter=")
    assert datetime.strptime(end, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC) == certificate_expiry(pem)


def test_dates_names_and_modes(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, now=NOON)
    assert days_left(tmp_path / "ca.pem", NOON) == 20 * 365.25
    pem = authority.issue_server_certificate(tmp_path, [*NAMES, NAMES[0]], days=90, now=NOON)
    assert pem == tmp_path / "server.pem"
    assert certificate_expiry(pem) == datetime(2026, 5, 30, 12, tzinfo=UTC)
    assert days_left(pem, NOON + timedelta(days=89, hours=18)) == 0.25
    assert certificate_names(pem) == NAMES
    assert certificate_names(tmp_path / "ca.pem") == []
    assert (mode(tmp_path / "ca.pem"), mode(pem)) == (0o644, 0o644)
    assert (mode(tmp_path / "ca.key"), mode(tmp_path / "server.key"), mode(tmp_path)) == (0o600, 0o600, 0o700)


def test_validity_begins_an_hour_early_for_clocks_that_are_behind(tmp_path: Path) -> None:
    pem = Authority.create(tmp_path, now=NOON).issue_server_certificate(tmp_path, NAMES, now=NOON)
    first = x509.load_pem_x509_certificates(pem.read_bytes())[0]
    assert first.not_valid_before_utc == NOON - timedelta(hours=1)


def test_a_server_certificate_ends_with_the_authority_which_then_issues_none(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, now=NOON)
    end = certificate_expiry(tmp_path / "ca.pem")
    pem = authority.issue_server_certificate(tmp_path, NAMES, now=end - timedelta(days=10))
    assert certificate_expiry(pem) == end
    with pytest.raises(KeyFileError, match=r"authority \(ca\.pem\) expired on 2046-03-01"):
        authority.issue_server_certificate(tmp_path, NAMES, now=end)


def test_renewal_keeps_the_key_so_that_the_pair_always_fits(server: Path) -> None:
    key, certificate = (server / "server.key").read_bytes(), (server / "server.pem").read_bytes()
    Authority.load(server).issue_server_certificate(server, NAMES)
    assert (server / "server.key").read_bytes() == key
    assert (server / "server.pem").read_bytes() != certificate
    assert is_pair(server / "server.pem", server / "server.key")
    assert not is_pair(server / "server.pem", server / "ca.key")


def test_lacking_names_compare_by_meaning(server: Path) -> None:
    same = ["FedMed.example.ORG", "0:0:0:0:0:0:0:1", "127.0.0.1"]
    assert find_lacking_names(server / "server.pem", [*same, "b.example.org"]) == ["b.example.org"]


def test_a_name_beyond_ascii_is_encoded(tmp_path: Path) -> None:
    pem = Authority.create(tmp_path).issue_server_certificate(tmp_path, ["bücher.example"])
    assert certificate_names(pem) == ["xn--bcher-kva.example"]
    assert find_lacking_names(pem, ["bücher.example"]) == []


@pytest.mark.parametrize("name", ["", "two words", "a..b", "https://a.org", "a.org:8443", "-a.org", "x" * 64, "ä..b"])
def test_a_name_that_no_certificate_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"neither a host name nor an address.*alternative_names"):
        Authority.create(tmp_path).issue_server_certificate(tmp_path, [name])


def test_an_authority_is_never_overwritten(server: Path) -> None:
    before = (server / "ca.key").read_bytes()
    with pytest.raises(KeyFileError, match="exists and is never overwritten"):
        Authority.create(server)
    assert (server / "ca.key").read_bytes() == before


def test_files_that_do_not_belong_together_are_refused(server: Path, tmp_path: Path) -> None:
    Authority.create(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca.key", server / "ca.key")
    with pytest.raises(KeyFileError, match=r"ca\.key is not the key of .*ca\.pem"):
        Authority.load(server)


def test_damaged_missing_and_open_files_say_so(server: Path) -> None:
    (server / "ca.key").chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        Authority.load(server)
    write_secret(server / "ca.key", b"-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n-----END PRIVATE KEY-----\n")
    with pytest.raises(KeyFileError, match="damaged or locked") as caught:
        Authority.load(server)
    assert "SECRETSECRET" not in str(caught.value)
    (server / "ca.pem").write_text("nothing")
    with pytest.raises(KeyFileError, match="no certificate in PEM form"):
        certificate_expiry(server / "ca.pem")
    (server / "ca.pem").unlink()
    with pytest.raises(KeyFileError, match=r"ca\.pem cannot be read: No such file"):
        days_left(server / "ca.pem")


# A site's key


def test_a_site_key_is_an_openssh_pair_on_p384(tmp_path: Path) -> None:
    printed = make_site_key(tmp_path / "kit", "hospital_a")
    private, public = tmp_path / "kit" / "site.key", tmp_path / "kit" / "site.pub"
    assert (mode(private), mode(public), mode(tmp_path / "kit")) == (0o600, 0o644, 0o700)
    assert private.read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert public.read_text().endswith(" hospital_a\n")
    line = read_public_key(public)
    assert line == public.read_text().removesuffix(" hospital_a\n")
    assert fingerprint(line) == fingerprint(public.read_text()) == printed
    key = read_private_key(private)
    assert isinstance(key.curve, ec.SECP384R1)
    # the two calls with which flwr loads keys
    assert load_ssh_private_key(private.read_bytes(), None).public_key() == load_ssh_public_key(line.encode())


@needs_ssh_keygen
def test_ssh_keygen_agrees(tmp_path: Path) -> None:
    printed = make_site_key(tmp_path, "hospital_a")
    length, sha256, comment, kind = run("ssh-keygen", "-l", "-f", tmp_path / "site.pub").split()
    assert (length, sha256, comment, kind) == ("384", printed, "hospital_a", "(ECDSA)")
    derived = run("ssh-keygen", "-y", "-f", tmp_path / "site.key")
    assert derived.split()[:2] == read_public_key(tmp_path / "site.pub").split()


@needs_ssh_keygen
@pytest.mark.parametrize("bits", ["256", "384", "521"])
def test_keys_of_ssh_keygen_are_read(tmp_path: Path, bits: str) -> None:
    run("ssh-keygen", "-q", "-t", "ecdsa", "-b", bits, "-N", "", "-C", "it@hospital", "-f", tmp_path / "site.key")
    line = read_public_key(tmp_path / "site.key.pub")
    assert "it@hospital" not in line
    public = read_private_key(tmp_path / "site.key").public_key()
    assert load_ssh_public_key(line.encode()) == public


@needs_ssh_keygen
def test_a_passphrase_of_openssh_is_refused_with_what_to_do_and_that_works(tmp_path: Path) -> None:
    words, key = "secret words", tmp_path / "site.key"
    run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", words, "-f", key)
    with pytest.raises(KeyFileError, match=r"is locked by a passphrase, and none was given\. Start the command at"):
        read_private_key(key)
    with pytest.raises(KeyFileError, match=r"in OpenSSH's form\. Type: ssh-keygen -p -m PKCS8 -f"):
        read_private_key(key, words.encode())
    run("ssh-keygen", "-q", "-p", "-m", "PKCS8", "-P", words, "-N", words, "-f", key)
    assert read_private_key(key, words.encode()).curve.name == "secp384r1"


def write_key_pair(
    folder: Path, key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    openssh = serialization.PrivateFormat.OpenSSH
    private = key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption())
    write_secret(folder / "site.key", private)
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / "site.pub").write_bytes(line)


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_keys_of_another_kind_are_refused(tmp_path: Path, kind: str) -> None:
    make = {"ed25519": ed25519.Ed25519PrivateKey.generate, "rsa": lambda: rsa.generate_private_key(65537, 2048)}
    write_key_pair(tmp_path, make[kind]())
    with pytest.raises(KeyFileError, match=r"site\.key is a key of another kind\. Allowed: an ECDSA key on the curve"):
        read_private_key(tmp_path / "site.key")
    with pytest.raises(KeyFileError, match=r"site\.pub is a key of another kind"):
        read_public_key(tmp_path / "site.pub")


def test_a_private_key_in_place_of_the_public_one_is_noticed_and_not_repeated(tmp_path: Path) -> None:
    make_site_key(tmp_path, "a")
    body = (tmp_path / "site.key").read_text().splitlines()[3]
    with pytest.raises(KeyFileError, match="must not leave its site") as caught:
        read_public_key(tmp_path / "site.key")
    assert body not in str(caught.value)


def test_site_keys_are_never_overwritten(tmp_path: Path) -> None:
    make_site_key(tmp_path, "a")
    before = (tmp_path / "site.key").read_bytes()
    (tmp_path / "site.pub").unlink()
    with pytest.raises(KeyFileError, match=r"site\.key exists and is never overwritten"):
        make_site_key(tmp_path, "a")
    assert (tmp_path / "site.key").read_bytes() == before


@pytest.mark.parametrize("found", [0o644, 0o640, 0o602, 0o660])
def test_a_private_key_that_others_can_use_is_refused(tmp_path: Path, found: int) -> None:
    make_site_key(tmp_path, "a")
    os.chmod(tmp_path / "site.key", found)
    with pytest.raises(KeyFileError, match=rf"mode {found:04o}.*chmod 600 '.*site\.key'"):
        read_private_key(tmp_path / "site.key")


@pytest.mark.parametrize("content", [b"", b"nothing", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_private_key_says_so(tmp_path: Path, content: bytes) -> None:
    write_secret(tmp_path / "site.key", content)
    with pytest.raises(KeyFileError, match=r"site\.key cannot be used: it is damaged"):
        read_private_key(tmp_path / "site.key")


def damaged_lines() -> Sequence[bytes]:
    return [
        b"",
        b"nothing",
        b"ecdsa-sha2-nistp384 AAAA",
        b"ecdsa-sha2-nistp384",
        b"\xff\xfe",
        b"ecdsa-sha2-nistp384 ????",
    ]


@pytest.mark.parametrize("content", damaged_lines())
def test_a_damaged_public_key_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "site.pub").write_bytes(content)
    with pytest.raises(KeyFileError, match=r"site\.pub is no public key, or is damaged"):
        read_public_key(tmp_path / "site.pub")


def test_missing_keys_say_so(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"site\.key cannot be read: No such file"):
        read_private_key(tmp_path / "site.key")
    with pytest.raises(KeyFileError, match=r"site\.pub cannot be read: No such file"):
        read_public_key(tmp_path / "site.pub")


@pytest.mark.parametrize("text", ["", "one", "type not*base64"])
def test_fingerprint_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(KeyFileError, match="is no public key"):
        fingerprint(text)


# The release key


def test_a_signature_holds_for_these_bytes_and_this_key_only(tmp_path: Path) -> None:
    make_release_key(tmp_path / "a")
    make_release_key(tmp_path / "b")
    signature = sign(tmp_path / "a" / "release.key", b"manifest")
    check_signature(tmp_path / "a" / "release.pub", b"manifest", signature)
    assert mode(tmp_path / "a" / "release.key") == 0o600
    for folder, data, text in [
        ("a", b"manifesto", signature),
        ("b", b"manifest", signature),
        ("a", b"manifest", ""),
        ("a", b"manifest", "not base64"),
        ("a", b"manifest", "ä"),
        ("a", b"manifest", signature[:-4]),
    ]:
        with pytest.raises(KeyFileError, match=r"signature does not fit .*It is not used"):
            check_signature(tmp_path / folder / "release.pub", data, text)


def test_site_keys_sign_no_release_and_check_none(tmp_path: Path) -> None:
    make_site_key(tmp_path, "a")
    with pytest.raises(KeyFileError, match=r"site\.key is no Ed25519 key"):
        sign(tmp_path / "site.key", b"")
    with pytest.raises(KeyFileError, match=r"site\.pub is no Ed25519 key"):
        check_signature(tmp_path / "site.pub", b"", "")


@needs_openssl
@needs_ssh_keygen
def test_openssl_verifies_a_release(tmp_path: Path) -> None:
    import base64

    printed = make_release_key(tmp_path)
    assert run("ssh-keygen", "-l", "-f", tmp_path / "release.pub").split()[1] == printed
    (tmp_path / "data").write_bytes(b"manifest")
    (tmp_path / "signature").write_bytes(base64.b64decode(sign(tmp_path / "release.key", b"manifest")))
    public = load_ssh_public_key((tmp_path / "release.pub").read_bytes())
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "public.pem").write_bytes(public.public_bytes(serialization.Encoding.PEM, info))
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", tmp_path / "public.pem"]
    printed = run(*command, "-in", tmp_path / "data", "-sigfile", tmp_path / "signature")
    assert "Signature Verified Successfully" in printed


def test_wrong_curve_is_refused(tmp_path: Path) -> None:
    # OpenSSH has only the three curves, so another one comes as a damaged file.
    key = ec.generate_private_key(ec.SECP256K1())
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "site.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, info))
    with pytest.raises(KeyFileError, match="no public key, or is damaged"):
        read_public_key(tmp_path / "site.pub")
