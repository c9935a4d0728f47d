"""The heads of a hospital's audit log are signed with its own key, also where a passphrase locks that."""

from pathlib import Path

import pytest

from client.hospital import site_key
from fedmed.keys.passphrases import hold_passphrase
from fedmed.processes import write_secret
from fedmed.protocol.kinds import HEADS
from fedmed.protocol.messages import read_signed_heads
from server.provisioning.countersigning import read_countersigned
from tests.support.signed_logs import NAME, SignedLogs

WORD = b"words of the north"


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignedLogs:
    """Two sides, of which the hospital's key is locked and nobody has told the passphrase yet."""
    monkeypatch.setattr(site_key, "_held", [])
    monkeypatch.setattr(site_key, "ask_passphrase", lambda what: None)
    return SignedLogs(tmp_path, WORD)


def check_signed(logs: SignedLogs) -> None:
    for _ in range(2):
        assert HEADS in logs.ask().content
    kept = read_countersigned(logs.run)[NAME]
    assert len(kept) == 2, "the server takes only what the site's public key has signed"
    assert logs.findings() == ([], [])
    assert logs.verify().report.ok


def test_a_process_that_inherits_the_passphrase_signs(logs: SignedLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_key, "_held", [hold_passphrase(WORD)])
    check_signed(logs)


def test_the_file_of_a_service_is_enough(logs: SignedLogs) -> None:
    write_secret(logs.site.folder / "word.txt", WORD)
    logs.site = logs.site.restart(key_passphrase_file="word.txt")
    check_signed(logs)


def test_without_the_passphrase_the_answer_goes_out_unsigned_and_the_site_says_so(
    logs: SignedLogs, caplog: pytest.LogCaptureFixture
) -> None:
    assert HEADS not in logs.ask().content
    assert "The head of the audit log is not signed" in caplog.text
    assert NAME not in read_countersigned(logs.run)


def test_the_length_of_the_log_does_not_tell_when_somebody_withdrew(tmp_path: Path) -> None:
    """Two hospitals are asked the same; in one of them patients withdraw in between."""
    lengths: list[list[int]] = []
    for withdraws in (True, False):
        logs = SignedLogs(tmp_path / str(withdraws))
        file = logs.site.folder / "withdrawn.txt"
        logs.site = logs.site.restart(exclude="withdrawn.txt") if withdraws else logs.site
        file.write_text("")
        told = []
        for number in range(4):
            if number:
                file.write_text("\n".join(str(row["patient"]) for row in logs.site.rows[: 2 * (number // 2)]))
            told.append(read_signed_heads(logs.ask()).own.length)
        lengths.append(told)
        assert len(logs.site.exclusions()) == (4 if withdraws else 0)
        assert logs.verify().report.ok
    assert lengths[0] == lengths[1]
