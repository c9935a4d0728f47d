"""Code from outside fedmed that a plan names: whether this site allows it, and whether it has the same installed.

Both are found without importing it. Only what has passed both is ever imported here.
"""

from client.guard.policy import Refusal
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.errors import ExtensionError, WireError, tame
from fedmed.extensions import Extension, check_installed

_MOST_OF_ERROR = 1000


def check_extensions(policy: PolicyConfig, plan: Plan) -> list[Refusal]:
    """Return what a plan uses of code from outside fedmed that a policy does not allow. Nothing is imported."""
    told = {one.path: one for one in plan.extensions}
    paths = dict.fromkeys([*plan.extension_paths, *told])
    refused = [path for path in paths if path not in told or not _allows(policy, told[path])]
    if not refused:
        return []
    found = "; ".join(str(told[path]) if path in told else f"'{tame(path, 200)}', not described" for path in refused)
    advice = (
        "Use what fedmed has itself in server.yaml. Or, once somebody at the site has read that code, which runs with "
        "the site's rights, list it in the policy in the site's client.yaml; a loose file with its sha256."
    )
    return [Refusal("extensions", found, _list_allowed(policy), advice)]


def _allows(policy: PolicyConfig, extension: Extension) -> bool:
    return any(entry.covers(extension) for entry in policy.extensions)


def _list_allowed(policy: PolicyConfig) -> str:
    texts = []
    for entry in policy.extensions:
        limits = {"version": entry.version, "SHA-256": entry.sha256 and entry.sha256[:12]}
        texts.append(f"'{entry.path}'" + "".join(f", {key} {value}" for key, value in limits.items() if value))
    return "; ".join(texts) or "none"


def check_code(plan: Plan) -> None:
    """Check that the code from outside fedmed that a plan names is installed here, and the same. It is not imported.

    Raises
    ------
    WireError
        With what was found and what is wanted.
    """
    try:
        check_installed(plan.extensions)
    except ExtensionError as error:
        raise WireError(f"The server's plan cannot be carried out here: {tame(str(error), _MOST_OF_ERROR)}") from None
