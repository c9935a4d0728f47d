"""Checks of the way to the server, from the name to what it answers."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from client.check.context import CannotCheckError, CheckContext, CheckResult, NotApplicableError
from client.check.plan_words import describe_plan
from client.check.results import CheckFailedError
from client.check.tls import check_tls, find_addresses, open_connection, read_date
from fedmed.config import Plan
from fedmed.config.addresses import split_address
from fedmed.config.client import ClientConfig
from fedmed.errors import ConnectionRefusedByServerError
from fedmed.protocol.hello import Hello
from fedmed.versions import DISTRIBUTION, SOFTWARE, find_versions

WARN_DAYS = 30
CLOCK_WARNING_S = 3.0
CLOCK_AHEAD_S, CLOCK_BEHIND_S = 5.0, 10.0
"""Flower refuses a request that is signed more than 5 s in the server's future; being behind, it allows minutes."""
_EXACT_PACKAGES = ("fedmed", "flwr")
_PACKAGES = (*_EXACT_PACKAGES, "torch")


def check_address(context: CheckContext, name: str) -> CheckResult:
    """Look up the server's name."""
    host, port = _get_direct_address(context.config)
    return CheckResult(name, "ok", f"{host} has the address {', '.join(find_addresses(host, port))}")


def check_connection(context: CheckContext, name: str) -> CheckResult:
    """Open a TCP connection."""
    host, port = _get_direct_address(context.config)
    begin = time.perf_counter()
    with open_connection(host, port):
        milliseconds = 1000 * (time.perf_counter() - begin)
    return CheckResult(name, "ok", f"port {port} answers after {milliseconds:.0f} ms")


def check_handshake(context: CheckContext, name: str) -> CheckResult:
    """Make a TLS connection that trusts the federation's authority only."""
    host, port = _get_direct_address(context.config)
    _require_tls(context.config)
    version, certificate = check_tls(host, port, Path(context.config.ca))
    context.certificate = certificate
    return CheckResult(name, "ok", f"{version}; the certificate is signed by our authority, '{certificate.issuer}'")


def check_server_certificate(context: CheckContext, name: str) -> CheckResult:
    """Look at the dates of the server's certificate."""
    _get_direct_address(context.config)
    _require_tls(context.config)
    return judge_expiry(
        name, context.get_certificate().ends, "The coordinating site renews it; tell them if this stays."
    )


def check_authentication(context: CheckContext, name: str) -> CheckResult:
    """Greet the server with this site's signature and keep its answer."""
    try:
        with context.connect(context.config) as server:
            before = datetime.now(UTC)
            answer = server.hello()
            after = datetime.now(UTC)
    except ConnectionRefusedByServerError as error:  # its text is also for a client that goes on trying
        raise CheckFailedError(re.sub(r"(; |\. )[Tt]rying again[^.]*\.$", ".", str(error))) from None
    context.hello = answer
    context.clock_ahead_s = compare_clocks(before, _read_time(answer), after)
    known = answer.get("site")
    if known != context.config.name:
        raise CheckFailedError(
            f"The server knows this key as the site '{known}', client.yaml says name: {context.config.name}.",
            f"Write `name: {known}`, or use the kit that was made for '{context.config.name}'.",
        )
    proxy = _name_proxy(context.config)
    way = f" through the proxy {proxy}" if proxy else ""
    return CheckResult(name, "ok", f"the server knows this site as '{known}'{way}")


def check_clock(context: CheckContext, name: str) -> CheckResult:
    """Compare this machine's clock with the server's; without an answer, with the date in its refusal."""
    if context.clock_ahead_s is None:
        context.clock_ahead_s = _ask_date(context.config)
    if context.clock_ahead_s is None:
        raise CannotCheckError("The server's time is not known, because it cannot be reached.")
    difference = abs(context.clock_ahead_s)
    side = "ahead of" if context.clock_ahead_s > 0 else "behind"
    allowed = f"up to {CLOCK_AHEAD_S:g} s ahead, {CLOCK_BEHIND_S:g} s behind"
    found = f"this machine is {difference:.1f} s {side} the server; allowed: {allowed}"
    advice = "Switch on time synchronisation (NTP) on this machine."
    if not -CLOCK_BEHIND_S <= context.clock_ahead_s <= CLOCK_AHEAD_S:
        return CheckResult(name, "failed", found, advice)
    if difference > CLOCK_WARNING_S:
        return CheckResult(name, "warning", found, advice)
    return CheckResult(name, "ok", found if difference >= 0.05 else "no difference to the server could be measured")


def check_versions(context: CheckContext, name: str) -> CheckResult:
    """Compare the versions of fedmed, flwr and torch with the server's."""
    told = (context.hello or {}).get("versions", {})
    own = find_versions(*_PACKAGES)
    other = {package: str(told.get(package, "unknown")) for package in _PACKAGES}
    differing = [package for package in _PACKAGES if other[package] != own[package]]
    if not differing:
        return CheckResult(name, "ok", f"the same at both ends: {', '.join(f'{p} {own[p]}' for p in _PACKAGES)}")
    found = "; ".join(f"{package} {own[package]} here, {other[package]} at the server" for package in differing)
    exact = [package for package in differing if package in _EXACT_PACKAGES]
    if exact:
        wanted = " ".join(f"{DISTRIBUTION if package == SOFTWARE else package}=={other[package]}" for package in exact)
        return CheckResult(name, "failed", found, f"Install the server's version here: {wanted}.")
    return CheckResult(
        name, "warning", found, "Training works; results may differ in the last bits. Best install the same version."
    )


def check_plan(context: CheckContext, name: str) -> CheckResult:
    """Read what the server plans."""
    hello = context.hello or {}
    if hello.get("plan") is None:
        raise CannotCheckError("The server has no plan yet; run --check again when the coordinating site has started.")
    try:
        context.plan = plan = Plan.model_validate(hello["plan"])
    except ValidationError:
        raise CheckFailedError(
            "The server's plan cannot be read here.", "Server and site must run the same version of fedmed."
        ) from None
    words = "\n".join(describe_plan(plan))
    study = hello.get("study") or {}
    return CheckResult(
        name,
        "ok",
        f"study '{study.get('id')}', approval {study.get('approval') or 'not stated'}; {plan.model.name} for "
        f"{len(plan.classes)} classes at {plan.image_size} pixels; {plan.rounds} rounds of "
        f"{plan.training.epochs_per_round} epochs, round {hello.get('round') or 0} is done; compression "
        f"{plan.compression}\n{words}\nHash of the plan: {plan.sha256}",
    )


def judge_expiry(name: str, ends: datetime, advice: str) -> CheckResult:
    """Return the result for a certificate that is valid until ``ends``."""
    days = (ends - datetime.now(UTC)).total_seconds() / 86400
    found = f"valid until {ends:%Y-%m-%d}, {max(days, 0):.0f} days"
    if days <= 0:
        return CheckResult(name, "failed", f"expired on {ends:%Y-%m-%d}", advice)
    return CheckResult(name, "warning" if days < WARN_DAYS else "ok", found, advice if days < WARN_DAYS else "")


def compare_clocks(before: datetime, server: datetime, after: datetime) -> float:
    """Return by how many seconds this machine is ahead of the server at least, negative if behind.

    The server read its clock at some time between ``before`` and ``after``; what lies in between counts as equal.
    """
    if server < before:
        return (before - server).total_seconds()
    return -(server - after).total_seconds() if server > after else 0.0


def _name_proxy(config: ClientConfig) -> str | None:
    """Return host and port of the proxy on the way, without user and password; None if there is none."""
    from client.supernode.connection import find_proxy  # noqa: PLC0415  (imports flwr)

    proxy = find_proxy(config)
    return proxy.url.netloc.decode() if proxy else None


def _get_direct_address(config: ClientConfig) -> tuple[str, int]:
    proxy = _name_proxy(config)
    if proxy:
        raise NotApplicableError(f"The way leads through the proxy {proxy}, so only the greeting is tried.")
    return split_address(config.server, "server")


def _require_tls(config: ClientConfig) -> None:
    if config.insecure:
        raise NotApplicableError("client.yaml says `insecure: true`: there is no TLS.")


def _read_time(hello: Hello) -> datetime:
    try:
        time_there = datetime.fromisoformat(str(hello["time"]))
    except (KeyError, ValueError):
        raise CheckFailedError(
            "Something answered, but not as a fedmed server does.", "Check `server` in client.yaml, and its port."
        ) from None
    return time_there if time_there.tzinfo else time_there.replace(tzinfo=UTC)


def _ask_date(config: ClientConfig) -> float | None:
    if _name_proxy(config):
        return None
    host, port = split_address(config.server, "server")
    before = datetime.now(UTC)
    date = read_date(host, port, None if config.insecure else Path(config.ca))
    if date is None:
        return None
    # The date is cut to whole seconds, so up to one second of difference cannot be seen.
    return compare_clocks(before.replace(microsecond=0), date, datetime.now(UTC))
