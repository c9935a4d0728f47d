"""What stays at a site between the rounds of a run: momentum, local BatchNorm, a residual, a personal model.

One safetensors file per round, with a SHA-256 over everything in it, renamed into place when it is complete.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from pydantic import JsonValue
from safetensors import SafetensorError

from fedmed.errors import CheckpointError, FormatError
from fedmed.formats import SITE_STATE
from fedmed.storage.atomic_files import encode_json, find_rounds, remove_leftovers, write_atomically


class SiteState:
    """What one site keeps between the rounds of one run, one tensor file per round.

    A request for round r starts from :meth:`load_before` (r), also when round r was already done once and the server
    has gone back, so that a repeated round gives the same bits.

    Parameters
    ----------
    root : Path
        The folder of this site and this run; made when the first state is saved.

    Attributes
    ----------
    problems : list of str
        Damaged states that the last :meth:`load_before` had to pass over.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.problems: list[str] = []

    def save(
        self,
        round_number: int,
        tensors: Mapping[str, torch.Tensor],
        meta: Mapping[str, JsonValue],
        *,
        keep: int | None = None,
    ) -> Path:
        """Save the state after a round; keep it and the newest before it.

        Parameters
        ----------
        round_number : int
            The round; a state of the same round is replaced in one step. States of later rounds are dropped: the run
            has gone back, and they belong to a course that was given up.
        tensors : mapping of str to Tensor
            Any shapes and types that safetensors knows, on any device.
        meta : mapping
            The rest; must be JSON, so no NaN.
        keep : int, optional
            A further round to keep, for example the best one: the newest state up to this round stays as well, which
            is the one that :meth:`load_before` (keep + 1) gives, also if the site missed that very round.

        Raises
        ------
        ValueError
            If ``meta`` is not JSON.
        CheckpointError
            If the disk is full or cannot be written; older states are untouched.
        """
        # Tied tensors share memory, which the format refuses, so each gets its own.
        own = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        text = encode_json(dict(meta))
        digest = _digest_state(round_number, text, own)
        path = self.root / f"round_{round_number:05d}.safetensors"
        remove_leftovers(self.root)
        write_atomically(
            path,
            safetensors.torch.save(
                own, {"format": "pt", "meta": text, "sha256": digest, "format_number": str(SITE_STATE.number)}
            ),
        )
        found = find_rounds(self.root)
        past = [number for number in sorted(found) if number <= round_number]
        kept = past[-2:]
        if keep is not None:
            kept += [number for number in past if number <= keep][-1:]
        for number, old in found.items():
            if number not in kept:
                old.unlink(missing_ok=True)
        return path

    def load_before(self, round_number: int) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]] | None:
        """Load the newest sound state of a round before ``round_number``.

        Returns
        -------
        tuple of (tensors, meta) or None
            Tensors on the CPU with the types in which they were saved; None if there is no sound state.
        """
        self.problems = []
        found = find_rounds(self.root)
        for number in sorted((number for number in found if number < round_number), reverse=True):
            try:
                return _read_state(found[number], number)
            except CheckpointError as error:
                self.problems.append(str(error))
        return None


def _digest_state(round_number: int, meta: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(encode_json([round_number, meta]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(encode_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_state(path: Path, round_number: int) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        SITE_STATE.check(header.get("format_number"), path)
        if _digest_state(round_number, header["meta"], tensors) != header["sha256"]:
            raise ValueError("the check sum differs")
        return tensors, json.loads(header["meta"])
    except FormatError as error:
        raise CheckpointError(str(error)) from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"The site's state {path} is damaged ({error}).") from error
