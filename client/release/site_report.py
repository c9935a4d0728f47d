"""The command ``flower-client --site-report``: the released model on this site's own test images, as they are now.

It needs the collected model and the images, and nobody else: nothing is sent and nothing leaves. Test tables that were
answered stay as they are. Images of patients who have withdrawn meanwhile are not looked at.
"""

import hashlib
from pathlib import Path

import torch

from client.guard.outside_code import check_extensions
from client.guard.policy import refuse
from client.hospital.own_rows import encode_rows, read_outputs
from client.hospital.site_data import Hospital, Site
from client.release.content import Manifest, ReleaseError, parse_manifest
from client.release.own_report import find_stored, read_history, write_own_report
from fedmed.config import Plan
from fedmed.config.client import ClientConfig
from fedmed.export.manifest import read_temperature
from fedmed.export.torch_loader import load_model
from fedmed.extensions import allow_only
from fedmed.fairness.disclosure.tables import tell_everything
from fedmed.fairness.figures.groups import assign_groups
from fedmed.metrics.packing import pack_site_tables
from fedmed.metrics.site_tables import FEDERATED, UNCALIBRATED
from fedmed.processes import private_folder, single_instance, write_secret
from fedmed.protocol.release import MANIFEST_FILE
from fedmed.storage.atomic_files import write_atomically
from fedmed.training.devices import use_threads
from fedmed.training.evaluate import compute_logits


def write_site_report(config: ClientConfig) -> Path:
    """Write ``state_dir/report/index.html`` and ``report.json`` anew.

    Where the site has answered the test with the images that it has now, its own tables of then are shown, with the
    models that it was compared with. Else the collected model is run on the test images here.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site, with absolute paths.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    FedmedError
        If no model was collected, it cannot be run here, or there is no test image.
    """
    state_dir = private_folder(Path(config.state_dir))
    with single_instance(state_dir / "release.lock", "a process that collects the released model"):
        manifest = _read_manifest(state_dir)
        site = Hospital(config).open_site()
        if not len(site.data.test):
            raise ReleaseError(
                "This site has no test image, so there is nothing to report. Allowed: at least one in data, see "
                "data.split.test in client.yaml."
            )
        if not _has_current_tables(state_dir, manifest, site):
            _score(config, manifest, site)
        write_own_report(config, manifest.content, read_history(state_dir), manifest.sha256, site)
    return state_dir / "report" / "index.html"


def _read_manifest(state_dir: Path) -> Manifest:
    path = state_dir / "model" / MANIFEST_FILE
    if not path.is_file():
        raise ReleaseError(
            f"There is no released model in {path.parent}. Collect it first: flower-client --fetch-model"
        )
    data = path.read_bytes()
    return parse_manifest(data, hashlib.sha256(data).hexdigest())


def _has_current_tables(state_dir: Path, manifest: Manifest, site: Site) -> bool:
    """Return whether the stored tables are of the test images of now, and have what intervals are drawn from."""
    files = state_dir / "runs" / manifest.run_id / "test_tables"
    digest = site.digest_part("test")[:16]
    answered = (files / f"{manifest.model_sha256}.{digest}.safetensors").is_file()
    stored = find_stored(state_dir, manifest.run_id, manifest.model_sha256)
    marked = stored.with_suffix(".images")
    scored_here = marked.is_file() and marked.read_text() == digest
    if not (answered or scored_here) or not stored.is_file():
        return False
    return read_outputs(stored.with_suffix(".rows.json")) is not None


def _score(config: ClientConfig, manifest: Manifest, site: Site) -> None:
    """Run the model on the test images, and store tables with nothing held back where the site's own ones are."""
    state_dir, plan = Path(config.state_dir), Plan.model_validate(manifest.content["plan"])
    refuse(check_extensions(config.policy, plan))
    folder = state_dir / ("model" if manifest.is_deployable else "own_model")
    if not (folder / MANIFEST_FILE).is_file():
        raise ReleaseError(
            "BatchNorm stays at the sites in this federation, and this site has not made its own model yet "
            "(state_dir/own_model). Type flower-client --fetch-model, and then this again."
        )
    with allow_only(config.policy.extensions, config.own_code), use_threads(config.threads):
        try:
            model = load_model(folder, [one.path for one in config.policy.extensions])
        except (ValueError, OSError, KeyError) as error:
            raise ReleaseError(
                f"The model in {folder} cannot be used ({error}). Collect it again: flower-client --fetch-model"
            ) from error
        plain_NK = compute_logits(model, site.data.test, plan, device=site.device)
    _store(state_dir, manifest, site, plan, plain_NK)


def _store(state_dir: Path, manifest: Manifest, site: Site, plan: Plan, plain_NK: torch.Tensor) -> None:
    part, temperature = site.data.test, read_temperature(manifest.content)
    logits = {FEDERATED: plain_NK}
    if temperature is not None:
        logits = {FEDERATED: plain_NK.double() / temperature["temperature"], UNCALIBRATED: plain_NK}
    groups = assign_groups(site.name, part.attributes, plan.fairness, len(part))
    tables = tell_everything(logits, part.labels, groups, part.patients)
    stored = find_stored(state_dir, manifest.run_id, manifest.model_sha256)
    private_folder(stored.parent)
    write_secret(stored.with_suffix(".rows.json"), encode_rows(logits, part.labels, groups, part.patients))
    write_atomically(stored, pack_site_tables(tables))
    write_atomically(stored.with_suffix(".images"), site.digest_part("test")[:16].encode())
