"""What one federation has at hand while it runs, and how it waits for its sites."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed.config import SITE_ATTRIBUTE, FederationConfig, Plan
from fedmed.errors import FederationError
from fedmed.metrics.site_tables import ComparedModel
from fedmed.protocol.kinds import KINDS, ScoredPart
from fedmed.protocol.reading import explained
from fedmed.protocol.requests import Request
from fedmed.storage.audit import AuditLog
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.storage.run_folder import RunFolder
from fedmed.training.batch_norm_policy import NormBuffers
from server.rounds.attendance import Attendance
from server.rounds.courier import Courier, SecondModel
from server.rounds.exchange import Exchange
from server.rounds.progress import WAITING, Listener
from server.rounds.scoring import TOO_FEW, Scores, collect_figures, collect_tables

_WAITING_STEP_S = 0.5


@dataclass
class Session:
    """What one federation has at hand."""

    config: FederationConfig
    plan: Plan
    run: RunFolder
    exchange: Exchange
    courier: Courier
    checkpoints: RunCheckpoints
    audit: AuditLog
    attendance: Attendance
    listener: Listener
    parameters: frozenset[str]
    """Names of the model's parameters."""
    norms: tuple[NormBuffers, ...] = ()
    """The model's BatchNorms, as far as their statistics travel."""
    limited: set[str] = field(default_factory=set)
    """Sites of whose part in the last round something was cut."""
    patient: bool = False
    """Whether to wait for sites as long as it takes, as in a hospital's network, or to fail."""
    without_figures: set[str] = field(default_factory=set)
    """Sites of which it was said that they tell no figures, which is said once."""

    def make_request(
        self,
        round_number: int,
        *,
        best_round: int | None,
        part: ScoredPart | None = None,
        temperature: float | None = None,
        alert_threshold: float | None = None,
        compare: Sequence[ComparedModel] = (),
        group_weights: Mapping[str, float] | None = None,
        artefact_sha256: str | None = None,
    ) -> Request:
        """Return what a request says beside the model.

        Raises
        ------
        FederationError
            If the sites would refuse it.
        """
        with explained(Request, FederationError):
            return Request(
                plan=self.plan,
                round=round_number,
                part=part,
                best_round=best_round,
                temperature=temperature,
                alert_threshold=alert_threshold,
                compare=list(compare),
                group_weights=dict(group_weights or {}),
                artefact_sha256=artefact_sha256,
            )

    def score(
        self,
        round_number: int,
        model_file: Path,
        model_sha256: str,
        sites: list[str],
        *,
        part: ScoredPart,
        best_round: int | None,
        temperature: float | None = None,
        alert_threshold: float | None = None,
        compare: Sequence[ComparedModel] = (),
        other: SecondModel | None = None,
    ) -> Scores:
        """Return the sites' tables of a model on one part of their images.

        In a test, its outputs are divided by ``temperature``, an alert is raised from ``alert_threshold`` on, and it is
        compared with the models in ``compare``; on either part it may be compared with a second model that is sent
        along.
        """
        self.listener.on_phase(KINDS["evaluate"].phase_name(part), round_number, len(sites))
        return collect_tables(
            self.courier,
            self.make_request(
                round_number,
                part=part,
                best_round=best_round,
                temperature=temperature,
                alert_threshold=alert_threshold,
                compare=compare,
            ),
            model_file,
            model_sha256,
            sites,
            num_images=self.attendance.most_images(part),
            num_classes=len(self.plan.classes),
            deadline_s=self.config.round_deadline_s,
            listener=self.listener,
            other=other,
        )

    def score_round(
        self, round_number: int, model_file: Path, model_sha256: str, sites: list[str], *, best_round: int | None
    ) -> Scores:
        """Return what the sites tell of a round's model on their validation images: two figures, or tables."""
        if self.plan.choice == "tables":
            return self.score(round_number, model_file, model_sha256, sites, part="validation", best_round=best_round)
        self.listener.on_phase(KINDS["figure"].phase_name("validation"), round_number, len(sites))
        scores = collect_figures(
            self.courier,
            self.make_request(round_number, part="validation", best_round=best_round),
            model_file,
            model_sha256,
            sites,
            num_images=self.attendance.most_images("validation"),
            deadline_s=self.config.round_deadline_s,
            listener=self.listener,
        )
        for site in sorted(scores.few - self.without_figures):
            self.listener.on_note(f"{site} has no part in the choice of the best round: {TOO_FEW}.")
        self.without_figures |= scores.few
        return scores

    def gather_sites(self, round_number: int) -> None:
        """Welcome connected sites, and make sure that enough of them can be waited for.

        Raises
        ------
        FederationError
            If there are too few and the session is not patient.
        """
        told = -1
        while True:
            self._join(round_number)
            if round_number == 0:
                self._check_allowed()
            awake, dormant = self.attendance.split(self.config.max_missed_rounds)
            present = sorted(set(self.exchange.online_sites()) & set(awake))
            if len(present) >= self.config.min_sites:
                self._check_attribute()
                return
            if not self.patient:
                raise FederationError(
                    f"{len(present)} sites could join, min_sites = {self.config.min_sites} are needed. "
                    "The lines above say what is wrong at the others. Mend it, or lower min_sites, and start again."
                )
            self.attendance.probe_in_passing(self.exchange, dormant, self.config.round_deadline_s)
            if len(present) != told:
                names = f" ({', '.join(present)})" if present else ""
                self.listener.on_info(
                    f"{WAITING}: {len(present)} of min_sites = {self.config.min_sites} are there{names}."
                )
                told = len(present)
            time.sleep(_WAITING_STEP_S)

    def welcome(self, round_number: int) -> None:
        """Ask sites that have come meanwhile to describe themselves, without waiting for others."""
        self._join(round_number)

    def gather_everybody(self, round_number: int) -> None:
        """Wait until all sites that have ever joined this run are here, at most for one deadline.

        For what is done only once. A site on the list that has never come has no part in the model.
        """
        end = time.monotonic() + (self.config.round_deadline_s if self.patient else 0.0)
        while True:
            self._join(round_number)
            here = set(self.exchange.online_sites()) & {*self.attendance.descriptions, *self.attendance.turned_away}
            missing = (self.exchange.known_sites() & set(self.attendance.declared)) - here
            if not missing or time.monotonic() >= end:
                return
            time.sleep(_WAITING_STEP_S)

    def gather_sites_of(self, names: set[str], round_number: int) -> None:
        """Wait until some sites are back and have joined, at most for one deadline; at once if they are here."""
        end = time.monotonic() + (self.config.round_deadline_s if self.patient else 0.0)
        while True:
            self._join(round_number)
            wanted = names & self.exchange.known_sites()
            if wanted <= set(self.attendance.descriptions) or time.monotonic() >= end:
                return
            time.sleep(_WAITING_STEP_S)

    def _check_allowed(self) -> None:
        """Refuse to begin with a choice of the best round that some site's own rules rule out.

        Raises
        ------
        FederationError
            If a site is connected that does not let tables or scores of validation images leave.
        """
        if self.attendance.without_tables:
            names = ", ".join(sorted(self.attendance.without_tables))
            raise FederationError(
                "choice is 'tables', which needs tables of validation images from every site after every round; "
                f"{names} does not let them leave. Set choice: figure, or have the site set policy.validation_tables: "
                "true in its client.yaml."
            )
        if self.attendance.without_scores:
            names = ", ".join(sorted(self.attendance.without_scores))
            raise FederationError(
                f"choose_by is '{self.config.choose_by}', which needs histograms of validation scores from every site; "
                f"{names} does not let them leave. Choose another rule, for example balanced_accuracy, or have the "
                "site set policy.validation_scores: true in its client.yaml."
            )

    def _check_attribute(self) -> None:
        """Refuse to train when no site tells the groups apart by which the best round is chosen.

        Raises
        ------
        FederationError
            If that is so.
        """
        attribute, known = self.config.choose_attribute, self.attendance.attributes
        weighed = self.config.aggregation.attribute
        if weighed is not None and weighed not in known:
            raise FederationError(
                f"aggregation.fair.attribute is '{weighed}', which no site tells apart. Allowed: "
                f"{', '.join(sorted(known)) or 'none, as no site has attributes'}."
            )
        if self.config.chooses_by_group and attribute != SITE_ATTRIBUTE and attribute not in known:
            raise FederationError(
                f"choose_attribute is '{attribute}', which no site tells apart. Allowed: "
                f"{', '.join([SITE_ATTRIBUTE, *sorted(known)])}."
            )

    def _join(self, round_number: int) -> None:
        self.attendance.join(
            self.exchange, self.listener, deadline_s=self.config.round_deadline_s, round_number=round_number
        )
