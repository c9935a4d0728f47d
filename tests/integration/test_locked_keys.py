"""A real federation whose sites have locked keys and certificates of their own, from the start to the model at home."""

from pathlib import Path

import psutil
import pytest
import yaml

from fedmed.keys import make_site_key
from fedmed.processes import write_secret
from server.provisioning.countersigning import read_countersigned
from server.provisioning.provision import add_site, changing_sites, load_server_config, revoke_site
from tests.integration.support.deployment import deploy, wait_for

WORDS = "never to be seen anywhere"


@pytest.mark.slow
def test_the_passphrase_is_in_no_argument_no_log_and_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with deploy(tmp_path, tls="mutual") as deployment:
        config = load_server_config(deployment.config)
        for name in deployment.names:  # keys that the sites have made, in place of those of the kits
            own = tmp_path / "own" / name
            make_site_key(own, name, WORDS.encode())
            kit = deployment.kit / "kits" / name
            settings = yaml.safe_load((kit / "client.yaml").read_text())
            with changing_sites(deployment.kit):
                revoke_site(config, name)
                add_site(config, name, own / "site.pub")
            (kit / "client.yaml").write_text(yaml.safe_dump(settings))
            (own / "site.key").rename(kit / "site.key")
        write_secret(tmp_path / "words", WORDS.encode())
        deployment.change_client("site_01", key_passphrase_file=str(tmp_path / "words"))
        server, first = deployment.start_server(), deployment.start_client("site_01")
        monkeypatch.setenv("FEDMED_KEY_PASSPHRASE", "another one, which is wrong")
        assert deployment.start_client("site_02").wait(60) == 1
        assert "was not opened by this passphrase" in (tmp_path / "site_02.txt").read_text()
        monkeypatch.setenv("FEDMED_KEY_PASSPHRASE", WORDS)
        second = deployment.start_client("site_02")
        monkeypatch.delenv("FEDMED_KEY_PASSPHRASE")

        wait_for("the first round", lambda: len(deployment.history()) >= 1, 200)
        for client in (first, second):
            for child in psutil.Process(client.pid).children(recursive=True):
                assert WORDS not in " ".join(child.cmdline())
                assert WORDS not in child.environ().values()
            assert WORDS not in " ".join(psutil.Process(client.pid).cmdline())
        assert server.wait(200) == 0, server.text()
        for client in (first, second):
            assert client.wait(60) == 0, client.text()
        assert set(read_countersigned(deployment.run_folder)) == set(deployment.names), "signed with the locked keys"
        for name in deployment.names:
            assert (deployment.kit / "kits" / name / "state/model/model.safetensors").is_file()
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.name != "words":
                assert WORDS.encode() not in path.read_bytes(), path
