"""``flower-client --audit``: the audit log as a person reads it, one row for each message, the newest last."""

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.guard.audit import AUDIT_FILE, explain_missing, verify_site_audit
from client.guard.message_log import count_unwritten
from client.guard.received import hash_plan
from fedmed.errors import ConfigError, FormatError, RunFolderError, tame
from fedmed.formats import AUDIT_LOG
from fedmed.protocol.kinds import KINDS

_WIDTH_WITHOUT_TERMINAL = 160
_MOST_ROWS = 500
_OF_MESSAGES = {"refused", "failed", "withheld", "sent"}
_NOT_ANSWERED = "no answer: this site's process ended, or is still at work"
_WORDS = {
    "start": "flower-client was started",
    "policy": "the policy in force from here on",
    "exclusions": "images left out because patients withdrew",
    "approved": "a person here approved a plan",
    "forget": "what was kept of runs was removed",
    "deleted": "what is kept no longer was deleted",
    "release_received": "the released model was collected",
    "release_confirmed": "the released model is home, and the server was told so",
    "torn_line_removed": "an incomplete line, as after a crash, was moved aside",
    "refused_again": "refused again",
    "refusals_only_counted": "so much was refused today that the rest of the day is only counted",
    "heads_disagree": "the logs of the two sides do not fit each other",
}
"""Events that are about no single message."""
_COLOURS = {"answered": "green", "refused": "red", "failed": "red", "withheld": "red", "unanswered": "yellow"}

Fields = Mapping[str, JsonValue]


@dataclass
class AuditRow:
    """One message, or one thing that happened at the site."""

    number: int
    """Of its first entry in the log, from 1."""
    time: str
    """ISO 8601, in UTC."""
    asked: str
    """In words."""
    kind: str | None = None
    run: str | None = None
    round: int | None = None
    part: str | None = None
    came: dict[str, int] = field(default_factory=dict)
    """Bytes of each part of the request."""
    left: dict[str, int] = field(default_factory=dict)
    """Bytes of each part of the answer."""
    result: str = ""
    """``answered``, ``refused``, ``failed``, ``withheld`` or ``unanswered``; empty for what is no message."""
    why: str = ""
    """Why it was refused or failed, as it was told to the server; or what else is to be said."""
    request: JsonValue = None
    """As it came, where the log has it: from format 3 on."""


@dataclass(frozen=True)
class PlanRow:
    """A plan that was asked for."""

    sha256: str
    first: str
    """When it came first."""
    plan: dict[str, JsonValue]


def read_audit(state_dir: Path) -> tuple[list[AuditRow], list[PlanRow]]:
    """Return what an audit log says, of any format: messages and events, and the different plans that came.

    Raises
    ------
    RunFolderError
        If there is none, or it cannot be read; a broken chain alone is no reason.
    """
    path = state_dir / AUDIT_FILE
    rows: list[AuditRow] = []
    plans: dict[str, PlanRow] = {}
    under_way: AuditRow | None = None
    left_out: Fields | None = None
    for entry in _read_entries(path):
        event, fields = str(entry["event"]), entry["fields"]
        number, time = int(str(entry["sequence"])), str(entry["time"])
        if not isinstance(fields, dict):
            continue
        if event == "received" or (event in _OF_MESSAGES and under_way is None):
            under_way = _begin_row(number, time, fields)
            rows.append(under_way)
            for digest, plan in _list_plans(fields):
                plans.setdefault(digest, PlanRow(digest, time, plan))
        if event in _OF_MESSAGES:
            assert under_way is not None, "made above"
            _take(under_way, event, fields)
            is_over = event == "sent" or "text" in fields
            under_way = None if is_over else under_way
            found = _read_exclusions(fields)
            if found is not None and found != left_out:
                rows.append(AuditRow(number, time, _WORDS["exclusions"], why=_describe_event("exclusions", found)))
            left_out = found or left_out
        elif event != "received":
            rows.append(AuditRow(number, time, _WORDS.get(event, tame(event, 60)), why=_describe_event(event, fields)))
    return rows, list(plans.values())


def choose_rows(rows: Sequence[AuditRow], *, since: str | None = None, last: int | None = None) -> list[AuditRow]:
    """Return the rows from a time on, and of these the last few.

    Parameters
    ----------
    rows : sequence of AuditRow
        In the order of the log.
    since : str, optional
        A date or a time, ISO 8601; without a time zone it is this machine's.
    last : int, optional
        How many at most.

    Raises
    ------
    ConfigError
        If ``since`` is no time.
    """
    if since is not None:
        try:
            moment = datetime.fromisoformat(since).astimezone()
        except ValueError:
            raise ConfigError(
                f"--since is {since!r}. Allowed: a date or time such as 2026-11-30 or 2026-11-30T14:00."
            ) from None
        rows = [row for row in rows if datetime.fromisoformat(row.time) >= moment]
    return list(rows if last is None else rows[max(0, len(rows) - last) :])


def render_audit(state_dir: Path, *, since: str | None = None, last: int | None = None) -> str:
    """Return the log as a table for a terminal, with the plans that were asked for and the verdict on the chain."""
    rows, plans = read_audit(state_dir)
    chosen = choose_rows(rows, since=since, last=_MOST_ROWS if since is None and last is None else last)
    table = Table(show_lines=False, pad_edge=False)
    for heading in ("entry", "when", "what was asked", "round", "part"):
        table.add_column(heading, no_wrap=heading not in ("what was asked",))
    table.add_column("what left", overflow="fold")
    table.add_column("result, and why", overflow="fold")
    for row in chosen:
        result = Text(row.result, style=_COLOURS.get(row.result, ""))
        why = f"{': ' if row.result and row.why else ''}{row.why}"
        table.add_row(
            str(row.number), _local(row.time), Text(row.asked), "" if row.round is None else str(row.round),
            row.part or "", _describe_parts(row.left), result + Text(why),
        )  # fmt: skip
    stream = io.StringIO()
    colours = sys.stdout.isatty()
    width = None if colours else _WIDTH_WITHOUT_TERMINAL
    console = Console(file=stream, force_terminal=colours, width=width, highlight=False, markup=False)
    console.print(table)
    if len(chosen) < len(rows):
        console.print(
            f"{len(rows) - len(chosen)} earlier rows are not shown; --last N shows more, --since TIME others."
        )
    unwritten = count_unwritten(state_dir)
    if unwritten:
        console.print(f"{unwritten:,} further refusals, the same as above, are counted and not yet in the log.")
    for plan in plans:
        console.print(f"plan {plan.sha256[:12]}, first asked {_local(plan.first)}: {_describe_plan(plan.plan)}")
    report = verify_site_audit(state_dir)
    holds = f"The chain holds: {report.num_entries} entries."
    console.print(holds if report.ok else f"The chain is broken: {report.reason}")
    return stream.getvalue().rstrip()


def audit_to_json(state_dir: Path, *, since: str | None = None, last: int | None = None) -> str:
    """Return the same as JSON: ``ok`` (the chain holds), ``reason``, ``rows`` and ``plans``."""
    rows, plans = read_audit(state_dir)
    report = verify_site_audit(state_dir)
    told = {
        "ok": report.ok,
        "reason": report.reason,
        "rows": [asdict(row) for row in choose_rows(rows, since=since, last=last)],
        "plans": [asdict(plan) for plan in plans],
    }
    return json.dumps(told, indent=2)


def _read_entries(path: Path) -> Iterator[dict[str, JsonValue]]:
    needed = {"event", "fields", "sequence", "time"}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # the chain says that it is broken here
                if isinstance(entry, dict) and needed <= entry.keys() and _is_placed(entry):
                    AUDIT_LOG.check(entry.get("format"), f"line {number}")
                    yield entry
    except FileNotFoundError:
        raise RunFolderError(explain_missing(path)) from None
    except FormatError as error:
        raise RunFolderError(str(error)) from None
    except OSError as error:
        raise RunFolderError(
            f"The audit log {path} cannot be read: {error.strerror or error}. Ask as the user who runs flower-client."
        ) from error


def _is_placed(entry: dict[str, JsonValue]) -> bool:
    """Return whether an entry says where and when it stands in the log."""
    try:
        return isinstance(entry["sequence"], int) and datetime.fromisoformat(str(entry["time"])).tzinfo is not None
    except ValueError:
        return False


def _begin_row(number: int, time: str, fields: Fields) -> AuditRow:
    kind, part = _text(fields.get("kind")), _text(fields.get("of"))
    row = AuditRow(number, time, _name(kind or "", part), kind, _text(fields.get("run")), None, part)
    found = fields.get("round")
    row.round = found if isinstance(found, int) and kind != "query" else None
    row.came, row.result, row.why = _sizes(fields.get("parts")), "unanswered", _NOT_ANSWERED
    row.request = fields.get("request")
    return row


def _take(row: AuditRow, event: str, fields: Fields) -> None:
    """Add to a message's row what an entry says of its answer."""
    if event == "sent":
        row.left = _sizes(fields.get("parts"))
        if "text" in fields:
            row.result = "failed" if row.result == "unanswered" else row.result
            row.why = tame(str(fields["text"]), 1000)
        elif row.result == "unanswered":
            row.result, row.why = "answered", ""
        return
    row.result = event
    row.why = tame(str(fields.get("text") or fields.get("reason") or fields.get("error") or ""), 1000)


def _read_exclusions(fields: Fields) -> Fields | None:
    """Return what an entry ``sent`` tells of who is left out; earlier versions wrote an entry of its own."""
    found = fields.get("exclusions")
    return {key: value for key, value in found.items() if key != "salt"} if isinstance(found, dict) else None


def _list_plans(fields: Fields) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    plans = fields.get("plans")
    for plan in plans.values() if isinstance(plans, dict) else ():
        if isinstance(plan, dict):
            yield hash_plan(plan), plan


def _describe_event(event: str, fields: Fields) -> str:
    """Say what an event holds in a few words; of counts, the sentence that was told."""
    refusals = fields.get("refusals")
    if event == "refused_again" and isinstance(refusals, list):
        counts = [one for one in refusals if isinstance(one, dict)]
        return tame(
            "; ".join(f"{one.get('text')} - the same again {_number(one.get('times'))} times" for one in counts)
        )
    hidden = ("sha256", "salt")
    told = {key: value for key, value in fields.items() if event != "policy" and not key.endswith(hidden)}
    parts = _describe_parts(_sizes(told.pop("parts", None)))
    text = "; ".join(f"{key}: {json.dumps(value)}" for key, value in told.items())
    return tame("; ".join(filter(None, [text, parts])), 300)


def _describe_plan(plan: Fields) -> str:
    model, training = plan.get("model"), plan.get("training")
    name = model.get("name") if isinstance(model, dict) else None
    epochs = training.get("epochs_per_round", 1) if isinstance(training, dict) else "?"
    told = f"study {plan.get('study')}, model {name}, {plan.get('rounds')} rounds of {epochs} epochs"
    return tame(f"{told}, run {plan.get('run_id')}", 300)


def _name(kind: str, part: str | None) -> str:
    """Return what was asked in the words of the kinds; a kind of another version as it is."""
    known = KINDS.get(kind)
    if known is None:
        return tame(kind, 60)
    return (known.find_phase(part) or known.phases[0]).title


def _sizes(parts: JsonValue) -> dict[str, int]:
    found: Iterable[JsonValue] = parts if isinstance(parts, list) else ()
    sizes = {}
    for part in found:
        if isinstance(part, dict) and isinstance(part.get("bytes"), int):
            sizes[tame(str(part.get("name")), 60)] = int(str(part["bytes"]))
    return sizes


def _describe_parts(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_format_bytes(number)}" for name, number in sizes.items())


def _format_bytes(number: int) -> str:
    return f"{number:,} bytes" if number < 2**20 else f"{number / 2**20:.1f} MiB"


def _number(value: JsonValue) -> str:
    return f"{value:,}" if isinstance(value, int) else tame(str(value), 30)


def _text(value: JsonValue) -> str | None:
    return None if value is None else tame(str(value), 100)


def _local(time: str) -> str:
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return tame(time, 30)
