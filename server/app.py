"""The command ``flower-server``: everything the coordinating site does."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from fedmed.config.server import ServerConfig, load_server_config
from fedmed.errors import ConfigError, FedmedError
from fedmed.processes import raise_on_signals, single_instance
from fedmed.storage.atomic_files import find_rounds
from fedmed.storage.run_folder import LOCK_FILE, RunFolder
from fedmed.versions import add_version_option
from server.provisioning.commands import (
    add_key_options,
    check_key_options,
    run_change_sites,
    run_delete_kit_keys,
    run_provision,
)

EPILOG = """\
from nothing to a federation:
  1. copy configs/server.yaml, set address, sites, classes and the model
  2. flower-server --provision FOLDER --keys-at-sites --config server.yaml
     makes the server's keys and one kit for each site in FOLDER/kits, without private keys
  3. send every kit to its hospital, which types flower-client --make-key and sends site.pub back; compare the
     fingerprint over the phone, then type --add-site NAME --public-key site.pub
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
The name goes into the audit log, the manifest and the model card; the sites then get the model. With release:
two_persons two of the operators each type it with --key FILE; a key is made by
  flower-server --make-operator-key NAME

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
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, see configs/server.yaml")
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
    actions.add_argument("--release", action="store_true", help="release the proven model; needs --by, see release:")
    actions.add_argument(
        "--delete-kit-keys", action="store_true", help="remove private keys from kits whose sites have connected"
    )
    actions.add_argument(
        "--make-operator-key",
        metavar="NAME",
        help="make NAME.key and NAME.pub, with which a person signs a decision to release, in the current folder",
    )
    actions.add_argument(
        "--accept-difference", metavar="SITE", help="release though SITE found a difference of forms; needs --by"
    )
    parser.add_argument("--by", metavar="NAME", help="with --release or --accept-difference: who has decided it")
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="with --release and release: two_persons: this person's private key"
    )
    add_key_options(parser)
    parser.add_argument(
        "--public-key", type=Path, metavar="FILE", help="with --add-site: the public key that the site has made itself"
    )
    parser.add_argument(
        "--json", action="store_true", help="with --status, --verify-audit or --record-of-processing: print JSON"
    )
    add_version_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.config is None and options.make_operator_key is None:
        parser.error("the following arguments are required: --config")
    if options.public_key and not options.add_site:
        parser.error("--public-key goes with --add-site")
    check_key_options(parser, options)
    if options.key and not options.release:
        parser.error("--key goes with --release")
    if (options.release or options.accept_difference is not None) != (options.by is not None):
        parser.error("--by NAME goes with --release or --accept-difference, and they go with it")
    if options.json and not (options.status or options.verify_audit or options.record_of_processing):
        parser.error("--json goes with --status, --verify-audit or --record-of-processing")
    return options


def _dispatch(options: argparse.Namespace, server_app: str) -> int:
    # Imported late, so that --help and --status answer at once.
    if options.make_operator_key is not None:
        return _make_operator_key(options)
    if options.provision:
        return run_provision(options)
    config = load_server_config(options.config)
    actions: dict[str, Callable[[], int]] = {
        "add_site": lambda: run_change_sites(options, config),
        "revoke_site": lambda: run_change_sites(options, config),
        "delete_kit_keys": lambda: _delete_kit_keys(config),
        "release": lambda: _release(options, config),
        "accept_difference": lambda: _accept_difference(options, config),
        "status": lambda: _show_status(config, options.json),
        "record_of_processing": lambda: _show_record(config, options.json),
        "verify_audit": lambda: _verify_audit(config, options.json),
    }
    wanted = next((name for name in actions if getattr(options, name)), None)
    return _serve(config, server_app, options.config) if wanted is None else actions[wanted]()


def _make_operator_key(options: argparse.Namespace) -> int:
    from server.release.operators import make_key  # noqa: PLC0415

    print(make_key(options))
    return 0


def _delete_kit_keys(config: ServerConfig) -> int:
    from server.supervision.status_view import find_seen  # noqa: PLC0415

    return run_delete_kit_keys(config, find_seen(Path(config.run_dir)))


def _warn_of_keys(config: ServerConfig) -> None:
    from server.provisioning.kit_keys import describe_left_keys  # noqa: PLC0415
    from server.supervision.status_view import find_seen  # noqa: PLC0415

    text = describe_left_keys(config, find_seen(Path(config.run_dir)))
    if text is not None:
        print(f"WARNING: {text}", file=sys.stderr)


def _show_status(config: ServerConfig, as_json: bool) -> int:
    from server.supervision.status import read_status, render_status  # noqa: PLC0415

    status = read_status(Path(config.run_dir))
    print(json.dumps(status, indent=2) if as_json else render_status(status))
    _warn_of_keys(config)
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
    if config.release == "two_persons":
        from server.release.operators import sign_release  # noqa: PLC0415

        signed = sign_release(run, config, options)
        print(signed.text)
        if not signed.is_complete:
            return 0
    elif options.key is not None:
        raise ConfigError(f"--key goes with release: two_persons; server.yaml has release: {config.release}.")
    else:
        decision = decide_release(run, options.by)
        print(f"{decision.by} has released the model of {run.path}.")
    if not read_status(run.path)["running"]:
        return _say_next(options)
    print("The running flower-server signs it and hands it out now.")
    return 0


def _say_next(options: argparse.Namespace) -> int:
    print(f"To hand it out, type:\n  flower-server --config {options.config}")
    return 0


def _accept_difference(options: argparse.Namespace, config: ServerConfig) -> int:
    from server.release.decision import accept_site_difference  # noqa: PLC0415

    print(accept_site_difference(RunFolder(Path(config.run_dir)), options.accept_difference, options.by))
    return _say_next(options)


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
        _warn_of_keys(config)
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
    "address", "listen", "alternative_names", "sites", "keys", "run_dir", "health", "insecure", "link_mbit_s", "tls",
    "collect_wait_s", "keep", "min_sites", "round_deadline_s", "max_missed_rounds", "release",
}  # fmt: skip
"""Settings that do not change a run's results."""


_DEMANDS = {"automatic": 0, "manual": 1, "two_persons": 2}
"""How many persons a release takes."""


def _open_run(run: RunFolder, config: ServerConfig) -> None:
    """Make a new run's folder, or check that a run may go on with these settings; then write them down."""
    if not run.config_file.is_file():
        RunFolder.create(run.path, "flower-server with the same --config", "run_dir")
    elif any(run.checkpoints.glob("round_*")):
        old = run.read_settings().model_dump(mode="json")
        new = config.model_dump(mode="json")
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        forbidden = [key for key in changed if key not in _MAY_CHANGE]
        if "release" in changed and _DEMANDS[new["release"]] < _DEMANDS[old["release"]]:
            forbidden.append("release")  # else editing a file would release a model
        if forbidden:
            raise ConfigError(
                f"'{run.path}' holds a run with other settings: {', '.join(forbidden)} differ. These cannot change "
                "while a run goes on. Put them back, or set another run_dir for a new run."
            )
    run.make_folders()
    run.write_config(config)
