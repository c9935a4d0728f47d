import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run

from fedmed.errors import ConfigError, FederationError
from simulations.backend import pool as ray_pool
from simulations.backend.grid import RayGrid, SimulatedNode, balance_nodes

APP = "tests.simulations.support.ray_grid_apps:app"
NODES = [SimulatedNode(number, {"site": f"site_{number}"}, weight=1.0) for number in (1, 2, 3, 4)]
LONG_S = 60.0


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def grid(logs: Path) -> Iterator[RayGrid]:
    """Nodes 1 and 3 live in the first worker, 2 and 4 in the second."""
    with RayGrid(
        APP,
        NODES,
        num_workers=2,
        threads=1,
        run_config={"rate": 0.5},
        worker_environment={"FEDMED_TEST_EXTRA": "yes"},
        log_dir=logs,
        object_store_mib=256,
    ) as grid:
        yield grid


def make_message(kind: str, node_id: int = 1, **records: Any) -> Message:
    return Message(RecordDict(records), dst_node_id=node_id, message_type=kind)


def how(**values: str) -> ConfigRecord:
    return ConfigRecord(dict(values))


def test_largest_nodes_are_placed_first() -> None:
    """By hand: 5 -> A, 4 -> B, 3 -> B (4 < 5), 3 -> A (5 < 7), 2 -> B (7 < 8), 0 -> A (8 < 9)."""
    weights = {10: 3.0, 11: 5.0, 12: 3.0, 13: 4.0, 14: 2.0, 15: 0.0}
    assert balance_nodes(weights, 2) == {11: 0, 13: 1, 10: 1, 12: 0, 14: 1, 15: 0}


def test_balance_does_not_depend_on_order() -> None:
    weights = {number: float(number % 3) for number in range(20)}
    assert balance_nodes(dict(reversed(weights.items())), 3) == balance_nodes(weights, 3)


@pytest.mark.parametrize(
    ("weights", "num_workers", "what"),
    [({}, 1, "0 nodes"), ({1: 1.0}, 0, "0 workers"), ({1: -1.0}, 1, "-1"), ({1: float("nan")}, 1, "nan")],
)
def test_balance_refuses(weights: dict[int, float], num_workers: int, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        balance_nodes(weights, num_workers)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"client_app": "no_colon"}, "no_colon"),
        ({"threads": 0}, "threads 0"),
        ({"num_workers": 0}, "0 workers"),
        ({"nodes": [*NODES, NODES[0]]}, "not all different"),
    ],
)
def test_grid_refuses_before_it_starts_anything(changes: dict[str, Any], what: str) -> None:
    arguments: dict[str, Any] = {"client_app": APP, "nodes": NODES, "num_workers": 1, "threads": 1} | changes
    with pytest.raises(ValueError, match=what):
        RayGrid(arguments.pop("client_app"), arguments.pop("nodes"), **arguments)


def test_nodes_and_run(grid: RayGrid) -> None:
    assert grid.get_node_ids() == [1, 2, 3, 4]
    assert grid.run.run_id == 1
    grid.set_run(Run.create_empty(run_id=7))
    try:
        message = grid.create_message(RecordDict(), "query.echo", 2, group_id="3", ttl=50.0)
        (reply,) = grid.send_and_receive([message])
    finally:
        grid.set_run(Run.create_empty(run_id=1))
    sent, got = message.metadata, reply.metadata
    assert (sent.run_id, sent.dst_node_id, sent.group_id, sent.ttl) == (7, 2, "3", 50.0)
    assert (got.run_id, got.src_node_id, got.dst_node_id, got.group_id) == (7, 2, sent.src_node_id, "3")
    assert got.reply_to_message_id == sent.message_id != ""
    assert got.message_id not in {"", sent.message_id}
    assert got.message_type == "query.echo"


def test_content_comes_back_unchanged(grid: RayGrid) -> None:
    dtypes = ("float32", "float64", "int64", "uint8", "bool")
    arrays = [np.arange(6).reshape(2, 3).astype(dtype) for dtype in dtypes]
    big = np.random.default_rng(0).standard_normal(200_000).astype(np.float16)
    raw = Array("bfloat16", (2, 2), "fedmed.raw", b"\x00\x01\xff\xfe\x00\x00\x80\x7f")
    records = {
        "numbers": ArrayRecord([*arrays, np.zeros((0, 3), np.float32), np.array(1.5)]),
        "raw": ArrayRecord({"a": raw, "empty": Array("uint8", (0,), "x", b"")}),
        "big": ArrayRecord([big]),
        "none": ArrayRecord(),
        "metrics": MetricRecord({"one": 1, "many": [0.1, 0.2]}),
        "config": ConfigRecord({"text": "ä", "bytes": b"\x00\xff", "flags": [True, False]}),
        "no_config": ConfigRecord(),
    }
    (reply,) = grid.send_and_receive([make_message("query.echo", **records)], timeout=LONG_S)
    assert list(reply.content) == list(records)
    assert dict(reply.content) == records
    assert all(
        type(array.data) is bytes for record in reply.content.array_records.values() for array in record.values()
    )
    np.testing.assert_array_equal(reply.content.array_records["big"].to_numpy_ndarrays()[0], big)
    (reply,) = grid.send_and_receive([make_message("query.echo")], timeout=LONG_S)
    assert len(reply.content) == 0


def test_worker_environment(grid: RayGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    (reply,) = grid.send_and_receive([make_message("query.describe")], timeout=LONG_S)
    config = dict(reply.content.config_records["config"])
    assert config.pop("pid") != os.getpid()
    assert config == {
        "site": "site_1",
        "rate": 0.5,
        "threads": 1,
        "omp": "1",
        "telemetry": "0",
        "extra": "yes",
        "cwd": os.getcwd(),
        "ignores_sigint": True,
    }


def test_nodes_are_pinned_and_have_contexts_of_their_own(grid: RayGrid) -> None:
    def ask(node_id: int) -> tuple[str, int, int]:
        (reply,) = grid.send_and_receive([make_message("query.describe", node_id)], timeout=LONG_S)
        config = reply.content.config_records["config"]
        count = reply.content.metric_records["calls"]["n"]
        return str(config["site"]), int(str(config["pid"])), int(str(count))

    first = {node_id: ask(node_id) for node_id in (1, 2, 3, 4)}
    second = {node_id: ask(node_id) for node_id in (4, 3, 2, 1)}
    for node_id in (1, 2, 3, 4):
        assert first[node_id][0] == f"site_{node_id}"
        assert second[node_id][:2] == first[node_id][:2]
        assert second[node_id][2] == first[node_id][2] + 1
    assert first[1][1] == first[3][1] != first[2][1] == first[4][1]


def test_broadcast_is_put_once_and_freed(grid: RayGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    puts: list[Any] = []
    real_put = ray_pool.ray.put
    monkeypatch.setattr(ray_pool.ray, "put", lambda value: puts.append(value) or real_put(value))
    record = ArrayRecord([np.arange(100_000, dtype=np.float64)])
    rewrapped = ArrayRecord(dict(record))
    other = ArrayRecord([np.arange(100_000, dtype=np.float64)])
    contents = [record, record, rewrapped, other]
    held = count_shared_objects()
    messages = [make_message("train.double", node, arrays=arrays) for node, arrays in enumerate(contents, start=1)]
    replies = grid.send_and_receive(messages, timeout=LONG_S)
    end = time.monotonic() + 10.0  # Ray frees memory in passing
    while count_shared_objects() != held and time.monotonic() < end:
        time.sleep(0.05)
    assert count_shared_objects() == held
    assert len(puts) == 2, "one for the first three, which hold the same bytes, one for the last"
    for reply in replies:
        (got,) = reply.content.array_records["arrays"].to_numpy_ndarrays()
        np.testing.assert_array_equal(got, 2.0 * np.arange(100_000) + reply.metadata.src_node_id)
    puts.clear()
    grid.send_and_receive([make_message("query.echo", arrays=ArrayRecord([np.zeros(10)]))], timeout=LONG_S)
    assert puts == [], "a small one travels with the message"


def test_same_replies_from_one_worker(grid: RayGrid) -> None:
    def ask(where: RayGrid, order: list[int]) -> dict[int, RecordDict]:
        record = ArrayRecord([np.random.default_rng(1).standard_normal((50, 400))])
        messages = [make_message("train.double", node_id, arrays=record) for node_id in order]
        replies = where.send_and_receive(messages, timeout=LONG_S)
        return {reply.metadata.src_node_id: reply.content for reply in replies}

    with RayGrid(APP, NODES, num_workers=1, threads=1, run_config={"rate": 0.5}) as single:
        one = ask(single, [1, 2, 3, 4])
    assert one == ask(grid, [4, 3, 2, 1])
    assert sorted(one) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("own", "the site could not do this; the site's log says why"),
        ("foreign", "the site's program failed (ValueError); the site's log says more"),
        ("exit", "the site's program failed (SystemExit); the site's log says more"),
        ("none", "the site's program failed (TypeError); the site's log says more"),
    ],
)
def test_error_reply_tells_only_what_may_leave_the_site(grid: RayGrid, logs: Path, kind: str, reason: str) -> None:
    message = make_message("train.fail", how=how(kind=kind))
    (reply,) = grid.send_and_receive([message], timeout=LONG_S)
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    log = (logs / "worker_0.log").read_text()
    assert "Traceback" in log
    assert {"own": "DataError", "foreign": "ValueError", "exit": "SystemExit", "none": "TypeError"}[kind] in log
    if kind in {"own", "foreign"}:
        assert "patient 4711 has no image\nsecond line" in log


def test_message_past_its_time_to_live_is_not_worked_on(grid: RayGrid) -> None:
    message = make_message("train.hang")
    message.metadata.created_at = time.time() - 100.0
    message.metadata.ttl = 10.0
    (reply,) = grid.send_and_receive([message], timeout=LONG_S)
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE


def test_pull_ignores_unknown_ids_and_never_waits_long(grid: RayGrid) -> None:
    start = time.monotonic()
    assert list(grid.pull_messages(["nothing"])) == []
    (message_id,) = grid.push_messages([make_message("train.hang", 2)])
    assert list(grid.pull_messages([message_id])) == []
    assert time.monotonic() - start < 2.0
    grid.abandon([message_id, "nothing"])
    assert list(grid.pull_messages([message_id])) == []


def test_push_refuses_unknown_nodes(grid: RayGrid) -> None:
    with pytest.raises(ValueError, match=r"no nodes \[99\]"):
        grid.push_messages([make_message("query.echo", 1), make_message("query.echo", 99)])


def test_deadline_drops_hung_message_and_frees_its_worker(grid: RayGrid) -> None:
    """Node 3 shares the worker of the hung node 1; node 2 does not."""
    grid.send_and_receive([make_message("query.echo", 2)], timeout=LONG_S)
    (before,) = grid.send_and_receive([make_message("query.describe", 1)], timeout=LONG_S)
    start = time.monotonic()
    messages = [make_message("train.hang", 1), make_message("query.echo", 3), make_message("query.echo", 2)]
    replies = grid.send_and_receive(messages, timeout=1.5)
    assert 1.5 <= time.monotonic() - start < 6.0
    assert [reply.metadata.src_node_id for reply in replies] == [2]
    (after,) = grid.send_and_receive([make_message("query.describe", 1)], timeout=LONG_S)
    assert after.content.config_records["config"]["pid"] != before.content.config_records["config"]["pid"]


def test_messages_that_are_still_wanted_survive_the_replacement(grid: RayGrid) -> None:
    (hung,) = grid.push_messages([make_message("train.hang", 2)])
    (wanted,) = grid.push_messages([make_message("query.echo", 4)])
    grid.send_and_receive([make_message("query.echo", 1)], timeout=LONG_S)
    grid.abandon([hung])
    assert [reply.metadata.src_node_id for reply in collect(grid, [wanted])] == [4]


def test_dead_worker_is_replaced_and_its_messages_are_answered(grid: RayGrid, tmp_path: Path) -> None:
    """The first message kills its worker once; it and the four behind it are answered by the next worker."""
    file = tmp_path / "deaths"
    file.write_text("1")
    messages = [make_message("train.die", 1, how=how(file=str(file)))]
    messages += [
        make_message("query.echo", node_id, metrics=MetricRecord({"n": n})) for n, node_id in enumerate([1, 3] * 2)
    ]
    replies = grid.send_and_receive(messages, timeout=LONG_S)
    assert file.read_text() == "0"
    assert not any(reply.has_error() for reply in replies)
    assert sorted(reply.metadata.reply_to_message_id for reply in replies) == sorted(
        message.metadata.message_id for message in messages
    )


def test_message_that_kills_twice_is_answered_with_an_error(grid: RayGrid, tmp_path: Path) -> None:
    file = tmp_path / "deaths"
    file.write_text("9")
    deadly = make_message("train.die", 4, how=how(file=str(file)))
    replies = grid.send_and_receive([deadly, make_message("query.echo", 2)], timeout=LONG_S)
    assert file.read_text() == "7"
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    assert not by_node[2].has_error()
    assert by_node[4].error.code == ErrorCode.CLIENT_APP_CRASHED
    assert by_node[4].error.reason == "worker died 2 times while it worked on this message"
    assert by_node[4].metadata.reply_to_message_id == deadly.metadata.message_id


def test_too_few_gpus(grid: RayGrid) -> None:
    with pytest.raises(ConfigError, match="2 workers want 500 of a GPU each"):
        RayGrid(APP, NODES, num_workers=2, threads=1, num_gpus_per_worker=500)


@pytest.mark.parametrize(
    ("client_app", "what"),
    [("tests.simulations.absent:app", "ModuleNotFoundError"), (APP.replace(":app", ":no_app"), "is a str")],
)
def test_app_that_cannot_be_loaded_ends_the_run(grid: RayGrid, client_app: str, what: str) -> None:
    with RayGrid(client_app, NODES[:1], num_workers=1, threads=1) as broken:
        broken.push_messages([make_message("query.echo")])
        with pytest.raises(FederationError, match=what):
            collect(broken, ["message-1"])


def test_worker_that_cannot_start_ends_the_run(grid: RayGrid) -> None:
    with RayGrid(APP.replace(":app", ":deadly"), NODES[:1], num_workers=1, threads=1) as broken:
        broken.push_messages([make_message("query.echo")])
        with pytest.raises(FederationError, match="died 2 times while it started"):
            collect(broken, ["message-1"])


def test_ports_are_on_the_loopback_only(grid: RayGrid) -> None:
    """Whoever reaches a port of Ray can run code; hospitals' networks must not."""
    listening = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            ports = [port for port in process.net_connections() if port.status == psutil.CONN_LISTEN]
            listening += [port.laddr.ip.removeprefix("::ffff:") for port in ports]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_close_leaves_no_process(grid: RayGrid) -> None:
    """Last in this file: it ends the grid that the tests share."""
    children = psutil.Process().children(recursive=True)
    # Python's own helper, which any test of this process may have started, is not the grid's.
    children = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
    assert len(children) >= 4  # Ray's two services and two workers
    grid.close()
    grid.close()
    _, alive = psutil.wait_procs(children, timeout=10.0)
    assert [process.cmdline() for process in alive] == []
    assert not ray_pool.ray.is_initialized()


def count_shared_objects() -> int:
    """Ask Ray how many objects this process keeps alive."""
    return len(ray_pool.ray._private.worker.global_worker.core_worker.get_all_reference_counts())


def collect(grid: RayGrid, message_ids: list[str]) -> list[Message]:
    """Pull until all is there."""
    replies: list[Message] = []
    end = time.monotonic() + LONG_S
    while len(replies) < len(message_ids) and time.monotonic() < end:
        replies += grid.pull_messages(message_ids)
    return replies
