"""From a finished run folder to the artefact of its chosen model."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from fedmed.config import ModelConfig, Plan, RunConfig
from fedmed.config.server import ServerConfig
from fedmed.data import SiteData, load_site
from fedmed.distillation.network import add_last_layer, strip_packed, strip_state
from fedmed.errors import CheckpointError, DataError, RunFolderError
from fedmed.export.artefact import ArtefactSettings, ProofImages, build_artefact
from fedmed.export.check import Reproduction, check_artefact
from fedmed.export.manifest import ModelManifest, ReleaseOrigin, read_manifest
from fedmed.export.model_card import read_report
from fedmed.export.onnx_file import ExportError
from fedmed.export.ranges import Expected
from fedmed.export.samples import describe_parts, take_proof_images
from fedmed.protocol.messages import unpack_tables
from fedmed.storage.atomic_files import hash_file
from fedmed.storage.checkpoints import RunCheckpoints
from fedmed.storage.operating_records import read_operating_point
from fedmed.storage.phase_records import find_recalibrated
from fedmed.storage.run_folder import RunFolder
from fedmed.storage.site_state import SiteState
from fedmed.training.network import Network

MOST_IMAGES, FEWEST_IMAGES, MOST_PIXELS = 256, 16, 64 * 64 * 64
"""Of the proof: 64 images of 64 x 64 pixels, more or fewer where they are smaller or larger. They run through two
networks in two precisions, which should take seconds at the end of a run."""
MOST_SITES = 8
MOST_RANGE_IMAGES = 512


@dataclass(frozen=True)
class Sample:
    """Some images of a run."""

    images: ProofImages | None
    """None where there are none here, or they cannot be read any more."""
    expected: Expected


def export_run(run: RunFolder, folder: Path, *, site: str | None = None) -> ModelManifest:
    """Write the artefact of the chosen model of a finished run.

    In a simulation it is proven on test images of the run; where the images are not here, on seeded inputs.

    Parameters
    ----------
    run : RunFolder
        Of a simulation or a real federation, finished.
    folder : Path
        Where the artefact appears, complete or not at all.
    site : str, optional
        With ``batch_norm: local`` or ``fopro.exchange: aux``: whose model is wanted.

    Returns
    -------
    ModelManifest
        Content of ``manifest.json``.

    Raises
    ------
    FedmedError
        If the run has not finished, the site is unknown, or the model cannot be exported or proven.
    """
    config = run.read_settings()
    chosen = read_chosen_round(run)
    network = load_network(run, config, chosen, site)
    sample = sample_images(run, config, site)
    settings = ArtefactSettings(
        plan=make_product_plan(run, config),
        chosen_round=chosen,
        title=f"Federated model '{config.name}'",
        report=read_report(run.report),
        expected=sample.expected,
        temperature=run.read_temperature(),
        operating=read_operating_point(run),
        release=_read_release(run, config),
        site=site,
        distillation=run.read_distillation(),
    )
    return build_artefact(network.model, settings, folder, sample.images)


def read_chosen_round(run: RunFolder) -> int:
    """Return the round whose model the run has chosen.

    Raises
    ------
    RunFolderError
        If the run has not finished.
    """
    try:
        return int(json.loads(run.finished_file.read_text())["chosen_round"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"The run in '{run.path}' has not finished, so no model is chosen yet. Let it end, or resume it."
        ) from None


def make_product_plan(run: RunFolder, config: RunConfig | ServerConfig) -> Plan:
    """Return the plan of the network that a run releases: the compact one if it was accepted, else the trained one."""
    plan, found = config.make_plan().plain(), run.read_compression()
    if found is None or found["status"] != "accepted":
        return plan
    return plan.model_copy(update={"model": ModelConfig.model_validate(found["model"])}).describe_extensions()


def load_network(run: RunFolder, config: RunConfig | ServerConfig, chosen: int, site: str | None = None) -> Network:
    """Return the network of a round, or the compact one that took its place, in train form.

    Raises
    ------
    FedmedError
        If BatchNorm or the last layer stays at the sites, and no site or an unknown one is named; or the checkpoint is
        gone or damaged.
    """
    plan = config.make_plan()
    sites = sorted(run.read_roster().values()) if isinstance(config, RunConfig) else []
    if plan.is_personal and site not in sites:
        what = "BatchNorm" if plan.batch_norm == "local" else "The network's last layer"
        wanted = f"'{site}' is none of this run's sites" if site else "a site has to be named with --site"
        here = ", ".join(sites[:20]) or "none is here: each hospital exports its own"
        raise ExportError(f"{what} stays at the sites in this run, so each has a model of its own: {wanted} ({here}).")
    if not plan.is_personal and site is not None:
        raise ExportError("All sites of this run share one model: leave out --site.")
    network = Network(make_product_plan(run, config))
    compact = _read_compact(run)
    if compact is not None:
        network.fill(compact, {})
        return network
    state = SiteState(run.sites / site / "state").load_before(chosen + 1) if site else None
    kept = RunCheckpoints(run.checkpoints).load(chosen)
    recalibrated = find_recalibrated(run.recalibrated, kept.model_sha256)
    model_path = recalibrated[0] if recalibrated else kept.model_path
    own = strip_state(state[0]) if state else {}
    packed = strip_packed(model_path.read_bytes(), plan)
    network.fill(add_last_layer(packed, network, own) if own else packed, own)
    return network


def sample_images(run: RunFolder, config: RunConfig | ServerConfig, site: str | None = None) -> Sample:
    """Return images for the proof and what images are expected to be like.

    A coordinating site has no images; its settings may say what pixel statistics are expected.
    """
    if isinstance(config, ServerConfig):
        return Sample(None, _read_stated(config))
    names = _choose_sites(run, site)
    try:
        sites = [load_site(config.data, config.sites, config.seed, run.splits, name, 0.0) for name in names]
        source = f"training images of {len(sites)} sites"
        expected = describe_parts([site.train for site in sites], MOST_RANGE_IMAGES, source)
        return Sample(_take_test_images(sites, config), expected)
    except (DataError, RunFolderError):
        return Sample(None, {})


def reproduce(run: RunFolder, folder: Path, *, site: str | None = None) -> Reproduction:
    """Score all test images of a simulation with its artefact and compare with the run's test tables.

    Parameters
    ----------
    run : RunFolder
        Of a finished simulation whose images are still here.
    folder : Path
        The artefact.
    site : str, optional
        As for :func:`export_run`.

    Raises
    ------
    FedmedError
        If images, tables or artefact cannot be read.
    """
    config = run.read_config()
    names = sorted(run.read_roster().values()) if site is None else [site]
    logged = {path.stem: unpack_tables(path.read_bytes()).site for path in (run.tables / "test").glob("*.safetensors")}
    parts = ((name, load_site(config.data, config.sites, config.seed, run.splits, name, 0.0).test) for name in names)
    return check_artefact(folder, parts, logged, config.make_plan())


def _read_compact(run: RunFolder) -> bytes | None:
    """Return the packed compact network that a run releases, None if it releases the trained one.

    Raises
    ------
    CheckpointError
        If its file is gone or damaged.
    """
    found = run.read_compression()
    if found is None or found["status"] != "accepted":
        return None
    path = run.path / str(found["model_file"])
    if not path.is_file() or hash_file(path) != found["model_sha256"]:
        raise CheckpointError(f"The compact network '{path}' is gone or damaged. Resume the run to make it again.")
    return path.read_bytes()


def _read_stated(config: ServerConfig) -> Expected:
    mean, std = config.data.expected_mean, config.data.expected_std
    told: Expected = {} if mean is None and std is None else {"basis": "stated by the coordinating site"}
    if mean is not None:
        told["mean"] = list(mean)
    if std is not None:
        told["std"] = list(std)
    return told


def _choose_sites(run: RunFolder, site: str | None) -> list[str]:
    names = sorted(run.read_roster().values()) if site is None else [site]
    step = math.ceil(len(names) / MOST_SITES)
    return names[:: max(1, step)]


def _take_test_images(sites: list[SiteData], config: RunConfig) -> ProofImages | None:
    """Return evenly chosen test images, or validation images where a run has no test images."""
    plan = config.make_plan()
    limit = max(FEWEST_IMAGES, min(MOST_IMAGES, MOST_PIXELS // plan.image_size**2))
    for kind in ("test", "validation"):
        parts = [part for part in (getattr(site, kind) for site in sites) if len(part)]
        images = take_proof_images(parts, plan, limit, f"{kind} images of {len(parts)} sites")
        if images is not None:
            return images
    return None


def _read_release(run: RunFolder, config: RunConfig | ServerConfig) -> ReleaseOrigin:
    """Return who decided that the model may be used, as the run's own copy of it says; else how that is decided."""
    try:
        return {**read_manifest(run.model)["release"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"kind": config.release}
