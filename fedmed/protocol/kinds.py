"""The kinds of message: one row for each thing that the server asks of a site.

A row says all that is known of a kind before anything is asked: what travels which way, what may leave a site, what the
site's policy and ledger make of it, and how it is called in what people read. The guard, ``--check``, the console and
the status take it from here, so that a new kind is one row, one handler in ``client`` (see
:mod:`client.answers.answering`) and one caller in ``server``. A report that only one kind has may stand beside its row.
Nothing here needs torch or Flower.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from fedmed.protocol.foreseen import (
    ALWAYS,
    EVERY_FIGURE,
    EVERY_LOCAL_ROUND,
    EVERY_ROUND,
    EVERY_ROUND_AND_BOTH,
    EVERY_SMALL_ROUND,
    ONCE_ALERTED,
    ONCE_CALIBRATED,
    ONCE_RECALIBRATED,
    ONCE_RELEASED,
    ONCE_TESTED,
    Ration,
)
from fedmed.protocol.heads import SignedHeads
from fedmed.protocol.reports import (
    AlertReport,
    Declined,
    DistilReport,
    FigureReport,
    FormsReport,
    LocalReport,
    MissingModel,
    NormSumsReport,
    Report,
    ScoreReport,
    SiteDescription,
    TemperatureReport,
    TrainReport,
)

REQUEST, REPORT = "request", "report"
MODEL, OTHER_MODEL = "model", "other_model"
TABLES, SUMS = "tables", "sums"
ARTEFACT = "artefact"
HEADS = "heads"
"""Heads of the audit logs of both sides, signed; see :mod:`fedmed.protocol.heads`."""

ScoredPart = Literal["validation", "test"]
"""Images that can be scored."""
Bar = Literal["rounds", "local"]
State = Literal["round", "testing", "proving"]


@dataclass(frozen=True)
class Phase:
    """A time in which sites are asked for one kind of thing, of one part of their images."""

    name: str
    """In events, in ``status.json`` and for :class:`server.rounds.progress.Listener`."""
    title: str
    """For people: what goes on."""
    leaves: str
    """For people: what leaves a site, a row of ``flower-client --check``."""
    ration: Ration
    """How often a plan foresees that it is asked for."""
    part: ScoredPart | None = None
    """Images that it is about: ``validation`` or ``test``; None for those that are trained on, or none."""
    other: Literal["student", "teacher"] | None = None
    """What a second model in the request is."""
    state: State | None = None
    """What the federation is then doing, for its status; None where that stays as it is."""
    bar: Bar | None = None
    """Bar of the console that it moves."""


@dataclass(frozen=True)
class Kind:
    """One kind of message."""

    flower: str
    """Flower's message type."""
    phases: tuple[Phase, ...]
    """One, unless the same is asked of several parts of the images."""
    brings: tuple[str, ...] = ()
    """Parts that a request may hold beside ``request`` and ``model``."""
    reports: tuple[type[Report], ...] = ()
    """The report of a reply with what was asked for, and those that a site may send in its place."""
    returns: tuple[str, ...] = ()
    """Parts that a reply may hold beside the report."""
    tells: str | None = None
    """Key of the report with which a reply that returns no part answers, and does not only say why there is none."""
    about: str = ""
    """What the numbers of a reply are, where their names do not say it; for ``--check``."""
    needs_round: bool = False
    """Whether it is for a round from 1."""
    trains: bool = False
    """Whether an answer takes training, for which the policy may have hours."""
    setting: Literal["benefit"] | None = None
    """Setting of the plan without which it is not asked for, and of the policy without which a site declines it."""
    compressed: bool = False
    """Whether the returned model travels in the form of the plan's ``compression``."""

    @property
    def title(self) -> str:
        """What goes on, for people."""
        return self.phases[0].title

    @property
    def is_counted(self) -> bool:
        """Whether the site's ledger counts an answer."""
        return any(phase.ration is not ALWAYS for phase in self.phases)

    @property
    def report(self) -> frozenset[str]:
        """Keys that the report of a reply may have."""
        return frozenset(key for form in self.reports for key in form.model_fields)

    @property
    def leaving(self) -> Mapping[str, frozenset[str]]:
        """All that may leave a site: parts of the reply, with the keys of those that have any.

        On joining, a site may run another version, which knows no heads.
        """
        heads = {HEADS: frozenset(SignedHeads.model_fields)} if self.is_counted else {}
        return {REPORT: self.report, **heads, **{part: frozenset() for part in self.returns}}

    def find_phase(self, part: str | None = None) -> Phase | None:
        """Return the phase in which it is asked of a part of the images; None where it is asked of others."""
        return next((phase for phase in self.phases if phase.part == part), None)

    def phase_name(self, part: str | None = None) -> str:
        """Return the name of that phase.

        Raises
        ------
        KeyError
            If there is none.
        """
        phase = self.find_phase(part)
        if phase is None:
            raise KeyError(f"'{self.flower}' is not asked of the part {part!r} of the images.")
        return phase.name

    def read_report(self, values: Mapping[str, JsonValue]) -> Report:
        """Return the report of a reply.

        Raises
        ------
        WireError
            If it is none of those that the kind has.
        """
        instead = next((form for form in self.reports[1:] if form.fits(values)), self.reports[0])
        return instead.read(values)

    def is_answered(self, parts: Container[str], report: Container[str]) -> bool:
        """Return whether a reply with these parts and keys of the report gives what was asked for."""
        return any(part in parts for part in self.returns) or (self.tells is not None and self.tells in report)


KINDS: dict[str, Kind] = {
    "query": Kind(
        flower="query",
        phases=(Phase("join", "sites get ready", "description", ALWAYS),),
        reports=(SiteDescription,),
    ),
    "train": Kind(
        flower="train",
        phases=(Phase("train", "training", "update", EVERY_ROUND, state="round", bar="rounds"),),
        reports=(TrainReport, Declined, MissingModel),
        returns=(MODEL,),
        needs_round=True,
        trains=True,
        compressed=True,
    ),
    "local": Kind(
        flower="train.local",
        phases=(
            Phase("local", "training of each site alone", "own model", EVERY_LOCAL_ROUND, state="round", bar="local"),
        ),
        reports=(LocalReport, Declined, MissingModel),
        tells="rounds_done",
        about="how far this site's own model is, which itself never leaves",
        needs_round=True,
        trains=True,
        setting="benefit",
        # Bounded by itself: a site trains its own model for the rounds of the plan and never again in that run,
        # however often it is asked.
    ),
    "distil": Kind(
        flower="train.distil",
        phases=(
            Phase(
                "distil",
                "distillation into a small network",
                "update of the small network",
                EVERY_SMALL_ROUND,
                other="teacher",
            ),
        ),
        brings=(OTHER_MODEL,),
        reports=(DistilReport, Declined, MissingModel),
        returns=(MODEL,),
        needs_round=True,
        trains=True,
    ),
    "evaluate": Kind(
        flower="evaluate",
        phases=(
            Phase(
                "evaluate",
                "validation",
                "validation tables",
                EVERY_ROUND_AND_BOTH,
                "validation",
                "student",
                "round",
                "rounds",
            ),
            Phase("test", "test", "test tables", ONCE_TESTED, "test", "teacher", "testing"),
        ),
        brings=(OTHER_MODEL,),
        reports=(ScoreReport, MissingModel),
        returns=(TABLES,),
    ),
    "figure": Kind(
        flower="evaluate.figure",
        phases=(
            Phase(
                "figure",
                "validation by figures",
                "validation figures",
                EVERY_FIGURE,
                "validation",
                state="round",
                bar="rounds",
            ),
        ),
        reports=(FigureReport, MissingModel),
        tells="n",
        about="accuracy and balanced accuracy with 3 digits over the classes of which this site has k_row patients, "
        "and the number of images, rounded down to a multiple of k",
    ),
    "recalibrate": Kind(
        flower="evaluate.recalibrate",
        phases=(Phase("recalibrate", "BatchNorm statistics", "BatchNorm sums", ONCE_RECALIBRATED, state="testing"),),
        reports=(NormSumsReport, MissingModel),
        returns=(SUMS,),
        about="number, sum and squares of what each BatchNorm's channels get from all training images",
    ),
    "calibrate": Kind(
        flower="evaluate.calibrate",
        phases=(Phase("calibrate", "temperature", "sums for the temperature", ONCE_CALIBRATED, state="testing"),),
        reports=(TemperatureReport, MissingModel),
        returns=(SUMS,),
        about="likelihood and slope at each temperature, of all validation images that may be counted",
    ),
    "alert": Kind(
        flower="evaluate.alert",
        phases=(
            Phase("alert", "operating point", "counts of alert scores", ONCE_ALERTED, "validation", state="testing"),
        ),
        reports=(AlertReport, MissingModel),
        returns=(SUMS,),
        about="numbers of validation images with and without an alert class by bins of the alert score, which hold "
        "k_bin patients each, and the sum of the scores in each bin with 3 digits",
    ),
    "release": Kind(
        flower="evaluate.release",
        phases=(Phase("release", "comparison of the forms", "comparison", ONCE_RELEASED, "test", state="proving"),),
        brings=(ARTEFACT,),
        reports=(FormsReport, MissingModel),
        tells="comparison",
        about="largest differences between the forms of the model, and counts of test images",
    ),
}
"""By the name under which a site's audit log, the policy and the checks know them."""


def name_kind(flower: str) -> str:
    """Return the name of the kind with a message type of Flower; a type without a row as it is."""
    return next((name for name, kind in KINDS.items() if kind.flower == flower), flower)


def list_flower_types() -> tuple[str, ...]:
    """Return the message types that a site answers."""
    return tuple(kind.flower for kind in KINDS.values())


def find_phase(name: str) -> Phase | None:
    """Return a phase by its name; None if it is of another version of fedmed."""
    return next((phase for kind in KINDS.values() for phase in kind.phases if phase.name == name), None)


def describe_phase(name: str) -> str:
    """Return what goes on in a phase, for people."""
    phase = find_phase(name)
    return name if phase is None else phase.title
