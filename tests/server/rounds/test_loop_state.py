"""What the round loop remembers, as a checkpoint holds it."""

from pathlib import Path

import numpy as np

from fedmed.aggregation import GlobalModel
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.storage.history import RoundRecord
from server.rounds.loop_state import LoopState, save_checkpoint
from tests.aggregation.support.updates import write_update

OLD = {
    "best_round": 2, "best_value": 0.5, "recent_norms": [1.5, 2.0], "missed": {"a": 1}, "record": {"round": 3},
    "audit_head": "ab", "fair": {"weights": {"f": 0.25, "m": 0.75}, "images": {"f": 20, "m": 20}},
}  # fmt: skip


def test_a_state_of_version_1_is_opened() -> None:
    state = LoopState.model_validate(OLD)
    assert (state.best_round, state.best_value, state.record) == (2, 0.5, RoundRecord(round=3))
    assert state.fair["weights"]["m"] == 0.75
    assert state.to_json() == OLD


def test_a_state_is_saved_whole_and_comes_back(tmp_path: Path) -> None:
    """What was not set is there as well; what a later version adds stays."""
    model = GlobalModel(write_update(tmp_path, "model", {"w": np.float32([1.0])}).path)
    state = LoopState.model_validate({"missed": {"a": 2}, "later": 5})
    checkpoints = RunCheckpoints(tmp_path / "checkpoints")
    saved = save_checkpoint(checkpoints, 1, model, state)
    assert saved == GlobalModel(checkpoints.load(1).model_path, None)
    kept = checkpoints.load(1).state
    assert kept == {
        "best_round": None, "best_value": None, "recent_norms": [], "missed": {"a": 2}, "record": None,
        "audit_head": None, "fair": {}, "later": 5,
    }  # fmt: skip
    assert LoopState.model_validate(kept) == state
