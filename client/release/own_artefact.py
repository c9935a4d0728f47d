"""A site's own deployable model, where BatchNorm stays at the sites: made from the release and this site's BatchNorm.

Nobody else can make or prove it, because nobody else has this BatchNorm. It is proven on this site's own test images,
and like them it stays here.
"""

from pathlib import Path

from client.guard.outside_code import check_extensions
from client.guard.policy import refuse
from client.hospital.hospital_images import load_hospital_data
from client.release.content import Manifest, ReleaseError
from fedmed.clinical.entry import read_operating_entry
from fedmed.config import Plan
from fedmed.config.client import ClientConfig
from fedmed.distillation.network import strip_state
from fedmed.export import release_form
from fedmed.export.artefact import ArtefactSettings, build_artefact
from fedmed.export.check import is_artefact_of
from fedmed.export.manifest import read_distillation, read_temperature
from fedmed.export.model_card import read_report
from fedmed.export.samples import describe_parts, take_proof_images
from fedmed.extensions import allow_only, check_installed
from fedmed.protocol.release import MODEL_FILE
from fedmed.storage.site_state import SiteState
from fedmed.training.devices import use_threads
from fedmed.training.network import Network

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
        If this site has no BatchNorm of the run or does not allow the code of its network, or the model cannot be
        exported or proven; an older one stays.
    """
    state_dir = Path(config.state_dir)
    folder = state_dir / "own_model"
    if is_artefact_of(folder, manifest.model_sha256):
        return folder
    plan, chosen = Plan.model_validate(manifest.content["plan"]), int(manifest.content["chosen_round"])
    refuse(check_extensions(config.policy, plan))  # no guard stands here, and what is signed may name any code
    check_installed(plan.extensions)
    kept = SiteState(state_dir / "runs" / manifest.run_id / "state").load_before(chosen + 1)
    if kept is None:
        raise ReleaseError("This site has no BatchNorm of its own of this run: it took no part, or forgot it.")
    report = read_report(state_dir / "federation_report")
    with allow_only(config.policy.extensions, config.own_code), use_threads(config.threads):
        network = Network(plan)
        network.fill((state_dir / "model" / MODEL_FILE).read_bytes(), strip_state(kept[0]))
        data = load_hospital_data(config).current()
        settings = ArtefactSettings(
            plan=plan,
            chosen_round=chosen,
            title=f"Federated model of {config.name}",
            report=report,
            expected=describe_parts([data.train], _MOST_IMAGES, "training images"),
            release=manifest.content.get("release") or {"kind": "automatic"},
            site=config.name,
            temperature=read_temperature(manifest.content),
            operating=read_operating_entry(manifest.content.get("operating_point")),
            distillation=read_distillation(manifest.content),
        )
        images = take_proof_images([data.test], plan, _MOST_IMAGES, f"test images of {data.name}")
        build_artefact(network.model, settings, folder, images)
    release_form.change_manifest(folder, report, {"trained_sha256": manifest.model_sha256})
    return folder
