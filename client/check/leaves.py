"""Exactly what would leave this site: the replies are really built, in a folder of their own, and thrown away.

The site's own ClientApp answers, policy and all, with few images in place of all: some of every class and of every
patient group, so that the tables have their size.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict

from client.check.context import Check, CheckContext, CheckResult
from client.check.data import WHOLE
from client.check.model import without_prompt_steps
from client.guard.approvals import Approvals
from client.guard.ledger import Ledger
from client.guard.message_parts import Part, list_parts
from client.guard.policy import check_test
from client.site import app
from client.supernode.local_message import make_local_message
from fedmed.config import SITE_ATTRIBUTE, Compression, Plan, make_distil_plan, make_student_plan
from fedmed.config.files import dump_config
from fedmed.data.split_files import CommonFields, SplitIndex, SplitRow, read_site, write_splits
from fedmed.distillation.network import get_network
from fedmed.errors import PolicyError
from fedmed.metrics.packing import pack_site_tables
from fedmed.metrics.site_tables import FEDERATED, MODELS, PAIRED_MODELS, TEACHER, PairedTables, SiteTables
from fedmed.protocol.heads import LogHead, SignedHeads
from fedmed.protocol.kinds import KINDS, REPORT, REQUEST, TABLES, Kind, Phase
from fedmed.protocol.messages import add_heads, make_content, read_tables, read_values
from fedmed.protocol.reports import FormsReport
from fedmed.protocol.requests import DistilSettings, OtherModel, Request
from fedmed.reparameterization import Comparison
from fedmed.training.devices import use_threads

_SMALL = "small"
_RUN_ID = "check"
_TRAIN_ROWS = 2
_SIGNATURE_LETTERS = 140  # of a key on the curve P-384
_NEEDS = ("classes", "policy", "training step")


@dataclass(frozen=True)
class _Row:
    """One row of what leaves: a kind of message, about one part of the images, in one form."""

    name: str
    """Of the kind."""
    phase: Phase
    compression: Compression = "none"

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def title(self) -> str:
        form = f", {self.compression}" if self.kind.compressed else ""
        return f"leaves: {self.phase.leaves}{form}"


def list_size_checks() -> tuple[Check, ...]:
    """Return one check for each kind of message, part of the images and form of an update."""
    rows = [
        _Row(name, phase, compression)
        for name, kind in KINDS.items()
        for phase in kind.phases
        for compression in (get_args(Compression) if kind.compressed else ("none",))
    ]
    checks = [Check(row.title, partial(_CHECKS_BY_HAND.get(row.name, _check_reply), row), _NEEDS) for row in rows]
    return (*checks, Check("leaves: heads of the audit logs", _check_heads, _NEEDS))


def _check_heads(context: CheckContext, name: str) -> CheckResult:
    """Say what goes beside every answer but the first; in the form of it, since the server signs none here."""
    head = LogHead(length=1000, hash="0" * 64)
    told = SignedHeads(by="site", run="0" * 32, site=context.config.name, own=head, seen=head, before=head)
    parts = list_parts(add_heads(RecordDict(), told.signed("A" * _SIGNATURE_LETTERS)))
    about = "with every answer but the first: how far this site's log and the server's go, signed with this site's key"
    return CheckResult(name, "ok", f"{'; '.join(map(_describe_part, parts))}, {about}")


def _check_comparison(row: _Row, context: CheckContext, name: str) -> CheckResult:
    """Say what leaves before the release; in the form of a reply, since there is nothing to compare yet."""
    # Imported late: it imports the ONNX runtime.
    from fedmed.export.compare import FormComparison  # noqa: PLC0415
    from fedmed.export.release_form import describe_comparison  # noqa: PLC0415

    if not context.get_plan().release:
        return CheckResult(name, "ok", "nothing: the plan compares no forms of the model (release: false)")
    refusals = check_test(context.config.policy, row.phase.part)
    if refusals:
        return CheckResult(name, "ok", f"nothing: {refusals[0]}")
    form = Comparison("float32", 1e-6, 10.0, 0, 0, 0)
    told = describe_comparison(FormComparison(form, form, [[0] * 4] * len(context.get_plan().classes)))
    report = FormsReport(model_sha256="0" * 64, artefact_sha256="0" * 64, comparison=told)
    parts = "; ".join(map(_describe_part, list_parts(make_content(REPORT, report.to_values()))))
    return CheckResult(name, "ok", f"{parts}, about: {row.kind.about}")


_CHECKS_BY_HAND = {"release": _check_comparison}
"""Kinds whose request cannot be made before the federation has ended."""


def _check_reply(row: _Row, context: CheckContext, name: str) -> CheckResult:
    """Build one reply and list its parts."""
    main = _settle(context.get_plan(), row.compression)
    asked = _find_plan(row, main)
    if isinstance(asked, str):
        return CheckResult(name, "ok", f"nothing: {asked}")
    if row.name == "recalibrate" and len(context.get_site().data.train) < context.config.policy.min_images:
        return CheckResult(name, "ok", "nothing: there are fewer training images than policy.min_images")
    folder = context.folder / (_SMALL if row.kind.is_counted else WHOLE)
    if folder.name == _SMALL:
        _shrink_site(context, folder)
    try:
        with use_threads(context.config.threads):
            reply = _ask(row, asked, main, context, folder)
    except PolicyError as error:
        return CheckResult(name, "ok", f"nothing: {error}")
    parts = "; ".join(map(_describe_part, list_parts(reply.content)))
    told = read_values(reply, REPORT)
    if not row.kind.is_counted:
        return CheckResult(name, "ok", f"{parts}: {json.dumps(told)}")
    if TABLES in reply.content:
        return CheckResult(name, "ok", f"{parts}{_describe_tables(read_tables(reply), str(row.phase.part), context)}")
    is_planned = row.kind.compressed and row.compression == context.get_plan().compression
    in_use = " (the plan's)" if is_planned else ""
    return CheckResult(name, "ok", f"{parts}{in_use}{_explain(row.kind, reply)}")


def _find_plan(row: _Row, plan: Plan) -> Plan | str:
    """Return the plan of the network that a request is about; or why there is no such request."""
    setting, kind = row.kind.setting, row.name
    wanted = "figure" if kind == "figure" else "tables" if row.phase.name == "evaluate" else plan.choice
    reasons = {
        f"the plan asks for none (choice: {plan.choice})": plan.choice != wanted,
        f"the plan foresees no model of this site alone ({setting}: false)": setting is not None
        and not getattr(plan, setting),
        "the plan fits no temperature (calibrate: false)": kind == "calibrate" and not plan.calibrate,
        "the plan has no alert classes": kind == "alert" and plan.operating is None,
    }
    if any(reasons.values()):
        return next(reason for reason, holds in reasons.items() if holds)
    if kind == "recalibrate" and plan.batch_norm != "recalibrate":
        return "the plan asks for none (batch_norm)" if plan.student is None else make_student_plan(plan)
    if kind == "distil":
        if plan.student is None or plan.student.kind != "co_distillation":
            return "the server plans no small network that the sites train"
        return make_distil_plan(plan)
    return plan


def _explain(kind: Kind, reply: Message) -> str:
    """Say what the numbers of a reply are, where its parts do not."""
    told = read_values(reply, REPORT)
    if told.get("declined") and kind.setting is None:
        return (
            "; fewer training images than policy.min_images, or of fewer patients than policy.suppression.k: this site "
            "only scores models, and says so"
        )
    if told.get("declined"):
        return f"; policy.{kind.setting} is false: this site trains no model of its own, and says so"
    return f"; {kind.about}" if kind.about and kind.is_answered(reply.content, told) else ""


def _ask(row: _Row, plan: Plan, main: Plan, context: CheckContext, folder: Path) -> Message:
    """Return the ClientApp's reply to a request as the server would make it, under a plan that is approved here."""
    request, model, packed = Request(plan=plan), None, None
    if row.kind.is_counted:
        request = Request(plan=plan, round=1, part=row.phase.part)
        model = get_network(plan).pack()
    if row.name == "distil":
        packed = get_network(main).pack()
        request = _ask_to_distil(request, main, packed)
    content = make_content(REQUEST, request.to_values(), model=model, other_model=packed)
    message = make_local_message(content, row.kind.flower)
    file = _write_settings(context, folder)
    Ledger(folder / "runs", context.config.policy).begin(Approvals(folder).add(main, again=True))
    settings: dict[str, str | int | float | bool] = {"client-config": str(file)}
    own = Context(run_id=1, node_id=1, node_config=settings, state=RecordDict(), run_config={})
    return app(message, own)


def _ask_to_distil(request: Request, main: Plan, packed: bytes) -> Request:
    """Return a request to learn from the trained network, with the settings of its plan."""
    small = main.student
    assert small is not None, "there is a plan of its rounds"
    other = OtherModel(name=TEACHER, plan=main, sha256=hashlib.sha256(packed).hexdigest())
    settings = DistilSettings(temperature=small.temperature, feature_weight=small.feature_weight)
    return request.model_copy(update={"other": other, "distil": settings})


def _settle(plan: Plan, compression: Compression) -> Plan:
    """Return a plan for the run of these checks; a prompt of few images is not told anyway, and takes long."""
    changes = {"run_id": _RUN_ID, "compression": compression, "fopro": without_prompt_steps(plan.fopro)}
    return plan.model_copy(update=changes)


def _write_settings(context: CheckContext, folder: Path) -> Path:
    """Write the site's settings with another state folder, and without what decides when and not what.

    So without hours and without an approved plan; and with few training images where the site has enough.
    """
    config, file = context.config, folder / "client.yaml"
    changes: dict[str, object] = {"hours": None, "approved_plan": None}
    if len(context.get_site().data.train) >= config.policy.min_images:
        changes["min_images"] = _TRAIN_ROWS
    if not file.is_file():
        policy = config.policy.model_copy(update=changes)
        file.write_text(dump_config(config.model_copy(update={"state_dir": str(folder), "policy": policy})))
    return file


def _shrink_site(context: CheckContext, folder: Path) -> None:
    """Make a state folder whose split has few images."""
    source, target = context.folder / WHOLE / "splits", folder / "splits"
    if target.is_dir():
        return
    target.mkdir(parents=True)
    index = SplitIndex(**json.loads((source / "splits.json").read_text(encoding="utf-8")))
    limits = context.config.policy.suppression
    most = {"train": _TRAIN_ROWS, "validation": max(limits.k, limits.k_row), "test": max(limits.k, limits.k_row)}
    enough = max(limits.k, limits.k_bin)
    keep = _make_filter(context)
    rows = {site: _choose_rows(read_site(source, index, site), most, enough, keep) for site in index.composition}
    common: CommonFields = {
        "settings": index.settings,
        "fingerprint": index.fingerprint,
        "classes": index.classes,
        "attribute_names": index.attribute_names,
        "num_bad_rows": index.num_bad_rows,
    }
    write_splits(target, common, rows)


def _make_filter(context: CheckContext) -> Callable[[SplitRow], bool]:
    """Return whether an image may be used: those of patients who withdrew must not stand for the others."""
    data = context.get_site().data
    items = {*data.train.items, *data.validation.items, *data.test.items}
    return lambda row: row.item.key in items


def _choose_rows(
    rows: Sequence[SplitRow], most: dict[str, int], enough: int, keep: Callable[[SplitRow], bool]
) -> list[SplitRow]:
    """Return an image of the first few patients of every part and class, and the first of every combination of groups.

    Training images are of ``enough`` patients in all, where there are so many: BatchNorm sums leave of no fewer.
    """
    seen: Counter[tuple[str, object]] = Counter()
    patients: set[tuple[str, str]] = set()
    chosen = []
    for row in filter(keep, rows):
        part, is_new = row.part, (row.part, row.item.group) not in patients
        of_class, of_groups = (part, row.item.label), (part, row.item.attributes)
        is_first = part != "train" and not seen[of_groups]
        is_needed = seen[of_class] < most[part] or (part == "train" and seen[part, ""] < enough)
        if is_first or (is_new and is_needed):
            seen.update([of_class, of_groups, (part, "")])
            patients.add((part, row.item.group))
            chosen.append(row)
    return chosen


def _describe_part(part: Part) -> str:
    keys = f" ({', '.join(part['keys'])})" if part.get("keys") else ""
    return f"{part['name']} {format_bytes(part['bytes'])}{keys}"


def _describe_tables(tables: SiteTables, part: str, context: CheckContext) -> str:
    """Say how large tables can become, by what they tell images apart, and which classes they count."""
    largest = ""
    if part == "test":
        number = len(pack_site_tables(_add_models(tables)))
        largest = f", up to {format_bytes(number)} with a temperature and the comparison with this site's own models"
    data = context.get_site().data
    images = getattr(data, part)
    counted = context.get_site().count_part(part, context.get_plan().fairness).plan.attributes[SITE_ATTRIBUTE].counted
    classes = len(images.labels[torch.from_numpy(counted)].unique())
    found = tables.models[FEDERATED].values()
    histograms = "with" if any(own.scores.any() for own in found) else "without"
    areas = "with" if any(own.areas.any() for own in found) else "without"
    return (
        f"{largest}; by {', '.join(tables.attributes)}; counts by true class of the site for {classes} of "
        f"{len(data.classes)} classes, {areas} the AUC, {histograms} histograms of scores"
    )


def _add_models(tables: SiteTables) -> SiteTables:
    """Return tables of the size that those of all models have."""
    own = tables.models[FEDERATED]
    paired = {
        attribute: PairedTables(
            of.groups,
            np.zeros((len(of.groups), of.num_classes, 2, 2), np.int64),
            np.ones((len(of.groups), of.num_classes)),  # zeros would not be written
        )
        for attribute, of in own.items()
    }
    return SiteTables(dict.fromkeys(MODELS, own), dict.fromkeys(PAIRED_MODELS, paired))


def format_bytes(number: int) -> str:
    """Return an exact number of bytes, and in MiB where it is large."""
    return f"{number:,} bytes" if number < 2**20 else f"{number:,} bytes ({number / 2**20:.1f} MiB)"
