"""Who has decided that a model may be used: ``release: manual`` and ``flower-server --release --by NAME``.

A model about which there are doubts (:mod:`server.finish.chance`) is decided in the same way, whatever the settings.

The decision lies in ``release_decision.json`` of the run's folder. It is written after the name is in the manifest, in
the model card and in the audit log, and the running server, or the next start, signs nothing without it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedmed.errors import ConfigError, FederationError, FedmedError
from fedmed.processes import single_instance
from fedmed.protocol.release import MANIFEST_FILE
from fedmed.storage.atomic_files import hash_file, write_atomically
from fedmed.storage.audit import AuditLog
from fedmed.storage.run_folder import RunFolder
from server.finish.chance import read_doubts
from server.release.publish import find_release

if TYPE_CHECKING:  # it imports PyTorch
    from fedmed.export.manifest import ReleaseOrigin

DECISION_FILE, LOCK_FILE = "release_decision.json", "decision.lock"
_MOST_LETTERS = 100


@dataclass(frozen=True)
class Decision:
    """A person's decision."""

    by: str
    time: str
    manifest_sha256: str
    """Of the candidate's manifest, which names every file by its hash; the name is in it."""


def read_decision(run: RunFolder) -> Decision | None:
    """Return the decision about a run's model, None before there is one.

    Raises
    ------
    FederationError
        If the file is damaged.
    """
    path = run.path / DECISION_FILE
    try:
        return Decision(**{key: str(value) for key, value in json.loads(path.read_bytes()).items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FederationError(
            f"{path} cannot be read ({type(error).__name__}). Remove it and decide again with --release --by NAME."
        ) from None


def describe_command(config_file: str, release: str = "manual") -> str:
    """Return the line that releases a model."""
    line = f'flower-server --config {config_file} --release --by "NAME OF A PERSON"'
    return f"{line} --key FILE (two of the operators, one after the other)" if release == "two_persons" else line


def decide_release(run: RunFolder, by: str) -> Decision:
    """Write down that a person releases the candidate of a finished run.

    Parameters
    ----------
    run : RunFolder
        With a finished, proven candidate.
    by : str
        The person's name.

    Raises
    ------
    FedmedError
        If the name cannot be used, there is no such candidate, nobody needs to decide, or it was decided already.
    """
    name = check_name(by)
    if not run.config_file.is_file():
        raise FederationError(f"There is no run in '{run.path}', so there is nothing to release.")
    with single_instance(run.path / LOCK_FILE, "another --release for this run folder"):
        check_candidate(run, "manual")
        return write_decision(run, name, "manual")


def check_name(by: str) -> str:
    """Return a person's name without spaces around it.

    Raises
    ------
    ConfigError
        If it is empty, too long or not plain text.
    """
    name = by.strip()
    if not name or len(name) > _MOST_LETTERS or not name.isprintable():
        raise ConfigError(
            f"--by is {by[:_MOST_LETTERS]!r} and must be the name of the person who releases the model: up to "
            f"{_MOST_LETTERS} printable letters."
        )
    return name


def accept_site_difference(run: RunFolder, site: str, by: str) -> str:
    """Write down that a person accepts what a site has found; see :mod:`server.finish.differences`.

    Raises
    ------
    FedmedError
        If the name cannot be used, or nothing is to accept.
    """
    name = check_name(by)
    from server.finish.differences import accept_difference  # noqa: PLC0415  (imports PyTorch)

    with single_instance(run.path / LOCK_FILE, "another --release for this run folder"):
        return accept_difference(run, site, name)


def check_candidate(run: RunFolder, release: Literal["manual", "two_persons"]) -> None:
    """Check that a run has a candidate that a person may release.

    Parameters
    ----------
    run : RunFolder
        The run.
    release : str
        How its settings must say that this is decided.

    Raises
    ------
    FederationError
        If there is none, it was released, or nobody needs to decide.
    """
    decision = read_decision(run)
    if decision is not None:
        raise FederationError(f"The model was released already, by {decision.by} at {decision.time}.")
    if find_release(run) is not None:
        raise FederationError("The model was released already.")
    config = run.read_settings()
    if config.release == "automatic" and not read_doubts(run):
        raise FederationError("The run has 'release: automatic': its model is released as soon as it is proven.")
    if config.release not in (release, "automatic"):
        raise FederationError(f"The run has 'release: {config.release}', server.yaml says {release}. Start it once.")
    if not run.finished_file.is_file():
        raise FederationError("The run has not finished, so there is no candidate yet; --status says how far it is.")
    # Imported late: the server's own process, which only waits for the decision, does without PyTorch.
    from fedmed.export.manifest import find_changed_files, read_manifest  # noqa: PLC0415

    try:
        manifest = read_manifest(run.model)
        wrong = find_changed_files(run.model, manifest)
        proven = config.batch_norm == "local" or "sites" in manifest["proof"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FederationError(f"{run.model} holds no complete model ({type(error).__name__}).") from None
    if wrong:
        raise FederationError(f"{run.model}: {', '.join(wrong)} changed since the model was proven. Put it back.")
    if not proven:
        raise FederationError("The model was not compared at the sites, so it is no candidate for a release.")


def write_decision(run: RunFolder, name: str, kind: str, signatures: Sequence[Mapping[str, str]] = ()) -> Decision:
    """Write a decision into manifest, model card and audit log, and then into the file that the server waits for.

    Parameters
    ----------
    run : RunFolder
        The run; its candidate was looked at.
    name : str
        Who has decided.
    kind : str
        ``manual`` or ``two_persons``.
    signatures : sequence of mappings
        Of the operators.

    Raises
    ------
    CheckpointError
        If a file cannot be written.
    """
    from fedmed.export.release_form import change_manifest  # noqa: PLC0415
    from server.finish.artefact import read_shared_report  # noqa: PLC0415

    time = datetime.now(UTC).isoformat(timespec="seconds")
    release: ReleaseOrigin = {"kind": kind, "by": name, "time": time}
    doubts = read_doubts(run)
    if doubts:
        release["doubts"] = doubts
    if signatures:
        release["signatures"] = [dict(one) for one in signatures]
    change_manifest(run.model, read_shared_report(run), {"release": release})
    decision = Decision(name, time, hash_file(run.model / MANIFEST_FILE))
    AuditLog(run.audit_file).append("release_decided", **asdict(decision), **({"doubts": doubts} if doubts else {}))
    write_atomically(run.path / DECISION_FILE, json.dumps(asdict(decision), ensure_ascii=False).encode())
    return decision


def check_decided(run: RunFolder, decision: Decision) -> None:
    """Check before the signature that the model is still the one that was released.

    Raises
    ------
    FedmedError
        If it was changed.
    """
    found = hash_file(Path(run.model / MANIFEST_FILE))
    if found != decision.manifest_sha256:
        raise FedmedError(
            f"{run.model / MANIFEST_FILE} changed since {decision.by} released the model. Put it back; nothing is "
            "handed out."
        )
