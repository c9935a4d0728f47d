"""The worker, within this process and as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.app import Message, Metadata
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from client.hospital import site_key
from client.supernode.objects import deflate_message, take_announcement
from client.supernode.worker import SiteWorker
from client.supernode.worker_process import WorkerLateError, WorkerLostError, WorkerProcess
from fedmed.errors import DataError, PolicyError, ProcessError, describe_error
from fedmed.keys import make_site_key
from fedmed.keys.passphrases import hold_passphrase
from tests.client.support.apps import app, flip, make_request, read_data, read_report
from tests.client.support.waiting import is_alive, wait_until

RUN, NODE = 7, 5
APP = "tests.client.support.apps:app"
LONG = 120.0


def make_task(content, kind="train", **changes):
    """Return a task and its objects, as the SuperNode has them."""
    metadata = Metadata(
        run_id=RUN,
        message_id="",
        src_node_id=1,
        dst_node_id=NODE,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=600.0,
        message_type=kind,
    )
    objects = deflate_message(make_message(metadata, content))
    _, tree = take_announcement(objects)
    task = {"root": tree.object_id, "message_type": kind, "run_id": RUN, "node_id": NODE, "node_config": {"a": "b"}}
    return task | changes, objects


def read_reply(answer):
    parts = {name: piece if isinstance(piece, bytes) else b"".join(piece) for name, piece in answer.items()}
    announcement, tree = take_announcement(parts)
    assert announcement.metadata.message_id == tree.object_id
    assert all(get_object_id(content) == object_id for object_id, content in parts.items())
    message = inflate_object_from_contents(tree.object_id, parts)
    assert isinstance(message, Message)
    return message


@pytest.fixture(autouse=True)
def _keep_task_identity(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, getattr(TaskIdentity, name))


class TestWorker:
    @pytest.mark.parametrize("size", [0, 1, 5 * 2**20, 12_000_001])
    def test_a_message_comes_and_goes(self, size):
        data = os.urandom(size)
        task, objects = make_task(make_request("flip", data))
        answer = SiteWorker(app).answer(task, objects)
        assert answer.failure is None
        reply = read_reply(answer.parts)
        assert objects == {}  # memory is let go
        assert read_data(reply) == data[::-1]
        metadata = reply.metadata
        assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (RUN, NODE, 1)
        assert (metadata.message_type, metadata.reply_to_message_id) == ("train", task["root"])

    def test_the_app_sees_its_site_and_no_settings_of_the_server(self):
        worker = SiteWorker(app)
        first, second = (
            read_report(read_reply(worker.answer(*make_task(make_request(), "query")).parts)) for _ in range(2)
        )
        assert (first["node_config"], first["run_config"]) == ({"a": "b"}, {})
        assert (first["run_id"], first["node_id"]) == (RUN, NODE)
        assert (first["state"], second["state"]) == (0, 1)  # a run's context is kept
        task, objects = make_task(make_request(), "query")
        assert read_report(read_reply(worker.answer(task, objects).parts))["message_id"] == task["root"]

    @pytest.mark.parametrize(
        ("do", "reason", "failure"),
        [
            (
                "policy",
                "policy.max_rounds: found 9, allowed 3",
                "policy.max_rounds: found 9, allowed 3 second line",
            ),
            ("private", "the site could not do this; the site's log says why", "/data/patient_0815.png cannot be read"),
            ("key", "the site's program failed (KeyError); the site's log says more", "KeyError"),
            ("exit", "the site's program failed (SystemExit); the site's log says more", "SystemExit"),
            ("nothing", "the site's program failed (TypeError); the site's log says more", "TypeError"),
        ],
    )
    def test_errors_become_replies_that_hold_nothing_private(self, do, reason, failure, caplog):
        answer = SiteWorker(app).answer(*make_task(make_request(do)))
        assert answer.failure == failure  # for the people at the site
        reply = read_reply(answer.parts)
        assert reply.has_error()
        assert not reply.has_content()
        assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
        if do == "private":
            assert "patient_0815.png" in caplog.text  # the site's own log says it

    def test_an_unknown_kind_is_an_error_reply(self):
        reply = read_reply(SiteWorker(app).answer(*make_task(make_request(), "train.other")).parts)
        assert reply.error.reason == "the site's program failed (ValueError); the site's log says more"

    @pytest.mark.parametrize("change", [{"message_type": "query"}, {"run_id": 8}, {"node_id": 6}])
    def test_another_message_than_announced_is_refused(self, change):
        with pytest.raises(ValueError, match="not the one that was announced"):
            SiteWorker(app).answer(*make_task(make_request(), **change))

    def test_what_is_no_message_is_refused(self):
        task, objects = make_task(make_request())
        record = next(object_id for object_id, content in objects.items() if content.startswith(b"RecordDict"))
        with pytest.raises(ValueError, match="not a request"):
            SiteWorker(app).answer(task | {"root": record}, objects)

    def test_shareable_texts_only(self):
        assert describe_error(PolicyError("a\nb")) == "a"
        nothing = "the site could not do this; the site's log says why"
        assert describe_error(PolicyError("")) == nothing
        assert describe_error(DataError("secret")) == nothing


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    process = WorkerProcess(APP, 1, tmp_path_factory.mktemp("state"), "cpu")
    process.start()
    yield process
    process.stop()


def ask(process, content, kind="train", seconds=LONG, check=lambda: None):
    return read_reply(process.perform(*make_task(content, kind), time.monotonic() + seconds, check).objects)


def test_a_process_answers_one_message_after_another(process):
    data = os.urandom(11_000_000)
    reports = [read_report(ask(process, make_request(), "query")) for _ in range(2)]
    assert read_data(ask(process, make_request("flip", data))) == flip(data)
    assert reports[0]["pid"] == reports[1]["pid"] == process.pid
    assert (reports[0]["threads"], reports[0]["telemetry"], reports[0]["state"]) == (1, "0", 0)
    assert (Path(f"/proc/{process.pid}/cmdline").read_bytes().count(b"--")) == 6


def test_what_failed_is_told_in_full_at_the_site_only(process):
    task, objects = make_task(make_request("private"))
    reply = process.perform(task, objects, time.monotonic() + LONG, lambda: None)
    assert reply.failure == "/data/patient_0815.png cannot be read"
    assert b"patient_0815" not in b"".join(reply.objects.values())


def test_a_process_that_dies_is_replaced_and_named(process):
    before = process.pid
    with pytest.raises(
        WorkerLostError, match=r"worker process ended \(SIGKILL, perhaps because .* too little memory\)"
    ):
        ask(process, make_request("die"))
    assert read_data(ask(process, make_request("flip", b"abc"))) == b"cba"
    assert process.pid != before


def test_a_process_that_hangs_is_replaced_at_the_deadline(process, tmp_path):
    ask(process, make_request())
    before, begin = process.pid, time.monotonic()
    with pytest.raises(WorkerLateError, match="did not finish in time"):
        ask(process, make_request("hang", mark=str(tmp_path / "mark")), seconds=0.5)
    assert time.monotonic() - begin < 10
    assert not Path(f"/proc/{before}").exists()
    assert process.pid != before


def test_waiting_ends_when_the_server_loses_interest(process, tmp_path, monkeypatch):
    monkeypatch.setattr("client.supernode.worker_process._TICK_S", 0.05)
    mark = tmp_path / "mark"

    class LostInterestError(Exception):
        pass

    def check():
        if mark.exists():
            raise LostInterestError

    with pytest.raises(LostInterestError):
        ask(process, make_request("hang", mark=str(mark)), check=check)
    assert read_data(ask(process, make_request("flip", b"ab"))) == b"ba"


def test_what_cannot_be_read_is_refused_and_the_process_goes_on(process):
    ask(process, make_request())
    before = process.pid
    task, objects = make_task(make_request())
    del objects[next(iter(objects))]
    with pytest.raises(PolicyError, match="damaged"):
        process.perform(task, objects, time.monotonic() + LONG, lambda: None)
    assert objects == {}
    assert read_data(ask(process, make_request("flip", b"ab"))) == b"ba"
    assert process.pid == before


def test_the_worker_can_sign_with_a_key_that_has_a_passphrase(tmp_path, monkeypatch):
    """It has no terminal to ask at; the passphrase stands neither among its arguments nor in its environment."""
    word = b"words of the north"
    make_site_key(tmp_path, "north", word)
    request = make_request("open the site's key", b"abc", file=str(tmp_path / "site.key"))
    monkeypatch.setattr(site_key, "_held", [])
    assert ask_once(tmp_path, request).has_error()
    monkeypatch.setattr(site_key, "_held", [hold_passphrase(word)])
    assert read_data(ask_once(tmp_path, request, word)) == b"cba"


def ask_once(state, request, secret=None):
    process = WorkerProcess(APP, 1, state, "cpu")
    process.start()
    try:
        reply = ask(process, request)
        told = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    finally:
        process.stop()
    assert secret is None or not any(secret in text for text in told)
    return reply


def test_a_message_that_comes_too_late_does_not_end_a_process_that_is_starting(tmp_path):
    process = WorkerProcess(APP, 1, tmp_path)
    process.start()
    before = process.pid
    try:
        with pytest.raises(WorkerLateError):
            ask(process, make_request(), seconds=-1)
        assert process.pid == before
    finally:
        process.stop()


def test_an_app_that_cannot_be_imported_is_said_after_a_few_tries(tmp_path):
    process = WorkerProcess("tests.client.support.apps:missing", 1, tmp_path)
    process.start()
    try:
        with pytest.raises(ProcessError, match=r"does not start .*AttributeError.* worker.log .*--check"):
            ask(process, make_request())
    finally:
        process.stop()


def test_the_worker_dies_with_its_parent(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from client.supernode.worker_process import WorkerProcess\n"
        f"worker = WorkerProcess({APP!r}, 1, Path({str(tmp_path)!r})); worker.start()\n"
        "print(worker.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        worker = int(parent.stdout.readline())
        log = tmp_path / "logs" / "worker.log"
        wait_until(log.exists)
        parent.send_signal(signal.SIGKILL)
        wait_until(lambda: not is_alive(worker), 5)
