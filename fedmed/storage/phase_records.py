"""What the phases after the rounds leave, so that a resumed run goes on behind them."""

import json
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import JsonValue

from fedmed.storage.atomic_files import hash_file
from fedmed.storage.checkpoints import MODEL_FILE

RECORD_FILE = "record.json"


class FittedTemperature(TypedDict):
    """By what the outputs of the chosen model are divided before the softmax, and how that was found."""

    temperature: float
    n: int
    """Validation images."""
    nll_before: float
    """Mean negative log-likelihood of an image without the temperature."""
    nll_after: float


class SiteRound(TypedDict):
    """A round of a distillation at the sites."""

    round: int
    train_loss: float | None
    sites: list[str]
    seconds: float


class PhaseResult(TypedDict):
    """What a phase has done; which of it there is depends on the phase."""

    round: NotRequired[int]
    seconds: NotRequired[float]
    phases: NotRequired[dict[str, float]]
    """Seconds by part of the phase."""
    target: NotRequired[str]
    members: NotRequired[list[str] | None]
    num_proxy_images: NotRequired[int | None]
    not_copied: NotRequired[list[str] | None]
    history: NotRequired[list[dict[str, float]] | list[SiteRound]]
    """Evaluations of a distillation at the server, rounds of one at the sites."""
    best_step: NotRequired[int | None]
    explored: NotRequired[dict[str, JsonValue] | None]
    mismatch: NotRequired[float | None]
    notes: NotRequired[list[str]]


class PhaseRecord(PhaseResult):
    """Content of ``record.json``: from which model, to which."""

    from_sha256: str
    model_sha256: str


class NetworkSize(TypedDict):
    """How large a network is in train form, and merged as it is deployed (float32), where it can be merged."""

    name: str
    parameters: int
    bytes: int
    deployed_parameters: int | None
    deployed_mib: float | None


class EarlierDistillation(TypedDict):
    """A distillation between the rounds."""

    round: int
    seconds: float
    agreement: float | None


class Distance(TypedDict):
    """How far proxy images and the sites' own are from the statistics of the network that was trained."""

    proxy: float
    sites: float
    warning: str | None


class Judgement(TypedDict):
    """What was decided about a compact network, and all numbers that it rests on."""

    kind: str
    status: str
    """``accepted``, ``rejected`` or ``skipped``."""
    reason: str
    phases: NotRequired[dict[str, float]]
    """Seconds by phase."""
    distilled: NotRequired[dict[str, JsonValue]]
    earlier: NotRequired[list[EarlierDistillation]]
    distance: NotRequired[Distance | None]
    decision: NotRequired[dict[str, JsonValue]]
    limits: NotRequired[dict[str, JsonValue]]
    gate_sites: NotRequired[list[str]]
    sizes: NotRequired[dict[str, NetworkSize]]
    model: NotRequired[dict[str, JsonValue]]
    """Name and options of the compact network; this and the following only where it was judged."""
    model_file: NotRequired[str]
    """In the run's folder."""
    model_sha256: NotRequired[str]


class Compression(Judgement):
    """Content of ``compression.json``: the judgement, and about which network."""

    round: NotRequired[int]
    from_sha256: str
    """Of the network that was trained."""


def find_recalibrated(folder: Path, model_sha256: str) -> tuple[Path, str] | None:
    """Return the recalibrated form of a model and its SHA-256, None if there is none or it is damaged.

    Parameters
    ----------
    folder : Path
        The run's folder ``recalibrated``.
    model_sha256 : str
        Of the model before.
    """
    record = read_record(folder, model_sha256)
    return None if record is None else (folder / MODEL_FILE, str(record["model_sha256"]))


def read_record(folder: Path, from_sha256: str) -> PhaseRecord | None:
    """Return the record of a phase that is done, None if it is not, was done from another model, or is damaged."""
    try:
        record: PhaseRecord = json.loads((folder / RECORD_FILE).read_bytes())
        if record["from_sha256"] == from_sha256 and record["model_sha256"] == hash_file(folder / MODEL_FILE):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
