"""The command ``flower-server``: everything the coordinating site does."""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from fedmed.config.server import ServerConfig, load_server_config
from fedmed.errors import ConfigError, FedmedError
from fedmed.processes import raise_on_signals, single_instance
from fedmed.storage.atomic_files import find_rounds
from fedmed.storage.run_folder import LOCK_FILE, RunFolder
from fedmed.versions import add_version_option

EPILOG = """\
from nothing to a federation:
  1. copy configs/server.yaml, set address, sites, classes and the model
  2. flower-server --provision FOLDER --config server.yaml
     makes the server's keys and one kit for each site in FOLDER/kits
  3. bring every kit to its hospital on a safe way and read its fingerprint out over the phone
  4. flower-server --config FOLDER/server.yaml
     waits for the sites, trains, and ends with the model and the report in FOLDER/run
Started again after any stop, step 4 goes on with the run.

while it runs, from another terminal:
  flower-server --config FOLDER/server.yaml --status
  flower-server --config FOLDER/server.yaml --add-site NAME [--public-key FILE]
  flower-server --config FOLDER/server.yaml --revoke-site NAME
  flower-server --config FOLDER/server.yaml --verify-audit
for the data-protection officer, at any time:
  flower-server --config FOLDER/server.yaml --record-of-processing

at the end, with release: manual in server.yaml, while it waits or is stopped:
  flower-server --config FOLDER/server.yaml --release --by "NAME OF A PERSON"
The name goes into the audit log, the manifest and the model card; the sites then get the model.

exit code: 0 finished; 1 a problem that was explained; 2 wrong arguments; 130 stopped by Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None, *, server_app: str = "server.federation:app") -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    server_app : str
        ``module:attribute`` of the ServerApp; another one is for benchmarks and tests.
    """
    options = _parse(arguments)
    try:
        raise_on_signals()
        return _dispatch(options, server_app)
    except KeyboardInterrupt:
        print("\nStopped. Everything up to the last closed round is saved.", file=sys.stderr)
        print(f"To go on, type:\n  flower-server --config {options.config}", file=sys.stderr)
        return 130
    except FedmedError as error:
        if options.debug:
            traceback.print_exc()
        print(f"\n{error}", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="flower-server",
        description="Coordinate a federation of hospitals: no image leaves a hospital.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, see configs/server.yaml")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument(
        "--provision", type=Path, metavar="DIR", help="make keys, certificates and a kit for each site"
    )
    actions.add_argument("--add-site", metavar="NAME", help="make a kit for a further site, also while a run goes on")
    actions.add_argument("--revoke-site", metavar="NAME", help="refuse a site from now on, also while a run goes on")
    actions.add_argument("--status", action="store_true", help="round, sites, when they were last seen, participation")
    actions.add_argument(
        "--verify-audit",
        action="store_true",
        help="check the run's audit log: its hash chain, its end, and what each site has signed of it",
    )
    actions.add_argument(
        "--record-of-processing",
        action="store_true",
        help="print what a data-protection officer needs: purposes, parties, data, what leaves, periods, safeguards",
    )
    actions.add_argument(
        "--release", action="store_true", help="with release: manual, release the proven model; needs --by"
    )
    parser.add_argument("--by", metavar="NAME", help="with --release: the person who has decided it")
    parser.add_argument(
        "--public-key", type=Path, metavar="FILE", help="with --add-site: the public key that the site has made itself"
    )
    parser.add_argument(
        "--json", action="store_true", help="with --status, --verify-audit or --record-of-processing: print JSON"
    )
    add_version_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.public_key and not options.add_site:
        parser.error("--public-key goes with --add-site")
    if options.release != (options.by is not None):
        parser.error("--release and --by NAME go together")
    if options.json and not (options.status or options.verify_audit or options.record_of_processing):
        parser.error("--json goes with --status, --verify-audit or --record-of-processing")
    return options


def _dispatch(options: argparse.Namespace, server_app: str) -> int:
    # Imported late, so that --help and --status answer at once.
    if options.provision:
        return _provision(options)
    config = load_server_config(options.config)
    if options.add_site or options.revoke_site:
        return _change_sites(options, config)
    if options.release:
        return _release(options, config)
    if options.status:
        return _show_status(config, options.json)
    if options.verify_audit or options.record_of_processing:
        return (_verify_audit if options.verify_audit else _show_record)(config, options.json)
    return _serve(config, server_app, options.config)


def _provision(options: argparse.Namespace) -> int:
    from server.provisioning.provision import find_kept_settings, provision  # noqa: PLC0415

    made = provision(options.provision, options.config)
    kept = find_kept_settings(options.provision, options.config)
    if kept:
        print(
            f"{options.provision / 'server.yaml'} was there already and rules; other than given: {', '.join(kept)}.\n"
        )
    for site in made:
        print(f"{site.name:<20} {site.folder}\n{'':<20} {site.fingerprint}")
    print(
        "\nBring each folder to its hospital on a safe way (it holds the site's private key) and compare the "
        f"fingerprint over the phone.\nThen type:\n  flower-server --config {options.provision / 'server.yaml'}"
    )
    return 0


def _change_sites(options: argparse.Namespace, config: ServerConfig) -> int:
    from server.provisioning.provision import add_site, changing_sites, check_enough_sites, revoke_site  # noqa: PLC0415

    keys = Path(str(config.keys))
    if options.add_site:
        with changing_sites(keys):
            site = add_site(config, options.add_site, options.public_key)
        print(f"{site.name:<20} {site.folder}\n{'':<20} {site.fingerprint}")
        print("A server that is running accepts the site within a few seconds.")
    else:
        with changing_sites(keys):
            revoke_site(config, options.revoke_site)
        print(f"{options.revoke_site} is revoked. A server that is running refuses it within a few seconds.")
        try:
            check_enough_sites(config)
        except ConfigError as error:
            print(f"WARNING: {error}", file=sys.stderr)
    return 0


def _show_status(config: ServerConfig, as_json: bool) -> int:
    from server.supervision.status import read_status, render_status  # noqa: PLC0415

    status = read_status(Path(config.run_dir))
    print(json.dumps(status, indent=2) if as_json else render_status(status))
    return 0


def _verify_audit(config: ServerConfig, as_json: bool) -> int:
    from server.provisioning.countersigning import read_keys_of_sites, verify_run_audit  # noqa: PLC0415

    run = RunFolder(Path(config.run_dir))
    report, heads = verify_run_audit(run, _find_audit_head(run), read_keys_of_sites(config))
    if as_json:
        print(json.dumps({**vars(report), "sites": [vars(head) for head in heads]}))
        return 0 if report.ok else 1
    if report.ok:
        print(f"The chain holds: {report.num_entries} entries, head {report.head}.")
    else:
        print(f"The chain is broken: {report.reason} ({report.num_entries} entries are sound.)")
    for head in heads:
        print(head)
    return 0 if report.ok else 1


def _show_record(config: ServerConfig, as_json: bool) -> int:
    from server.provisioning.record_of_processing import (  # noqa: PLC0415
        make_record,
        record_to_json,
        render_record,
    )

    record = make_record(config)
    print(record_to_json(record) if as_json else render_record(record))
    return 0


def _find_audit_head(run: RunFolder) -> str | None:
    """Return what the newest checkpoint says was the log's last entry; without it, a log cut short looks sound."""
    # Read here: fedmed.storage.checkpoints would import torch.
    for _, folder in sorted(find_rounds(run.checkpoints).items(), reverse=True):
        try:
            head = json.loads((folder / "state.json").read_bytes())["state"]["audit_head"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged checkpoint; the run, too, goes on from the one before
        return None if head is None else str(head)
    return None


def _release(options: argparse.Namespace, config: ServerConfig) -> int:
    from server.release.decision import decide_release  # noqa: PLC0415
    from server.supervision.status import read_status  # noqa: PLC0415

    run = RunFolder(Path(config.run_dir))
    decision = decide_release(run, options.by)
    print(f"{decision.by} has released the model of {run.path}.")
    if read_status(run.path)["running"]:
        print("The running flower-server signs it and hands it out now.")
    else:
        print(f"To hand it out, type:\n  flower-server --config {options.config}")
    return 0


def _serve(config: ServerConfig, server_app: str, config_file: Path) -> int:
    from server.provisioning.provision import check_enough_sites, read_sites  # noqa: PLC0415
    from server.release.publish import check_release_key, find_release  # noqa: PLC0415
    from server.supervision.console import make_listener  # noqa: PLC0415
    from server.supervision.supervisor import Supervisor  # noqa: PLC0415

    read_sites(config)  # fails with what to do where nothing was provisioned
    run = RunFolder(Path(config.run_dir))
    if not run.config_file.is_file():
        run.check_free("run_dir")  # before anything is written into a folder that is not ours
    with single_instance(run.path / LOCK_FILE, "a flower-server for this run folder"):
        _open_run(run, config)
        if not run.finished_file.is_file():
            check_enough_sites(config)
        if find_release(run) is None:
            check_release_key(Path(str(config.keys)))
        if config.insecure:
            print("WARNING: insecure: true. There is no TLS; use this on one machine for tests only.", file=sys.stderr)
        print(f"run folder: {run.path}", flush=True)
        with make_listener(config.rounds, "starting") as listener:
            supervisor = Supervisor(config, run, listener, server_app, config_file=str(config_file))
            try:
                supervisor.serve()
            except BaseException as error:
                supervisor.status.set_ended(error)
                raise
    print(f"model: {run.model}\nreport: {run.report / 'index.html'}")
    return 0


_MAY_CHANGE = {
    "address", "listen", "alternative_names", "sites", "keys", "run_dir", "health", "insecure", "link_mbit_s",
    "collect_wait_s", "keep", "min_sites", "round_deadline_s", "max_missed_rounds", "release",
}  # fmt: skip
"""Settings that do not change a run's results."""


def _open_run(run: RunFolder, config: ServerConfig) -> None:
    """Make a new run's folder, or check that a run may go on with these settings; then write them down."""
    if not run.config_file.is_file():
        RunFolder.create(run.path, "flower-server with the same --config", "run_dir")
    elif any(run.checkpoints.glob("round_*")):
        old = run.read_settings().model_dump(mode="json")
        new = config.model_dump(mode="json")
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        forbidden = [key for key in changed if key not in _MAY_CHANGE]
        if "release" in changed and new["release"] == "automatic":  # else editing a file would release a model
            forbidden.append("release")
        if forbidden:
            raise ConfigError(
                f"'{run.path}' holds a run with other settings: {', '.join(forbidden)} differ. These cannot change "
                "while a run goes on. Put them back, or set another run_dir for a new run."
            )
    run.make_folders()
    run.write_config(config)
