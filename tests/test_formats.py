"""What is stored and sent carries a format number: one of the future is refused in one line, none is format 1."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml
from flwr.app import ConfigRecord, Message

import fedmed.formats
from client.guard.message_parts import list_parts
from fedmed.config.client import load_client_config
from fedmed.errors import FedmedError, FormatError, WireError
from fedmed.formats import AUDIT_LOG, REPORT, RUN_FOLDER, SITE_STATE, TABLES, Format
from fedmed.metrics.packing import pack_site_tables, unpack_site_tables
from fedmed.metrics.site_tables import FEDERATED, SITE_ATTRIBUTE, SiteTables
from fedmed.protocol.messages import REPORT as REPORT_PART
from fedmed.protocol.messages import make_content, read_values
from fedmed.storage.audit import AuditLog, verify_audit
from fedmed.storage.run_folder import RunFolder
from fedmed.storage.site_state import SiteState
from tests.client.support.kit import make_kit
from tests.metrics.support.samples import draw_tables
from tests.support.federation import Federation

V1 = Path(__file__).parent / "fixtures" / "v1"
LINE = r"{what} of .* has the format '{number}'; fedmed [\d.]+ opens [\d to]+\. Install the version of fedmed"


def one_line(what: str, number: object) -> str:
    return LINE.format(what=what, number=number)


@pytest.mark.parametrize("found", [None, 1, "1", 2])
def test_known_numbers_are_opened(found: object) -> None:
    assert Format("It", 2).check(found, "x") == (1 if found is None else int(str(found)))


@pytest.mark.parametrize("found", [0, 3, -1, "1.0", True, [1], {"a": 1}, "9" * 500, "²"])
def test_other_numbers_are_refused_in_one_line(found: object) -> None:
    with pytest.raises(
        FormatError, match=r"^It of x has the format ['\"].{0,42}; fedmed [\d.]+ opens 1 to 2\. "
    ) as error:
        Format("It", 2).check(found, "x")
    assert "\n" not in str(error.value)


def test_every_format_has_words_and_numbers() -> None:
    formats = [one for one in vars(fedmed.formats).values() if isinstance(one, Format)]
    assert len({one.what for one in formats}) == len(formats) == 14
    assert all(1 <= one.oldest <= one.number for one in formats)


def test_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_content(REPORT_PART, {"a": 1})
    record = content[REPORT_PART]
    assert isinstance(record, ConfigRecord)
    assert set(record) == {"json"}, "version 1 reads nothing else"
    message = Message.__new__(Message)
    message.__dict__["_content"] = content
    assert read_values(message, REPORT_PART) == {"a": 1}
    record["format"] = 99
    with pytest.raises(WireError, match=one_line("The message", 99)):
        read_values(message, REPORT_PART)
    monkeypatch.setattr("fedmed.protocol.messages.MESSAGE", Format("The message", 2))
    later = make_content(REPORT_PART, {"a": 1})
    assert later[REPORT_PART]["format"] == 2  # type: ignore[index]
    assert list_parts(later)[0]["sha256"] == list_parts(make_content(REPORT_PART, {"a": 1}))[0]["sha256"]


def test_tables() -> None:
    tables = SiteTables({FEDERATED: {SITE_ATTRIBUTE: draw_tables(50)}})
    assert pack_site_tables(unpack_site_tables(pack_site_tables(tables))) == pack_site_tables(tables)
    future = safetensors.numpy.save(
        {"0.cells": np.zeros(1)}, {"contents": json.dumps({"format": TABLES.number + 1, "tables": []})}
    )
    with pytest.raises(ValueError, match=one_line("The evaluation tables", TABLES.number + 1)):
        unpack_site_tables(future)


def test_state_of_a_site(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    path = state.save(1, {"a": torch.ones(2)}, {"b": 3})
    assert state.load_before(2) is not None
    with safetensors.safe_open(path, "pt") as file:
        header = dict(file.metadata())
    assert header["format_number"] == str(SITE_STATE.number)
    path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, header | {"format_number": "7"}))
    assert state.load_before(2) is None
    assert re.search(one_line("The state", 7), state.problems[0])
    without = {key: value for key, value in header.items() if key != "format_number"}
    path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, without))
    assert state.load_before(2) is not None


def test_run_folder(tmp_path: Path) -> None:
    shutil.copytree(V1 / "finished_run", tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")  # of version 1, without a number
    run.record_start()
    environment = json.loads(run.environment_file.read_text())
    assert environment["format"] == RUN_FOLDER.number
    run.environment_file.write_text(json.dumps(environment | {"format": 5}))
    with pytest.raises(FormatError, match=one_line("The run folder", 5)):
        RunFolder.open(tmp_path / "run")


def test_audit_log_goes_on_with_numbers_behind_lines_without(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    shutil.copy(V1 / "finished_run" / "audit.jsonl", path)
    before = verify_audit(path)
    AuditLog(path).append("opened")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("format") for line in lines] == [None] * before.num_entries + [AUDIT_LOG.number]
    assert verify_audit(path, before.head).ok
    path.write_text(path.read_text().replace(f'"format":{AUDIT_LOG.number}', '"format":9'))
    found = verify_audit(path)
    assert not found.ok
    assert re.search(one_line("The audit log", 9), str(found.reason))


def test_kit(tmp_path: Path) -> None:
    make_kit(tmp_path)
    file = tmp_path / "client.yaml"
    settings = yaml.safe_load(file.read_text())
    for number, is_opened in ((None, True), (1, True), (2, False)):
        told = {key: value for key, value in settings.items() if key != "format"}
        file.write_text(yaml.safe_dump(told if number is None else told | {"format": number}))
        if is_opened:
            assert load_client_config(file).format == 1
        else:
            with pytest.raises(FedmedError, match="opens 1"):
                load_client_config(file)


def test_report_of_a_run(make_federation: type[Federation]) -> None:
    federation = make_federation(rounds=1)
    federation.go()
    assert json.loads((federation.run.report / "report.json").read_text())["format"] == REPORT.number
