"""``flower-server --record-of-processing``: what a data-protection officer needs, from the settings and the plan.

It is the technical part of a record of processing activities (Article 30 of Regulation (EU) 2016/679): who does what
with which data, and for how long. Names of controllers, legal bases and contracts are not in the settings and have to
be added by a person; the record says where. What leaves a hospital is taken from :mod:`fedmed.protocol.kinds`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from fedmed.config import SuppressionConfig
from fedmed.config.keep import ServerKeepConfig, SiteKeepConfig
from fedmed.config.server import ServerConfig
from fedmed.errors import KeyFileError
from fedmed.protocol.kinds import HEADS, KINDS, Kind, Phase
from fedmed.versions import SOFTWARE, find_version
from server.provisioning.site_list import read_sites

TO_ADD = "(to be added by a person)"


@dataclass(frozen=True)
class Leaving:
    """One kind of message that the plan uses."""

    phase: str
    """As in the audit logs."""
    title: str
    """What goes on."""
    what: str
    """What leaves a hospital."""
    parts: list[str]
    """Parts of the answer."""
    fields: list[str]
    """Values of the report, which is one of the parts."""
    how_often: str


@dataclass(frozen=True)
class Record:
    """The record, part by part."""

    software: str
    purposes: list[str]
    parties: list[str]
    data: list[str]
    persons: list[str]
    leaving: list[Leaving]
    recipients: list[str]
    periods: list[str]
    safeguards: list[str]
    not_protected_from: list[str]
    to_add: list[str]


def make_record(config: ServerConfig) -> Record:
    """Return the record of a federation, from its settings alone; nobody is asked."""
    return Record(
        software=f"fedmed {find_version(SOFTWARE)}",
        purposes=_list_purposes(config),
        parties=_list_parties(config),
        data=_list_data(config),
        persons=[
            f"Patients of the hospitals whose images belong to one of the classes {', '.join(config.classes)}.",
            _STAFF,
        ],
        leaving=list_leaving(config),
        recipients=_list_recipients(config),
        periods=_list_periods(config),
        safeguards=_list_safeguards(config),
        not_protected_from=list(_NOT_PROTECTED_FROM),
        to_add=list(_TO_ADD),
    )


def list_leaving(config: ServerConfig) -> list[Leaving]:
    """Return what the plan asks of a hospital, in the order of :data:`fedmed.protocol.kinds.KINDS`."""
    found = []
    for kind in KINDS.values():
        for phase in kind.phases:
            how_often = find_how_often(config, phase)
            if how_often is not None:
                parts = list(kind.leaving)
                fields = sorted(kind.report)
                found.append(Leaving(phase.name, phase.title, _name_what(kind, phase), parts, fields, how_often))
    return found


def find_how_often(config: ServerConfig, phase: Phase) -> str | None:
    """Return how often a plan foresees a phase, in words; None where it does not.

    A phase that is not known here is told, so that nothing that may leave is missing from the record.
    """
    say = _HOW_OFTEN.get(phase.name)
    return "as its settings say" if say is None else say(config)


def render_record(record: Record) -> str:
    """Return the record as Markdown."""
    lines = ["# Record of processing", "", f"Written by {record.software} from the settings of the coordinating site."]
    for title, values in (
        ("Purposes", record.purposes),
        ("Parties", record.parties),
        ("Categories of data", record.data),
        ("Categories of persons", record.persons),
    ):
        lines += ["", f"## {title}", "", *(f"- {value}" for value in values)]
    lines += ["", "## What leaves a hospital, and nothing else", ""]
    lines += ["| what goes on | what leaves | how often | values beside it |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row.title} (`{row.phase}`) | {row.what}: {', '.join(row.parts)} | {row.how_often} | "
        f"{', '.join(f'`{field}`' for field in row.fields)} |"
        for row in record.leaving
    ]
    lines += ["", f"`{HEADS}` is how far the audit logs of both sides go, signed. Images never leave."]
    for title, values in (
        ("Recipients", record.recipients),
        ("How long it is kept", record.periods),
        ("Safeguards", record.safeguards),
        ("What this does not protect from", record.not_protected_from),
        ("To be added by a person", record.to_add),
    ):
        lines += ["", f"## {title}", "", *(f"- {value}" for value in values)]
    return "\n".join(lines)


def record_to_json(record: Record) -> str:
    """Return the record as JSON."""
    return json.dumps(asdict(record), indent=2, ensure_ascii=False)


def _rounds(config: ServerConfig) -> str:
    return f"in each of {config.rounds} rounds"


def _tables(config: ServerConfig) -> str | None:
    if config.choice != "tables":
        return None
    beside = "; once of the small network and the trained one" if config.student is not None else ""
    return f"{_rounds(config)}{beside}"


def _small_rounds(config: ServerConfig) -> str | None:
    small = config.student
    return f"in each of {small.rounds} rounds" if small is not None and small.kind == "co_distillation" else None


def _own_models(config: ServerConfig) -> str | None:
    return f"as often as it takes for {config.rounds} rounds" if config.benefit else None


def _norm_sums(config: ServerConfig) -> str | None:
    is_asked = config.batch_norm == "recalibrate" or (config.student is not None and config.student.kind != "skip")
    return "once for each network that needs it" if is_asked else None


_HOW_OFTEN: dict[str, Callable[[ServerConfig], str | None]] = {
    "join": lambda config: "when a hospital joins, and again after an interruption",
    "train": _rounds,
    "local": _own_models,
    "distil": _small_rounds,
    "evaluate": _tables,
    "figure": lambda config: _rounds(config) if config.choice == "figure" else None,
    "test": lambda config: "once, of the chosen model",
    "recalibrate": _norm_sums,
    "calibrate": lambda config: "once" if config.calibrate else None,
    "alert": lambda config: "once" if config.alert_classes or config.positive_class else None,
    "release": lambda config: "once before the release" if config.batch_norm != "local" else None,
}
"""Phase -> how often; a round that is repeated after an interruption asks again."""

_WHEN_RELEASED = {
    "automatic": "once it is proven; where there are doubts about it, after a person has released it",
    "manual": "after a person has released it",
    "two_persons": "after two persons have released it",
}

_STAFF = (
    "Staff: the name of who releases the model by hand (in the audit log, the manifest and the model card, which every "
    "hospital receives); addresses from which the server was dialled (in its logs)."
)
_NOT_PROTECTED_FROM = (
    "Weights can reveal something about training images to whoever sees them; the coordinating site sees each "
    "hospital's update, since updates are neither summed in secret nor noised.",
    "What a model has learned from a patient who withdraws later stays in earlier models; later messages are without.",
    "Whoever controls a hospital's machine controls its images; whoever controls both sides' logs can write both anew.",
    "A hospital that sends plausible but wrong updates is not found for certain.",
)
_TO_ADD = (
    "For each party and each step (training, test, release): controller, joint controller (Article 26) or processor "
    "(Article 28).",
    "Names and addresses of the controllers and of their data-protection officers.",
    "The legal basis (Articles 6 and 9), whether an impact assessment was made (Article 35), and where the study's "
    "information for patients is kept.",
    "Who has approved the plan at each hospital, which fedmed does not record.",
    "Who answers patients who ask, object or withdraw, and who writes their ids into a hospital's list.",
    "For each hospital: what its client.yaml says under keep (periods), policy.suppression (thresholds) and "
    "policy.allow_download, where that is not the default.",
    "Contracts between the parties, and whether a party is in a third country.",
)


def _list_purposes(config: ServerConfig) -> list[str]:
    study = config.study
    return [
        f"Study '{study.id}', ethics approval {study.approval or TO_ADD}.",
        f"Training one classifier of images into {len(config.classes)} classes together, {config.model.name} over "
        f"{config.rounds} rounds, without bringing images together.",
        "Finding whether it is as good for every group of patients and at every hospital.",
    ]


def _list_parties(config: ServerConfig) -> list[str]:
    try:
        told = [f"{name}{' (revoked)' if entry.revoked else ''}" for name, entry in read_sites(config).items()]
    except KeyFileError:  # nothing was provisioned yet
        told = list(config.sites)
    return [f"Coordinating site: {TO_ADD}; reached at {config.address}.", f"Hospitals: {', '.join(told)}."]


def _list_data(config: ServerConfig) -> list[str]:
    known = config.fairness.attributes
    attributes = "all that a hospital's table names" if known is None else ", ".join(known) or "none"
    return [
        f"At the hospitals only: images (shown to the network with {config.data.image_size} pixels a side), their "
        "classes, ids of patients where the hospital's table has them.",
        f"Attributes by which patient groups are told apart: {attributes}.",
        "Health data: the class of an image is a diagnosis or a finding.",
        *(["All images are synthetic."] if config.data.synthetic else []),
    ]


def _list_recipients(config: ServerConfig) -> list[str]:
    return [
        "The coordinating site receives what is listed above from each hospital.",
        "The report shows every hospital the figures of every other by its name, and those of patient groups.",
        "Each hospital receives the common model in every round, and the released model and the report "
        f"{_WHEN_RELEASED[config.release]}.",
        *_list_third_parties(config),
    ]


def _list_third_parties(config: ServerConfig) -> list[str]:
    """Return who is dialled beside the parties: a teacher's weights may come from a model hub."""
    plan = config.make_plan()
    teacher = None if plan.fopro is None or plan.fopro.teacher.source != "torchvision" else plan.fopro.teacher.name
    if plan.model.name == "frozen_teacher" and plan.model.options.get("source") == "torchvision":
        teacher = str(plan.model.options.get("teacher"))
    outside = [
        f"Code from outside fedmed runs with the rights of who has installed it ({one.path}); whom it dials is not "
        "known to fedmed, and has to be found out by a person."
        for one in plan.extensions
    ]
    if teacher is None:
        nobody = "Nobody else: with this plan fedmed uses no service of a third party, and telemetry is off."
        return [*outside, nobody] if not outside else [*outside, "Telemetry is off."]
    return [
        *outside,
        f"A third party: the weights of the teacher '{teacher}' are downloaded from the model hub of torchvision, by "
        "the coordinating site and by each hospital whose policy.allow_download is true (it is false unless a hospital "
        "sets it, and then the plan is refused). The hub learns the address of who asks and when, and nothing of "
        "patients. With source: package or file it is not dialled. Telemetry is off.",
    ]


def _list_periods(config: ServerConfig) -> list[str]:
    periods = [f"Coordinating site, {_describe(ServerKeepConfig, name)}: {_days(days)}." for name, days in config.keep]
    periods += [
        f"Hospital, {_describe(SiteKeepConfig, name)}: as keep.{name} in its client.yaml says, which is not known "
        f"here; where it says nothing, {_days(days, 'the last change')}."
        for name, days in SiteKeepConfig()
    ]
    return [
        *periods,
        "Hospital, which image is in which part (with the patient's id, class and attributes), which are counted or "
        "left out, and the plans that were approved: until somebody deletes it.",
        "Coordinating site, models, report, test tables, what hospitals have signed, and audit log of the run: until "
        "somebody deletes it.",
    ]


def _list_safeguards(config: ServerConfig) -> list[str]:
    limits = SuppressionConfig()
    tls = "none, on the loopback interface for tests" if config.insecure else "TLS 1.2 or newer, the federation's own"
    return [
        f"Groups below {limits.k} and classes within a group below {limits.k_row} patients (images, where a hospital's "
        "data has no ids of patients) are not told, unless a hospital has set other numbers, which the report states.",
        "A hospital's policy limits study, approval number, models, rounds, hours and disk; a request beyond it is "
        "refused and told at both sides.",
        f"Connections: {tls}; hospitals dial out, nobody dials a hospital.",
        "Every request of a hospital is signed with its own key; unknown and revoked keys are refused.",
        "Every message is written to an audit log before it is answered; the heads of both sides' logs are signed by "
        "the other side in every round, so that a changed or cut log is found.",
        f"The released model is signed. Release: {config.release}.",
        "No program travels: what runs at a hospital is what it has installed.",
        "Patients who withdraw are left out from the next message on.",
    ]


def _describe(section: type[ServerKeepConfig] | type[SiteKeepConfig], name: str) -> str:
    return {
        "updates": "updates of single hospitals",
        "site_models": "models of single hospitals that teach the small network",
        "validation_tables": "tables of the validation images",
        "logs": "logs of the programs",
        "run_state": "state between rounds and the hospital's own model",
        "test_answers": "stored answers of the test",
        "models": "models and reports that have come home",
        "audit_log": "audit log",
    }.get(name, name)


def _days(days: float | None, since: str = "the end of the run") -> str:
    if days is None:
        return "until somebody deletes it"
    return f"{days:g} days after {since}" if days else f"deleted at {since}"


def _name_what(kind: Kind, phase: Phase) -> str:
    return f"{phase.leaves}{f' ({kind.about})' if kind.about else ''}"
