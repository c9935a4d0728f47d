import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from fedmed.errors import WireError
from fedmed.fairness.disclosure.tables import tell_everything
from fedmed.metrics.packing import pack_site_tables
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.protocol.messages import (
    MODEL,
    REPORT,
    REQUEST,
    TABLES,
    make_content,
    read_model,
    read_tables,
    read_values,
    unpack_tables,
)
from fedmed.protocol.tensors import load_state, pack_tensors, select_state, unpack_tensors


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's processes know who they are; a message cannot be built without."""
    for field in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, field, 1)


def send(content: RecordDict) -> Message:
    return Message(content, dst_node_id=1, message_type="train")


def make_tables() -> SiteTables:
    groups = {"site": ["north"] * 6, "place": ["Köln", "Ulm"] * 3}
    logits = {FEDERATED: torch.randn(6, 3), "local": torch.randn(6, 3)}
    return tell_everything(logits, torch.tensor([0, 1, 2, 0, 1, 2]), groups)


def test_tensors_come_back_exactly() -> None:
    tensors = {
        "float": torch.randn(3, 4).to(memory_format=torch.contiguous_format),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "half": torch.randn(5).half(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    back = unpack_tensors(pack_tensors(tensors))
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


def test_equal_tensors_give_equal_bytes_in_any_order() -> None:
    first = {"b": torch.ones(2), "a": torch.zeros(3)}
    assert pack_tensors(first) == pack_tensors(dict(reversed(first.items())))


def test_no_pickle_is_accepted() -> None:
    import pickle

    with pytest.raises(WireError, match="cannot be read"):
        unpack_tensors(pickle.dumps({"a": 1}))


def test_message_carries_values_model_and_tables() -> None:
    tables = make_tables()
    model = pack_tensors({"w": torch.arange(4.0)})
    message = send(make_content(REPORT, {"loss": 0.5, "note": "ä"}, model=model, tables=tables))
    assert read_values(message, REPORT) == {"loss": 0.5, "note": "ä"}
    assert read_model(message) == model
    back = read_tables(message)
    assert back.attributes == ("site", "place")
    assert back.models[FEDERATED]["place"].groups == ("Köln", "Ulm")
    for attribute, own in tables.models[FEDERATED].items():
        for name, array in own.to_arrays().items():
            np.testing.assert_array_equal(back.models[FEDERATED][attribute].to_arrays()[name], array)
    np.testing.assert_array_equal(back.paired["local"]["place"].cells, tables.paired["local"]["place"].cells)


def test_values_must_be_finite() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_content(REPORT, {"loss": float("nan")})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({REQUEST: ConfigRecord({"json": "[1]"})}),
        RecordDict({REQUEST: ConfigRecord({"json": "{"})}),
        RecordDict({REQUEST: ConfigRecord({"json": "[" * 100_000})}),
        RecordDict({REQUEST: ConfigRecord({"json": 3})}),
        RecordDict({REQUEST: ArrayRecord()}),
    ],
)
def test_unreadable_values_are_an_error(content: RecordDict) -> None:
    with pytest.raises(WireError, match="no readable part 'request'"):
        read_values(send(content), REQUEST)


def test_unreadable_model_and_tables_are_errors() -> None:
    wrong = ArrayRecord({"bytes": Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"abc")})
    for content in (RecordDict(), RecordDict({MODEL: wrong, TABLES: wrong})):
        with pytest.raises(WireError, match="no readable part 'model'"):
            read_model(send(content))
        with pytest.raises(WireError, match="no readable part 'tables'"):
            read_tables(send(content))


def test_contradicting_tables_are_an_error() -> None:
    packed = pack_site_tables(make_tables())
    position = packed.index(b'"shape":[1,3,3]')
    broken = packed[:position] + b'"shape":[1,9,1]' + packed[position + 15 :]
    with pytest.raises(WireError, match="tables that arrived cannot be read"):
        unpack_tables(broken)


def test_state_is_loaded_exactly_and_only_what_is_named() -> None:
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        first.weight.fill_(2.0)
        first.running_mean.fill_(5.0)  # type: ignore[union-attr]
    load_state(second, select_state(first, ["weight"]), ["weight"])
    assert second.weight.tolist() == [2.0] * 3
    assert second.running_mean.tolist() == [0.0] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({}, r"1 tensors are missing \['weight'\]"),
        ({"weight": torch.ones(3), "x": torch.ones(1)}, r"1 are unknown \['x'\]"),
        ({"weight": torch.ones(4)}, r"'weight' that arrived is \(4,\)"),
        ({"weight": torch.ones(3).double()}, "float64"),
    ],
)
def test_model_that_does_not_fit_is_an_error(tensors: dict[str, torch.Tensor], expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        load_state(nn.BatchNorm1d(3), tensors, ["weight"])
