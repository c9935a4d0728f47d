"""The hospital's command: what it does without taking part."""

import json
import stat
from pathlib import Path

import pytest

from client.app import main
from client.guard.audit import open_site_audit
from fedmed.keys import fingerprint, read_private_key, read_public_key
from fedmed.storage.audit import verify_audit
from tests.client.support.kit import make_kit


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    Path(make_kit(tmp_path).state_dir).mkdir()
    return str(tmp_path / "client.yaml")


class TestMakeKey:
    def test_before_there_is_a_kit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tmp_path.chmod(0o755)
        monkeypatch.chdir(tmp_path)
        assert main(["--make-key", "north", "--no-passphrase"]) == 0
        line = read_public_key(tmp_path / "site.pub")
        read_private_key(tmp_path / "site.key")
        told = capsys.readouterr().out
        assert fingerprint(line) in told
        assert "--add-site north --public-key site.pub" in told
        assert stat.S_IMODE((tmp_path / "site.key").stat().st_mode) == 0o600
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755  # the folder is not ours
        assert sorted(path.name for path in tmp_path.iterdir()) == ["site.key", "site.pub"]

    @pytest.mark.parametrize("existing", ["site.key", "site.pub"])
    def test_never_overwrites(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], existing: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / existing).write_text("old")
        assert main(["--make-key", "north", "--no-passphrase"]) == 1
        assert f"{existing} exists and is never overwritten" in capsys.readouterr().err
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]

    def test_name_that_no_site_can_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["--make-key", "../north", "--no-passphrase"]) == 1
        assert "'../north' cannot be the name of a site" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_in_a_kit_without_a_key(self, tmp_path: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--config", config_file, "--make-key", "--no-passphrase"]) == 1
        assert "exists and is never overwritten" in capsys.readouterr().err
        for name in ("site.key", "site.pub"):
            (tmp_path / name).unlink()
        assert main(["--config", config_file, "--make-key", "--no-passphrase"]) == 0
        assert (tmp_path / "site.pub").read_text().endswith(" north\n")


class TestForget:
    @pytest.fixture
    def state(self, tmp_path: Path, config_file: str) -> Path:
        for run in ("ended", "going"):
            (tmp_path / "state" / "runs" / run / "state").mkdir(parents=True)
        content = {"manifest_sha256": "ab" * 32, "run_ids": ["ended"]}
        (tmp_path / "state" / "collected.json").write_text(json.dumps(content))
        return tmp_path / "state"

    def test_what_has_ended_goes(self, state: Path, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--config", config_file, "--forget"]) == 0
        assert [run.name for run in (state / "runs").iterdir()] == ["going"]
        told = capsys.readouterr()
        assert "going: its federation has not ended, as far as this site knows. It is kept" in told.err
        assert "removed:" in told.out

    def test_all_goes_after_the_same_explanation(
        self, state: Path, config_file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--config", config_file, "--forget", "--all"]) == 0
        assert list((state / "runs").iterdir()) == []
        told = capsys.readouterr()
        assert "going: its federation has not ended, as far as this site knows. It is removed" in told.err
        assert told.out.count("removed:") == 2
        assert json.loads((state / "audit.jsonl").read_text())["fields"] == {"runs": ["ended", "going"]}

    @pytest.mark.parametrize("damage", ["{", "[]", '{"manifest_sha256": 3, "run_ids": 4}'])
    def test_not_known_what_has_ended(
        self, state: Path, config_file: str, capsys: pytest.CaptureFixture[str], damage: str
    ) -> None:
        (state / "collected.json").write_text(damage)
        assert main(["--config", config_file, "--forget"]) == 1
        assert "does not know which federations have ended" in capsys.readouterr().err
        assert len(list((state / "runs").iterdir())) == 2
        assert main(["--config", config_file, "--forget", "--all"]) == 0
        assert list((state / "runs").iterdir()) == []

    def test_all_goes_with_forget_only(self, config_file: str) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["--config", config_file, "--all"])
        assert caught.value.code == 2


class TestVerifyAudit:
    @pytest.fixture
    def log(self, tmp_path: Path, config_file: str) -> Path:
        audit = open_site_audit(tmp_path / "state")
        for number in range(3):
            audit.append("sent", number=number)
        return audit.path

    def verify(self, config_file: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        code = main(["--config", config_file, "--verify-audit"])
        return code, capsys.readouterr().out

    def test_the_end_is_noted_privately(self, log: Path) -> None:
        note = log.with_name("audit.head")
        assert note.read_text() == verify_audit(log).head
        assert stat.S_IMODE(note.stat().st_mode) == 0o600

    def test_an_end_that_was_cut_off_is_noticed(
        self, log: Path, config_file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:2]))
        code, told = self.verify(config_file, capsys)
        assert code == 1
        assert "its end was cut off" in told
        assert main(["--config", config_file]) == 1  # going on would bury it
        assert "The end of the audit log" in capsys.readouterr().err
        assert log.read_bytes() == b"".join(lines[:2])

    def test_a_note_that_was_removed_is_noticed_and_stays_in_the_log(
        self, log: Path, config_file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log.with_name("audit.head").unlink()
        code, told = self.verify(config_file, capsys)
        assert code == 1
        assert "somebody has removed it" in told
        open_site_audit(log.parent)
        last = json.loads(log.read_text().splitlines()[-1])
        assert last["event"] == "heads_disagree"
        assert "audit.head was missing" in last["fields"]["reason"]

    @pytest.mark.parametrize("behind", [1, 2])
    def test_a_crash_before_the_note_is_no_alarm(
        self, log: Path, config_file: str, capsys: pytest.CaptureFixture[str], behind: int
    ) -> None:
        hashes = [json.loads(line)["hash"] for line in log.read_text().splitlines()]
        note = log.with_name("audit.head")
        note.write_text(hashes[-1 - behind])
        assert self.verify(config_file, capsys)[0] == 0
        audit = open_site_audit(log.parent)
        audit.append("start")
        assert note.read_text() == audit.head

    def test_a_new_log_may_be_begun(
        self, log: Path, config_file: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        log.rename(tmp_path / "evidence")
        open_site_audit(log.parent).append("start")
        assert self.verify(config_file, capsys)[0] == 0
