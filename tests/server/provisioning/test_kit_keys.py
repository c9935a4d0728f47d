"""Private keys of sites: locked, made at the sites, and not left at the coordinating site."""

import argparse
import json
import shutil
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import client.app
import server.app
from fedmed.config.client import load_client_config
from fedmed.config.server import ServerConfig, load_server_config
from fedmed.errors import ConfigError, KeyFileError
from fedmed.keys import is_issued_by, is_locked, read_private_key, read_public_key
from fedmed.processes import write_secret
from server.provisioning.kit_keys import choose_passphrases, delete_kit_keys, describe_left_keys, find_kit_keys
from server.provisioning.provision import add_site, provision, read_sites, revoke_site

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "server.yaml"
NAMES = ["hospital_a", "hospital_b"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (server.app, client.app):
        monkeypatch.setattr(module, "raise_on_signals", lambda: None)
    monkeypatch.delenv("FEDMED_KEY_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin", None)


def load(folder: Path) -> ServerConfig:
    return load_server_config(folder / "server.yaml")


def run(*arguments: object) -> int:
    return server.app.main([str(argument) for argument in arguments])


def test_provision_wants_a_passphrase_or_an_explicit_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--provision", tmp_path / "fed", "--config", SHIPPED) == 1
    said = capsys.readouterr().err
    assert "The private key of hospital_a needs a passphrase, and nobody can be asked here." in said
    assert not list((tmp_path / "fed").glob("kits/*/site.key"))
    assert run("--provision", tmp_path / "fed", "--config", SHIPPED, "--no-passphrase") == 0
    out = capsys.readouterr().out
    assert "The private keys of the sites are in these folders and nowhere else." in out
    assert "--delete-kit-keys" in out
    assert not is_locked(tmp_path / "fed/kits/hospital_a/site.key")
    elsewhere = [path for path in (tmp_path / "fed").rglob("*") if path.name == "site.key"]
    assert len(elsewhere) == 2


def test_every_kit_has_the_passphrase_of_its_line(tmp_path: Path) -> None:
    write_secret(tmp_path / "words", b"hospital_a: the words of a\nhospital_b: the words of b\n")
    file = tmp_path / "words"
    assert run("--provision", tmp_path / "fed", "--config", SHIPPED, "--passphrase-file", file) == 0
    kits = tmp_path / "fed" / "kits"
    read_private_key(kits / "hospital_a/site.key", b"the words of a")
    read_private_key(kits / "hospital_b/site.key", b"the words of b")
    with pytest.raises(KeyFileError, match="was not opened"):
        read_private_key(kits / "hospital_b/site.key", b"the words of a")
    assert run("--config", tmp_path / "fed/server.yaml", "--add-site", "c", "--passphrase-file", file) == 1


def test_scripts_have_it_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMED_KEY_PASSPHRASE", "words of a script")
    assert run("--provision", tmp_path / "fed", "--config", SHIPPED) == 0
    for name in NAMES:
        read_private_key(tmp_path / "fed/kits" / name / "site.key", b"words of a script")


def test_a_line_that_is_missing_is_named(tmp_path: Path) -> None:
    write_secret(tmp_path / "words", b"a: the words of a\nb: the words of b\n")
    find = choose_passphrases(argparse.Namespace(no_passphrase=False, passphrase_file=tmp_path / "words"))
    assert find("a") == b"the words of a"
    with pytest.raises(ConfigError, match=r"has no line 'c: PASSPHRASE'"):
        find("c")


def test_sites_make_their_keys_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """The way that README recommends, as both sides type it."""
    fed = tmp_path / "fed"
    assert run("--provision", fed, "--config", SHIPPED, "--keys-at-sites") == 0
    out = capsys.readouterr().out
    assert "flower-client --make-key" in out
    assert "it holds no secret" in out
    assert read_sites(load(fed)) == {}
    assert find_kit_keys(load(fed)) == {}
    kit = fed / "kits/hospital_a"
    assert {path.name for path in kit.iterdir()} == {"client.yaml", "ca.pem", "release.pub", "README.txt"}
    assert "flower-client --make-key" in (kit / "README.txt").read_text()

    there = shutil.copytree(kit, tmp_path / "hospital")  # the kit travels
    monkeypatch.chdir(there)
    monkeypatch.setenv("FEDMED_KEY_PASSPHRASE", "words of the hospital")
    assert client.app.main(["--make-key"]) == 0
    out = capsys.readouterr().out
    assert "That puts this site on the list." in out
    own = read_public_key(there / "site.pub")
    read_private_key(there / "site.key", b"words of the hospital")

    command = ["--config", fed / "server.yaml", "--add-site", "hospital_a", "--public-key", there / "site.pub"]
    assert run(*command) == 0
    assert read_sites(load(fed))["hospital_a"].public_key == own
    assert not (kit / "site.key").exists()
    assert "has the fingerprint SHA256:" in (kit / "README.txt").read_text()
    # The other one has still to come; provisioning again leaves all as it is.
    assert run("--provision", fed, "--config", fed / "server.yaml", "--keys-at-sites") == 0
    out = capsys.readouterr().out
    assert "no key yet: the site makes it" in out
    assert list(read_sites(load(fed))) == ["hospital_a"]
    both = [load_client_config(fed / "kits" / name / "client.yaml").data_site for name in NAMES]
    assert both == ["site_01", "site_02"]


def test_keys_that_are_left_here_are_told_and_can_be_removed(tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    fed = tmp_path / "fed"
    provision(fed, SHIPPED)
    config, entry = load(fed), {"last_seen": "2026-01-01T00:00:00+00:00"}
    assert describe_left_keys(config, set()) is None
    warning = describe_left_keys(config, {"hospital_a"})
    assert warning is not None
    assert "hospital_a. Whoever reads them can answer as these sites." in warning
    (fed / "run").mkdir()
    sites = {"hospital_a": entry, "hospital_b": {"last_seen": None}}
    status = {"state": "stopped", "pid": 1, "process_started": None, "sites": sites}
    (fed / "run/status.json").write_text(json.dumps(status))
    assert run("--config", fed / "server.yaml", "--delete-kit-keys") == 0
    out = capsys.readouterr().out
    assert "removed: the private key of hospital_a" in out
    assert "kept: the private key of hospital_b, which has not connected yet" in out
    assert list(find_kit_keys(config)) == ["hospital_b"]
    assert describe_left_keys(config, {"hospital_a"}) is None
    assert (fed / "kits/hospital_a/site.pub").exists()


def test_revoked_keys_are_removed_in_any_case(tmp_path: Path) -> None:
    provision(tmp_path / "fed", SHIPPED)
    config = load(tmp_path / "fed")
    revoke_site(config, "hospital_a")
    add_site(config, "hospital_a")
    deleted, kept = delete_kit_keys(config, set())
    assert [name.startswith(".hospital_a.revoked-") for name in deleted] == [True]
    assert kept == NAMES


# tls: mutual


@pytest.fixture
def mutual(tmp_path: Path) -> ServerConfig:
    values = {**yaml.safe_load(SHIPPED.read_text()), "tls": "mutual"}
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    provision(tmp_path / "fed", tmp_path / "server.yaml")
    return load(tmp_path / "fed")


def test_kits_hold_certificates_for_their_keys(mutual: ServerConfig) -> None:
    fed = Path(str(mutual.keys))
    for name in NAMES:
        kit = fed / "kits" / name
        shown = x509.load_pem_x509_certificate((kit / "site.crt").read_bytes())
        assert shown.public_key() == read_private_key(kit / "site.key").public_key()
        assert is_issued_by(kit / "site.crt", kit / "ca.pem")
        assert shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == name
        usage = shown.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]  # no server can be made of it
        assert not shown.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert (shown.not_valid_after_utc - datetime.now(UTC)).days > 19 * 365
        assert load_client_config(kit / "client.yaml").certificate == str(kit / "site.crt")


def test_certificates_come_later_where_the_setting_does(tmp_path: Path) -> None:
    provision(tmp_path / "fed", SHIPPED)
    file = tmp_path / "fed/server.yaml"
    file.write_text(file.read_text().replace("tls: server", "tls: mutual"))
    provision(tmp_path / "fed", file)
    assert all((tmp_path / "fed/kits" / name / "site.crt").is_file() for name in NAMES)
    (tmp_path / "fed/ca.key").rename(tmp_path / "ca.key")
    with pytest.raises(KeyFileError, match=r"has to be signed by the federation's authority, and .*ca\.key is not"):
        add_site(load(tmp_path / "fed"), "hospital_c")


def test_a_site_with_its_own_key_gets_its_certificate_back(mutual: ServerConfig, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert client.app.main(["--make-key", "hospital_c", "--no-passphrase"]) == 0
    config = Path(str(mutual.keys)) / "server.yaml"
    assert run("--config", config, "--add-site", "hospital_c", "--public-key", tmp_path / "site.pub") == 0
    assert "site.crt to the site: with tls: mutual it belongs into its kit." in capsys.readouterr().out
    made = Path(str(mutual.keys)) / "kits/hospital_c/site.crt"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(made)  # it is one


def test_mutual_and_insecure_are_refused_together(tmp_path: Path) -> None:
    values = {**yaml.safe_load(SHIPPED.read_text()), "tls": "mutual", "insecure": True}
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="tls: mutual needs TLS; remove insecure: true"):
        load(tmp_path)
