"""What a run has had of a hospital, counted by the hospital itself: a server can claim anything.

::

    state_dir/runs/RUN_ID/ledger.json   {"format": 1, "study": …, "plan": SHA-256, "number": 1, "stage": 1,
                                         "slots": {"train": {"times": 3, "round": 3, "requests": {KEY: [3, 1], …}}, …}}

A *slot* is a phase of :data:`fedmed.protocol.kinds.KINDS` and, where they are counted apart, a network. A plan foresees
a number of different requests for each, one after the other: rounds go forward, and each is about one model. The same
request may come again a few times, since a server or a site may be stopped at any moment. The file is on the disk
before an answer leaves.
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.guard.approvals import Approval
from client.guard.policy import Refusal
from client.guard.requests import Request
from fedmed.config.client import PolicyConfig
from fedmed.errors import FormatError, RunFolderError
from fedmed.formats import LEDGER
from fedmed.protocol.foreseen import Network, Ration
from fedmed.protocol.kinds import KINDS, Phase
from fedmed.storage.atomic_files import encode_json, write_atomically

LEDGER_FILE, OLD_COUNTS_FILE = "ledger.json", "counts.json"
MAX_RUNS = 100
"""Runs of a study."""
ROUNDS_KEPT = 20
"""Newest rounds of which a request is known again; an older one is refused as one that goes back."""
_KEY_DIGITS = 32
_AGAIN = (
    "Was the coordinating site restored to an earlier state, or is more asked for than the approved plan says? If that "
    "is right, a person at this site types flower-client --approve --again, after which it is counted anew."
)


class _Slot(BaseModel):
    """What was answered of one kind."""

    model_config = ConfigDict(extra="forbid")

    times: int = Field(0, ge=0)
    """Different requests so far."""
    round: int = Field(0, ge=0)
    """The newest one's."""
    requests: dict[str, tuple[int, int]] = {}
    """By key: round, and how often it was answered."""


class _Content(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")

    format: int = LEDGER.number
    study: str
    plan: str
    """Hash of the plan under which something was answered last."""
    number: int
    """Of the approval; counts go on under another plan of the run while this stays."""
    stage: int = 0
    """How far the run has come, see :class:`fedmed.protocol.foreseen.Ration`."""
    slots: dict[str, _Slot] = {}


class Ledger:
    """The counts of all runs.

    Parameters
    ----------
    runs : Path
        ``state_dir/runs``.
    policy : PolicyConfig
        What the site allows.
    """

    def __init__(self, runs: Path, policy: PolicyConfig) -> None:
        self._runs, self._policy = runs, policy

    def check(self, request: Request, approval: Approval, network: Network, model_sha256: str | None) -> list[Refusal]:
        """Return refusals for a request that goes beyond what the approved plan foresees.

        Parameters
        ----------
        request : Request
            What is asked for.
        approval : Approval
            The plan that it rests on.
        network : {"trained", "both", "small", "distilled"}
            Which of the plan's networks it is about.
        model_sha256 : str, optional
            The model that it is about.

        Raises
        ------
        RunFolderError
            If what this site has answered so far cannot be read.
        """
        phase = _find_phase(request)
        if phase.ration.times(approval.plan, network) is None:
            return []
        content = self._read(approval)
        if not content.slots:
            refused = self._check_runs(request)
            if refused:
                return refused
        problem = _find_problem(content, request, approval, network, make_key(request, model_sha256))
        return [] if problem is None else [Refusal("approved_plan", *problem)]

    def note(self, request: Request, approval: Approval, network: Network, model_sha256: str | None) -> bool:
        """Count an answer that is about to leave; it is on the disk when this returns.

        Returns
        -------
        bool
            Whether it is one that is counted.
        """
        phase = _find_phase(request)
        if phase.ration.times(approval.plan, network) is None:
            return False
        content, key = self._read(approval), make_key(request, model_sha256)
        slot = content.slots.setdefault(_name_slot(phase, network), _Slot())
        number, times = slot.requests.get(key, (request.round, 0))
        slot.requests[key] = (number, times + 1)
        slot.times += times == 0
        slot.round = max(slot.round, request.round)
        slot.requests = {name: one for name, one in slot.requests.items() if one[0] > slot.round - ROUNDS_KEPT}
        content.stage = max(content.stage, _find_stage(phase.ration, network) or 0)
        self._write(content, approval)
        return True

    def begin(self, approval: Approval) -> None:
        """Begin as after the rounds, for ``--check``, which tries every kind of request once."""
        self._write(
            _Content(study=approval.plan.study, plan=approval.sha256, number=approval.number, stage=1), approval
        )

    def _write(self, content: _Content, approval: Approval) -> None:
        path = self._runs / approval.plan.run_id / LEDGER_FILE
        write_atomically(path, json.dumps(content.model_dump(mode="json"), sort_keys=True).encode())

    def _check_runs(self, request: Request) -> list[Refusal]:
        """Refuse a new run after too many; where the policy names no study, the server could name one for each."""
        named = self._policy.study is not None
        known = {
            path.parent.name: _read_study(path)
            for name in (OLD_COUNTS_FILE, LEDGER_FILE)
            for path in self._runs.glob(f"*/{name}")
            if path.parent.name != request.plan.run_id
        }
        number = sum(study in {request.plan.study, None} or not named for study in known.values())
        if number < MAX_RUNS:
            return []
        advice = "At the site, remove what finished federations have left with flower-client --forget."
        return [Refusal("study", f"a new run after {number} runs", f"up to {MAX_RUNS}", advice)]

    def _read(self, approval: Approval) -> _Content:
        """Return what a run was answered, under whatever plan; nothing where a person wants it counted anew."""
        new = _Content(study=approval.plan.study, plan=approval.sha256, number=approval.number)
        path = self._runs / approval.plan.run_id / LEDGER_FILE
        try:
            content = _Content.model_validate_json(path.read_bytes())
            LEDGER.check(content.format, path)
        except FileNotFoundError:
            content = new.model_copy(update={"number": 0})
        except (OSError, ValidationError, ValueError, RecursionError, FormatError) as error:
            if approval.number > 1 and not approval.has_answered:  # what it counts is to be counted anew
                return new
            # To begin anew would make the limits void.
            raise RunFolderError(
                f"{path}, in which this site counts what a run has had of it, cannot be read ({type(error).__name__}). "
                "Nothing more is sent in this run; look who changed the file, and put it back from a backup. Or "
                "approve the plan anew with flower-client --approve --again."
            ) from error
        if content.number >= approval.number:  # the list of approvals may have been begun anew
            return content.model_copy(update={"plan": approval.sha256})
        if not approval.has_answered:
            return new
        raise RunFolderError(
            f"{path}, in which this site counts what a run has had of it, is missing or of another approval. Nothing "
            "more is sent in this run; look who removed the file, and put it back from a backup. Or approve the plan "
            "anew with flower-client --approve --again."
        )


def _read_study(path: Path) -> str | None:
    """Return the study of another run; None if that cannot be read, so that it counts in any case."""
    try:
        return str(json.loads(path.read_bytes())["study"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def make_key(request: Request, model_sha256: str | None) -> str:
    """Return what tells different requests apart: the same key is the same request, which has the same answer."""
    about = {
        "phase": _find_phase(request).name,
        "round": request.round,
        "plans": [plan.sha256 for plan in request.plans],
        "models": [model_sha256, None if request.other is None else request.other.sha256],
        "temperature": request.temperature,
        **({} if request.alert_threshold is None else {"alert_threshold": request.alert_threshold}),
        "compare": sorted(request.compare),
        "group_weights": dict(request.group_weights),
        "artefact": request.artefact_sha256,
        "distil": None if request.distil is None else request.distil.to_values(),
    }
    return hashlib.sha256(encode_json(about).encode()).hexdigest()[:_KEY_DIGITS]


Problem = tuple[str, str, str]
"""What was found, what is allowed, and what to do."""


def _find_problem(
    content: _Content, request: Request, approval: Approval, network: Network, key: str
) -> Problem | None:
    """Return why a request goes beyond the plan; None if it does not."""
    phase = _find_phase(request)
    most, what = phase.ration.times(approval.plan, network) or 0, _describe(phase, network, request)
    slot = content.slots.get(_name_slot(phase, network), _Slot())
    if not most:
        return f"a request for {what}", "what the approved plan foresees, which has none", _AGAIN
    if key in slot.requests:
        repeats, times = phase.ration.repeats(approval.plan), slot.requests[key][1]
        if times <= repeats:
            return None
        return f"the same request for {what} after {times} answers", f"once, and {repeats} repetitions", _AGAIN
    return _find_backward_step(content, request, network) or (
        None
        if slot.times < most
        else (f"one more request for {what} after {slot.times}", f"{most} in this run", _AGAIN)
    )


def _find_backward_step(content: _Content, request: Request, network: Network) -> Problem | None:
    """Return why a new request does not follow those that were answered."""
    phase = _find_phase(request)
    stage, what = _find_stage(phase.ration, network), _describe(phase, network, request)
    if stage is not None and stage < content.stage:
        return f"a new request for {what} after the run's end has begun", "what comes after it", _AGAIN
    if stage is not None and stage > 1 and not content.stage:
        advice = (
            "This site has neither trained nor scored a model of this run yet. The federation can go on without it."
        )
        return f"a request for {what} before any round", "the rounds come first", advice
    if stage != 1 and network != "distilled":
        return None
    newest = _find_newest(content, phase, network)
    if request.round > newest:
        return None
    other = "another model or other settings than before" if request.round == newest else f"a step back from {newest}"
    return f"{what}, {other}", "rounds in their order, and one model in each", _AGAIN


def _find_newest(content: _Content, phase: Phase, network: Network) -> int:
    """Return the round that a new request must be above."""
    slot = content.slots.get(_name_slot(phase, network), _Slot())
    if phase.name == "evaluate":  # the model of a round is scored after its training
        return max(slot.round, content.slots.get("train", _Slot()).round - 1)
    if phase.name == "train":
        return max(slot.round, content.slots.get("evaluate", _Slot()).round)
    return slot.round


def _find_phase(request: Request) -> Phase:
    phase = KINDS[request.kind].find_phase(request.part)
    assert phase is not None, "the request's part was checked when it was read"
    return phase


def _name_slot(phase: Phase, network: Network) -> str:
    return phase.name if phase.ration.shared or network == "trained" else f"{phase.name}, {network}"


def _find_stage(ration: Ration, network: Network) -> int | None:
    """Return the place in a run; both networks are compared after all rounds."""
    return 2 if network == "both" else ration.stage


def _describe(phase: Phase, network: Network, request: Request) -> str:
    beside = {"both": " of both networks", "small": " of the small network"}.get(network, "")
    return f"{phase.title}{beside} (round {request.round})"


def read_progress(runs: Path, approval: Approval) -> str:
    """Return what the run of an approval was answered so far, for people."""
    path = runs / approval.plan.run_id / LEDGER_FILE
    try:
        content = _Content.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, ValueError, RecursionError):
        return "nothing that can be read" if approval.has_answered else "nothing"
    if content.number < approval.number:
        return "nothing"
    return ", ".join(f"{name} {slot.times} times" for name, slot in content.slots.items()) or "nothing"
