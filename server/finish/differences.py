"""Differences between the forms of a model that sites have claimed, and who has accepted which.

A candidate of which any site says that its deployable form is not what was trained is not released. One site that is
broken, or says so for no reason, would stop the release for all. So a person may accept the difference of a site by
name, where other sites have compared the same files and found none; the audit log, the report of doubts and the model
card then say so, and a person has to release the model. ::

    release_differences.json    of the run's folder, from the first difference on
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import ValidationError

from fedmed.errors import FederationError, suggest_nearest
from fedmed.protocol.reading import MessageForm
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.audit import AuditLog
from fedmed.storage.run_folder import RunFolder
from server.finish.compare_forms import Findings

DIFFERENCES_FILE = "release_differences.json"


class Acceptance(MessageForm):
    """Who has accepted the difference that a site has found."""

    by: str
    time: str


class Differences(MessageForm):
    """What the sites have found of one candidate."""

    files: dict[str, str]
    """Hashes of the candidate's files."""
    problems: dict[str, str]
    """Site to the difference that it has found."""
    sound: list[str]
    """Sites that have compared the forms on images and found none."""
    accepted: dict[str, Acceptance]


def read_differences(run: RunFolder) -> Differences | None:
    """Return what sites have found, None where nobody has found a difference.

    Raises
    ------
    FederationError
        If the file is damaged.
    """
    path = run.path / DIFFERENCES_FILE
    try:
        return Differences.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise FederationError(
            f"{path} cannot be read ({type(error).__name__}). Remove it and start flower-server again, which asks the "
            "sites again; then accept the difference again."
        ) from None


def find_accepted(run: RunFolder, files: Mapping[str, str]) -> dict[str, Acceptance]:
    """Return the differences of a candidate, by its files, that a person has accepted, by site."""
    told = read_differences(run)
    return dict(told.accepted) if told is not None and told.files == files else {}


def keep_differences(run: RunFolder, files: dict[str, str], findings: Findings) -> None:
    """Keep what sites have found of a candidate; what was accepted of the same one stays accepted."""
    compared = findings.comparisons.items()
    sound = [site for site, told in compared if site not in findings.problems and told.onnx.num_images]
    told = Differences(files=files, problems=findings.problems, sound=sorted(sound), accepted=find_accepted(run, files))
    write_atomically(run.path / DIFFERENCES_FILE, json.dumps(told.to_values(), indent=1).encode())


def accept_difference(run: RunFolder, site: str, by: str) -> str:
    """Write down that a person accepts the difference that one site has found; return a line for that person.

    Parameters
    ----------
    run : RunFolder
        Of which the candidate was compared.
    site : str
        Who has found the difference.
    by : str
        The person's name.

    Raises
    ------
    FederationError
        If the site has found none, or no other site has compared the same files and found none.
    """
    told = read_differences(run)
    if told is None or not told.problems:
        raise FederationError("No site has found a difference between the forms of the model; nothing is to accept.")
    if site not in told.problems:
        raise FederationError(
            f"'{site}' has found no difference.{suggest_nearest(site, told.problems)} These have: "
            f"{', '.join(sorted(told.problems))}."
        )
    if not told.sound:
        raise FederationError(
            "No site has compared the forms on its images without finding a difference, so that the model is not what "
            "was trained. It cannot be released."
        )
    accepted = Acceptance(by=by, time=datetime.now(UTC).isoformat(timespec="seconds"))
    AuditLog(run.audit_file).append(
        "difference_accepted", site=site, problem=told.problems[site], files=told.files, **accepted.to_values()
    )
    told = told.model_copy(update={"accepted": {**told.accepted, site: accepted}})
    write_atomically(run.path / DIFFERENCES_FILE, json.dumps(told.to_values(), indent=1).encode())
    return f"{by} has accepted the difference that {site} has found, since {', '.join(told.sound)} found none."


def pass_over_accepted(run: RunFolder, files: Mapping[str, str], findings: Findings) -> None:
    """Take accepted differences out of what the sites have found; such a site counts as one that compared nothing."""
    for site, accepted in find_accepted(run, files).items():
        problem = findings.problems.pop(site, None)
        if problem is not None:
            findings.comparisons.pop(site, None)
            findings.silent[site] = f"it has found a difference, which {accepted.by} has accepted: {problem}"


def describe_accepted(run: RunFolder, files: Mapping[str, str]) -> list[str]:
    """Return the doubts that remain of a candidate of which differences were accepted."""
    return [
        f"{site} has found that the deployable form is not what was trained; {accepted.by} has accepted that at "
        f"{accepted.time}, since other sites found no difference."
        for site, accepted in sorted(find_accepted(run, files).items())
    ]
