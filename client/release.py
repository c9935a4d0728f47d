"""The model comes home: collecting the released model at a site.

::

    state_dir/model/              model.safetensors, manifest.json, manifest.sig
    state_dir/federation_report/  index.html, report.json: the federation's report
    state_dir/report/             this site's own report; it never leaves
    state_dir/collected.json      which release was collected last, and which runs have ended

Nothing is put in place before the signature of the manifest and the hash of every file have been checked.

By hand: ``python -m client.release --config client.yaml``, or ``flower-client --fetch-model``.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from client.collected import Collected, find_collected, write_collected
from client.site_audit import open_site_audit
from fedmed.atomic_files import hash_file, replace_folder, sync_folder
from fedmed.deployment import ClientConfig, load_client_config
from fedmed.errors import FedmedError, tame
from fedmed.keys import check_signature
from fedmed.processes import private_folder, single_instance

MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"
MODEL_FILE, REPORT_FILE, REPORT_DATA_FILE, HISTORY_FILE = (
    "model.safetensors",
    "report.html",
    "report.json",
    "history.json",
)
_FILES = (MODEL_FILE, REPORT_FILE, REPORT_DATA_FILE, HISTORY_FILE)
_PLACES = {
    "federation_report": {"index.html": REPORT_FILE, "report.json": REPORT_DATA_FILE},
    "model": {MODEL_FILE: MODEL_FILE, MANIFEST_FILE: MANIFEST_FILE, SIGNATURE_FILE: SIGNATURE_FILE},
}
"""Folder at the site -> file in it -> file of the release. The model comes last: with it the release is here."""
_PARTIAL = ".release.partial"
_SPARE_BYTES = 64 * 2**20
_MAX_MANIFEST_BYTES = 2**24
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ASK = "Nothing was put in place. Try again: flower-client --fetch-model; if it stays, tell the coordinating site."
_logger = logging.getLogger("fedmed.client")


class ReleaseError(FedmedError):
    """The released model cannot be used: it is damaged, incomplete, or not the one that was announced."""


class ReleaseServer(Protocol):
    """What is needed of :class:`client.fleet.Fleet`."""

    def download_release(self, file: str, target: Path, max_bytes: int | None = None) -> None:
        """Write a file of the release to ``target``."""

    def report_collected(self, manifest_sha256: str) -> None:
        """Tell the server that this site has the model."""


@dataclass(frozen=True)
class Manifest:
    """The signed list of what belongs to a release."""

    sha256: str
    """Of the manifest's bytes; the name of the release."""
    content: dict[str, Any]
    run_id: str
    model_sha256: str
    """Hash of the model, as in the rounds."""
    files: dict[str, tuple[str, int]]
    """File name -> SHA-256 and bytes."""


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
    return state_dir / "model"


def fetch_model(config: ClientConfig, announced: str | None = None) -> str:
    """Do what :func:`collect` does over a connection of its own; return one line for a person."""
    from client.fleet import Fleet  # noqa: PLC0415  (imports flwr)

    with Fleet(config) as fleet:
        folder = collect(config, fleet, announced)
    own_report = folder.parent / "report" / "index.html"
    return f"The released model is in {folder}, this site's own report in {own_report}."


def _bring_home(config: ClientConfig, fleet: ReleaseServer, state_dir: Path, announced: str | None) -> Manifest:
    partial = state_dir / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    private_folder(partial)
    try:
        manifest = _download_manifest(config, fleet, partial, announced)
        _check_belonging(config, manifest, state_dir, by_itself=announced is not None)
        _gather_files(fleet, partial, state_dir, manifest)
        _put_in_place(partial, state_dir)
        _log_arrival(state_dir, manifest)
        _write_own_report(config, manifest, partial / HISTORY_FILE)
    except OSError as error:
        raise ReleaseError(f"The released model could not be stored: {error.strerror or error}. {_ASK}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _download_manifest(config: ClientConfig, fleet: ReleaseServer, folder: Path, announced: str | None) -> Manifest:
    """Fetch the manifest and check its signature before anything in it is believed."""
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        fleet.download_release(name, folder / name, _MAX_MANIFEST_BYTES)
    data = (folder / MANIFEST_FILE).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if announced is not None and sha256 != announced:
        raise ReleaseError(
            f"The server announced the release {announced[:16]}... and sent {sha256[:16]}.... It may have released "
            f"again meanwhile. {_ASK}"
        )
    check_signature(Path(config.release_key), data, (folder / SIGNATURE_FILE).read_text("ascii", "replace").strip())
    return _parse_manifest(data, sha256)


def _parse_manifest(data: bytes, sha256: str) -> Manifest:
    try:
        content = json.loads(data)
        files = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in content["files"].items()}
        manifest = Manifest(sha256, content, str(content["run_id"]), str(content["model_sha256"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReleaseError(
            f"The manifest of the release cannot be read ({type(error).__name__}: {error}). Server and site must run "
            "the same version of fedmed."
        ) from None
    missing = [name for name in _FILES if name not in files]
    hashes = [manifest.model_sha256, *(digest for digest, _ in files.values())]
    sound = all(map(_SHA256.fullmatch, hashes)) and _PLAIN_NAME.fullmatch(manifest.run_id)
    if missing or not sound:
        problem = f"it lacks {', '.join(missing)}" if missing else "it holds names or hashes that are none"
        raise ReleaseError(f"The manifest of the release cannot be used: {problem}. {_ASK}")
    return manifest


def _check_belonging(config: ClientConfig, manifest: Manifest, state_dir: Path, *, by_itself: bool) -> None:
    """Refuse a release that is genuine, but of another study, older than the one here, or of a run of others."""
    plan = manifest.content.get("plan")
    told = plan if isinstance(plan, dict) else {}
    for key in ("study", "approval"):
        wanted, found = getattr(config.policy, key), told.get(key)
        if wanted is not None and wanted != found:
            raise ReleaseError(
                f"The released model is of {key} {tame(repr(found))}; policy.{key} allows {wanted!r} only. {_ASK}"
            )
    here = _read_release_time(state_dir / "model" / MANIFEST_FILE)
    if str(manifest.content.get("released", "")) < here:
        raise ReleaseError(f"The server offers a model that was released before the one here ({here}). {_ASK}")
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
    sources = {name: state_dir / folder / target for folder, files in _PLACES.items() for target, name in files.items()}
    lacking = [name for name in _FILES if not _take_old(sources.get(name), partial / name, manifest.files[name][0])]
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
                f"The file {name} of the release arrived damaged ({found} bytes of {size}, or another SHA-256). {_ASK}"
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


def _put_in_place(partial: Path, state_dir: Path) -> None:
    """Replace the folders of an earlier release, each in one step."""
    for folder, files in _PLACES.items():
        draft = partial / folder
        draft.mkdir()
        for name, source in files.items():
            (partial / source).replace(draft / name)
        sync_folder(draft)
        if (state_dir / folder).exists():  # else a crash has left the only copy beside it
            shutil.rmtree(state_dir / f".{folder}.replaced.partial", ignore_errors=True)
        replace_folder(draft, state_dir / folder)


def _log_arrival(state_dir: Path, manifest: Manifest) -> None:
    parts = [
        {"name": name, "bytes": size, "sha256": digest}
        for name, (digest, size) in manifest.files.items()
        if name in _FILES
    ]
    open_site_audit(state_dir).append(
        "release_received", run_id=manifest.run_id, manifest_sha256=manifest.sha256, parts=parts
    )


def _write_own_report(config: ClientConfig, manifest: Manifest, history_file: Path) -> None:
    """Make the site's own report. The model is home whatever becomes of it, so a failure is only told."""
    from client.own_report import write_own_report  # noqa: PLC0415  (imports torch, which a waiting process does without)

    try:
        history = json.loads(history_file.read_text(encoding="utf-8"))
        has_figures = write_own_report(config, manifest.content, history, manifest.sha256)
    except (FedmedError, OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("The site's own report could not be made (%s).", type(error).__name__)
        _logger.debug("The site's own report could not be made.", exc_info=error)
        return
    if not has_figures:
        _logger.warning("The site's own report has no figures: this site did not take part in the test of the model.")


def _finish(fleet: ReleaseServer, state_dir: Path, manifest: Manifest) -> None:
    """Tell the server, then remember that it knows."""
    run_ids = [*find_collected(state_dir).run_ids, manifest.run_id]
    open_site_audit(state_dir).append("release_confirmed", manifest_sha256=manifest.sha256)
    fleet.report_collected(manifest.sha256)
    write_collected(state_dir, Collected(manifest.sha256, tuple(dict.fromkeys(run_ids))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect the released model by hand and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m client.release", description="Collect the released model.")
    parser.add_argument("--config", type=Path, default=Path("client.yaml"), metavar="FILE")
    parser.add_argument("--manifest", metavar="SHA256", help="hash of the manifest that the server has announced")
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
