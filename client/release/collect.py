"""The model comes home: collecting the released model at a site.

::

    state_dir/model/              the deployable model, its proof, manifest.json, manifest.sig; and what this site's own
                                  installation writes: predict.py, requirements.txt, model_card.md, release.pub
    state_dir/own_model/          with batch_norm: local, this site's own deployable model; model/ is then in train form
    state_dir/federation_report/  report.json, and index.html, which is drawn from it here
    state_dir/report/             this site's own report; it never leaves
    state_dir/collected.json      which release was collected last, and which runs have ended

Nothing is put in place before the signature of the manifest and the hash of every file have been checked, the model is
known to be the one that was compared, and all files have been looked through. Nothing that travelled is executed,
installed or shown as it came.

By hand: ``python -m client.release.collect --config client.yaml``, or ``flower-client --fetch-model``.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from client.guard.audit import open_site_audit
from client.hospital.site_key import add_inherit_option
from client.release.belonging import check_belonging, find_last_time
from client.release.compared import check_compared
from client.release.content import ASK, Manifest, ReleaseError, parse_manifest
from client.supernode.collected import Collected, find_collected, write_collected
from fedmed.config.client import ClientConfig, load_client_config
from fedmed.errors import ConnectionRefusedByServerError, FedmedError
from fedmed.keys import check_signature
from fedmed.processes import private_folder, single_instance
from fedmed.protocol.release import MANIFEST_FILE, MAX_MANIFEST_BYTES, REPORT_DATA_FILE, SIGNATURE_FILE
from fedmed.storage.atomic_files import hash_file, replace_folder, sync_path
from fedmed.storage.history import RoundRecord

if TYPE_CHECKING:  # it imports torch, which a waiting process does without
    from client.release.look_through import Contents

_PARTIAL = ".release.partial"
_LATER = (
    "Nothing was collected, and this command does not try again by itself. The coordinating site serves the model "
    "while flower-server runs: ask them to start it, then type: flower-client --fetch-model"
)
_SPARE_BYTES = 64 * 2**20
_logger = logging.getLogger("fedmed.client")


class ReleaseServer(Protocol):
    """What is needed of :class:`client.supernode.fleet.Fleet`."""

    def download_release(self, file: str, target: Path, max_bytes: int | None = None) -> None:
        """Write a file of the release to ``target``."""

    def report_collected(self, manifest_sha256: str) -> None:
        """Tell the server that this site has the model."""


def collect(
    config: ClientConfig, fleet: ReleaseServer, announced: str | None = None, *, accept_uncompared: bool = False
) -> Path:
    """Collect the released model, also if it was collected before; files that are here and sound are not sent again.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site, with absolute paths.
    fleet : ReleaseServer
        Signed connection to the server.
    announced : str, optional
        Hash of the manifest that the server has announced; default: whatever it has released.
    accept_uncompared : bool
        Whether a person takes a model that no site is known to have compared before the release.

    Returns
    -------
    Path
        ``state_dir/model``.

    Raises
    ------
    FedmedError
        If there is no release, it is another one than was announced or compared, or it cannot be trusted or stored.
        What was collected before is untouched.
    """
    state_dir = private_folder(Path(config.state_dir))
    with single_instance(state_dir / "release.lock", "a process that collects the released model"):
        manifest = _bring_home(config, fleet, state_dir, announced, accept_uncompared=accept_uncompared)
        _finish(fleet, state_dir, manifest)
        if manifest.content["batch_norm"] == "local":  # takes its time, for which the server need not wait
            _make_own_model(config, manifest)
    return state_dir / "model"


def fetch_model(config: ClientConfig, announced: str | None = None, *, accept_uncompared: bool = False) -> str:
    """Do what :func:`collect` does over a connection of its own; return one line for a person."""
    from client.supernode.failures import FleetError  # noqa: PLC0415  (imports flwr)
    from client.supernode.fleet import Fleet  # noqa: PLC0415

    try:
        with Fleet(config) as fleet:
            folder = collect(config, fleet, announced, accept_uncompared=accept_uncompared)
    except FleetError as error:
        if announced is not None or not error.is_passing:  # the process that was announced it tries again itself
            raise
        raise ConnectionRefusedByServerError(f"{error} {_LATER}") from error
    own_report = folder.parent / "report" / "index.html"
    compared = find_collected(folder.parent).compared
    told = f" It was compared before its release by {compared}." if compared else ""
    return f"{_describe_model(folder)}.{told} This site's own report is in {own_report}."


def _bring_home(
    config: ClientConfig, fleet: ReleaseServer, state_dir: Path, announced: str | None, *, accept_uncompared: bool
) -> Manifest:
    partial = state_dir / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    private_folder(partial)
    try:
        manifest = _download_manifest(config, fleet, partial, announced)
        check_belonging(config, manifest, state_dir, by_itself=announced is not None)
        compared = check_compared(state_dir, manifest, accept_uncompared=accept_uncompared)
        manifest = replace(manifest, compared_by=compared)
        _gather_files(fleet, partial, state_dir, manifest)
        from client.release.look_through import look_through  # noqa: PLC0415  (imports torch)

        contents = look_through(partial, manifest)
        _put_in_place(config, partial, state_dir, manifest, contents)
        _log_arrival(state_dir, manifest)
        _write_own_report(config, manifest, contents.history)
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


def _gather_files(fleet: ReleaseServer, partial: Path, state_dir: Path, manifest: Manifest) -> None:
    """Fetch the files that a site has use for, and check each; what lies here from an earlier time is taken."""
    sources = {name: state_dir / "model" / name for name in manifest.model_files}
    sources[REPORT_DATA_FILE] = state_dir / "federation_report" / REPORT_DATA_FILE
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
    if source is None or source.is_symlink() or not source.is_file() or hash_file(source) != digest:
        return False
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _put_in_place(
    config: ClientConfig, partial: Path, state_dir: Path, manifest: Manifest, contents: "Contents"
) -> None:
    """Make both folders anew and replace those of an earlier release, each in one step; the model is last."""
    from client.release.written_here import write_beside_model, write_federation_report  # noqa: PLC0415

    drafts = {name: partial / name for name in ("federation_report", "model")}
    for draft in drafts.values():
        draft.mkdir()
    write_federation_report(drafts["federation_report"], (partial / REPORT_DATA_FILE).read_bytes(), contents.report)
    for name in manifest.model_files:
        (partial / name).replace(drafts["model"] / name)
    if manifest.is_deployable:
        write_beside_model(drafts["model"], manifest.content, contents.report, Path(config.release_key))
    for name, draft in drafts.items():
        sync_path(draft)
        replace_folder(draft, state_dir / name)


def _log_arrival(state_dir: Path, manifest: Manifest) -> None:
    parts = [
        {"name": name, "bytes": size, "sha256": digest}
        for name, (digest, size) in manifest.files.items()
        if name in manifest.wanted
    ]
    open_site_audit(state_dir).append(
        "release_received",
        run_id=manifest.run_id,
        manifest_sha256=manifest.sha256,
        parts=parts,
        compared_by=manifest.compared_by,
    )


def _write_own_report(config: ClientConfig, manifest: Manifest, history: list[RoundRecord]) -> None:
    """Make the site's own report. The model is home whatever becomes of it, so a failure is only told."""
    # These import torch, which a waiting process does without.
    from client.hospital.own_rows import OwnReportError  # noqa: PLC0415
    from client.release.own_report import write_own_report  # noqa: PLC0415

    try:
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
        return f"The released model is in {folder}; to use it: python {folder / 'predict.py'} IMAGE"
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
    last = find_last_time(state_dir)
    released = last.isoformat() if manifest.released is None else max(last, manifest.released).isoformat()
    write_collected(
        state_dir, Collected(manifest.sha256, tuple(dict.fromkeys(run_ids)), released, manifest.compared_by)
    )


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
