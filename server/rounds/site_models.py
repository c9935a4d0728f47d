"""The single models of a round's sites, kept where they are to teach the small network together, as in FedDF.

Otherwise a site's update is removed as soon as it is averaged. With ``fopro.compression.target: ensemble`` those of the
newest and of the best round stay until the end of the compression, on the disk of the coordinating site alone::

    compression/site_models/round_00007/hospital_a.safetensors
    compression/site_models/round_00007/members.json              SHA-256 of each, as a round's last word
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import nn

from fedmed.config import FederationConfig
from fedmed.distillation import Ensemble
from fedmed.distillation.network import build_network
from fedmed.errors import CheckpointError
from fedmed.storage.atomic_files import atomic_folder, find_rounds, hash_file, sync_path, write_atomically
from fedmed.storage.run_folder import RunFolder
from server.rounds.session import Session

ROUNDS_KEPT = 2
"""The newest and the best one."""
_LIST = "members.json"


def keeps_site_models(config: FederationConfig) -> bool:
    """Return whether the small network learns from the sites' single models."""
    student = config.student
    return student is not None and student.kind == "proxy" and student.target == "ensemble"


def put_away(session: Session, round_number: int, files: Mapping[str, Path]) -> None:
    """Remove a round's updates, which are averaged; or move them to where they are kept.

    Parameters
    ----------
    session : Session
        The federation.
    round_number : int
        The round, which is not closed yet: trained again after a stop, its models replace these.
    files : mapping of str to Path
        Site to its update, a tensor file.
    """
    if not keeps_site_models(session.config):
        for file in files.values():
            file.unlink()
        return
    with atomic_folder(_folder(session.run, round_number)) as folder:
        for site, file in files.items():
            sync_path(file)
            os.replace(file, folder / f"{site}.safetensors")
        hashes = {site: hash_file(folder / f"{site}.safetensors") for site in sorted(files)}
        write_atomically(folder / _LIST, json.dumps(hashes).encode())


def prune_site_models(session: Session, rounds: set[int]) -> None:
    """Remove the single models of all rounds but some."""
    for number, folder in find_rounds(_root(session.run)).items():
        if number not in rounds:
            shutil.rmtree(folder)


def drop_site_models(run: RunFolder) -> None:
    """Remove all single models, of which nothing will be learned any more."""
    shutil.rmtree(_root(run), ignore_errors=True)


def open_ensemble(session: Session, round_number: int) -> tuple[Ensemble, list[str]]:
    """Return the models of a round's sites, which are read from the disk one at a time, and the sites' names.

    Raises
    ------
    CheckpointError
        If they are not there; also later, when one of them turns out to be damaged.
    """
    folder = _folder(session.run, round_number)
    try:
        hashes = dict(json.loads((folder / _LIST).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise _explain(session.run, round_number, str(error)) from None
    members = [partial(_load, session, round_number, site, hashes[site]) for site in sorted(hashes)]
    return Ensemble(members), sorted(hashes)


def _load(session: Session, round_number: int, site: str, sha256: str) -> nn.Module:
    path = _folder(session.run, round_number) / f"{site}.safetensors"
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise _explain(session.run, round_number, str(error)) from None
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise _explain(session.run, round_number, f"'{path}' is damaged")
    network = build_network(session.plan)
    network.fill(packed, {})
    return network.model


def _root(run: RunFolder) -> Path:
    return run.compression / "site_models"


def _folder(run: RunFolder, round_number: int) -> Path:
    return _root(run) / f"round_{round_number:05d}"


def _explain(run: RunFolder, round_number: int, problem: str) -> CheckpointError:
    return CheckpointError(
        f"fopro.compression.target is 'ensemble', but the single models of the sites after round {round_number} are "
        f"not all there ({problem}). Set fopro.compression.target: global in {run.config_file} and resume the run: the "
        "aggregated model is there. Or begin a new run."
    )
