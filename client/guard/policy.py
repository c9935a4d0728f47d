"""What a site allows: the section ``policy`` of ``client.yaml`` against what the server asks for.

Pure checks without side effects; :mod:`client.guard.guard` makes them binding.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path

from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.errors import PolicyError, tame
from fedmed.extensions import is_path
from fedmed.models import list_models

GIB, MIB = 2**30, 2**20
_SPAN = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")


@dataclass(frozen=True)
class Refusal:
    """One thing that goes beyond the policy."""

    key: str
    """Of ``policy`` in ``client.yaml``; several words for what no setting changes."""
    found: str
    allowed: str
    advice: str

    @property
    def name(self) -> str:
        """The key as it stands in ``client.yaml``, or these words."""
        return self.key if " " in self.key else f"policy.{self.key}"

    def __str__(self) -> str:
        return f"{self.name}: found {self.found}, allowed {self.allowed}. {self.advice}"


def refuse(refusals: Iterable[Refusal]) -> None:
    """Raise an error if there is anything to refuse.

    Raises
    ------
    PolicyError
        Naming each key, what was found and what is allowed.
    """
    texts = [str(refusal) for refusal in refusals]
    if texts:
        raise PolicyError("The site's policy refuses this request. " + " ".join(texts))


def check_plan(policy: PolicyConfig, plan: Plan) -> list[Refusal]:
    """Return what in a plan goes beyond a policy, in the order of the policy's keys."""
    models = sorted(policy.models) if policy.models is not None else list_models()
    is_extension = policy.models is None and is_path(plan.model.name)  # see client.guard.outside_code
    epochs, download = plan.training.epochs_per_round, _find_download(plan)
    refused = {
        "study": policy.study is not None and plan.study != policy.study,
        "approval": policy.approval is not None and plan.approval != policy.approval,
        "models": plan.model.name not in models and not is_extension,
        "max_rounds": plan.rounds > policy.max_rounds,
        "max_epochs_per_round": epochs > policy.max_epochs_per_round,
        "allow_download": download is not None and not policy.allow_download,
    }
    told = {
        "study": (_quote(plan.study), _quote(policy.study), "study.id"),
        "approval": (_quote(plan.approval), _quote(policy.approval), "study.approval"),
        "models": (_quote(plan.model.name), ", ".join(models) or "none", "model.name"),
        "max_rounds": (f"{tame(str(plan.rounds), 30)} rounds", f"up to {policy.max_rounds}", "rounds"),
        "max_epochs_per_round": (
            f"{tame(str(epochs), 30)} epochs in a round",
            f"up to {policy.max_epochs_per_round}",
            "training.epochs_per_round",
        ),
        "allow_download": (
            f"the teacher {_quote(download)}, which torchvision downloads from the internet",
            "no download at this site",
            "fopro.teacher to a packaged one or to a file (teacher_file in the site's client.yaml)",
        ),
    }
    return [
        Refusal(key, found, allowed, f"Change {setting} in server.yaml, or the policy in the site's client.yaml.")
        for key, (found, allowed, setting) in told.items()
        if refused[key]
    ]


def check_test(policy: PolicyConfig, part: str | None) -> list[Refusal]:
    """Return a refusal if tables of the test images are asked for and may not leave."""
    if part != "test" or policy.test_tables:
        return []
    advice = "The federation can go on without this site's test figures, or the site changes its client.yaml."
    return [Refusal("test_tables", "a request for tables of the test images", "no such tables", advice)]


def check_hours(policy: PolicyConfig, now: datetime) -> list[Refusal]:
    """Return a refusal if the site may not begin to train at this local time.

    A span whose end is not after its beginning goes over midnight; its first minute belongs to it, its last does not.
    """
    if policy.hours is None or any(_is_within(span, now.time()) for span in policy.hours):
        return []
    advice = "The site trains at these hours of its local time and is asked again in the next round."
    return [Refusal("hours", f"{now:%H:%M}", ", ".join(policy.hours) or "no time", advice)]


def check_disk(policy: PolicyConfig, state_dir: Path) -> list[Refusal]:
    """Return a refusal if the state folder takes more space than it may."""
    used = measure_folder(state_dir) / GIB
    if used <= policy.max_disk_gib:
        return []
    advice = "At the site, remove what finished federations have left with flower-client --forget, or allow more."
    return [Refusal("max_disk_gib", f"{used:.2f} GiB in the state folder", f"up to {policy.max_disk_gib:g}", advice)]


def check_size(policy: PolicyConfig, num_bytes: int) -> list[Refusal]:
    """Return a refusal if a message is larger than it may be."""
    if num_bytes <= policy.max_message_mib * MIB:
        return []
    found = f"a message of {num_bytes / MIB:.1f} MiB"
    advice = "Choose a smaller model in server.yaml, or have the site allow larger messages in its client.yaml."
    return [Refusal("max_message_mib", found, f"up to {policy.max_message_mib}", advice)]


def measure_folder(folder: Path) -> int:
    """Return the bytes of all files under a folder; what vanishes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if not path.is_symlink() and path.is_file():
                total += path.stat().st_size
        except OSError:
            continue
    return total


def _is_within(span: str, now: time) -> bool:
    match = _SPAN.fullmatch(span)
    assert match is not None, "the settings were checked when they were read"
    first, last = (time(int(match[i]), int(match[i + 1])) for i in (1, 3))
    return first <= now < last if first < last else now >= first or now < last


def _find_download(plan: Plan) -> str | None:
    """Return the name of a teacher whose weights a plan makes the site download; None if there is none."""
    if plan.fopro is not None and plan.fopro.teacher.source == "torchvision":
        return plan.fopro.teacher.name
    options = plan.model.options if plan.model.name == "frozen_teacher" else {}
    return str(options.get("teacher")) if options.get("source") == "torchvision" else None


def _quote(text: str | None) -> str:
    if text is None:
        return "none"
    return f"'{tame(text, 100)}'"
