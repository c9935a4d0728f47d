"""Which plans a person at this site has approved.

::

    state_dir/approved_plans.json   {"format": 1, "plans": [{"sha256": …, "plan": {…}, "approved": …, "number": 1,
                                     "has_answered": false}, …]}

The file is read at every message, so that a running flower-client goes on as soon as somebody has approved. A run has
one approved plan: who approves another plan of the same run takes the first one back. What was asked so far goes on
counting, whichever plan of the run is approved, or else a server could have everything answered twice. Plans of a small
network are not approved one by one: they follow from the plan of the trained network.
"""

import fcntl
import json
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedmed.config import Plan, make_distil_plan, make_student_plan
from fedmed.errors import FormatError, RunFolderError, tame
from fedmed.formats import APPROVALS
from fedmed.processes import private_folder, write_secret
from fedmed.protocol.foreseen import Network

APPROVALS_FILE = "approved_plans.json"
NOT_APPROVED = "this site has not approved the plan"
"""Begins the line about it, on both sides."""
LONGEST_NAME = 100
_BY_SETTINGS = "policy.approved_plan in client.yaml"
_MOST_PLANS = 50
"""The oldest approvals beyond are taken back."""


class Approval(BaseModel):
    """One plan that this site has approved."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    """Of :func:`fedmed.config.plan_hash`."""
    plan: Plan
    approved: str
    """When, in UTC, by the clock of this machine."""
    user: str | None = None
    """Of the operating system, who typed it; not known of earlier approvals."""
    name: str | None = None
    """Who approves, as typed after ``--name``."""
    number: int = Field(1, ge=1)
    """Rises where a person wants that what was asked in the run is counted anew."""
    has_answered: bool = False
    """Whether anything that is counted has left since; its ledger must be there then."""

    def find_network(self, plan: Plan) -> Network | None:
        """Return which of the approved plan's networks another plan is about; None if it does not follow from it."""
        sought = plan.sha256
        if sought == self.sha256:
            return "trained"
        if self.plan.student is None:
            return None
        if sought == make_student_plan(self.plan).sha256:
            return "small"
        is_trained_there = self.plan.student.kind == "co_distillation"
        return "distilled" if is_trained_there and sought == make_distil_plan(self.plan).sha256 else None

    @property
    def by(self) -> str:
        """Who has approved, in words for the site."""
        words = [tame(self.name, LONGEST_NAME)] if self.name is not None else []
        words += [f"user {tame(self.user, LONGEST_NAME)}"] if self.user is not None else []
        return ", ".join(words) or "nobody who is recorded"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int = APPROVALS.number
    plans: list[Approval] = []


class Approvals:
    """The approved plans of a state folder.

    Parameters
    ----------
    state_dir : Path
        The folder.
    from_settings : str, optional
        Hash that ``policy.approved_plan`` in ``client.yaml`` names: this plan is approved without a further word, and
        no other one is.
    """

    def __init__(self, state_dir: Path, from_settings: str | None = None) -> None:
        self._file, self._from_settings = state_dir / APPROVALS_FILE, from_settings

    def find(self, plan: Plan) -> Approval | None:
        """Return the approval that a plan rests on, its own or that of the trained network; None if there is none.

        Raises
        ------
        RunFolderError
            If the file cannot be read or written.
        """
        named = self._from_settings
        known = [one for one in self.read() if named is None or one.sha256 == named]
        found = next((one for one in known if one.find_network(plan) is not None), None)
        return self.add(plan, name=_BY_SETTINGS) if found is None and plan.sha256 == named else found

    def read(self) -> list[Approval]:
        """Return all approvals, the newest last.

        Raises
        ------
        RunFolderError
            If the file cannot be read.
        """
        # A plan of an earlier version of fedmed, which knew fewer settings, is another one now.
        return [one for one in self._read_all() if one.plan.sha256 == one.sha256]

    def _read_all(self) -> list[Approval]:
        try:
            content = _File.model_validate_json(self._file.read_bytes())
            APPROVALS.check(content.format, self._file)
        except FileNotFoundError:
            return []
        except (OSError, ValidationError, ValueError, RecursionError, FormatError) as error:
            raise RunFolderError(
                f"{self._file}, in which this site keeps which plans it has approved, cannot be read "
                f"({type(error).__name__}). Nothing is answered without it. Look who changed the file, move it away, "
                "and approve the plan again with flower-client --approve."
            ) from error
        return content.plans

    def find_of_run(self, run_id: str) -> Approval | None:
        """Return the approval of a run, whatever its plan is now."""
        return next((one for one in self.read() if one.plan.run_id == run_id), None)

    def add(self, plan: Plan, *, again: bool = False, name: str | None = None) -> Approval:
        """Approve a plan, and take back what was approved of the same run; its counts go on.

        Parameters
        ----------
        plan : Plan
            Of the trained network.
        again : bool
            Whether what was asked in the run so far is to be counted anew.
        name : str, optional
            Who approves.
        """
        with self._locked():
            known = self._read_all()
            before = next((one for one in reversed(known) if one.plan.run_id == plan.run_id), None)
            if before is not None and before.sha256 == plan.sha256 and not again:
                return before
            number = max(1 if before is None else before.number, self._find_number(plan.run_id))
            new = Approval(
                sha256=plan.sha256,
                plan=plan,
                approved=datetime.now(UTC).isoformat(timespec="seconds"),
                user=_find_user(),
                name=name,
                number=number + again,
                has_answered=before is not None and before.has_answered and not again,
            )
            self._write([*(one for one in known if one.plan.run_id != plan.run_id), new])
            return new

    def note_answer(self, approval: Approval) -> None:
        """Write down that something that is counted leaves under an approval."""
        if approval.has_answered:
            return
        with self._locked():
            known = self._read_all()
            self._write([one.model_copy(update={"has_answered": True}) if one == approval else one for one in known])

    def _find_number(self, run_id: str) -> int:
        """Return the number that a run's ledger has, which a new list of approvals does not know; 1 if there is none.

        The ledger itself is read in :mod:`client.guard.ledger`.
        """
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            return int(json.loads((self._file.parent / "runs" / run_id / "ledger.json").read_bytes())["number"])
        return 1

    def _write(self, plans: list[Approval]) -> None:
        content = _File(plans=plans[-_MOST_PLANS:])
        write_secret(self._file, json.dumps(content.model_dump(mode="json"), indent=1).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep the guard and a person who approves from writing at the same time."""
        private_folder(self._file.parent)
        descriptor = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _find_user() -> str:
    """Return the operating system's name of who runs this process, which no environment variable changes."""
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # as in a container
        return str(number)
