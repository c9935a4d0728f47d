import contextlib
import errno
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from fedmed.errors import CheckpointError
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.storage.site_state import SiteState
from fedmed.storage.tensor_files import TensorFile, write_tensors


def model(value):
    return {"w": np.full((2, 3), value, np.float32), "n": np.array(value, np.int64)}


def save_rounds(root, rounds, **options):
    checkpoints = RunCheckpoints(root, **options)
    for number in rounds:
        checkpoints.save(number, model(number), {"seed": 7, "history": [{"round": number, "loss": 0.5}]})
    return checkpoints


def damage(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


class Crash(BaseException):
    """A killed process: nothing may handle it."""


def fail_at(monkeypatch, name, error):
    """Let ``os.name`` fail with ``error``."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(os, name, fail)


def kill_after(monkeypatch, num_steps):
    """Die at the flush or rename after ``num_steps`` of them; from then on nothing on the disk changes any more."""
    left = [num_steps]

    def mortal(real, is_step):
        def call(*args, **options):
            left[0] -= is_step
            if left[0] < 0:
                raise Crash
            return real(*args, **options)

        return call

    for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, mortal(getattr(module, name), name in ("fsync", "replace")))


def test_small_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "a.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    fail_at(monkeypatch, "replace", OSError(errno.EACCES, "Permission denied"))
    with pytest.raises(CheckpointError, match="Permission denied"):
        write_atomically(path, b"three")
    assert [child.name for child in path.parent.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"two"


def test_what_was_saved_comes_back(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "checkpoints")
    assert checkpoints.load_latest() is None
    state = {"history": [{"loss": 0.1}], "audit_head": "ab", "sites": {"é": [1, None, True]}}
    folder = checkpoints.save(7, model(7), state, best_round=7)
    assert folder == tmp_path / "checkpoints" / "round_00007"
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "state.json"]
    checkpoint = RunCheckpoints(tmp_path / "checkpoints").load_latest()
    assert checkpoint is not None
    assert (checkpoint.round, checkpoint.state, checkpoint.best_round, checkpoint.problems) == (7, state, 7, [])
    loaded = checkpoint.load_model()
    assert list(loaded) == ["w", "n"]
    np.testing.assert_array_equal(loaded["w"], model(7)["w"])
    assert safetensors.torch.load_file(checkpoint.model_path)["n"].item() == 7


def test_a_stream_is_saved_without_the_whole_model(tmp_path):
    layout = TensorFile(RunCheckpoints(tmp_path).save(0, model(1), {}) / "model.safetensors").layout
    RunCheckpoints(tmp_path).save(1, iter(model(2).items()), {}, layout=layout)
    assert RunCheckpoints(tmp_path).load(1).load_model()["n"] == 2


def save_with_moments(root, number, value):
    """Save a round whose moments hold ``value``, from files that are the checkpoint's afterwards."""
    for name, tensors in (("next", model(value)), ("moments", {"m/w": np.full((2, 3), value, np.float32)})):
        write_tensors(root.parent / name, tensors)
    return RunCheckpoints(root).save(number, root.parent / "next", {}, moments=root.parent / "moments")


def test_moments_of_a_server_step_are_part_of_a_checkpoint(tmp_path):
    root = tmp_path / "checkpoints"
    folder = save_with_moments(root, 1, 5)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "moments.safetensors", "state.json"]
    checkpoint = RunCheckpoints(root).load_latest()
    assert TensorFile(checkpoint.moments_path).load("m/w").tolist() == [[5] * 3] * 2
    RunCheckpoints(root).save(2, model(2), {})
    assert RunCheckpoints(root).load(2).moments_path is None


def test_a_checkpoint_without_moments_is_of_the_form_that_older_versions_read(tmp_path):
    """One with moments is of another, so that a version that would lose them refuses it."""
    root = tmp_path / "checkpoints"
    formats = [
        json.loads((folder / "state.json").read_bytes())["format"]
        for folder in (RunCheckpoints(root).save(1, model(1), {}), save_with_moments(root, 2, 2))
    ]
    assert formats == [1, 2]
    assert "moments_sha256" not in json.loads((root / "round_00001" / "state.json").read_bytes())


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: damage(folder / "moments.safetensors"),
        lambda folder: os.truncate(folder / "moments.safetensors", 50),
        lambda folder: (folder / "moments.safetensors").unlink(),
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "moments.safetensors"),
        lambda folder: shutil.copy(folder.parent / "round_00001" / "moments.safetensors", folder),
    ],
)
def test_damaged_moments_are_a_damaged_checkpoint(tmp_path, harm):
    root = tmp_path / "checkpoints"
    for number in (1, 2):
        save_with_moments(root, number, number)
    harm(root / "round_00002")
    checkpoint = RunCheckpoints(root).load_latest()
    assert checkpoint.round == 1
    assert "round_00002 is damaged" in checkpoint.problems[0]


@pytest.mark.parametrize("num_steps", range(12))
def test_a_crash_leaves_model_and_moments_of_one_round(tmp_path, monkeypatch, num_steps):
    """Killed at the n-th flush or rename, while round 2 is saved for the second time with other values."""
    root = tmp_path / "checkpoints"
    for number in (1, 2):
        save_with_moments(root, number, number)
    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        kill_after(patch, num_steps)
        save_with_moments(root, 2, 22)
    checkpoint = RunCheckpoints(root).load_latest()
    assert checkpoint.problems == []
    value = int(checkpoint.load_model()["n"])
    assert value in {1: (1,), 2: (2, 22)}[checkpoint.round]
    assert TensorFile(checkpoint.moments_path).load("m/w")[0, 0] == value


def test_the_last_rounds_and_the_best_are_kept(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=3)
    for number in range(1, 9):
        checkpoints.save(number, model(number), {}, best_round=min(number, 2))
    assert checkpoints.rounds == [2, 6, 7, 8]
    checkpoints.save(9, model(9), {}, best_round=9)
    assert checkpoints.rounds == [7, 8, 9]
    with pytest.raises(CheckpointError, match=r"no checkpoint of round 2 .* rounds kept: 7, 8, 9"):
        checkpoints.load(2)
    with pytest.raises(ValueError, match="keep is 0"):
        RunCheckpoints(tmp_path, keep=0)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: damage(folder / "model.safetensors"),
        lambda folder: damage(folder / "state.json", 30),
        lambda folder: os.truncate(folder / "model.safetensors", 50),
        lambda folder: os.truncate(folder / "state.json", 10),
        lambda folder: (folder / "state.json").write_text("[]"),
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "state.json").write_bytes(pickle.dumps({"round": 3})),
        lambda folder: shutil.copytree(folder.parent / "round_00002", folder, dirs_exist_ok=True),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_reported(tmp_path, harm):
    checkpoints = save_rounds(tmp_path, [1, 2, 3])
    harm(tmp_path / "round_00003")
    checkpoint = checkpoints.load_latest()
    assert checkpoint is not None
    assert checkpoint.round == 2
    assert len(checkpoint.problems) == 1
    assert "round_00003 is damaged" in checkpoint.problems[0]
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(3)


def test_every_checkpoint_damaged_is_an_error_and_not_a_new_start(tmp_path):
    checkpoints = save_rounds(tmp_path, [1, 2])
    for number in (1, 2):
        damage(tmp_path / f"round_0000{number}" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"All checkpoints .*round_00002 .*round_00001"):
        checkpoints.load_latest()


def test_a_checkpoint_of_a_later_version_says_so(tmp_path):
    checkpoints = save_rounds(tmp_path, [1])
    path = tmp_path / "round_00001" / "state.json"
    path.write_text(path.read_text().replace('"format":1', '"format":3'))
    with pytest.raises(CheckpointError, match="has format 3; this version reads 1 and 2"):
        checkpoints.load(1)


def test_a_round_done_again_replaces_the_old_one_and_drops_the_future(tmp_path):
    checkpoints = save_rounds(tmp_path, [5, 6, 7])
    damage(tmp_path / "round_00007" / "model.safetensors")
    checkpoints.save(6, model(66), {}, best_round=7)
    assert checkpoints.rounds == [5, 6]
    assert checkpoints.load(6).load_model()["n"] == 66
    assert all(not path.name.startswith(".") for path in tmp_path.iterdir())


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("num_steps", range(12))
def test_a_crash_at_any_moment_leaves_the_older_checkpoints(tmp_path, monkeypatch, num_steps, again):
    """Killed at the n-th flush or rename, while round 4 is saved for the first or the second time."""
    save_rounds(tmp_path, [1, 2, 3, 4] if again else [1, 2, 3])
    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        kill_after(patch, num_steps)
        RunCheckpoints(tmp_path).save(4, model(44), {})
    checkpoints = RunCheckpoints(tmp_path)
    checkpoint = checkpoints.load_latest()
    assert checkpoint is not None
    assert checkpoint.problems == []
    assert int(checkpoint.load_model()["n"]) in {3: (3,), 4: (4, 44)}[checkpoint.round]
    assert checkpoints.load(2).load_model()["n"] == 2
    checkpoints.save(4, model(45), {})
    assert checkpoints.load(4).load_model()["n"] == 45
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_00002", "round_00003", "round_00004"]


def test_reading_leaves_what_another_process_is_writing(tmp_path):
    checkpoints = save_rounds(tmp_path, [1])
    (tmp_path / ".round_00002.1.partial").mkdir()
    assert checkpoints.load_latest() is not None
    assert (tmp_path / ".round_00002.1.partial").exists()
    checkpoints.save(2, model(2), {})
    assert not (tmp_path / ".round_00002.1.partial").exists()


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_full_disk_is_said_in_plain_words(tmp_path, monkeypatch, call):
    checkpoints = save_rounds(tmp_path, [1, 2])
    with monkeypatch.context() as patch:
        fail_at(patch, call, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(CheckpointError, match=r"disk is full: .*round_00003.* untouched"):
            checkpoints.save(3, model(3), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_00001", "round_00002"]
    assert checkpoints.load_latest().round == 2


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, np.float32(1)])
def test_a_state_that_is_not_json_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="plain JSON"):
        RunCheckpoints(tmp_path / "c").save(1, model(1), {"loss": value})
    with pytest.raises(ValueError, match="plain JSON"):
        SiteState(tmp_path / "s").save(1, {}, {"loss": value})
    assert list(tmp_path.iterdir()) == []


def site_tensors():
    base = torch.arange(6, dtype=torch.float32)
    return {
        "half": torch.randn(3).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "double": torch.tensor(0.1, dtype=torch.float64),
        "count": torch.tensor(12),
        "small": torch.tensor([-3, 4], dtype=torch.int8),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "transposed": base.reshape(2, 3).T,
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "tied": base,
        "tied_too": base,
        "learned": torch.ones(2, requires_grad=True),
    }


def test_a_sites_state_comes_back_bit_for_bit(tmp_path):
    tensors, meta = site_tensors(), {"epochs": 3, "steps": {"a": [1, 2.5, None]}}
    SiteState(tmp_path / "run").save(4, tensors, meta)
    loaded = SiteState(tmp_path / "run").load_before(5)
    assert loaded is not None
    assert loaded[1] == meta
    assert loaded[0].keys() == tensors.keys()
    for name, values in loaded[0].items():
        assert values.dtype == tensors[name].dtype
        assert values.shape == tensors[name].shape
        assert torch.equal(values, tensors[name].detach())
        values.zero_()  # writable, and nobody else's
    assert torch.equal(SiteState(tmp_path / "run").load_before(5)[0]["tied"], tensors["tied"])


def value_before(state, number):
    loaded = state.load_before(number)
    return None if loaded is None else loaded[1]["value"]


def test_a_round_starts_from_the_state_before_it_also_the_second_time(tmp_path):
    state = SiteState(tmp_path)
    assert value_before(state, 1) is None
    for number in (1, 2, 3):
        state.save(number, {"m": torch.ones(2)}, {"value": number})
    assert value_before(state, 4) == 3
    assert value_before(state, 3) == 2
    assert value_before(state, 2) is None
    state.save(3, {"m": torch.ones(2)}, {"value": 33})
    assert value_before(state, 4) == 33
    assert value_before(state, 3) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_00002.safetensors", "round_00003.safetensors"]


def test_rounds_may_be_missed_and_a_course_that_was_given_up_is_dropped(tmp_path):
    state = SiteState(tmp_path)
    state.save(2, {}, {"value": 2})
    state.save(6, {}, {"value": 6})
    state.save(7, {}, {"value": 7})
    assert value_before(state, 20) == 7
    state.save(6, {}, {"value": 66})
    assert value_before(state, 20) == 66


def test_the_state_of_the_best_round_is_kept_also_when_the_site_missed_it(tmp_path):
    """States of rounds 2, 3 and 5 to 7; the best round is 4, whose state at this site is that of round 3."""
    state = SiteState(tmp_path)
    for number in (2, 3, 5, 6, 7):
        state.save(number, {}, {"value": number}, keep=4 if number > 4 else 1)
    assert [value_before(state, number) for number in (5, 7, 8)] == [3, 6, 7]
    assert len(list(tmp_path.iterdir())) == 3
    state.save(8, {}, {"value": 8}, keep=7)
    assert value_before(state, 7) is None


@pytest.mark.parametrize("position", [-1, -9, 0, 20, 60, 200])
def test_a_damaged_state_is_passed_over(tmp_path, position):
    state = SiteState(tmp_path)
    for number in (1, 2):
        state.save(number, {"m": torch.full((4,), float(number))}, {"value": number})
    damage(tmp_path / "round_00002.safetensors", position)
    assert value_before(state, 3) == 1
    assert "round_00002.safetensors is damaged" in state.problems[0]
    os.truncate(tmp_path / "round_00001.safetensors", 20)
    assert value_before(state, 3) is None
    assert len(state.problems) == 2


def test_a_state_under_another_rounds_name_is_not_taken(tmp_path):
    state = SiteState(tmp_path)
    path = state.save(1, {}, {"value": 1})
    path.rename(tmp_path / "round_00002.safetensors")
    assert value_before(state, 3) is None


@pytest.mark.parametrize("num_steps", range(3))
def test_a_crash_while_a_state_is_saved_leaves_the_older_one(tmp_path, monkeypatch, num_steps):
    state = SiteState(tmp_path)
    for number in (1, 2):
        state.save(number, {"m": torch.ones(2)}, {"value": number})
    with monkeypatch.context() as patch:
        kill_after(patch, num_steps)
        with pytest.raises(Crash):
            state.save(2, {"m": torch.zeros(2)}, {"value": 22})
    (tmp_path / ".round_00002.safetensors.1-2.partial").write_bytes(b"half")
    assert value_before(state, 3) in (2, 22)
    assert value_before(state, 2) == 1
    state.save(3, {}, {"value": 3})
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_at_a_site(tmp_path, monkeypatch):
    fail_at(monkeypatch, "fsync", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CheckpointError, match="disk is full"):
        SiteState(tmp_path).save(1, {"m": torch.ones(2)}, {})
