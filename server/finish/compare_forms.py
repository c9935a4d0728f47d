"""The release round: every site compares train form, deploy form and ONNX file on its own test images."""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import Message

from fedmed.errors import WireError
from fedmed.export.release_form import describe_comparison, read_answer
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import read_report
from fedmed.protocol.reading import MessageForm
from fedmed.protocol.reports import FormsCompared, FormsReport
from server.finish.chosen import ChosenModel
from server.rounds.exchange import Answer, open_answer
from server.rounds.session import Session

if TYPE_CHECKING:  # it imports the ONNX runtime, which the rounds do without
    from fedmed.export.compare import FormComparison


@dataclass
class Findings:
    """What the sites have said about a candidate."""

    comparisons: dict[str, "FormComparison"] = field(default_factory=dict)
    """By site, within tolerance or not, in the order of their names."""
    problems: dict[str, str] = field(default_factory=dict)
    """Sites that have found a difference, or cannot use the artefact at all."""
    silent: dict[str, str] = field(default_factory=dict)
    """Sites that gave no comparison, and why."""

    def add(self, site: str, found: "FormComparison | str") -> None:
        """Add what a site has found: a comparison, or what is wrong with the artefact."""
        if isinstance(found, str):
            self.problems[site] = found
            return
        self.comparisons[site] = found
        failures = found.failures()
        if failures:
            self.problems[site] = " ".join(failures)

    def keep(self, files: dict[str, str]) -> "KeptFindings":
        """Return what is kept of a candidate without problems, whose files have these hashes."""
        compared = {site: describe_comparison(comparison) for site, comparison in self.comparisons.items()}
        return KeptFindings(files=files, sites=compared, silent=self.silent)


class KeptFindings(MessageForm):
    """What the sites have said about a candidate without problems; ``release.json`` of the run folder."""

    files: dict[str, str]
    """Hashes of the candidate's files."""
    sites: dict[str, FormsCompared]
    silent: dict[str, str]

    def restore(self, num_classes: int) -> Findings:
        """Return the findings of which this was kept."""
        found = {site: read_answer(told, num_classes) for site, told in self.sites.items()}
        comparisons = {site: one for site, one in found.items() if not isinstance(one, str)}
        return Findings(comparisons=comparisons, silent=self.silent)


def compare_at_sites(session: Session, model: ChosenModel, best_round: int | None, packed: bytes) -> Findings:
    """Ask every site to compare the forms; each one's answer counts once.

    Parameters
    ----------
    session : Session
        The federation.
    model : ChosenModel
        Train form.
    best_round : int, optional
        As the sites are told.
    packed : bytes
        The artefact's files.
    """
    session.gather_sites_of(_find_tested(session), model.round)
    sites = sorted(session.attendance.descriptions)
    listener, findings = session.listener, Findings()
    sha256 = hashlib.sha256(packed).hexdigest()
    num_images = session.attendance.most_images("test")
    expected = _Expected(model.model_sha256, sha256, len(session.plan.classes), num_images)

    def take(answer: Answer) -> None:
        found, problem = open_answer(answer, lambda message: _read(message, answer.site, expected))
        listener.on_answer(answer.site, problem)
        if found is None:
            findings.silent[answer.site] = str(problem)
        else:
            findings.add(answer.site, found)

    kind = KINDS["release"]
    listener.on_phase(kind.phase_name("test"), model.round, len(sites))
    request = session.make_request(model.round, part="test", best_round=best_round, artefact_sha256=sha256)
    deadline_s = session.config.round_deadline_s
    missing = session.courier.ask(
        kind.flower,
        request,
        model.model_path,
        model.model_sha256,
        sites,
        deadline_s=deadline_s,
        on_answer=take,
        artefact=packed,
    )
    findings.silent |= dict.fromkeys(missing.late, f"no answer within {deadline_s:g} s")
    findings.silent |= dict.fromkeys({*missing.absent, *_find_tested(session)} - set(sites), "it is not connected")
    findings.silent |= dict.fromkeys(missing.absent, "it is not connected")
    for site, reason in sorted(findings.silent.items()):
        listener.on_note(f"{site} has not compared the deployable form: {reason}")
    findings.comparisons = dict(sorted(findings.comparisons.items()))
    return findings


def _find_tested(session: Session) -> set[str]:
    """Return the sites on the list that have tested the model: whoever can do that can compare its forms."""
    tested = {path.stem for path in (session.run.tables / "test").glob("*.safetensors")}
    return tested & session.exchange.known_sites()


@dataclass(frozen=True)
class _Expected:
    """What an answer must fit."""

    model_sha256: str
    artefact_sha256: str
    num_classes: int
    num_images: dict[str, int]
    """Most test images that each site can have, as far as it declared them."""


def _read(message: Message, site: str, expected: _Expected) -> "FormComparison | str":
    told = read_report(message, FormsReport)
    if (told.model_sha256, told.artefact_sha256) != (expected.model_sha256, expected.artefact_sha256):
        raise WireError("The comparison is of another model or artefact than the one that was sent.")
    found = read_answer(told.comparison, expected.num_classes)
    if not isinstance(found, str) and found.onnx.num_images > expected.num_images[site]:
        raise WireError("The comparison counts more images than the site declared.")
    return found
