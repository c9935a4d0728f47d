"""Check of code from outside fedmed: what the plan wants, whether this site allows it, and whether it is installed."""

from client.check.context import CheckContext, CheckResult
from client.check.results import CheckFailedError
from client.check.teacher import find_small
from client.guard import outside_code
from fedmed.errors import ExtensionError
from fedmed.extensions import check_installed


def check_extensions(context: CheckContext, name: str) -> CheckResult:
    """Compare what the plan wants with the policy and with what is installed. Nothing is imported for it."""
    plan, small = context.get_plan(), find_small(context)
    plans = [plan] if small is None else [plan, small.plan]
    wanted = list(dict.fromkeys(extension for one in plans for extension in one.extensions))
    refused = [
        *dict.fromkeys(found for one in plans for found in outside_code.check_extensions(context.config.policy, one))
    ]
    if refused:
        found = "; ".join(f"{refusal.found}; policy.extensions: {refusal.allowed}" for refusal in refused)
        raise CheckFailedError(f"The plan wants {found}", refused[0].advice)
    try:
        check_installed(wanted)
    except ExtensionError as error:
        raise CheckFailedError(str(error), "Or ask the coordinating site to use what is installed here.") from None
    if not wanted:
        return CheckResult(name, "ok", "none, says the plan")
    return CheckResult(name, "ok", f"{'; '.join(map(str, wanted))}: allowed, and the same here (policy.extensions)")
