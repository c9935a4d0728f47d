"""How often a run has used a hospital, counted by the hospital itself: a server can claim anything.

::

    state_dir/runs/RUN_ID/counts.json   {"study": …, "tested": [SHA-256 of a model, …], "trained": 3}
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from client.guard.policy import Refusal
from client.guard.requests import Request
from fedmed.config.client import PolicyConfig
from fedmed.errors import RunFolderError
from fedmed.protocol.kinds import KINDS
from fedmed.storage.atomic_files import write_atomically

COUNTS_FILE = "counts.json"
MAX_TESTED_MODELS = 3
"""Different models of a run whose test tables may leave: the chosen one, the one that it was distilled from, and a
little for runs that were stopped."""
MAX_COMPARED = 5
"""Different artefacts of a run that may be compared on test images; it is made anew after a crash at a bad moment."""
MAX_RUNS = 100
"""Runs of a study."""
_SPARE_SHARE, _SPARE_ROUNDS = 0.2, 3
"""More updates than rounds that leave, since a round is repeated when the server was started anew in it."""


@dataclass(frozen=True)
class Counts:
    """What has left the site in a run."""

    study: str | None
    """As the server names it."""
    trained: int = 0
    """Updates, sums of BatchNorm's inputs, and sums for the temperature."""
    tested: tuple[str, ...] = ()
    """Hashes of the models whose test tables were sent, or whose forms were compared."""
    compared: tuple[str, ...] = ()
    """Hashes of the artefacts that were compared with their model."""


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

    def check(self, request: Request, model_sha256: str | None) -> list[Refusal]:
        """Return refusals for a request that would go beyond what a run may have of this site.

        Parameters
        ----------
        request : Request
            Of a run with a name; nothing else is answered with more than the site's description.
        model_sha256 : str, optional
            The model that it is about.
        """
        counted_as = KINDS[request.kind].counted_as
        if counted_as is None or not request.plan.run_id:
            return []
        counts = self._read(self._runs / request.plan.run_id / COUNTS_FILE)
        if counts is None:
            return self._check_runs(request)
        if counted_as == "trained":
            return self._check_trained(counts)
        refusals = _check_tested(counts, _list_tested(request, model_sha256))
        return refusals + (_check_compared(counts, request) if counted_as == "compared" else [])

    def note(self, request: Request, model_sha256: str | None) -> None:
        """Count an answer that is about to leave; it is on the disk when this returns.

        Parameters
        ----------
        request : Request
            What is answered with more than words.
        model_sha256 : str, optional
            The model that was tested.
        """
        path = self._runs / request.plan.run_id / COUNTS_FILE
        old = self._read(path) or Counts(request.plan.study)
        tested = _list_tested(request, model_sha256)
        new = Counts(
            study=old.study,
            trained=old.trained + (KINDS[request.kind].counted_as == "trained"),
            tested=tuple(dict.fromkeys([*old.tested, *tested])),
            compared=tuple(dict.fromkeys([*old.compared, *filter(None, [request.artefact_sha256])])),
        )
        if new != old or not path.is_file():
            write_atomically(path, json.dumps(asdict(new), sort_keys=True).encode())

    def _check_trained(self, counts: Counts) -> list[Refusal]:
        most = self._policy.max_rounds + math.ceil(_SPARE_SHARE * self._policy.max_rounds) + _SPARE_ROUNDS
        if counts.trained < most:
            return []
        advice = "The run has had all its rounds here, with those that were repeated; end it, or begin a new one."
        return [Refusal("max_rounds", f"{counts.trained} updates sent in this run", f"up to {most}", advice)]

    def _check_runs(self, request: Request) -> list[Refusal]:
        """Refuse a new run after too many; where the policy names no study, the server could name one for each."""
        known = [self._read(path) for path in self._runs.glob(f"*/{COUNTS_FILE}")]
        named = self._policy.study is not None
        number = sum(counts is not None and (counts.study == request.plan.study or not named) for counts in known)
        if number < MAX_RUNS:
            return []
        advice = "At the site, remove what finished federations have left with flower-client --forget."
        return [Refusal("study", f"a new run after {number} runs", f"up to {MAX_RUNS}", advice)]

    @staticmethod
    def _read(path: Path) -> Counts | None:
        try:
            values = json.loads(path.read_bytes())
            tested, compared = tuple(map(str, values["tested"])), tuple(map(str, values.get("compared", ())))
            return Counts(values["study"], int(values["trained"]), tested, compared)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            # To begin anew would make the limits void.
            raise RunFolderError(
                f"{path}, in which this site counts what a run has had of it, cannot be read ({type(error).__name__}). "
                "Nothing more is sent in this run; look who changed the file, and move its folder away to begin anew."
            ) from error


def _list_tested(request: Request, model_sha256: str | None) -> list[str]:
    """Return the hashes of the models whose test tables a request is about."""
    if request.part != "test" or model_sha256 is None:
        return []
    return [model_sha256] if request.other is None else [model_sha256, request.other.sha256]


def _check_tested(counts: Counts, models: list[str]) -> list[Refusal]:
    if not set(models) - set(counts.tested) or len({*counts.tested, *models}) <= MAX_TESTED_MODELS:
        return []
    found = f"a test of one more model after {len(counts.tested)} in this run"
    advice = "Test images are for the chosen model only; the federation can go on without this test."
    return [Refusal("test_tables", found, f"up to {MAX_TESTED_MODELS} different models", advice)]


def _check_compared(counts: Counts, request: Request) -> list[Refusal]:
    if request.artefact_sha256 in counts.compared or len(counts.compared) < MAX_COMPARED:
        return []
    found = f"a comparison of one more artefact after {len(counts.compared)} in this run"
    advice = "The model can be released without this site's comparison."
    return [Refusal("test_tables", found, f"up to {MAX_COMPARED} different artefacts", advice)]
