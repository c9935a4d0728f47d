"""The command ``flower-client``: everything a hospital does."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from client.guard.audit import verify_site_audit
from fedmed.config.client import ClientConfig, load_client_config
from fedmed.errors import ConfigError, FedmedError
from fedmed.processes import raise_on_signals
from fedmed.versions import add_version_option

EPILOG = """\
first steps at a hospital, in the folder of the kit that the coordinating site has made:
  1. set data: in client.yaml
  2. flower-client --check
     tries everything except taking part, shows the study's plan and exactly what would leave the hospital
  3. flower-client --approve
     shows the plan once more and approves it; nothing else is answered before that
  4. flower-client
     trains with the others; ends when the model has come home, or on Ctrl-C

Images never leave. The connection is made from here to the server, one port, never the other way round.
What left is in audit.jsonl of the state folder.

exit code: 0 finished or all checks passed; 1 a problem that was explained; 2 wrong arguments; 130 stopped by Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None, *, client_app: str = "client.site:app") -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    client_app : str
        ``module:attribute`` of the installed ClientApp; another one is for benchmarks and tests.
    """
    options = _parse(arguments)
    try:
        raise_on_signals()
        return _dispatch(options, client_app)
    except KeyboardInterrupt:
        print("\nStopped. Type the same command to take part again.", file=sys.stderr)
        return 130
    except FedmedError as error:
        if options.debug:
            traceback.print_exc()
        print(f"\n{error}", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="flower-client",
        description="Take part in a federation of hospitals: no image leaves this hospital.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, default=Path("client.yaml"), metavar="FILE", help="settings (default: client.yaml)"
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument(
        "--check", action="store_true", help="try data, model, machine, network and server; send nothing"
    )
    actions.add_argument(
        "--approve",
        nargs="?",
        const="",
        metavar="HASH",
        help="show the server's plan and approve it for this site (with HASH: this plan only)",
    )
    actions.add_argument("--fetch-model", action="store_true", help="collect the released model (again)")
    actions.add_argument(
        "--verify-audit", action="store_true", help="check the hash chain of this site's audit log, and its end"
    )
    actions.add_argument("--forget", action="store_true", help="remove what this site keeps of finished federations")
    actions.add_argument(
        "--make-key",
        nargs="?",
        const="",
        metavar="NAME",
        help="make the key of the site NAME in the current folder (without NAME: of the site in client.yaml); the "
        "coordinating site needs only the public part, to make the kit",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="with --forget: also of federations that have not ended as far as this site knows",
    )
    parser.add_argument("--yes", action="store_true", help="with --approve: do not ask, for scripts")
    parser.add_argument(
        "--again",
        action="store_true",
        help="with --approve: count anew what was asked, as after the server was restored to an earlier state",
    )
    parser.add_argument("--offline", action="store_true", help="with --check: leave out what needs the network")
    parser.add_argument("--json", action="store_true", help="with --check, --approve or --verify-audit: print JSON")
    add_version_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.json and not (options.check or options.verify_audit or options.approve is not None):
        parser.error("--json goes with --check, --approve or --verify-audit")
    if (options.yes or options.again) and options.approve is None:
        parser.error("--yes and --again go with --approve")
    if options.all and not options.forget:
        parser.error("--all goes with --forget")
    if options.offline and not options.check:
        parser.error("--offline goes with --check")
    return options


def _dispatch(options: argparse.Namespace, client_app: str) -> int:
    if options.make_key is not None:
        return _make_key(options.config, options.make_key)
    config = load_client_config(options.config)
    if config.insecure:
        print("WARNING: insecure: true. There is no TLS; use this on one machine for tests only.", file=sys.stderr)
    actions: dict[str, Callable[[], int]] = {
        "check": lambda: _check(config, offline=options.offline, as_json=options.json),
        "verify_audit": lambda: _verify_audit(config, options.json),
        "fetch_model": lambda: _fetch_model(config),
        "forget": lambda: _forget(config, everything=options.all),
    }
    if options.approve is not None:
        return _approve(config, options)
    for name, act in actions.items():
        if getattr(options, name):
            return act()
    from client.supernode.supervisor import take_part  # noqa: PLC0415

    return take_part(config, options.config.absolute(), client_app)


def _check(config: ClientConfig, *, offline: bool, as_json: bool) -> int:
    from client.check.run import has_failed, render_table, run_preflight, to_json  # noqa: PLC0415  (imports torch)

    results = run_preflight(config, offline=offline)
    print(to_json(results) if as_json else render_table(results))
    return 1 if has_failed(results) else 0


def _approve(config: ClientConfig, options: argparse.Namespace) -> int:
    from client.check.approval import Wish, approve  # noqa: PLC0415  (imports torch)
    from client.supernode.fleet import Fleet  # noqa: PLC0415

    wish = Wish(options.approve or None, yes=options.yes, again=options.again, as_json=options.json)
    return approve(config, wish, Fleet)


def _make_key(config_file: Path, name: str) -> int:
    """Make a key for ``name`` in the current folder; without a name for the site of a config, where it wants it."""
    from client.hospital.own_key import make_own_key  # noqa: PLC0415

    folder = Path.cwd()
    if not name:
        config = load_client_config(config_file)
        name, folder = config.name, Path(config.key).parent
        if Path(config.key).name != "site.key":
            raise ConfigError(
                f"--make-key makes a file named site.key; 'key' in the config names '{config.key}'. Set key: site.key."
            )
    fingerprint = make_own_key(folder, name)
    key, public = folder / "site.key", folder / "site.pub"
    print(f"private key: {key} (never send it)\npublic key: {public}\nfingerprint: {fingerprint}")
    print(
        "Send the public key to the coordinating site and read the fingerprint out over the phone. There, type:\n"
        f"  flower-server --config server.yaml --add-site {name} --public-key {public.name}\n"
        f"That makes the kit of this site. Put {key.name} into its folder when it has come."
    )
    return 0


def _verify_audit(config: ClientConfig, as_json: bool) -> int:
    report = verify_site_audit(Path(config.state_dir))
    if as_json:
        print(json.dumps(vars(report)))
    elif report.ok:
        print(f"The chain holds: {report.num_entries} entries, head {report.head}.")
    else:
        print(f"The chain is broken: {report.reason} ({report.num_entries} entries are sound.)")
    return 0 if report.ok else 1


def _fetch_model(config: ClientConfig) -> int:
    from client.release.collect import fetch_model  # noqa: PLC0415

    print(fetch_model(config))
    return 0


def _forget(config: ClientConfig, *, everything: bool) -> int:
    from client.supernode.supervisor import forget  # noqa: PLC0415

    removed = forget(config, everything=everything)
    if not removed:
        print("There is nothing to remove.")
    for line in removed:
        print(f"removed: {line}")
    return 0
