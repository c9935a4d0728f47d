"""Which sites are part of the federation, and which of them are waited for.

A site joins by describing itself. One that has missed too many rounds in a row is *dormant*: the others no longer wait
for it. It is asked in passing in every round and waited for again from the round after it answered.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from pydantic import TypeAdapter, ValidationError

from fedmed.config import Plan
from fedmed.distillation import check_same_teacher
from fedmed.errors import FedmedError, RunFolderError, tame
from fedmed.processes import Backoff
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REQUEST, make_content, read_report
from fedmed.protocol.reports import Part, SiteDescription, TeacherDescription
from fedmed.protocol.requests import Request
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.run_folder import RunFolder
from fedmed.storage.statuses import find_status
from fedmed.versions import find_versions
from server.rounds.exchange import Answer, Exchange, open_answer
from server.rounds.progress import Listener

_FIRST_PROBE_S, _LONGEST_PROBE_S = 2.0, 10.0
_SITES_FILE = "sites.json"
_NEEDS_SCORES = (
    "the rule choose_by needs histograms of validation scores from every site, and this site does not let them leave. "
    "Choose another rule in server.yaml, for example balanced_accuracy, or set policy.validation_scores: true in the "
    "site's client.yaml."
)
_NEEDS_TABLES = (
    "choice: tables in server.yaml needs tables of validation images from every site after every round, and this site "
    "does not let them leave. Set choice: figure in server.yaml, or policy.validation_tables: true in the site's "
    "client.yaml."
)


@dataclass
class Attendance:
    """Sites that have joined.

    Parameters
    ----------
    plan : Plan
        Sent to every site that joins.
    model_digest : str
        Digest of the model's definition at the server; a site with another one is refused.
    teacher : TeacherDescription, optional
        What the server says of its teacher; a site with another one is refused.
    """

    plan: Plan
    model_digest: str
    teacher: TeacherDescription | None = None
    missed: dict[str, int] = field(default_factory=dict)
    """Rounds missed in a row, by site; part of the checkpoint."""
    descriptions: dict[str, SiteDescription] = field(default_factory=dict)
    """What each joined site said of itself."""
    declared: dict[str, dict[Part, int]] = field(default_factory=dict)
    """Images of each part that each site stated when it joined first: what it may count with, however many it states
    later."""
    needs_scores: bool = False
    """Whether the best round is chosen by a figure that needs histograms of validation scores from every site."""
    without_scores: set[str] = field(default_factory=set)
    """Sites that were turned away because they do not allow these histograms to leave."""
    needs_tables: bool = False
    """Whether every site has to tell tables of its validation images after every round."""
    without_tables: set[str] = field(default_factory=set)
    """Sites that were turned away because they do not allow these tables to leave."""
    silent: set[str] = field(default_factory=set)
    """Connected sites that did not describe themselves in time or could not join: asked in passing, so that nobody
    waits for them."""
    scores_only: set[str] = field(default_factory=set)
    """Sites that have said that they do not train; it is told once."""
    _told: dict[str, SiteDescription] = field(default_factory=dict)
    _refusals: dict[str, str] = field(default_factory=dict)
    _probed: float = -math.inf
    _pauses: Backoff = field(default_factory=lambda: Backoff(first_s=_FIRST_PROBE_S, longest_s=_LONGEST_PROBE_S))
    _pause_s: float = 0.0

    def join(self, exchange: Exchange, listener: Listener, *, deadline_s: float, round_number: int) -> None:
        """Ask every connected site that has not joined yet to describe itself, and wait for the answers."""
        for site in set(self.descriptions) - exchange.known_sites():
            del self.descriptions[site]
            listener.on_note(f"{site} is no longer on the list of sites and takes part no more.")
        strangers = [site for site in exchange.online_sites() if site not in self.descriptions]
        self.welcome_back(exchange, listener)
        self.probe_in_passing(exchange, [site for site in strangers if site in self.silent], deadline_s)
        new = [site for site in strangers if site not in self.silent]
        if not new:
            return
        listener.on_phase(KINDS["query"].phase_name(), round_number, len(new))
        request = self._make_request()
        missing = exchange.ask(
            KINDS["query"].flower,
            lambda site: request,
            new,
            deadline_s=deadline_s,
            on_answer=lambda answer: self.admit(answer, listener),
        )
        for site in missing.late:
            self.silent.add(site)
            listener.on_note(f"{site} did not describe itself within {deadline_s:g} s and is left out for now.")

    def admit(self, answer: Answer, listener: Listener) -> None:
        """Take one site's description, or say why it cannot join."""
        description, problem = open_answer(answer, lambda message: self._read(message, answer.site))
        if description is None:
            self._turn_away(answer.site, problem or "no reason given", listener)
            return
        if self.needs_scores and not description.validation_scores:
            self.without_scores.add(answer.site)
            self._turn_away(answer.site, _NEEDS_SCORES, listener)
            return
        self.without_scores.discard(answer.site)
        if self.needs_tables and not description.validation_tables:
            self.without_tables.add(answer.site)
            self._turn_away(answer.site, _NEEDS_TABLES, listener)
            return
        self.without_tables.discard(answer.site)
        self.silent.discard(answer.site)
        if self._refusals.pop(answer.site, None) is not None:
            listener.on_note(f"{answer.site} has joined.")
            self._pauses.succeeded()
        self._keep_declared(answer.site, description, listener)
        self.descriptions[answer.site] = description
        self.missed[answer.site] = 0
        listener.on_answer(answer.site, None)

    def _keep_declared(self, site: str, description: SiteDescription, listener: Listener) -> None:
        first, now = self.declared.setdefault(site, dict(description.num_images)), description.num_images
        grown = [f"{now[part]} {part} images after {first[part]}" for part in first if now[part] > first[part]]
        before = self.descriptions.get(site) or self._told.get(site)
        if grown and (before is None or before.num_images != now):
            listener.on_note(
                f"{site} now states {', '.join(grown)} when it joined. It counts with those that it joined with; "
                "further images belong into a new run."
            )
        self._told[site] = description

    def _read(self, message: Message, site: str) -> SiteDescription:
        description = read_report(message, SiteDescription)
        _check_teacher(description.teacher, self.teacher, site)
        _check_description(description, site, self.model_digest, len(self.plan.classes))
        return description

    def _turn_away(self, site: str, reason: str, listener: Listener) -> None:
        self.silent.add(site)
        if self._refusals.get(site) != reason:
            listener.on_answer(site, reason)
            listener.on_note(f"{site} cannot join: {reason}")
        self._refusals[site] = reason

    def split(self, max_missed_rounds: int) -> tuple[list[str], list[str]]:
        """Return the joined sites that are waited for, and the dormant ones."""
        joined = sorted(self.descriptions)
        dormant = [site for site in joined if self.missed.get(site, 0) >= max_missed_rounds]
        return [site for site in joined if site not in dormant], dormant

    def welcome_back(self, exchange: Exchange, listener: Listener) -> None:
        """Take what dormant sites have answered meanwhile."""
        for answer in exchange.collect_probes():
            self.admit(answer, listener)

    def probe(self, exchange: Exchange, dormant: list[str], ttl: float) -> None:
        """Ask dormant sites in passing whether they are back."""
        if dormant:
            exchange.probe(self._make_request(), dormant, ttl)

    def count_round(self, statuses: dict[str, str], unscored: Iterable[str] = ()) -> None:
        """Count who answered a round in time; a quarantined update is an answer.

        Parameters
        ----------
        statuses : dict of str to str
            Site to what became of its update.
        unscored : iterable of str
            Sites that did not answer when the new model was scored.
        """
        silent = set(unscored)
        for site, status in statuses.items():
            streak = find_status(status).streak
            if streak == "longer" or (site in silent and streak != "kept"):
                self.missed[site] = self.missed.get(site, 0) + 1
            elif streak == "ended":
                self.missed[site] = 0

    def probe_in_passing(self, exchange: Exchange, silent: list[str], ttl: float) -> None:
        """Probe sites, but not more often than every few seconds; less often where that goes on for long."""
        if silent and time.monotonic() - self._probed > self._pause_s:
            self._probed, self._pause_s = time.monotonic(), self._pauses.next()
            self.probe(exchange, silent, ttl)

    @property
    def turned_away(self) -> frozenset[str]:
        """Connected sites that have said why they do not join, as one whose people have not approved the plan yet."""
        return frozenset(self._refusals)

    @property
    def agreed(self) -> frozenset[str]:
        """Sites that agree to show patient groups that are theirs alone."""
        return frozenset(site for site, told in self.descriptions.items() if told.show_alone)

    @property
    def attributes(self) -> frozenset[str]:
        """Attributes that any site tells apart."""
        return frozenset(name for told in self.descriptions.values() for name in told.attributes)

    def num_images(self, part: Part) -> dict[str, int]:
        """Return the images of a part that each site has, at most those that it stated when it joined first."""
        return {
            site: min(told.num_images[part], self.declared.get(site, told.num_images)[part])
            for site, told in self.descriptions.items()
        }

    def most_images(self, part: Part) -> dict[str, int]:
        """Return how many images each site can have counted: it tells its number rounded down to a multiple of k."""
        return {
            site: told + max(0, self.descriptions[site].thresholds.k - 1)
            for site, told in self.num_images(part).items()
        }

    def describe_sites(self) -> dict[str, SiteDescription]:
        """Return what each joined site said of itself, with the numbers of images that it counts with."""
        return {
            site: told.model_copy(
                update={"num_images": {part: min(n, self.declared[site][part]) for part, n in told.num_images.items()}}
            )
            if site in self.declared
            else told
            for site, told in self.descriptions.items()
        }

    def list_grown(self, part: Part) -> dict[str, int]:
        """Return the images of a part by the newest word of the sites that state more than when they joined."""
        counted = self.num_images(part)
        stated = {site: told.num_images[part] for site, told in self.descriptions.items()}
        return {site: number for site, number in stated.items() if number > counted[site]}

    def _make_request(self) -> RecordDict:
        return make_content(REQUEST, Request(plan=self.plan).to_values())


def _check_teacher(told: TeacherDescription | None, own: TeacherDescription | None, site: str) -> None:
    """Refuse a site whose teacher is another: neither features nor projectors would be comparable."""
    if own is None:
        return
    if told is None:
        raise FedmedError("It does not say which teacher it has. Install the same version of fedmed on both sides.")
    tamed = {key: tame(str(value), 100) for key, value in told}
    check_same_teacher({"(server)": dict(own), site: tamed})


def _check_description(description: SiteDescription, site: str, model_digest: str, num_classes: int) -> None:
    if description.site != site:
        raise FedmedError(f"It calls itself {tame(repr(description.site))}, the roster calls it '{site}'.")
    own = find_versions("fedmed", "flwr")
    if {package: description.versions.get(package) for package in own} != own:
        raise FedmedError(
            f"It runs {tame(str(description.versions))}, this server {own}. Install the same version of fedmed on both "
            "sides."
        )
    if description.model_digest != model_digest:
        raise FedmedError(
            "Its definition of the model differs from the server's. Install the same version of fedmed on both sides; "
            f"it runs {tame(str(description.versions))}."
        )
    if any(len(counts) != num_classes for counts in (description.class_counts or {}).values()):
        raise FedmedError("Its class counts do not have one plausible count for every class and part.")


_DESCRIPTIONS = TypeAdapter(dict[str, SiteDescription])


def save_sites(run: RunFolder, descriptions: Mapping[str, SiteDescription]) -> None:
    """Keep what sites have told of themselves, for the report and for a restart."""
    told = {site: description.to_values() for site, description in descriptions.items()}
    write_atomically(run.tables / _SITES_FILE, json.dumps(told, sort_keys=True).encode())


def load_sites(run: RunFolder) -> dict[str, SiteDescription]:
    """Return what :func:`save_sites` has kept; empty before the first round.

    Raises
    ------
    RunFolderError
        If the file is damaged.
    """
    file = run.tables / _SITES_FILE
    try:
        return _DESCRIPTIONS.validate_json(file.read_bytes()) if file.is_file() else {}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RunFolderError(
            f"{file}, what the sites have told of themselves, cannot be read ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}). Put the file of a backup in its place."
        ) from None


def read_declared(run: RunFolder) -> dict[str, dict[Part, int]]:
    """Return the images with which each site counted before a restart; a damaged file is as none."""
    try:
        return {site: dict(told.num_images) for site, told in load_sites(run).items()}
    except RunFolderError:
        return {}
