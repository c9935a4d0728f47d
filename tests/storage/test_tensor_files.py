import errno
import json
import os

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from fedmed.errors import CheckpointError
from fedmed.storage.tensor_files import DTYPES, TensorFile, TensorSpec, write_tensors


def make_tensors():
    rng = np.random.default_rng(0)
    tensors = {
        f"t.{code}": (rng.integers(0, 2, (2, 3)) if code == "BOOL" else rng.normal(size=(2, 3)) * 50).astype(dtype)
        for code, dtype in DTYPES.items()
        if code != "U8"
    }
    tensors["bytes"] = rng.integers(0, 256, 5).astype(np.uint8)
    tensors["scalar"] = np.array(7, np.int64)
    tensors["empty"] = np.zeros((0, 4), np.float32)
    return tensors


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_round_trip_keeps_values_types_shapes_order_and_metadata(tmp_path):
    tensors = make_tensors()
    write_tensors(tmp_path / "new" / "a.safetensors", tensors, {"round": "3"})
    file = TensorFile(tmp_path / "new" / "a.safetensors")
    assert file.names == tuple(tensors)
    assert file.metadata == {"round": "3"}
    for name, values in file.load_all().items():
        assert values.dtype == tensors[name].dtype == file.dtype(name)
        assert values.shape == tensors[name].shape == file.shape(name)
        np.testing.assert_array_equal(values, tensors[name])


def test_files_are_read_by_the_safetensors_library_and_the_other_way_round(tmp_path):
    tensors = make_tensors()
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(ours, tensors)
    loaded = safetensors.torch.load_file(ours)
    assert loaded.keys() == tensors.keys()
    for name, values in loaded.items():
        assert values.shape == tensors[name].shape
        np.testing.assert_array_equal(values.numpy(), tensors[name])
    safetensors.torch.save_file({name: torch.from_numpy(values) for name, values in tensors.items()}, theirs)
    for name, values in TensorFile(theirs).load_all().items():
        np.testing.assert_array_equal(values, tensors[name])
    assert safetensors.numpy.load_file(ours).keys() == tensors.keys()


def test_windows_count_over_the_flattened_tensor_and_fill_the_buffer(tmp_path):
    write_tensors(tmp_path / "a", {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(2, np.float64)})
    file = TensorFile(tmp_path / "a")
    np.testing.assert_array_equal(file.read("w", 3, 6), [3, 4, 5])
    buffer = np.zeros(5, np.float32)
    window = file.read("w", 9, 12, out=buffer)
    assert np.shares_memory(window, buffer)
    np.testing.assert_array_equal(buffer, [9, 10, 11, 0, 0])
    assert file.read("w", 12, 12).size == 0


def test_transposed_and_big_endian_arrays_are_stored_by_value(tmp_path):
    tensors = {"t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array([1.5, -2], ">f4")}
    write_tensors(tmp_path / "a", tensors)
    np.testing.assert_array_equal(TensorFile(tmp_path / "a").load("t"), [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(TensorFile(tmp_path / "a").load("b"), [1.5, -2])


def test_a_stream_may_come_in_any_order(tmp_path):
    layout = {"a": TensorSpec((2,), np.dtype("f4")), "n": TensorSpec((), np.dtype("i8"))}
    write_tensors(tmp_path / "s", iter([("n", np.array(4)), ("a", np.ones(2, np.float32))]), layout=layout)
    write_tensors(tmp_path / "m", {"a": np.ones(2, np.float32), "n": np.array(4)})
    assert (tmp_path / "s").read_bytes() == (tmp_path / "m").read_bytes()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([("a", np.ones(3, np.float32))], "not in the layout"),
        ([("a", np.ones(2, np.float64))], "not in the layout"),
        ([("a", np.ones(2, np.float32))] * 2, "not in the layout"),
        ([], "were not given: a"),
    ],
)
def test_a_stream_that_does_not_fit_the_layout_leaves_no_file(tmp_path, stream, message):
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "s", iter(stream), layout={"a": TensorSpec((2,), np.dtype("f4"))})
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match="complex128"):
        write_tensors(tmp_path / "a", {"z": np.ones(2, complex)})
    with pytest.raises(ValueError, match="needs 'layout'"):
        write_tensors(tmp_path / "a", iter([]))


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "damaged"),
        (b"[" * 100_000, b"", "damaged"),
        (b'"\xff"', b"", "damaged"),
        ([], b"", "not a JSON object"),
        ({"__metadata__": {"a": 1}}, b"", "metadata are not texts"),
        (b'{"a":{},"a":{}}', b"", "twice"),
        ({"a": {"dtype": "F32"}}, b"", "incomplete"),
        ({"a": entry("BF16")}, bytes(8), "type 'BF16'"),
        ({"a": entry(["F32"])}, bytes(8), "type"),
        ({"a": entry(shape=(-1,))}, bytes(8), "whole numbers"),
        ({"a": entry(shape=(True,))}, bytes(8), "whole numbers"),
        ({"a": entry(offsets=(0, 4, 8))}, bytes(8), "whole numbers"),
        ({"a": entry(shape=(3,))}, bytes(8), "needs 12 bytes"),
        ({"a": entry(), "b": entry()}, bytes(8), "starts at byte 0 and not at 8"),
        ({"a": entry(offsets=(4, 12))}, bytes(12), "starts at byte 4"),
        ({"a": entry()}, bytes(7), "should have"),
        ({"a": entry()}, bytes(9), "should have"),
    ],
)
def test_malformed_files_are_told_apart(tmp_path, header, data, message):
    with pytest.raises(CheckpointError, match=message):
        TensorFile(write_raw(tmp_path / "bad", header, data))


def test_missing_empty_and_absurd_files(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        TensorFile(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "absurd").write_bytes(b"\xff" * 16)
    for name in ("empty", "absurd"):
        with pytest.raises(CheckpointError, match="do not hold the header"):
            TensorFile(tmp_path / name)


def test_a_truth_value_of_two_is_damage(tmp_path):
    path = write_raw(tmp_path / "bad", {"a": entry("BOOL", (2,), (0, 2))}, b"\x01\x02")
    with pytest.raises(CheckpointError, match="neither 0 nor 1"):
        TensorFile(path).load_all()


def test_a_file_that_shrinks_after_opening_and_an_unknown_name(tmp_path):
    write_tensors(tmp_path / "a", {"w": np.ones(100, np.float32)})
    file = TensorFile(tmp_path / "a")
    os.truncate(tmp_path / "a", 200)
    with pytest.raises(CheckpointError, match="ends too early"):
        file.load("w")
    with pytest.raises(CheckpointError, match="no tensor 'v'"):
        file.read("v")


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_the_older_file_and_no_leftover(tmp_path, monkeypatch, call):
    write_tensors(tmp_path / "a", {"w": np.ones(2, np.float32)})
    before = (tmp_path / "a").read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match="disk is full"):
        write_tensors(tmp_path / "a", {"w": np.zeros(2, np.float32)})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == before


def test_equal_tables_of_contents_are_shared(tmp_path):
    for name, rows in (("a", 2), ("b", 2), ("c", 3)):
        write_tensors(tmp_path / name, {"w": np.ones(rows, np.float32)}, {"site": name})
    first = TensorFile(tmp_path / "a")
    assert TensorFile(tmp_path / "b", like=first)._entries is first._entries
    other = TensorFile(tmp_path / "c", like=first)
    assert other.shape("w") == (3,)
    assert other.metadata == {"site": "c"}
