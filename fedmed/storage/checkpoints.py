"""Atomic save and resume of a run, and of what a site keeps between rounds (``SiteState``).

Everything is written beside its place, flushed to the disk and then renamed, so that a crash or a power cut at any
moment leaves what was saved before. Everything carries a SHA-256, so that a damaged file is noticed and the one before
is used. Nothing is pickled: tensors are safetensors, the rest is JSON.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from fedmed.errors import CheckpointError
from fedmed.storage.atomic_files import (
    encode_json,
    explain_write_failure,
    find_rounds,
    hash_file,
    remove_leftovers,
    replace_folder,
    write_atomically,
)
from fedmed.storage.tensor_files import Array, TensorFile, TensorSpec, write_tensors

MODEL_FILE = "model.safetensors"
MOMENTS_FILE = "moments.safetensors"
STATE_FILE = "state.json"

_FORMATS = (1, 2)
"""1 is without moments, as older versions write and read it; 2 has them, and a version that would lose them refuses."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose check sums were found right.

    Attributes
    ----------
    round : int
        The round that it ended.
    folder : Path
        Its folder.
    state : dict
        What was given to :meth:`RunCheckpoints.save`.
    best_round : int or None
        The best round so far.
    model_sha256 : str
        SHA-256 of the model's file.
    has_moments : bool
        Whether a server step remembers something.
    problems : list of str
        Newer checkpoints that could not be used, and why; for the person who resumes.
    """

    round: int
    folder: Path
    state: dict[str, JsonValue]
    best_round: int | None
    model_sha256: str
    has_moments: bool
    problems: list[str]

    @property
    def model_path(self) -> Path:
        """The global model after this round, a tensor file."""
        return self.folder / MODEL_FILE

    @property
    def moments_path(self) -> Path | None:
        """What the server step remembers after this round, a tensor file; None where it remembers nothing."""
        return self.folder / MOMENTS_FILE if self.has_moments else None

    def load_model(self) -> dict[str, Array]:
        """Read all tensors of the global model, in the order in which they were saved."""
        return TensorFile(self.model_path).load_all()


class RunCheckpoints:
    """The checkpoints of a run: ``round_00007/model.safetensors``, ``state.json``, some with moments.

    Reading changes nothing, so that a report can be made while the run goes on. One process at a time may save.

    Parameters
    ----------
    root : Path
        The run's folder ``checkpoints``; made when the first checkpoint is saved.
    keep : int
        How many of the latest rounds stay; the best one stays as well.
    """

    def __init__(self, root: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least the latest checkpoint has to stay")
        self.root = Path(root)
        self.keep = keep

    @property
    def rounds(self) -> list[int]:
        """Rounds with a checkpoint, oldest first, whether it is sound or not."""
        return sorted(find_rounds(self.root))

    def save(
        self,
        round_number: int,
        tensors: Mapping[str, Array] | Iterable[tuple[str, Array]] | Path,
        state: Mapping[str, JsonValue],
        *,
        best_round: int | None = None,
        layout: Mapping[str, TensorSpec] | None = None,
        moments: Path | None = None,
    ) -> Path:
        """Save the end of a round; then drop what is too old, and later rounds, which a resumed run has left behind.

        Parameters
        ----------
        round_number : int
            The round; an older checkpoint of the same round is replaced.
        tensors, layout
            The global model, as for :func:`fedmed.aggregation.write_tensors`; or a tensor file that was written by it
            on the same disk, which then also is the checkpoint's and must not be changed any more.
        state : mapping
            Everything else that the run needs to go on; must be JSON, so no NaN.
        best_round : int, optional
            The best round so far; its checkpoint is kept.
        moments : Path, optional
            What a server step remembers, a tensor file on the same disk, as for ``tensors``.

        Returns
        -------
        Path
            The checkpoint's folder.

        Raises
        ------
        ValueError
            If the state is not JSON.
        CheckpointError
            If the disk is full or cannot be written; older checkpoints are untouched.
        """
        assert round_number >= 0, "rounds count from 0, the model at the start"
        body: dict[str, JsonValue] = {
            "format": _FORMATS[0] if moments is None else _FORMATS[1],
            "round": round_number,
            "best_round": best_round,
            "state": dict(state),
        }
        encode_json(body)  # a state that is not JSON must fail before anything is written
        target = self.root / f"round_{round_number:05d}"
        partial = self.root / f".{target.name}.{os.getpid()}.partial"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.root)
            partial.mkdir()
            if isinstance(tensors, Path):
                os.link(tensors, partial / MODEL_FILE)
            else:
                write_tensors(partial / MODEL_FILE, tensors, {"format": "pt"}, layout=layout)
            body["model_sha256"] = hash_file(partial / MODEL_FILE)
            if moments is not None:
                os.link(moments, partial / MOMENTS_FILE)
                body["moments_sha256"] = hash_file(partial / MOMENTS_FILE)
            write_atomically(partial / STATE_FILE, _seal(body))
            replace_folder(partial, target)
        except OSError as error:
            raise explain_write_failure(target, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._prune(round_number, best_round)
        return target

    def load(self, round_number: int) -> Checkpoint:
        """Load the checkpoint of one round.

        Raises
        ------
        CheckpointError
            If it is not there or damaged.
        """
        folder = self.root / f"round_{round_number:05d}"
        if not folder.is_dir():
            kept = ", ".join(map(str, self.rounds)) or "none"
            raise CheckpointError(
                f"There is no checkpoint of round {round_number} in {self.root}; rounds kept: {kept}."
            )
        return _open_checkpoint(folder, round_number)

    def load_latest(self) -> Checkpoint | None:
        """Load the newest sound checkpoint.

        Returns
        -------
        Checkpoint or None
            Its ``problems`` say which newer ones are damaged. None if nothing was ever saved.

        Raises
        ------
        CheckpointError
            If there are checkpoints and all are damaged: beginning anew without a word would hide the loss.
        """
        problems: list[str] = []
        for round_number in reversed(self.rounds):
            try:
                checkpoint = self.load(round_number)
            except CheckpointError as error:
                problems.append(str(error))
            else:
                checkpoint.problems.extend(problems)
                return checkpoint
        if problems:
            raise CheckpointError(
                f"All checkpoints in {self.root} are damaged. Restore the folder from a backup, or start a new run. "
                + " ".join(problems)
            )
        return None

    def _prune(self, round_number: int, best_round: int | None) -> None:
        """Remove what is no longer needed; a failure here costs disk space, not the run."""
        kept = [number for number in self.rounds if number <= round_number][-self.keep :]
        for number, folder in find_rounds(self.root).items():
            if number not in kept and (number != best_round or number > round_number):
                # Renamed first: a crash half-way must not leave what looks like a damaged checkpoint.
                hidden = self.root / f".{folder.name}.{os.getpid()}.partial"
                try:
                    os.replace(folder, hidden)
                except OSError:
                    continue
                shutil.rmtree(hidden, ignore_errors=True)


def _seal(body: Mapping[str, JsonValue]) -> bytes:
    return encode_json({**body, "sha256": hashlib.sha256(encode_json(body).encode()).hexdigest()}).encode()


def _open_checkpoint(folder: Path, round_number: int) -> Checkpoint:
    """Read the state and compare both check sums."""
    try:
        body = json.loads((folder / STATE_FILE).read_bytes())
        seal = body.pop("sha256")
        if body["format"] not in _FORMATS:
            known = " and ".join(map(str, _FORMATS))
            raise CheckpointError(
                f"Checkpoint {folder} has format {body['format']}; this version reads {known}. Install the version of "
                "fedmed that wrote it."
            )
        sound = seal == hashlib.sha256(encode_json(body).encode()).hexdigest() and body["round"] == round_number
        if not sound or hash_file(folder / MODEL_FILE) != body["model_sha256"]:
            raise ValueError("a check sum differs")
        has_moments = body["format"] == _FORMATS[1]
        if has_moments and hash_file(folder / MOMENTS_FILE) != body["moments_sha256"]:
            raise ValueError("the check sum of its moments differs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"Checkpoint {folder} is damaged ({error}).") from error
    return Checkpoint(round_number, folder, body["state"], body["best_round"], body["model_sha256"], has_moments, [])
