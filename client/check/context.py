"""What all checks of ``flower-client --check`` share: a result, how a check ends, and what earlier checks found."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from client.check.results import AGAIN, CheckFailedError
from fedmed.config import Plan
from fedmed.config.client import ClientConfig
from fedmed.errors import FedmedError
from fedmed.protocol.hello import Hello

if TYPE_CHECKING:
    from client.check.tls import ServerCertificate
    from client.hospital.site_data import Hospital, Site
    from fedmed.training.network import Network

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes
    ----------
    name : str
        What was checked.
    status : {"ok", "warning", "failed", "skipped"}
        ``warning``: training would run, but someone should look at it.
    found : str
        What was found, and what is allowed.
    advice : str
        What to do; empty where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


class CannotCheckError(Exception):
    """Ends a check as skipped, and with it all checks that build on it; the text is the reason."""


class NotApplicableError(Exception):
    """Ends a check as skipped because there is nothing to check here; others go on. The text is the reason."""


class Server(Protocol):
    """What the checks need of :class:`client.supernode.fleet.Fleet`."""

    def __enter__(self) -> "Server":
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """Close the connection."""

    def hello(self) -> Hello:
        """Return the server's answer to a signed greeting."""


@dataclass
class CheckContext:
    """What the checks work on, and what they leave for each other.

    Attributes
    ----------
    config : ClientConfig
        Settings of this site.
    offline : bool
        Whether to leave the network alone.
    connect : callable
        Makes the signed connection to the server.
    folder : Path
        Where the checks may write. The site's own state is not touched.
    skipped_file : Path
        Where the list of rows that cannot be used is left for a person.
    certificate : ServerCertificate or None
        The server's.
    hello : Hello or None
        The server's answer.
    clock_ahead_s : float or None
        By how much this machine's clock is ahead of the server's at least; negative: behind.
    plan : Plan or None
        What the server plans.
    hospital, site : Hospital, Site, or None
        This site and its images, split as they will be.
    network : Network or None
        The plan's network with its first values.
    """

    config: ClientConfig
    offline: bool
    connect: Callable[[ClientConfig], Server]
    folder: Path
    skipped_file: Path
    certificate: "ServerCertificate | None" = None
    hello: Hello | None = None
    clock_ahead_s: float | None = None
    plan: Plan | None = None
    site: "Site | None" = None
    hospital: "Hospital | None" = None
    network: "Network | None" = None

    def get_certificate(self) -> "ServerCertificate":
        """Return the server's certificate, which an earlier check has verified."""
        assert self.certificate is not None, "the check 'TLS' comes first"
        return self.certificate

    def get_plan(self) -> Plan:
        """Return the plan, which an earlier check has read."""
        assert self.plan is not None, "the check 'plan' comes first"
        return self.plan

    def get_site(self) -> "Site":
        """Return the site, which an earlier check has opened."""
        assert self.site is not None, "the check 'data' comes first"
        return self.site

    def get_network(self) -> "Network":
        """Return the network, which an earlier check has built."""
        assert self.network is not None, "the check 'model' comes first"
        return self.network


Run = Callable[[CheckContext, str], CheckResult]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
        Shown to a person.
    run : callable
        Gets the context and the name.
    needs : tuple of str
        Checks that must have come out well before.
    online : bool
        Whether it uses the network.
    """

    name: str
    run: Run
    needs: tuple[str, ...] = ()
    online: bool = False


def run_check(check: Check, context: CheckContext, blocked: Mapping[str, str]) -> tuple[CheckResult, str | None]:
    """Run one check; whatever happens in it becomes a result.

    Parameters
    ----------
    check : Check
        The check.
    context : CheckContext
        What it works on.
    blocked : mapping of str to str
        Checks that others cannot build on, with the reason.

    Returns
    -------
    result : CheckResult
    reason : str or None
        Why checks that need this one cannot run; None if they can.
    """
    for need in check.needs:
        if need in blocked:
            return CheckResult(check.name, "skipped", f"Not run, because {blocked[need]}."), blocked[need]
    if check.online and context.offline:
        reason = "the network was to be left alone (offline)"
        return CheckResult(check.name, "skipped", f"Not run, because {reason}."), reason
    try:
        result = check.run(context, check.name)
    except CannotCheckError as reason:
        return CheckResult(check.name, "skipped", str(reason)), f"'{check.name}' could not be checked"
    except NotApplicableError as reason:
        result = CheckResult(check.name, "skipped", str(reason))
    except CheckFailedError as error:
        result = CheckResult(check.name, "failed", error.found, error.advice)
    except FedmedError as error:  # its text says already what to do
        result = CheckResult(check.name, "failed", str(error), AGAIN)
    except Exception as error:
        result = _describe_fault(check.name, error)
    return result, f"'{check.name}' failed" if result.status == "failed" else None


def _describe_fault(name: str, error: Exception) -> CheckResult:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return CheckResult(
        name,
        "failed",
        f"The check itself ended with {type(error).__name__} ({where}): {error}",
        "This was not foreseen. Tell the coordinating site the kind and the line of the error and the versions in "
        "use; leave out names of files and patients.",
    )
