"""The SuperNode's loop against a server that misbehaves. As real processes: ``test_supernode_processes.py``."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Message, Metadata
from flwr.app.message.message import make_message
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesResponse
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from client.supernode import supernode as supernode_module
from client.supernode.activation import Activation, SignsOfLife
from client.supernode.failures import FleetError, Outlook
from client.supernode.fleet import Fleet
from client.supernode.objects import deflate_message, inflate_message, take_announcement
from client.supernode.supernode import ENDED, SuperNode
from client.supernode.worker_process import Reply, WorkerLateError, WorkerLostError
from fedmed.processes import find_free_port
from tests.client.support.apps import flip, make_request, read_data
from tests.client.support.fake_fleet import NODE, RUN, FakeFleet, make_certificate, make_kit, serving
from tests.client.support.waiting import wait_until

SHA = "ab" * 32
RUN_OVER = json.dumps({"code": 2007, "detail": "The run has finished."}).encode()


def make_parts(content, kind="train", ttl=600.0):
    metadata = Metadata(
        run_id=RUN,
        message_id="",
        src_node_id=1,
        dst_node_id=NODE,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=ttl,
        message_type=kind,
    )
    parts = deflate_message(make_message(metadata, content))
    announcement, tree = take_announcement(parts)
    return announcement, tree, parts


class Server(FakeFleet):
    """Has messages, and lets the site go by announcing a release when there are no more."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list = []
        self.replies: list = []
        self.release: str | None = SHA
        self.order: list[str] = []

    def add(self, content, kind="train", **settings):
        announcement, tree, parts = make_parts(content, kind, **settings)
        self.objects |= parts
        self.messages.append((announcement, tree))
        return tree

    def answer(self, name, body):
        if name != "send-node-heartbeat":
            self.order.append(name)
        return super().answer(name, body)

    def on_pull_messages(self, request):
        self.headers = {}
        if not self.messages:
            if self.release:
                self.headers = {"x-fedmed-release": self.release}
            return PullMessagesResponse()
        announcement, tree = self.messages.pop(0)
        return PullMessagesResponse(messages_list=[announcement], message_object_trees=[tree])

    def on_push_messages(self, request):
        tree = request.message_object_trees[0]
        ids = [node.object_id for node in iterate_object_tree(tree) if node.object_id not in self.stored]
        self.replies.append(message_from_proto(request.messages_list[0]))
        return PushMessagesResponse(objects_to_push=list(dict.fromkeys(ids)), session_id=self.session)


class FakeWorker:
    """Flips the data at once, or fails."""

    def __init__(self) -> None:
        self.tasks: list = []
        self.failure: Exception | None = None
        self.check_once = False
        self.told: str | None = None  # why the work was not done
        self.said: tuple[str, ...] = ()  # for the console

    def perform(self, task, objects, deadline, check):
        self.tasks.append((task, deadline))
        if self.check_once:
            check()
        if self.failure:
            raise self.failure
        message = inflate_message(task, dict(objects))
        content = make_request("flip", flip(read_data(message)))
        return Reply(deflate_message(Message(content, reply_to=message)), self.told, self.said)


class Setting:
    """A SuperNode within this process, and what it told."""

    def __init__(self, config, fleet, server, worker) -> None:
        self.config, self.fleet, self.server, self.worker = config, fleet, server, worker
        self.events: list[tuple[str, str]] = []
        self.releases: list[tuple[int, str]] = [(0, "Model in place.")]
        self.node = SuperNode(config, Path("/kit/client.yaml"), fleet, worker, self.tell)

    def tell(self, event, text, **values) -> None:
        assert "\n" not in text
        self.events.append((event, text))

    def collect(self, sha256) -> tuple[int, str]:
        assert sha256 == SHA  # what the server has announced
        return self.releases.pop(0)

    def texts(self, event) -> list[str]:
        return [text for kind, text in self.events if kind == event]


@pytest.fixture
def setting(tmp_path, monkeypatch) -> Iterator[Setting]:
    server, worker = Server(), FakeWorker()
    monkeypatch.setattr(supernode_module, "_IDENTITY_WAIT_S", 0.3)
    monkeypatch.setattr("client.supernode.retry._FIRST_PAUSE_S", 0.01)
    (tmp_path / "state").mkdir()
    with serving(server, make_certificate(tmp_path)) as port:
        config = make_kit(tmp_path, port)
        with Fleet(config) as fleet:
            made = Setting(config, fleet, server, worker)
            monkeypatch.setattr(supernode_module, "_run_release", lambda config_file, sha256: made.collect(sha256))
            yield made


class TestConnecting:
    def test_a_federation_from_beginning_to_end(self, setting):
        data = os.urandom(6_000_000)
        tree = setting.server.add(make_request("flip", data))
        assert setting.node.run() == ENDED
        events = [event for event, _ in setting.events]
        assert events == ["connecting", "waiting", "task", "reply", "waiting", "collected", "ended"]
        assert setting.texts("task") == ["Received 'train' (6.0 MB)."]
        assert setting.texts("collected") == ["Model in place."]
        task, deadline = setting.worker.tasks[0]
        assert task["root"] == tree.object_id
        assert task["node_config"] == {"client-config": "/kit/client.yaml"}
        assert (task["node_id"], task["run_id"]) == (NODE, RUN)
        assert 590 < deadline - time.monotonic() < 600
        (reply,) = setting.server.replies
        assert reply.metadata.reply_to_message_id == tree.object_id
        assert setting.server.stored[-1] == reply.metadata.message_id  # the root comes last
        assert json.loads((Path(setting.config.state_dir) / "session.json").read_text())["node_id"] == NODE
        setting.node.leave()
        assert setting.server.order[-1] == "deactivate-node"
        assert not (Path(setting.config.state_dir) / "session.json").exists()

    def test_a_server_that_comes_back_is_noticed_and_said_once(self, setting):
        setting.server.answer_with("activate-node", 503, times=3)
        assert setting.node.run() == ENDED
        assert len(setting.texts("lost")) == 1
        assert setting.texts("lost")[0].endswith("(HTTP 503). Trying again.")
        assert len(setting.texts("connected")) == 1
        assert setting.server.calls["activate-node"] == 4

    def test_an_unknown_site_ends_at_once(self, setting):
        """The server lets nobody ask before it knows its sites, so that there is nothing to wait for."""
        setting.server.answer_with("activate-node", 401)
        with pytest.raises(FleetError, match="unknown there or was revoked") as caught:
            setting.node.run()
        assert caught.value.outlook is Outlook.UNKNOWN_SITE
        assert setting.server.calls["activate-node"] == 1

    def test_an_identity_in_use(self, setting):
        setting.server.answer_with("activate-node", 412, times=100)
        with pytest.raises(FleetError, match=r"connected to .* from elsewhere") as caught:
            setting.node.run()
        assert setting.fleet.fingerprint in str(caught.value)
        assert caught.value.outlook is Outlook.NOT_ACTIVATED

    def test_a_revoked_site(self, setting):
        setting.server.answer_with("activate-node", 412, times=100)
        setting.server.answer_with("hello", 401, times=100)
        with pytest.raises(FleetError, match="unknown there or was revoked"):
            setting.node.run()

    def test_a_final_refusal_ends_at_once(self, setting):
        setting.server.answer_with("activate-node", 404)
        with pytest.raises(FleetError, match="404"):
            setting.node.run()
        assert setting.server.calls["activate-node"] == 1

    def test_the_session_of_a_killed_process_is_ended_first(self, setting):
        Activation(Path(setting.config.state_dir)).write(NODE)
        assert setting.node.run() == ENDED
        assert setting.server.order[:2] == ["deactivate-node", "activate-node"]

    def test_the_session_of_a_copied_folder_is_left_alone(self, setting, tmp_path):
        Activation(tmp_path / "elsewhere" / "state")._path.parent.mkdir(parents=True)
        Activation(tmp_path / "elsewhere" / "state").write(NODE)
        copied = Path(setting.config.state_dir) / "session.json"
        copied.write_bytes((tmp_path / "elsewhere" / "state" / "session.json").read_bytes())
        assert setting.node.run() == ENDED
        assert setting.server.order[0] == "activate-node"

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"node_id": 3}'])
    def test_a_damaged_session_file_is_no_session(self, tmp_path, text):
        (tmp_path / "session.json").write_text(text)
        assert Activation(tmp_path).read() is None

    def test_an_answer_that_was_lost_makes_the_site_connect_anew(self, setting):
        """It may have held a message; the server sends it again to a site that was activated since."""
        setting.server.answer_with("pull-messages", 502)
        assert setting.node.run() == ENDED
        again = ["activate-node", "pull-messages"]
        assert setting.server.order[:5] == [*again, "deactivate-node", *again]


class TestAssignments:
    def run(self, setting):
        assert setting.node.run() == ENDED
        (reply,) = setting.server.replies
        return reply

    def test_another_app_is_refused(self, setting):
        setting.server.add(make_request())
        setting.server.app = "evil/app"
        reply = self.run(setting)
        assert reply.error.reason == ("the run is one of the app 'evil/app'; this site runs 'fedmed/fedmed' only")
        assert setting.worker.tasks == []
        assert setting.server.calls["pull-object"] == 0
        assert setting.texts("failed") == [
            "'train' was not done: the run is one of the app 'evil/app'; this site runs 'fedmed/fedmed' only. "
            f"Its log: {setting.config.state_dir}/logs/supernode.log."
        ]
        assert setting.texts("reply") == []

    def test_another_kind_of_request_is_refused(self, setting):
        setting.server.add(make_request(), "get_parameters")
        assert "'get_parameters'" in self.run(setting).error.reason
        assert setting.worker.tasks == []

    def test_a_message_that_is_too_large_is_refused(self, setting):
        setting.config.policy.max_message_mib = 1
        setting.server.add(make_request("flip", os.urandom(3_000_000)))
        assert "policy.max_message_mib: 1" in self.run(setting).error.reason
        assert setting.worker.tasks == []

    def test_a_worker_that_died_is_said(self, setting):
        setting.worker.failure = WorkerLostError("the site's worker process ended (SIGKILL)")
        setting.server.add(make_request())
        assert self.run(setting).error.reason == "the site's worker process ended (SIGKILL)"

        assert setting.texts("failed") == [
            "'train' was not done: the site's worker process ended (SIGKILL). "
            f"Its log: {setting.config.state_dir}/logs/worker.log."
        ]
        assert setting.texts("reply") == []

    def test_work_that_failed_is_not_called_answered(self, setting):
        setting.worker.told = "The image a.png cannot be read."
        setting.server.add(make_request())
        self.run(setting)
        (text,) = setting.texts("failed")
        log = f"{setting.config.state_dir}/logs/worker.log"
        assert text == f"'train' was not done: The image a.png cannot be read. Its log: {log}."
        assert setting.texts("reply") == []

    def test_what_the_worker_says_to_the_people_here_is_passed_on(self, setting):
        setting.worker.said = ("A withdrawal is in effect.", "1 of 2 lines belong to no image.")
        setting.server.add(make_request())
        self.run(setting)
        assert setting.texts("said") == ["A withdrawal is in effect.", "1 of 2 lines belong to no image."]

    def test_work_that_takes_too_long_is_given_up(self, setting):
        setting.worker.failure = WorkerLateError("the worker process did not finish in time")
        setting.server.add(make_request())
        assert setting.node.run() == ENDED
        assert setting.server.replies == []
        assert setting.texts("waiting")[1].startswith("'train' is given up: the worker process did not finish in time")

    def test_a_run_that_is_over_before_the_work(self, setting):
        setting.server.add(make_request())
        setting.server.answer_with("get-run", 403, RUN_OVER)
        assert setting.node.run() == ENDED
        assert setting.worker.tasks == []
        assert setting.texts("waiting")[1] == "'train' is given up: The server no longer waits for this."

    def test_a_run_that_ends_during_the_work(self, setting, monkeypatch):
        monkeypatch.setattr(SignsOfLife, "watch", lambda signs, run_id: setattr(signs, "_is_over", run_id is not None))
        setting.server.add(make_request())
        setting.worker.check_once = True
        assert setting.node.run() == ENDED
        assert setting.server.replies == []
        assert "has ended this run" in setting.texts("waiting")[1]

    def test_a_run_that_ends_before_the_answer_is_there(self, setting):
        setting.server.add(make_request())
        setting.server.answer_with("push-messages", 403, RUN_OVER)
        assert setting.node.run() == ENDED
        assert "no longer waits" in setting.texts("waiting")[1]

    def test_transfers_go_on_after_failures(self, setting):
        data = os.urandom(12_000_000)
        setting.server.add(make_request("flip", data))
        for name in ("get-run", "pull-object", "confirm-message-received", "push-messages", "push-object"):
            setting.server.answer_with(name, 503, times=2)
        assert setting.node.run() == ENDED
        reply = setting.server.replies[-1]
        assert setting.server.stored[-1] == reply.metadata.message_id
        assert len(set(setting.server.stored)) == len(setting.server.stored)  # nothing twice
        assert len(setting.worker.tasks) == 1

    def test_a_session_that_the_server_forgot_is_begun_anew(self, setting):
        setting.server.add(make_request("flip", b"abc"))
        plain = setting.server.on_push_messages

        def forget_once(request):
            answer = plain(request)
            if setting.server.calls["push-messages"] == 1:
                setting.server.session = "session-2"
            return answer

        setting.server.on_push_messages = forget_once
        assert setting.node.run() == ENDED
        assert setting.server.calls["push-messages"] == 2
        assert setting.server.stored[-1] == setting.server.replies[-1].metadata.message_id


class TestEnd:
    def test_the_model_is_collected_again_after_a_failure(self, setting, monkeypatch):
        setting.releases = [(1, "The signature does not fit."), (0, "")]
        monkeypatch.setattr("client.supernode.supernode.Backoff.next", lambda backoff: 0.05)
        assert setting.node.run() == ENDED
        assert setting.texts("lost") == [
            "The model could not be collected yet; trying again in 0 s. The signature does not fit."
        ]
        assert setting.texts("collected") == ["The released model is in the state folder."]

    def test_what_is_here_already_is_only_reported(self, setting):
        (Path(setting.config.state_dir) / "collected.json").write_text(json.dumps({"manifest_sha256": SHA}))
        setting.releases = []
        assert setting.node.run() == ENDED
        assert setting.server.requests[-1] == {"manifest_sha256": SHA}

    def test_another_release_is_collected(self, setting):
        (Path(setting.config.state_dir) / "collected.json").write_text(json.dumps({"manifest_sha256": "00" * 32}))
        assert setting.node.run() == ENDED
        assert setting.releases == []

    def test_messages_come_before_the_release(self, setting):
        setting.server.add(make_request("flip", b"a"))
        setting.server.add(make_request("flip", b"b"))
        assert setting.node.run() == ENDED
        assert len(setting.server.replies) == 2

    def test_the_release_process_says_why_it_failed(self, tmp_path):
        code, said = supernode_module._run_release(tmp_path / "client.yaml", SHA)
        assert code == 1
        assert "There is no" in said

    def test_the_release_process_is_told_which_release(self, tmp_path, monkeypatch):
        commands = []
        popen = subprocess.Popen

        def note(command, **options):
            commands.append(command)
            return popen([sys.executable, "-c", "print('home')"], **options)

        monkeypatch.setattr(supernode_module.subprocess, "Popen", note)
        assert supernode_module._run_release(tmp_path / "client.yaml", SHA) == (0, "home")
        assert commands[0][1:4] == ["-P", "-m", "client.release.collect"]
        assert commands[0][-2:] == ["--manifest", SHA]


class TestSignsOfLife:
    def test_heartbeats_go_on_and_survive_failures(self, setting, monkeypatch):
        for name in ("_HEARTBEAT_S", "_RETRY_S", "_LOOK_AT_RUN_S"):
            monkeypatch.setattr(f"client.supernode.activation.{name}", 0.02)
        setting.server.answer_with("send-node-heartbeat", 503, times=2)
        signs = SignsOfLife(setting.fleet, NODE)
        wait_until(lambda: setting.server.calls["send-node-heartbeat"] >= 4)
        assert setting.server.calls["get-run"] == 0  # there is nothing to look at
        signs.watch(RUN)
        wait_until(lambda: setting.server.calls["get-run"] >= 2)
        signs.check()
        setting.server.answer_with("get-run", 503)
        setting.server.answer_with("get-run", 403, RUN_OVER)
        wait_until(lambda: signs._is_over)
        with pytest.raises(FleetError, match="has ended this run"):
            signs.check()
        signs.watch(None)
        signs.check()
        signs.stop()


def test_nothing_listens_where_the_kit_points(tmp_path):
    make_certificate(tmp_path)
    config = make_kit(tmp_path, find_free_port())
    with Fleet(config) as fleet, pytest.raises(FleetError, match="Nothing listens"):
        fleet.hello()
