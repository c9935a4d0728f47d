import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from fedmed.config.client import load_client_config
from fedmed.config.server import ServerConfig, load_server_config
from fedmed.data.phantom.cohort import phantom_site_names
from fedmed.errors import ConfigError, KeyFileError, ProcessError
from fedmed.keys import (
    Authority,
    certificate_expiry,
    certificate_names,
    check_signature,
    days_left,
    fingerprint,
    is_issued_by,
    make_site_key,
    read_private_key,
    read_public_key,
    sign,
)
from server.provisioning.kits import replace_values
from server.provisioning.provision import (
    add_site,
    changing_sites,
    find_kept_settings,
    provision,
    read_sites,
    renew_certificate,
    revoke_site,
)

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "server.yaml"
NOW = datetime.now(UTC)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(path: Path, **values: object) -> None:
    """Change keys of a YAML file, losing its comments."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A server.yaml of one's own, in a folder of its own."""
    (tmp_path / "own").mkdir()
    shutil.copy(SHIPPED, tmp_path / "own" / "server.yaml")
    return tmp_path / "own" / "server.yaml"


@pytest.fixture
def config(tmp_path: Path, given: Path) -> ServerConfig:
    """Settings of a provisioned federation."""
    provision(tmp_path / "fed", given)
    return load_server_config(tmp_path / "fed" / "server.yaml")


def folder_of(config: ServerConfig) -> Path:
    return Path(str(config.keys))


# --provision


def test_provision_makes_everything_and_keeps_secrets_private(tmp_path: Path) -> None:
    made = provision(tmp_path / "fed", SHIPPED)
    common = {"client.yaml", "ca.pem", "site.key", "site.pub", "release.pub", "README.txt"}
    own = {"server.yaml", "ca.pem", "ca.key", "server.pem", "server.key", "release.key", "release.pub", "sites.json"}
    kits = {f"kits/{name}/{file}" for name in ("hospital_a", "hospital_b") for file in common}
    assert set(files_of(tmp_path / "fed")) == own | kits | {".sites.lock"}
    for path in [tmp_path / "fed", *(tmp_path / "fed").rglob("*")]:
        mode = path.stat().st_mode & 0o777
        if path.is_dir():
            assert mode == 0o700, path
        elif path.suffix == ".key":
            assert mode == 0o600, path
    assert [site.name for site in made] == ["hospital_a", "hospital_b"]
    assert made[0].folder == tmp_path / "fed" / "kits" / "hospital_a"
    assert made[0].fingerprint != made[1].fingerprint


def test_list_of_sites_holds_the_keys_of_the_kits(config: ServerConfig) -> None:
    content = json.loads((folder_of(config) / "sites.json").read_text())
    assert list(content) == ["format", "sites"]
    assert list(content["sites"]) == ["hospital_a", "hospital_b"]
    for name, entry in content["sites"].items():
        assert set(entry) == {"public_key", "revoked", "added", "earlier_keys"}
        kit = folder_of(config) / "kits" / name
        assert entry["public_key"] == read_public_key(kit / "site.pub")
        assert entry["revoked"] is False
        assert abs(datetime.fromisoformat(entry["added"]) - datetime.now(UTC)) < timedelta(minutes=1)
        assert read_sites(config)[name].public_key == entry["public_key"]


def test_a_kit_loads_as_it_is_and_its_sites_differ_in_data(config: ServerConfig) -> None:
    names = phantom_site_names(2)
    for place, name in enumerate(("hospital_a", "hospital_b")):
        kit = folder_of(config) / "kits" / name
        client = load_client_config(kit / "client.yaml")
        assert (client.name, client.server, client.insecure) == (name, "127.0.0.1:8443", False)
        assert (client.ca, client.key) == (str(kit / "ca.pem"), str(kit / "site.key"))
        assert (client.data_sites, client.data_site) == (2, names[place])
        assert client.policy.study == "phantom-demonstration"
        read_private_key(Path(client.key))


def test_a_kit_has_the_servers_seed_classes_size_and_study(tmp_path: Path, given: Path) -> None:
    study = {"id": "7", "approval": "2026/17 # b"}
    change(given, seed=12, classes=["a", "b", "c"], data={"image_size": 96}, study=study, sites=["007", "no"])
    provision(tmp_path / "fed", given)
    for name in ("007", "no"):  # names that YAML would read as a number and as false
        client = load_client_config(tmp_path / "fed" / "kits" / name / "client.yaml")
        assert client.name == name
        assert client.seed == 12
        assert client.data.source == "phantom"
        assert (client.data.num_classes, client.data.image_size) == (3, 96)
        assert (client.policy.study, client.policy.approval) == ("7", "2026/17 # b")


def test_more_classes_than_the_phantom_has_still_give_a_kit_that_loads(tmp_path: Path, given: Path) -> None:
    change(given, classes=[f"class {number}" for number in range(12)])
    provision(tmp_path / "fed", given)
    assert load_client_config(tmp_path / "fed" / "kits" / "hospital_a" / "client.yaml").data.source == "phantom"


def test_a_kits_settings_keep_the_comments_of_the_template(config: ServerConfig) -> None:
    def comments(path: Path) -> list[str]:
        return re.findall(r"#.*", path.read_text())

    kit = folder_of(config) / "kits" / "hospital_b" / "client.yaml"
    assert comments(kit) == comments(SHIPPED.with_name("client.yaml"))


def test_the_kit_tells_its_fingerprint_in_three_lines(config: ServerConfig) -> None:
    for name, entry in read_sites(config).items():
        lines = (folder_of(config) / "kits" / name / "README.txt").read_text().splitlines()
        assert len(lines) == 3
        assert lines[2].endswith(f"{name} has the fingerprint {fingerprint(entry.public_key)}")


def test_the_federations_files_fit_together(config: ServerConfig) -> None:
    folder = folder_of(config)
    assert certificate_names(folder / "server.pem") == ["127.0.0.1"]
    assert is_issued_by(folder / "server.pem", folder / "kits" / "hospital_a" / "ca.pem")
    assert 364 < days_left(folder / "server.pem") < 365.01
    check_signature(folder / "kits" / "hospital_b" / "release.pub", b"x", sign(folder / "release.key", b"x"))


def test_the_certificate_has_the_address_and_all_alternative_names(tmp_path: Path, given: Path) -> None:
    change(given, address="[::1]:9000", alternative_names=["a.example.org", "192.0.2.7"])
    provision(tmp_path / "fed", given)
    assert certificate_names(tmp_path / "fed" / "server.pem") == ["a.example.org", "::1", "192.0.2.7"]


def test_the_copy_of_the_settings_is_the_same_but_for_its_places(tmp_path: Path, given: Path) -> None:
    text = given.read_text().replace("keys: null ", f"keys: {tmp_path}/elsewhere ")
    given.write_text(text.replace("name: adsr_resnet18", "name: adsr_resnet18\n  pretrained_backbone: weights.pth"))
    provision(tmp_path / "fed", given)
    copy = load_server_config(tmp_path / "fed" / "server.yaml")
    assert copy.keys == str(tmp_path / "fed")
    assert copy.run_dir == str(tmp_path / "fed" / "run")
    assert copy.model.options == {"pretrained_backbone": str(given.parent / "weights.pth")}
    assert find_kept_settings(tmp_path / "fed", given) == []
    assert (tmp_path / "fed" / "server.yaml").read_text().count("#") == text.count("#")


def test_settings_that_cannot_be_copied_are_refused_and_a_corrected_file_is_taken(tmp_path: Path, given: Path) -> None:
    text = given.read_text()
    given.write_text(
        text.replace("model:\n  name: adsr_resnet18", "model: {name: resnet18, pretrained_backbone: w.pth}\n")
    )
    with pytest.raises(ConfigError, match=r"cannot be copied.*lines of their own"):
        provision(tmp_path / "fed", given)
    given.write_text(text)
    provision(tmp_path / "fed", given)
    assert load_server_config(tmp_path / "fed" / "server.yaml").model.name == "adsr_resnet18"


def test_a_wrong_name_for_the_certificate_leaves_no_settings_behind(tmp_path: Path, given: Path) -> None:
    change(given, alternative_names=["two words"])
    with pytest.raises(ConfigError, match="'two words' is neither a host name nor an address"):
        provision(tmp_path / "fed", given)
    assert not (tmp_path / "fed" / "server.yaml").exists()


def test_provisioning_again_changes_nothing(tmp_path: Path, config: ServerConfig) -> None:
    before = files_of(tmp_path / "fed")
    again = provision(tmp_path / "fed", tmp_path / "fed" / "server.yaml")
    assert files_of(tmp_path / "fed") == before
    assert [site.fingerprint for site in again] == [fingerprint(e.public_key) for e in read_sites(config).values()]


def test_provisioning_waits_for_no_other_change_of_the_list(tmp_path: Path, given: Path, config: ServerConfig) -> None:
    with changing_sites(folder_of(config)), pytest.raises(ProcessError, match="changes the list of sites"):
        provision(folder_of(config), given)


def test_provisioning_again_adds_what_is_new(tmp_path: Path, given: Path, config: ServerConfig) -> None:
    before = files_of(tmp_path / "fed")
    change(given, sites=["hospital_a", "hospital_b", "hospital_c"], address="new.example.org:8443", rounds=3)
    made = provision(tmp_path / "fed", given)
    after = files_of(tmp_path / "fed")
    assert [site.name for site in made] == ["hospital_a", "hospital_b", "hospital_c"]
    assert {name for name in before if after[name] != before[name]} == {"sites.json", "server.pem"}
    assert certificate_names(tmp_path / "fed" / "server.pem") == ["new.example.org"]
    client = load_client_config(tmp_path / "fed" / "kits" / "hospital_c" / "client.yaml")
    assert (client.server, client.data_sites, client.data_site) == ("new.example.org:8443", 3, "site_03")
    assert find_kept_settings(tmp_path / "fed", given) == ["rounds", "address", "sites"]


def test_provisioning_again_makes_no_new_key_for_a_kit_that_was_taken_away(
    tmp_path: Path, config: ServerConfig
) -> None:
    before = read_sites(config)
    shutil.rmtree(tmp_path / "fed" / "kits")
    (tmp_path / "fed" / "ca.key").unlink()
    provision(tmp_path / "fed", tmp_path / "fed" / "server.yaml")
    assert read_sites(config) == before
    assert not (tmp_path / "fed" / "kits").exists()
    assert not (tmp_path / "fed" / "ca.key").exists()


def test_a_kit_that_a_crash_left_off_the_list_is_completed(tmp_path: Path, config: ServerConfig) -> None:
    kit = tmp_path / "fed" / "kits" / "hospital_b"
    key = (kit / "site.key").read_bytes()
    (kit / "client.yaml").unlink()
    content = json.loads((tmp_path / "fed" / "sites.json").read_text())
    del content["sites"]["hospital_b"]
    (tmp_path / "fed" / "sites.json").write_text(json.dumps(content))
    provision(tmp_path / "fed", tmp_path / "fed" / "server.yaml")
    assert (kit / "site.key").read_bytes() == key
    assert load_client_config(kit / "client.yaml").name == "hospital_b"
    assert read_sites(config)["hospital_b"].public_key == read_public_key(kit / "site.pub")


def test_without_tls_no_certificate_is_made_and_kits_say_so(tmp_path: Path, given: Path) -> None:
    change(given, insecure=True)
    provision(tmp_path / "fed", given)
    assert not (tmp_path / "fed" / "server.pem").exists()
    assert load_client_config(tmp_path / "fed" / "kits" / "hospital_a" / "client.yaml").insecure
    change(given, address="fedmed.example.org:8443")
    with pytest.raises(ConfigError, match=r"'address' is 'fedmed\.example\.org:8443'"):
        provision(tmp_path / "other", given)
    assert not (tmp_path / "other").exists()


# --add-site, --revoke-site


def test_a_further_site_gets_a_kit_with_other_data(config: ServerConfig) -> None:
    made = add_site(config, "hospital_c")
    client = load_client_config(made.folder / "client.yaml")
    assert (client.name, client.data_sites, client.data_site) == ("hospital_c", 3, "site_03")
    entry = read_sites(config)["hospital_c"]
    assert made.fingerprint == fingerprint(entry.public_key)
    public = read_private_key(made.folder / "site.key").public_key()
    assert read_public_key(made.folder / "site.pub") == entry.public_key
    assert list(read_sites(config)) == ["hospital_a", "hospital_b", "hospital_c"]
    assert public.curve.name == "secp384r1"


def test_a_site_may_make_its_key_itself(tmp_path: Path, config: ServerConfig) -> None:
    printed = make_site_key(tmp_path / "at_the_site", "hospital_c")
    made = add_site(config, "hospital_c", tmp_path / "at_the_site" / "site.pub")
    assert made.fingerprint == printed
    assert {path.name for path in made.folder.iterdir()} == {
        "client.yaml", "ca.pem", "site.pub", "release.pub", "README.txt",
    }  # fmt: skip
    assert "private key that you made yourself" in (made.folder / "README.txt").read_text()
    assert read_sites(config)["hospital_c"].public_key == read_public_key(tmp_path / "at_the_site" / "site.pub")


def test_two_sites_cannot_share_a_key(config: ServerConfig) -> None:
    before = files_of(folder_of(config))
    public = folder_of(config) / "kits" / "hospital_a" / "site.pub"
    with pytest.raises(KeyFileError, match=r"is the key of the site 'hospital_a'\. Every site needs a key of its own"):
        add_site(config, "hospital_c", public)
    assert files_of(folder_of(config)) == before


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "x" * 61, "ä"])
def test_names_that_are_none_are_refused(config: ServerConfig, name: str) -> None:
    with pytest.raises(ConfigError, match=r"is no name for a site\. Allowed"):
        add_site(config, name)


def test_a_known_name_is_refused(config: ServerConfig) -> None:
    before = files_of(folder_of(config))
    with pytest.raises(ConfigError, match=r"'hospital_a' is known since 20\d\d-.*--revoke-site hospital_a"):
        add_site(config, "hospital_a")
    assert files_of(folder_of(config)) == before


def test_revoking_marks_the_site_and_nothing_else(config: ServerConfig) -> None:
    before = read_sites(config)
    revoke_site(config, "hospital_a")
    revoke_site(config, "hospital_a")
    after = read_sites(config)
    assert after["hospital_a"].revoked
    assert after["hospital_a"].public_key == before["hospital_a"].public_key
    assert after["hospital_b"] == before["hospital_b"]


def test_revoking_an_unknown_site_names_the_nearest(config: ServerConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"no site 'hospitl_a'\. Did you mean 'hospital_a'\? Known sites: hospital_a, h"
    ):
        revoke_site(config, "hospitl_a")


def test_provisioning_again_does_not_bring_a_revoked_site_back(tmp_path: Path, config: ServerConfig) -> None:
    revoke_site(config, "hospital_a")
    assert [site.name for site in provision(tmp_path / "fed", SHIPPED)] == ["hospital_b"]
    assert read_sites(config)["hospital_a"].revoked


def test_a_revoked_site_comes_back_with_another_key_only(config: ServerConfig) -> None:
    old = read_sites(config)["hospital_a"]
    revoke_site(config, "hospital_a")
    with pytest.raises(KeyFileError, match="the site 'hospital_a', which is revoked"):
        add_site(config, "hospital_a", folder_of(config) / "kits" / "hospital_a" / "site.pub")
    made = add_site(config, "hospital_a")
    new = read_sites(config)["hospital_a"]
    assert not new.revoked
    assert new.public_key != old.public_key
    assert made.fingerprint == fingerprint(new.public_key)
    client = load_client_config(made.folder / "client.yaml")
    assert (client.data_site, client.data_sites) == ("site_01", 2)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"sites": []}', '{"sites": {"a": {}}}', '{"sites": {"a": {"public_key": 1, "revoked": false}}}',
     '{"sites": {"a": {"public_key": "x AAAA", "revoked": "no", "added": ""}}}'],
)  # fmt: skip
def test_a_damaged_list_of_sites_says_so(config: ServerConfig, content: str) -> None:
    (folder_of(config) / "sites.json").write_text(content)
    with pytest.raises(KeyFileError, match=r"list of sites .*sites\.json is damaged"):
        read_sites(config)


def test_where_nothing_was_provisioned_every_command_says_how(given: Path) -> None:
    config = load_server_config(given)
    for command in (lambda: read_sites(config), lambda: add_site(config, "x"), lambda: revoke_site(config, "x")):
        with pytest.raises(KeyFileError, match=r"flower-server --config server\.yaml --provision DIR"):
            command()
    assert sorted(path.name for path in given.parent.iterdir()) == ["server.yaml"]


# Renewal


def test_a_young_certificate_is_left_alone(config: ServerConfig) -> None:
    before = files_of(folder_of(config))
    assert renew_certificate(config) is None
    assert renew_certificate(config, NOW + timedelta(days=334)) is None
    assert files_of(folder_of(config)) == before


@pytest.mark.parametrize("days", [336, 400])
def test_a_certificate_is_renewed_by_the_same_authority_and_key(config: ServerConfig, days: int) -> None:
    folder, later = folder_of(config), NOW + timedelta(days=days)
    before = files_of(folder)
    text = renew_certificate(config, later)
    assert text is not None
    assert f"renewed for 127.0.0.1 until {later + timedelta(days=365):%Y-%m-%d}" in text
    assert "The sites need no new kit." in text
    after = files_of(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"server.pem"}
    assert days_left(folder / "server.pem", later) == pytest.approx(365, abs=0.001)
    assert is_issued_by(folder / "server.pem", folder / "kits" / "hospital_a" / "ca.pem")
    assert renew_certificate(config, later) is None


def test_without_the_authoritys_key_there_is_a_warning_and_then_an_error(config: ServerConfig) -> None:
    folder = folder_of(config)
    (folder / "ca.key").unlink()
    assert renew_certificate(config, NOW + timedelta(days=334)) is None
    text = renew_certificate(config, certificate_expiry(folder / "server.pem") - timedelta(days=12))
    assert text == (
        f"The server's certificate expires in 12 days. Put ca.key back into {folder}: it is then renewed, and the "
        "sites need no new kit."
    )
    with pytest.raises(KeyFileError, match=r"expired on 20\d\d-\d\d-\d\d; every site refuses it\. Put ca\.key back"):
        renew_certificate(config, NOW + timedelta(days=366))


def test_a_missing_name_is_added_or_told(config: ServerConfig) -> None:
    folder = folder_of(config)
    named = config.model_copy(update={"alternative_names": ("b.example.org",)})
    (folder / "ca.key").rename(folder / "moved")
    assert "lacks b.example.org: sites that use such a name refuse it. Put ca.key back" in str(renew_certificate(named))
    (folder / "moved").rename(folder / "ca.key")
    assert "(it lacked b.example.org)" in str(renew_certificate(named))
    assert certificate_names(folder / "server.pem") == ["b.example.org", "127.0.0.1"]
    assert renew_certificate(named) is None


def test_a_certificate_of_another_issuer_is_never_replaced(tmp_path: Path, config: ServerConfig) -> None:
    folder, other = folder_of(config), tmp_path / "other"
    Authority.create(other).issue_server_certificate(other, ["*.example.org"])
    for name in ("server.pem", "server.key"):
        shutil.copy(other / name, folder / name)
    before = files_of(folder)
    assert renew_certificate(config) is None
    text = renew_certificate(config, NOW + timedelta(days=340))
    assert text == (
        "The server's certificate expires in 25 days. It was not issued by --provision: have its issuer renew it."
    )
    with pytest.raises(KeyFileError, match="have its issuer renew it"):
        renew_certificate(config, NOW + timedelta(days=366))
    assert files_of(folder) == before


def test_a_lost_certificate_is_issued_anew_where_that_is_possible(config: ServerConfig) -> None:
    folder = folder_of(config)
    (folder / "server.pem").unlink()
    assert "A certificate was issued for 127.0.0.1 until" in str(renew_certificate(config))
    (folder / "server.key").unlink()
    (folder / "ca.key").unlink()
    with pytest.raises(KeyFileError, match=r"The server has no certificate: .* put ca\.key back"):
        renew_certificate(config)


def test_a_key_that_does_not_fit_is_told(config: ServerConfig) -> None:
    folder = folder_of(config)
    shutil.copy(folder / "ca.key", folder / "server.key")
    with pytest.raises(KeyFileError, match=r"server\.key is not the key of .*server\.pem"):
        renew_certificate(config)
    os.chmod(folder / "server.key", 0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        renew_certificate(config)


def test_without_tls_nothing_is_renewed(config: ServerConfig) -> None:
    (folder_of(config) / "server.pem").unlink()
    assert renew_certificate(config.model_copy(update={"insecure": True})) is None


# Filling in a template


def test_replacing_values_keeps_comments_columns_and_everything_else() -> None:
    text = "a: 1  # one\nlong_key: x     # two\nb:   # section\n  a: 2\n  c: 3 # three\n# a: 4\n"
    filled = replace_values(text, {"a": "new", "b.c": None, "long_key": "xy", "b.missing": 1})
    assert filled == 'a: "new" # one\nlong_key: "xy"  # two\nb:   # section\n  a: 2\n  c: null # three\n# a: 4\n'
