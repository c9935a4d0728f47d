"""Which patient groups this site has told apart so far, over all runs: the images of all of them are the same.

A run that is told of women and men, and another one that is told of women and men by age, together tell of the ages
that the second one leaves out because they are few. The tables' own rule looks back over all runs
(:mod:`client.hospital.told_rows`); losses by group have none that does. So a person is asked before a plan tells other
groups apart than earlier ones. ::

    state_dir/told_rows/groups.json    {"runs": {"RUN_ID": {"losses": ["sex"], "tables": ["age x sex", "sex"]}}}

It is kept after ``--forget``, like the counts of rows beside it.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.errors import RunFolderError, tame
from fedmed.fairness.figures.groups import CROSS
from fedmed.processes import private_folder, write_secret

Names = Mapping[str, frozenset[str]]
"""``tables`` and ``losses`` to the attributes and crossings in them."""

TOLD_FILE = Path("told_rows") / "groups.json"
ALL, ALL_PAIRS = "every attribute of the data", "every crossing of two"
_WORDS = {"tables": "tables by {}", "losses": "losses of training images by {}"}


def list_groups(policy: PolicyConfig, plan: Plan) -> Names:
    """Return which attributes and crossings a plan has this site tell apart, in tables and in losses.

    Parameters
    ----------
    policy : PolicyConfig
        What the site allows; what it does not list is not told apart.
    plan : Plan
        What is asked for.
    """
    asked = plan.fairness
    if asked.attributes is None:
        singles = [ALL] if policy.attributes is None else policy.attributes
    else:
        singles = [name for name in asked.attributes if policy.attributes is None or name in policy.attributes]
    crossings = _list_crossings(policy, plan, singles)
    attribute = plan.loss_attribute if plan.losses == "groups" else None
    weighed = [] if attribute is None else [_sort(attribute.split(CROSS))]
    return {"tables": frozenset([*singles, *crossings]), "losses": frozenset(weighed)}


def note_groups(state_dir: Path, policy: PolicyConfig, plan: Plan, what: str) -> None:
    """Write down what an answer of a run tells apart; it is on the disk when this returns.

    Parameters
    ----------
    state_dir : Path
        Of the site.
    policy : PolicyConfig
        What the site allows.
    plan : Plan
        Of the run.
    what : {"tables", "losses"}
        What the answer holds.

    Raises
    ------
    RunFolderError
        If the file cannot be read.
    """
    names, told = list_groups(policy, plan)[what], read_groups(state_dir)
    of_run = dict(told.get(plan.run_id, {}))
    if names <= of_run.get(what, frozenset()):
        return
    of_run[what] = of_run.get(what, frozenset()) | names
    runs = {**told, plan.run_id: of_run}
    values = {run: {kind: sorted(found) for kind, found in of.items()} for run, of in runs.items()}
    private_folder((state_dir / TOLD_FILE).parent)
    write_secret(state_dir / TOLD_FILE, json.dumps({"runs": values}, sort_keys=True).encode())


def find_other_groups(state_dir: Path, policy: PolicyConfig, plan: Plan) -> list[str]:
    """Return in lines for people which groups a plan tells apart that earlier answers did not.

    Those that the site's policy names one by one are known.

    Raises
    ------
    RunFolderError
        If what was told before cannot be read.
    """
    told = read_groups(state_dir)
    lines = []
    for what, names in list_groups(policy, plan).items():
        earlier = {run: of[what] for run, of in told.items() if of.get(what)}
        known = frozenset[str]().union(*earlier.values())
        new = sorted(name for name in names if not _is_known(name, known) and not _is_listed(name, policy))
        if earlier and new:
            runs = "; ".join(f"run {tame(run, 100)}: {_join(of)}" for run, of in sorted(earlier.items()))
            lines.append(
                f"The plan asks for {_WORDS[what].format(_join(new))}, of images of which this site has told "
                f"{_WORDS[what].format('others')} before ({runs}). Two ways to divide the same patients can together "
                "tell of a group of fewer than k, which each alone leaves out."
            )
    return lines


def read_groups(state_dir: Path) -> dict[str, Names]:
    """Return what was told of each run.

    Raises
    ------
    RunFolderError
        If the file cannot be read.
    """
    file = state_dir / TOLD_FILE
    try:
        runs = json.loads(file.read_bytes())["runs"]
        return {run: {what: frozenset(map(str, names)) for what, names in of.items()} for run, of in runs.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{file}, in which this site keeps which patient groups it has told apart, cannot be read "
            f"({type(error).__name__}). Nothing more is told without it. Put it back from a backup. Move it away only "
            "between studies."
        ) from error


def _list_crossings(policy: PolicyConfig, plan: Plan, singles: list[str]) -> list[str]:
    asked = plan.fairness.intersections
    if asked == "none":
        return []
    if asked == "pairs":
        found = [_sort(pair) for pair in combinations(singles, 2)] if ALL not in singles else [ALL_PAIRS]
    else:
        found = [_sort(one) for one in asked if ALL in singles or set(one) <= set(singles)]
    if policy.crossings is None:
        return found
    listed = [_sort(one) for one in policy.crossings]
    return listed if found == [ALL_PAIRS] else [name for name in found if name in listed]


def _is_known(name: str, known: frozenset[str]) -> bool:
    num_parts = 2 if name == ALL_PAIRS else len(name.split(CROSS))
    return name in known or (num_parts == 1 and ALL in known) or (num_parts == 2 and ALL_PAIRS in known)


def _is_listed(name: str, policy: PolicyConfig) -> bool:
    """Return whether ``client.yaml`` names an attribute or a crossing one by one."""
    return name in (policy.attributes or []) or name in [_sort(one) for one in policy.crossings or []]


def _sort(names: Iterable[str]) -> str:
    return CROSS.join(sorted(names))


def _join(names: Iterable[str]) -> str:
    return tame(", ".join(sorted(names)), 300)
