"""``release: two_persons``: two of the operators sign a decision, each with an own key, before a model is released.

A signature is about one model: the manifest with the hashes of all files, apart from the model card and from who has
released it, which change when the second has signed. Signatures lie in ``release_signatures.json`` of the run's folder.
"""

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedmed.config.server import OperatorName, ServerConfig
from fedmed.errors import ConfigError, FederationError, KeyFileError, suggest_nearest
from fedmed.keys import check_signature, is_locked, make_operator_key, sign
from fedmed.keys.files import read_public
from fedmed.keys.passphrases import (
    ask_new_passphrase,
    ask_passphrase,
    check_passphrase,
    read_passphrase_file,
    take_passphrase,
)
from fedmed.processes import single_instance
from fedmed.protocol.release import CARD_FILE, MANIFEST_FILE
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.audit import AuditLog
from fedmed.storage.run_folder import RunFolder
from server.release.decision import LOCK_FILE, check_candidate, check_name, write_decision

SIGNATURES_FILE = "release_signatures.json"
NUM_PERSONS = 2
_FORMAT = 1
_OWN_KEY = "Use the key that you made with --make-operator-key."


@dataclass(frozen=True)
class ReleaseSignature:
    """One person's signature of a decision."""

    by: str
    time: str
    run_id: str
    content_sha256: str
    """Of the model's manifest, without the card's hash and without who has released it."""
    signature: str = ""

    def payload(self) -> bytes:
        """Return what is signed."""
        told = {key: value for key, value in asdict(self).items() if key != "signature"}
        return json.dumps({"fedmed release": _FORMAT, **told}, sort_keys=True, ensure_ascii=True).encode()


@dataclass(frozen=True)
class Signed:
    """What came of a signature."""

    text: str
    """For the person."""
    is_complete: bool
    """Whether the model is released now."""


def make_key(options: argparse.Namespace) -> str:
    """Make a person's key in the current folder and return what to do with it.

    Raises
    ------
    ConfigError
        If the name or the passphrase cannot be used.
    KeyFileError
        If there is a key already, or it cannot be written.
    """
    name = options.make_operator_key
    try:
        TypeAdapter(OperatorName).validate_python(name)
    except ValidationError:
        raise ConfigError(
            f"'{name[:80]}' cannot be the name of an operator. Allowed: up to 60 letters, digits, spaces, '.', '_' and "
            "'-', the first a letter or digit."
        ) from None
    passphrase = None
    if not options.no_passphrase:
        passphrase = _find_new_passphrase(options.passphrase_file, name)
    own = make_operator_key(Path.cwd(), name, passphrase)
    return (
        f"private key: {Path.cwd() / name}.key (yours alone; keep it away from the server)\n"
        f"public key: {Path.cwd() / name}.pub\nfingerprint: {own}\n"
        "Give the public key to whoever writes server.yaml, and compare the fingerprint:\n"
        f"  operators: {{{json.dumps(name, ensure_ascii=False)}: {json.dumps(f'{name}.pub', ensure_ascii=False)}, …}}"
    )


def sign_release(run: RunFolder, config: ServerConfig, options: argparse.Namespace) -> Signed:
    """Sign the decision to release a run's model; the second person's signature releases it.

    Parameters
    ----------
    run : RunFolder
        With a finished, proven candidate.
    config : ServerConfig
        Names the operators.
    options : argparse.Namespace
        ``by``, ``key`` and ``passphrase_file``.

    Raises
    ------
    FedmedError
        If the name or key is nobody's, the same person has signed, or there is no candidate.
    """
    rules = run.read_settings() if run.config_file.is_file() else config
    if isinstance(rules, ServerConfig) and rules.operators != config.operators:
        raise ConfigError(
            "'operators' in server.yaml are others than those with which the run was started. Put them back."
        )
    name = _find_operator(config, options.by)
    if options.key is None:
        raise ConfigError(f"With release: two_persons a decision is signed: add --key FILE, the private key of {name}.")
    if not run.config_file.is_file():
        raise FederationError(f"There is no run in '{run.path}', so there is nothing to release.")
    with single_instance(run.path / LOCK_FILE, "another --release for this run folder"):
        check_candidate(run, "two_persons")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mine = ReleaseSignature(name, now, str(run.read_run_id()), hash_content(run))
        earlier = _read_signatures(run)
        valid = [one for one in earlier if not _find_fault(one, run, config)]
        if any(one.by == name for one in valid):
            raise FederationError(f"{name} has signed already. Another person of 'operators' has to sign as well.")
        signature = sign(options.key, mine.payload(), _find_passphrase(options), _OWN_KEY)
        mine = ReleaseSignature(mine.by, mine.time, mine.run_id, mine.content_sha256, signature)
        _check_own(mine, config, options.key)
        signatures = [*valid, mine]
        AuditLog(run.audit_file).append("release_signed", **asdict(mine))
        _write_signatures(run, signatures)
        lost = [one.by for one in earlier if one not in valid]
        note = f" The signature of {', '.join(lost)} was for another model, and counts no more." if lost else ""
        if len(signatures) < NUM_PERSONS:
            return Signed(f"{name} has signed. One more person of 'operators' has to sign.{note}", False)
        persons = " and ".join(one.by for one in signatures)
        write_decision(run, persons, "two_persons", [asdict(one) for one in signatures])
        return Signed(f"{persons} have released the model of {run.path}.{note}", True)


def check_signatures(run: RunFolder, config: ServerConfig) -> None:
    """Check before the model is handed out that two persons have signed for this very model.

    Raises
    ------
    FederationError
        If they have not.
    """
    found = _read_signatures(run)
    valid = {one.by for one in found if not _find_fault(one, run, config)}
    if len(valid) < NUM_PERSONS:
        faults = "; ".join(f"{one.by}: {fault}" for one in found if (fault := _find_fault(one, run, config)))
        raise FederationError(
            f"release: two_persons, and {len(valid)} valid signatures of different operators for this model are here"
            f"{f' ({faults})' if faults else ''}. Nothing is handed out. Put back the model and "
            f"{run.path / SIGNATURES_FILE}, or remove release_decision.json and let two persons decide again."
        )


def hash_content(run: RunFolder) -> str:
    """Return the hash of a model's manifest, without what changes when somebody releases it.

    Raises
    ------
    FederationError
        If there is no manifest.
    """
    try:
        manifest = json.loads((run.model / MANIFEST_FILE).read_bytes())
        files = {name: sha256 for name, sha256 in manifest["sha256"].items() if name != CARD_FILE}
        content = {**manifest, "sha256": files, "release": None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FederationError(f"{run.model} holds no complete model ({type(error).__name__}).") from None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _find_operator(config: ServerConfig, by: str) -> str:
    name = check_name(by)
    if name not in config.operators:
        raise ConfigError(
            f"'{name}' is none of the 'operators' in server.yaml.{suggest_nearest(name, config.operators)} Known: "
            f"{', '.join(config.operators)}."
        )
    lines = {other: _read_line(Path(file)) for other, file in config.operators.items()}
    shared = [other for other, line in lines.items() if other != name and line == lines[name]]
    if shared:
        raise ConfigError(f"{name} and {shared[0]} have the same key in server.yaml. Every operator needs an own one.")
    return name


def _read_line(path: Path) -> list[bytes]:
    return read_public(path).split()[:2]


def _find_fault(one: ReleaseSignature, run: RunFolder, config: ServerConfig) -> str | None:
    """Return why a signature does not count for the present model, None if it does."""
    if one.by not in config.operators:
        return "is no operator"
    if (one.run_id, one.content_sha256) != (str(run.read_run_id()), hash_content(run)):
        return "has signed for another model"
    try:
        check_signature(Path(config.operators[one.by]), one.payload(), one.signature)
    except KeyFileError:
        return "the signature is not of this operator's key"
    return None


def _check_own(mine: ReleaseSignature, config: ServerConfig, key: Path) -> None:
    public = config.operators[mine.by]
    try:
        check_signature(Path(public), mine.payload(), mine.signature)
    except KeyFileError:
        raise KeyFileError(
            f"{key} is not the key of {mine.by}: server.yaml names {public} for this operator. Nothing was signed."
        ) from None


def _find_passphrase(options: argparse.Namespace) -> bytes | None:
    if not is_locked(options.key):
        return None
    word = take_passphrase()
    if options.passphrase_file is not None:
        word = read_passphrase_file(options.passphrase_file)
    word = word or ask_passphrase(str(options.key))
    return None if word is None else word.encode()


def _find_new_passphrase(file: Path | None, name: str) -> bytes:
    word = read_passphrase_file(file) if file is not None else take_passphrase()
    found = check_passphrase(word, "the passphrase") if word else ask_new_passphrase(f"the private key of {name}")
    if found is None:
        raise ConfigError(
            "An operator's key needs a passphrase, and nobody can be asked here. Type the command at a terminal, or "
            "name a file with --passphrase-file."
        )
    return found


def _read_signatures(run: RunFolder) -> list[ReleaseSignature]:
    path = run.path / SIGNATURES_FILE
    try:
        content = json.loads(path.read_bytes())
        return [ReleaseSignature(**{key: str(text) for key, text in one.items()}) for one in content["signatures"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FederationError(
            f"{path} cannot be read ({type(error).__name__}). Remove it, and let both persons sign again."
        ) from None


def _write_signatures(run: RunFolder, signatures: list[ReleaseSignature]) -> None:
    content = {"format": _FORMAT, "signatures": [asdict(one) for one in signatures]}
    write_atomically(run.path / SIGNATURES_FILE, json.dumps(content, ensure_ascii=False, indent=1).encode())
