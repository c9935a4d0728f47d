"""A kind of message that has a file of its own is answered by it."""

import sys
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from client.answers.answering import register_files
from client.guard.guard import guard_messages
from fedmed.protocol.kinds import KINDS, REPORT, SUMS
from fedmed.protocol.messages import read_sums, read_values
from tests.client.support.hospital import PLAN, HospitalSite
from tests.protocol.test_kinds import PROBE
from tests.support.approval import approve

HANDLER = """
import torch

from client.answers.answering import ask_for_model, memory, open_request, reply
from tests.protocol.test_kinds import ProbeReport


def answer(message, context):
    site, request = open_request(message, context)
    if memory.take(message, request) is None:
        return ask_for_model(message)
    number = sum(map(len, (site.data.train, site.data.validation, site.data.test)))
    sums = {"images": torch.tensor([number], dtype=torch.float64)}
    return reply(message, ProbeReport(probed=True, size=1), sums=sums)
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClientApp:
    """A site's app, with a row more and a file for it, and a row more that has none."""
    package = tmp_path / "own_answers"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "probe.py").write_text(HANDLER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(KINDS, "probe", PROBE)
    app = ClientApp(mods=[guard_messages])
    register_files(app, "own_answers")
    return app


def test_the_file_answers_and_is_imported_for_the_first_request(tmp_path: Path, app: ClientApp) -> None:
    assert set(vars(app)["_registered_funcs"]) == {PROBE.flower}, "of all kinds, only this one has a file there"
    assert "own_answers.probe" not in sys.modules
    site = HospitalSite(tmp_path / "site")
    context = Context(1, 1, site.config, RecordDict(), {})
    request = {"plan": PLAN | {"run_id": "probe"}, "round": 1}
    approve(site.state, request["plan"])
    answer = app(site.message(PROBE.flower, site.model, request), context)
    assert read_values(answer, REPORT) == {"probed": True, "size": 1}
    assert read_sums(answer)["images"].tolist() == [40 + 24 + 6], "all of the hospital's images"
    assert [entry["kind"] for entry in site.events("sent")] == ["probe"]
    assert set(answer.content) == {REPORT, SUMS}
    assert "own_answers.probe" in sys.modules


def test_a_kind_has_one_handler(app: ClientApp) -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_files(app, "own_answers")
