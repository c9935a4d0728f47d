"""What the round loop must remember from round to round; part of every checkpoint, as JSON."""

from pydantic import Field, JsonValue

from fedmed.aggregation import GlobalModel, RuleState
from fedmed.storage.checkpoints import MODEL_FILE, MOMENTS_FILE, RunCheckpoints
from fedmed.storage.history import RoundRecord, Stored


class LoopState(Stored):
    """The state after a round; of the model there are only figures here."""

    best_round: int | None = None
    best_value: float | None = None
    recent_norms: list[float] = Field(default_factory=list)
    """Lengths of the newest accepted updates."""
    missed: dict[str, int] = Field(default_factory=dict)
    """Site to rounds that it has missed in a row."""
    record: RoundRecord | None = None
    """The round itself."""
    audit_head: str | None = None
    fair: RuleState = Field(default_factory=dict)
    """What the rule of ``aggregation.fair`` remembers."""

    def to_json(self) -> dict[str, JsonValue]:
        """Return all of it as JSON."""
        whole = self.model_copy(update={name: getattr(self, name) for name in type(self).model_fields})
        return super(LoopState, whole).to_json()


def save_checkpoint(
    checkpoints: RunCheckpoints, round_number: int, model: GlobalModel, state: LoopState
) -> GlobalModel:
    """Save a round whose model is a tensor file already, and return it where it is in the checkpoint."""
    folder = checkpoints.save(
        round_number, model.model, state.to_json(), best_round=state.best_round, moments=model.moments
    )
    return GlobalModel(folder / MODEL_FILE, None if model.moments is None else folder / MOMENTS_FILE)
