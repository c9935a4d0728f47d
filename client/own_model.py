"""A site's own deployable model, where BatchNorm stays at the sites: made from the release and this site's BatchNorm.

Nobody else can make or prove it, because nobody else has this BatchNorm. It is proven on this site's own test images,
and like them it stays here.
"""

import json
from pathlib import Path
from typing import Any

import torch

from client.hospital_data import load_hospital_data
from client.preflight_model import use_threads
from client.release_content import MODEL_FILE, Manifest, ReleaseError
from fedmed.checkpoint import SiteState
from fedmed.config import Plan
from fedmed.data import ImagePart, SiteData, make_eval_transform
from fedmed.deployment import ClientConfig
from fedmed.errors import CheckpointError
from fedmed.export import release_form
from fedmed.export.artefact import ArtefactSettings, ProofImages, build_artefact
from fedmed.export.check import check_hashes
from fedmed.export.ranges import describe_range
from fedmed.network import Network

_MOST_IMAGES = 256


def make_own_model(config: ClientConfig, manifest: Manifest) -> Path:
    """Make ``state_dir/own_model`` from ``state_dir/model``, unless it is there already.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site, with absolute paths.
    manifest : Manifest
        Of a release in train form that is in place.

    Returns
    -------
    Path
        The artefact's folder.

    Raises
    ------
    FedmedError
        If this site has no BatchNorm of the run, or the model cannot be exported or proven; an older one stays.
    """
    state_dir = Path(config.state_dir)
    folder = state_dir / "own_model"
    if _is_made(folder, manifest.model_sha256):
        return folder
    plan, chosen = Plan.model_validate(manifest.content["plan"]), int(manifest.content["chosen_round"])
    kept = SiteState(state_dir / "runs" / manifest.run_id / "state").load_before(chosen + 1)
    if kept is None:
        raise ReleaseError("This site has no BatchNorm of its own of this run: it took no part, or forgot it.")
    report = _read_report(state_dir)
    with use_threads(config.threads):
        network = Network(plan)
        network.fill((state_dir / "model" / MODEL_FILE).read_bytes(), kept[0])
        data = load_hospital_data(config).current()
        settings = ArtefactSettings(
            plan=plan,
            chosen_round=chosen,
            title=f"Federated model of {config.name}",
            report=report,
            expected=_describe_images(data.train),
            release=manifest.content.get("release") or {"kind": "automatic"},
            site=config.name,
        )
        build_artefact(network.model, settings, folder, _take_images(data, plan))
    release_form.change_manifest(folder, report, {"trained_sha256": manifest.model_sha256})
    return folder


def _is_made(folder: Path, model_sha256: str) -> bool:
    try:
        check_hashes(folder)
        return bool(json.loads((folder / "manifest.json").read_text())["trained_sha256"] == model_sha256)
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return False


def _take_images(data: SiteData, plan: Plan) -> ProofImages | None:
    part = data.test
    if not len(part):
        return None
    indices = _choose_evenly(len(part))
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    pixels = torch.cat([transform(part.images([index])) for index in indices])
    return ProofImages(pixels, part.labels[indices], f"{len(indices)} test images of {data.name}")


def _describe_images(part: ImagePart) -> dict[str, Any]:
    indices = _choose_evenly(len(part))
    return describe_range((part.images([index])[0] for index in indices), f"from {len(indices)} training images")


def _choose_evenly(number: int) -> list[int]:
    most = min(number, _MOST_IMAGES)
    return [index * number // most for index in range(most)]


def _read_report(state_dir: Path) -> dict[str, Any] | None:
    file = state_dir / "federation_report" / "report.json"
    content: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content
