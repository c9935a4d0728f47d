"""``flower-client --check``: everything that can be tried without taking part.

==============  ===========================================================================
``context``     a check and what all checks share; ``results`` how one ends
``files``       settings, keys, certificate of the authority, state folder
``approval``    whether a person here has approved the plan, which ``plan_words`` shows
``network``     way to the server and its answer; ``tls`` looks at the raw connection
``data``        files, classes, attributes, pixels
``extensions``  code from outside fedmed: what the plan wants, what is allowed and installed
``groups``      patient groups, and what of them would be withheld
``teacher``     the frozen teacher, and the small network of a compression
``model``       processor, model, disk, policy, one training step
``memory``      what training needs of the memory
``leaves``      what would leave: the replies are built and thrown away
==============  ===========================================================================

Nothing is sent except a signed greeting. What the checks write lies in ``state_dir/check`` and is removed, except for
the list of rows that cannot be used.
"""

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from client.check.approval import check_approval
from client.check.context import Check, CheckContext, CheckResult, Server, run_check
from client.check.data import (
    check_attributes,
    check_class_counts,
    check_classes,
    check_data,
    check_exclusions,
    check_splits,
    check_statistics,
)
from client.check.extensions import check_extensions
from client.check.files import check_authority, check_key, check_release_key, check_settings, check_state
from client.check.groups import check_groups
from client.check.leaves import list_size_checks
from client.check.memory import check_memory
from client.check.model import check_device, check_model, check_policy, check_room, check_step
from client.check.network import (
    check_address,
    check_authentication,
    check_clock,
    check_connection,
    check_handshake,
    check_plan,
    check_server_certificate,
    check_versions,
)
from client.check.teacher import check_teacher
from fedmed.config.client import ClientConfig
from fedmed.extensions import allow_only

CHECKS: tuple[Check, ...] = (
    Check("settings", check_settings),
    Check("site key", check_key),
    Check("release key", check_release_key),
    Check("authority", check_authority),
    Check("state folder", check_state),
    Check("server address", check_address, online=True),
    Check("connection", check_connection, ("server address",), online=True),
    Check("TLS", check_handshake, ("connection", "authority"), online=True),
    Check("server certificate", check_server_certificate, ("TLS",), online=True),
    Check("authentication", check_authentication, ("site key", "TLS"), online=True),
    Check("clock", check_clock, ("TLS",), online=True),
    Check("versions", check_versions, ("authentication",), online=True),
    Check("plan", check_plan, ("authentication",), online=True),
    Check("approval", check_approval, ("plan", "state folder")),
    Check("policy", check_policy, ("plan",)),
    Check("extensions", check_extensions, ("plan",)),
    Check("data", check_data, ("state folder",)),
    Check("split", check_splits, ("data",)),
    Check("withdrawn patients", check_exclusions, ("data",)),
    Check("classes", check_classes, ("data",)),
    Check("class counts", check_class_counts, ("data",)),
    Check("attributes", check_attributes, ("data",)),
    Check("groups", check_groups, ("data",)),
    Check("image statistics", check_statistics, ("data",)),
    Check("processor", check_device),
    Check("teacher", check_teacher, ("plan",)),
    Check("model", check_model, ("teacher", "extensions")),
    Check("memory", check_memory, ("model", "processor")),
    Check("disk", check_room, ("model", "state folder")),
    Check("training step", check_step, ("classes", "memory")),
    *list_size_checks(),
)
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_WIDTH_WITHOUT_TERMINAL = 120


def run_preflight(
    config: ClientConfig,
    *,
    offline: bool = False,
    connect: Callable[[ClientConfig], Server] | None = None,
    on_start: Callable[[str], None] | None = None,
) -> list[CheckResult]:
    """Try everything.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site, with absolute paths.
    offline : bool
        Leave the network alone, and with it what needs the server's plan.
    connect : callable, optional
        Makes the signed connection to the server; default: :class:`client.supernode.fleet.Fleet`.
    on_start : callable, optional
        Is told the name of each check before it runs.

    Returns
    -------
    list of CheckResult
        One for each check, in order; none is left out, and nothing is raised.
    """
    results: list[CheckResult] = []
    blocked: dict[str, str] = {}
    with _CheckFolder(Path(config.state_dir)) as workshop, allow_only(config.policy.extensions, config.own_code):
        context = CheckContext(config, offline, connect or _connect, workshop.folder, workshop.skipped_file)
        for check in CHECKS:
            if on_start is not None:
                on_start(check.name)
            result, reason = run_check(check, context, blocked)
            results.append(result)
            if reason is not None:
                blocked[check.name] = reason
    return results


def has_failed(results: Sequence[CheckResult]) -> bool:
    """Return whether anything failed, that is whether the command's exit code is not 0."""
    return any(result.status == "failed" for result in results)


def render_table(results: Sequence[CheckResult]) -> str:
    """Return the results as a table for a terminal, in colour if standard output is one."""
    table = Table(show_lines=True)
    for heading in ("check", "result"):
        table.add_column(heading, no_wrap=True)
    table.add_column("found, and what to do", overflow="fold")
    for result in results:
        colour = _COLOURS[result.status]
        advice = f"\n→ {_escape(result.advice)}" if result.advice else ""
        table.add_row(result.name, f"[{colour}]{result.status}[/]", f"{_escape(result.found)}{advice}")
    stream = io.StringIO()
    colours = sys.stdout.isatty()
    console = Console(
        file=stream, force_terminal=colours, width=None if colours else _WIDTH_WITHOUT_TERMINAL, highlight=False
    )
    console.print(table)
    console.print(_summarise(results))
    return stream.getvalue().rstrip()


def to_json(results: Sequence[CheckResult]) -> str:
    """Return the results as JSON: ``ok``, and ``checks`` with ``name``, ``status``, ``found`` and ``advice``."""
    return json.dumps({"ok": not has_failed(results), "checks": [asdict(result) for result in results]}, indent=2)


def _summarise(results: Sequence[CheckResult]) -> str:
    counts = {status: sum(result.status == status for result in results) for status in _COLOURS}
    told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    end = "Correct what failed, then run --check again." if counts["failed"] else "Nothing failed."
    return f"{told}. {end}"


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _connect(config: ClientConfig) -> Server:
    from client.supernode.fleet import Fleet  # noqa: PLC0415  (imports flwr's connection only where there is one)

    return Fleet(config)


class _CheckFolder:
    """A folder for the checks, and what is left of it.

    It is in the state folder, because it names images and patients; where that cannot be written, the check that says
    so keeps all others from using it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "check"
        self.skipped_file = self._root / "skipped_rows.csv"
        self.folder = self._root

    def __enter__(self) -> "_CheckFolder":
        try:
            shutil.rmtree(self._root, ignore_errors=True)  # of an earlier check
            self._root.mkdir(mode=0o700, parents=True)
            self.folder = Path(tempfile.mkdtemp(dir=self._root))
        except OSError:
            self.folder = self._root
        return self

    def __exit__(self, *error: object) -> None:
        if self.folder != self._root:
            shutil.rmtree(self.folder, ignore_errors=True)
        if not self.skipped_file.is_file():
            shutil.rmtree(self._root, ignore_errors=True)
