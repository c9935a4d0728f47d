"""A site's part in the release: train form, deploy form and ONNX file of the model on this site's own test images.

What the server sends is opened only after its hashes, its plan and the content of the ONNX file have been checked, in a
folder that is gone afterwards. Programs do not travel. If it cannot be used, that is the answer, and the server must
not release it.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from client.guard.requests import Request
from client.hospital.compared import OwnComparison, write_own_comparison
from client.hospital.site_data import Site
from fedmed.config import SITE_ATTRIBUTE, Plan
from fedmed.data import ImagePart
from fedmed.errors import FedmedError, WireError
from fedmed.export import load_model
from fedmed.export.compare import FormComparison, compare_outputs, read_batches, run_onnx
from fedmed.export.manifest import describe_preprocessing
from fedmed.export.plain_onnx import check_plain_onnx
from fedmed.export.release_form import describe_comparison, describe_problem
from fedmed.predict import PredictionError, open_artefact
from fedmed.protocol.messages import unpack_files
from fedmed.protocol.release import COMPARED_FILES, MANIFEST_FILE, MODEL_FILE, ONNX_FILE, name_compared
from fedmed.protocol.reports import FormsCompared, FormsProblem

_logger = logging.getLogger("fedmed.client")
_SITE_FAULTS = (OSError, MemoryError)


class CandidateError(FedmedError):
    """What was sent as the deployable form of a model cannot be that; its text speaks only of what was sent."""


def compare_candidate(packed: bytes, trained: nn.Module, request: Request, site: Site) -> FormsCompared | FormsProblem:
    """Compare a model in train form with its artefact on the test images that may be counted.

    Parameters
    ----------
    packed : bytes
        The artefact as it arrived.
    trained : nn.Module
        Train form, filled.
    request : Request
        Names the artefact's hash and the plan.
    site : Site
        This site.

    Returns
    -------
    FormsCompared or FormsProblem
        What may leave, see :mod:`fedmed.export.release_form`: errors and counts, or what is wrong with the artefact.
    """
    folder = site.files_of(request.plan).folder
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("candidate-*"):  # by a crash
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="candidate-", dir=folder) as opened:
        try:
            candidate = _open(packed, Path(opened), request)
        except (CandidateError, WireError) as error:
            _logger.warning("The artefact is refused: %s", error)
            return describe_problem(str(error))
        comparison = own = _compare(trained, candidate, _take_counted(site, request.plan), request.plan)
        if not own.onnx.num_images:  # nothing may be told of so few images, but this site wants to know
            own = _compare(trained, candidate, site.data.test, request.plan)
    failures = own.failures()
    for failure in failures:
        _logger.warning("The artefact is not equal to the model: %s", failure)
    write_own_comparison(folder, OwnComparison(candidate.files, own.onnx.num_images, agrees=not failures))
    return describe_comparison(comparison, coarse=not site.disclosure_of("test").is_open)


@dataclass(frozen=True)
class _Candidate:
    """An artefact that is nothing but a network of the plan."""

    deploy: nn.Module
    session: Any
    files: dict[str, str]
    """Hashes by which it is known again."""


def _compare(trained: nn.Module, candidate: _Candidate, part: ImagePart, plan: Plan) -> FormComparison:
    batches = read_batches(part, plan)
    return compare_outputs(trained.cpu(), candidate.deploy, candidate.session, batches, part.labels, len(plan.classes))


def _open(packed: bytes, folder: Path, request: Request) -> _Candidate:
    """Return deploy form and ONNX session once all checks have passed.

    Raises
    ------
    CandidateError, WireError
        If anything about the files is not as it must be.
    """
    if hashlib.sha256(packed).hexdigest() != request.artefact_sha256:
        raise CandidateError("The artefact that arrived is not the one that the request names; its hash differs.")
    files = unpack_files(packed, COMPARED_FILES)
    hashes = _check_manifest(files, request.plan)
    check_plain_onnx(files[ONNX_FILE], weight_bytes=len(files[MODEL_FILE]))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    del files
    try:
        deploy, _ = load_model(folder)
        session = open_artefact(folder, torch.get_num_threads()).session
        _try_out(deploy, session, request.plan)
    except _SITE_FAULTS:
        raise
    except PredictionError as error:  # its text names the folder
        raise CandidateError("The ONNX runtime of this site cannot run the artefact's ONNX file.") from error
    except Exception as error:
        _logger.debug("The artefact cannot be used.", exc_info=error)
        raise CandidateError(f"The artefact's files cannot be used here ({type(error).__name__}).") from error
    return _Candidate(deploy, session, hashes)


def _check_manifest(files: dict[str, bytes], plan: Plan) -> dict[str, str]:
    """Check that the manifest is of this plan and names the other files by their hashes.

    Returns
    -------
    dict of str to str
        Hashes by which the candidate is known again.

    Raises
    ------
    CandidateError
        Otherwise.
    """
    try:
        manifest = json.loads(files[MANIFEST_FILE])
        hashes = {name: manifest["sha256"][name] for name in files if name != MANIFEST_FILE}
        compared = name_compared(manifest)
        told = Plan.model_validate(manifest["plan"])
        described = {key: manifest[key] for key in ("form", "classes", "preprocessing")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CandidateError(f"The artefact's manifest cannot be read ({type(error).__name__}).") from None
    preprocessing = describe_preprocessing(plan.augmentation, plan.image_size)
    wanted = {"form": "deploy", "classes": plan.classes, "preprocessing": preprocessing}
    if told != plan.plain() or described != wanted:
        raise CandidateError("The artefact's manifest is of another plan than the request.")
    wrong = [name for name, digest in hashes.items() if hashlib.sha256(files[name]).hexdigest() != digest]
    if wrong:
        raise CandidateError(f"The artefact's {', '.join(wrong)} does not have the hash that its manifest names.")
    return compared


def _try_out(deploy: nn.Module, session: Any, plan: Plan) -> None:
    """Run both forms once on black images, so that what is wrong with them shows before this site's images are read."""
    for size in (1, 2):
        zeros_BCHW = torch.zeros(size, 3, plan.image_size, plan.image_size)
        with torch.no_grad():
            found = [deploy(zeros_BCHW), run_onnx(session, zeros_BCHW)]
        if any(logits.shape != (size, len(plan.classes)) or logits.dtype != torch.float32 for logits in found):
            raise CandidateError("The artefact does not give one logit for each class.")


def _take_counted(site: Site, plan: Plan) -> ImagePart:
    """Return the test images that the site's tables count class by class, so that no difference tells of others."""
    counted_N = site.count_part("test", plan.fairness).plan.attributes[SITE_ATTRIBUTE].counted
    return _SubPart(site.data.test, np.flatnonzero(counted_N).tolist())


class _SubPart(ImagePart):
    """Some images of a part."""

    def __init__(self, part: ImagePart, indices: Sequence[int]) -> None:
        self._part, self._indices = part, list(indices)
        self.items = tuple(part.items[index] for index in indices)
        self.labels = part.labels[self._indices]
        self.attributes = {}

    def images(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return images as :meth:`ImagePart.images` does."""
        return self._part.images([self._indices[index] for index in indices])
