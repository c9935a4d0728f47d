"""The model comes home: collecting the released model at a site.

::

    state_dir/model/              the deployable model, its card, its proof, predict.py; manifest.json, manifest.sig
    state_dir/own_model/          with batch_norm: local, this site's own deployable model; model/ is then in train form
    state_dir/federation_report/  index.html, report.json: the federation's report
    state_dir/report/             this site's own report; it never leaves
    state_dir/collected.json      which release was collected last, and which runs have ended

Nothing is put in place before the signature of the manifest and the hash of every file have been checked.

By hand: ``python -m client.release.collect --config client.yaml``, or ``flower-client --fetch-model``.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from client.guard.audit import open_site_audit
from client.hospital.site_key import add_inherit_option
from client.release.content import (
    ASK,
    Manifest,
    ReleaseError,
    parse_manifest,
    write_programs,
)
from client.supernode.collected import Collected, find_collected, write_collected
from fedmed.config.client import ClientConfig, load_client_config
from fedmed.errors import FedmedError, tame
from fedmed.keys import check_signature
from fedmed.processes import private_folder, single_instance
from fedmed.protocol.release import HISTORY_FILE, MANIFEST_FILE, MAX_MANIFEST_BYTES, SIGNATURE_FILE
from fedmed.storage.atomic_files import hash_file, replace_folder, sync_path
from fedmed.storage.history import RoundRecord

_PARTIAL = ".release.partial"
_SPARE_BYTES = 64 * 2**20
_logger = logging.getLogger("fedmed.client")


class ReleaseServer(Protocol):
    """What is needed of :class:`client.supernode.fleet.Fleet`."""

    def download_release(self, file: str, target: Path, max_bytes: int | None = None) -> None:
        """Write a file of the release to ``target``."""

    def report_collected(self, manifest_sha256: str) -> None:
        """Tell the server that this site has the model."""


def collect(config: ClientConfig, fleet: ReleaseServer, announced: str | None = None) -> Path:
    """Collect the released model, also if it was collected before; files that are here and sound are not sent again.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site, with absolute paths.
    fleet : ReleaseServer
        Signed connection to the server.
    announced : str, optional
        Hash of the manifest that the server has announced; default: whatever it has released.

    Returns
    -------
    Path
        ``state_dir/model``.

    Raises
    ------
    FedmedError
        If there is no release, it is another one than was announced, or it cannot be trusted or stored. What was
        collected before is untouched.
    """
    state_dir = private_folder(Path(config.state_dir))
    with single_instance(state_dir / "release.lock", "a process that collects the released model"):
        manifest = _bring_home(config, fleet, state_dir, announced)
        _finish(fleet, state_dir, manifest)
        if manifest.content.get("batch_norm") == "local":  # takes its time, for which the server need not wait
            _make_own_model(config, manifest)
    return state_dir / "model"


def fetch_model(config: ClientConfig, announced: str | None = None) -> str:
    """Do what :func:`collect` does over a connection of its own; return one line for a person."""
    from client.supernode.fleet import Fleet  # noqa: PLC0415  (imports flwr)

    with Fleet(config) as fleet:
        folder = collect(config, fleet, announced)
    own_report = folder.parent / "report" / "index.html"
    return f"{_describe_model(folder)}. This site's own report is in {own_report}."


def _bring_home(config: ClientConfig, fleet: ReleaseServer, state_dir: Path, announced: str | None) -> Manifest:
    partial = state_dir / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    private_folder(partial)
    try:
        manifest = _download_manifest(config, fleet, partial, announced)
        _check_belonging(config, manifest, state_dir, by_itself=announced is not None)
        _gather_files(fleet, partial, state_dir, manifest)
        _put_in_place(partial, state_dir, manifest)
        _log_arrival(state_dir, manifest)
        _write_own_report(config, manifest, partial / HISTORY_FILE)
    except OSError as error:
        raise ReleaseError(f"The released model could not be stored: {error.strerror or error}. {ASK}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _download_manifest(config: ClientConfig, fleet: ReleaseServer, folder: Path, announced: str | None) -> Manifest:
    """Fetch the manifest and check its signature before anything in it is believed."""
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        fleet.download_release(name, folder / name, MAX_MANIFEST_BYTES)
    data = (folder / MANIFEST_FILE).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if announced is not None and sha256 != announced:
        raise ReleaseError(
            f"The server announced the release {announced[:16]}... and sent {sha256[:16]}.... It may have released "
            f"again meanwhile. {ASK}"
        )
    check_signature(Path(config.release_key), data, (folder / SIGNATURE_FILE).read_text("ascii", "replace").strip())
    return parse_manifest(data, sha256)


def _check_belonging(config: ClientConfig, manifest: Manifest, state_dir: Path, *, by_itself: bool) -> None:
    """Refuse a release that is genuine, but of another study, older than the one here, or of a run of others."""
    plan = manifest.content.get("plan")
    told: Mapping[str, object] = plan if isinstance(plan, dict) else {}
    for key in ("study", "approval"):
        wanted, found = getattr(config.policy, key), told.get(key)
        if wanted is not None and wanted != found:
            raise ReleaseError(
                f"The released model is of {key} {tame(repr(found))}; policy.{key} allows {wanted!r} only. {ASK}"
            )
    here = _read_release_time(state_dir / "model" / MANIFEST_FILE)
    if str(manifest.content.get("released", "")) < here:
        raise ReleaseError(f"The server offers a model that was released before the one here ({here}). {ASK}")
    if by_itself and not (state_dir / "runs" / manifest.run_id).is_dir():
        raise ReleaseError(
            "The released model is of a run in which this site took no part. To have it all the same, type: "
            "flower-client --fetch-model"
        )


def _read_release_time(manifest_file: Path) -> str:
    try:
        return str(json.loads(manifest_file.read_text()).get("released", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _gather_files(fleet: ReleaseServer, partial: Path, state_dir: Path, manifest: Manifest) -> None:
    """Fetch the files that a site has use for, and check each; what lies here from an earlier time is taken."""
    places = manifest.places
    sources = {name: state_dir / folder / target for folder, files in places.items() for target, name in files.items()}
    lacking = [
        name for name in manifest.wanted if not _take_old(sources.get(name), partial / name, manifest.files[name][0])
    ]
    needed = sum(manifest.files[name][1] for name in lacking) + _SPARE_BYTES
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise ReleaseError(
            f"The released model needs {needed / 2**20:.0f} MiB in the state folder, {free / 2**20:.0f} MiB are free. "
            "Free some space, then type: flower-client --fetch-model"
        )
    for name in lacking:
        digest, size = manifest.files[name]
        fleet.download_release(name, partial / name, size)
        found = (partial / name).stat().st_size
        if found != size or hash_file(partial / name) != digest:
            raise ReleaseError(
                f"The file {name} of the release arrived damaged ({found} bytes of {size}, or another SHA-256). {ASK}"
            )


def _take_old(source: Path | None, target: Path, digest: str) -> bool:
    """Link a file that was collected before, if it is the same."""
    if source is None or not source.is_file() or hash_file(source) != digest:
        return False
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _put_in_place(partial: Path, state_dir: Path, manifest: Manifest) -> None:
    """Replace the folders of an earlier release, each in one step."""
    for folder, files in manifest.places.items():
        draft = partial / folder
        draft.mkdir()
        for name, source in files.items():
            (partial / source).replace(draft / name)
        if folder == "model" and manifest.is_deployable:
            write_programs(draft, manifest.content)
        sync_path(draft)
        replace_folder(draft, state_dir / folder)


def _log_arrival(state_dir: Path, manifest: Manifest) -> None:
    parts = [
        {"name": name, "bytes": size, "sha256": digest}
        for name, (digest, size) in manifest.files.items()
        if name in manifest.wanted
    ]
    open_site_audit(state_dir).append(
        "release_received", run_id=manifest.run_id, manifest_sha256=manifest.sha256, parts=parts
    )


def _write_own_report(config: ClientConfig, manifest: Manifest, history_file: Path) -> None:
    """Make the site's own report. The model is home whatever becomes of it, so a failure is only told."""
    # These import torch, which a waiting process does without.
    from client.hospital.own_rows import OwnReportError  # noqa: PLC0415
    from client.release.own_report import write_own_report  # noqa: PLC0415

    try:
        history = [RoundRecord.model_validate(line) for line in json.loads(history_file.read_text(encoding="utf-8"))]
        has_figures = write_own_report(config, manifest.content, history, manifest.sha256)
    except OwnReportError as error:
        _logger.error("%s", error)
        return
    except (FedmedError, OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("The site's own report could not be made (%s).", type(error).__name__)
        _logger.debug("The site's own report could not be made.", exc_info=error)
        return
    if not has_figures:
        _logger.warning("The site's own report has no figures: this site did not take part in the test of the model.")


def _make_own_model(config: ClientConfig, manifest: Manifest) -> None:
    """Make the deployable model of this site alone. The train form is home whatever becomes of it."""
    from client.release.own_artefact import make_own_model  # noqa: PLC0415  (imports torch)

    try:
        make_own_model(config, manifest)
    except Exception as error:  # of exporting and proving, which touch much; the release itself is in place
        _logger.warning("This site's own deployable model could not be made: %s", error)
        _logger.debug("This site's own deployable model could not be made.", exc_info=error)


def _describe_model(folder: Path) -> str:
    """Return where the model is and how to use it."""
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    if content.get("form") == "deploy":
        return f"The released model is in {folder}; to use it: python -m fedmed.predict --model {folder} IMAGE"
    if content.get("batch_norm") != "local":
        return f"The released model is in {folder}"
    own = folder.parent / "own_model"
    if find_trained_sha256(own) == content["model_sha256"]:
        return f"The released model, in train form, is in {folder}, this site's own deployable model in {own}"
    return f"The released model, in train form, is in {folder}; this site's own could not be made, the log says why"


def find_trained_sha256(folder: Path) -> str | None:
    """Return the hash of the train form from which an artefact was made, None if there is no artefact."""
    try:
        return str(json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["trained_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finish(fleet: ReleaseServer, state_dir: Path, manifest: Manifest) -> None:
    """Tell the server, then remember that it knows."""
    run_ids = [*find_collected(state_dir).run_ids, manifest.run_id]
    open_site_audit(state_dir).append("release_confirmed", manifest_sha256=manifest.sha256)
    fleet.report_collected(manifest.sha256)
    write_collected(state_dir, Collected(manifest.sha256, tuple(dict.fromkeys(run_ids))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect the released model by hand and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m client.release.collect", description="Collect the released model.")
    parser.add_argument("--config", type=Path, default=Path("client.yaml"), metavar="FILE")
    parser.add_argument("--manifest", metavar="SHA256", help="hash of the manifest that the server has announced")
    add_inherit_option(parser)
    options = parser.parse_args(arguments)
    try:
        told = fetch_model(load_client_config(options.config), options.manifest)
    except FedmedError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
