"""The command ``flower-client``: everything a hospital does."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from fedmed.config.client import ClientConfig, load_client_config
from fedmed.errors import ConfigError, FedmedError
from fedmed.keys.files import refuse_existing
from fedmed.processes import raise_on_signals
from fedmed.versions import add_version_option

_LONGEST_NAME = 100
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
What was asked and what left is in audit.jsonl of the state folder; flower-client --audit shows it, --verify-audit
checks it, also against what the server has signed about it.

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
        "--site-report",
        action="store_true",
        help="draw this site's own report of the collected model, from its test images as they are now; it stays here",
    )
    actions.add_argument(
        "--verify-audit",
        action="store_true",
        help="check this site's audit log: its hash chain, its end, and what the server has signed of it",
    )
    actions.add_argument(
        "--audit", action="store_true", help="show what this site was asked, what left it, and what it refused"
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
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="with --make-key: holds the new key's passphrase, mode 0600; default: the environment variable "
        "FEDMED_KEY_PASSPHRASE, else it is asked for",
    )
    parser.add_argument("--no-passphrase", action="store_true", help="with --make-key: make a key without one")
    parser.add_argument(
        "--all",
        action="store_true",
        help="with --forget: also of federations that have not ended as far as this site knows",
    )
    parser.add_argument(
        "--accept-uncompared",
        action="store_true",
        help="with --fetch-model: take the model also if no site is known to have compared it before its release",
    )
    parser.add_argument("--yes", action="store_true", help="with --approve: do not ask, for scripts")
    parser.add_argument(
        "--again",
        action="store_true",
        help="with --approve: count anew what was asked, as after the server was restored to an earlier state",
    )
    parser.add_argument(
        "--other-groups",
        action="store_true",
        help="with --approve: also if the plan tells other patient groups apart than earlier runs were told",
    )
    parser.add_argument(
        "--name",
        type=_read_name,
        metavar="NAME",
        help="with --approve: who approves; recorded at this site with the user of the operating system and the time",
    )
    parser.add_argument("--offline", action="store_true", help="with --check: leave out what needs the network")
    parser.add_argument("--since", metavar="TIME", help="with --audit: from this date or time on, as 2026-11-30")
    parser.add_argument("--last", type=int, metavar="N", help="with --audit: the newest N rows only")
    parser.add_argument(
        "--json", action="store_true", help="with --check, --approve, --audit or --verify-audit: print JSON"
    )
    add_version_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.json and not (options.check or options.audit or options.verify_audit or options.approve is not None):
        parser.error("--json goes with --check, --approve, --audit or --verify-audit")
    if (options.since is not None or options.last is not None) and not options.audit:
        parser.error("--since and --last go with --audit")
    if (options.passphrase_file or options.no_passphrase) and options.make_key is None:
        parser.error("--passphrase-file and --no-passphrase go with --make-key")
    if (options.yes or options.again or options.name or options.other_groups) and options.approve is None:
        parser.error("--yes, --again, --name and --other-groups go with --approve")
    if options.all and not options.forget:
        parser.error("--all goes with --forget")
    if options.accept_uncompared and not options.fetch_model:
        parser.error("--accept-uncompared goes with --fetch-model")
    if options.offline and not options.check:
        parser.error("--offline goes with --check")
    return options


def _read_name(text: str) -> str:
    name = " ".join(text.split())
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise argparse.ArgumentTypeError(f"a name has 1 to {_LONGEST_NAME} letters, found {len(name)}")
    return name


def _dispatch(options: argparse.Namespace, client_app: str) -> int:
    if options.make_key is not None:
        return _make_key(options)
    config = load_client_config(options.config)
    if config.insecure:
        print("WARNING: insecure: true. There is no TLS; use this on one machine for tests only.", file=sys.stderr)
    actions: dict[str, Callable[[], int]] = {
        "check": lambda: _check(config, offline=options.offline, as_json=options.json),
        "audit": lambda: _show_audit(config, options),
        "verify_audit": lambda: _verify_audit(config, options.json),
        "fetch_model": lambda: _fetch_model(config, accept_uncompared=options.accept_uncompared),
        "site_report": lambda: _report_site(config),
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

    told = {"yes": options.yes, "again": options.again, "as_json": options.json, "name": options.name}
    told |= {"other_groups": options.other_groups}
    wish = Wish(options.approve or None, **told)
    return approve(config, wish, Fleet)


def _make_key(options: argparse.Namespace) -> int:
    """Make a key for a site in the current folder; without its name for the site of a config, where it wants it."""
    from client.hospital.own_key import KEY_FILES, choose_passphrase, make_own_key  # noqa: PLC0415

    name, folder = str(options.make_key), Path.cwd()
    has_kit = not name
    if has_kit:
        config = load_client_config(options.config)
        name, folder = config.name, Path(config.key).parent
        if Path(config.key).name != "site.key":
            raise ConfigError(
                f"--make-key makes a file named site.key; 'key' in the config names '{config.key}'. Set key: site.key."
            )
    refuse_existing(folder, KEY_FILES)  # before anybody is asked for a passphrase
    passphrase = None if options.no_passphrase else choose_passphrase(options.passphrase_file)
    fingerprint = make_own_key(folder, name, passphrase)
    key, public = folder / "site.key", folder / "site.pub"
    print(f"private key: {key} (never send it)\npublic key: {public}\nfingerprint: {fingerprint}")
    print(
        "Send the public key to the coordinating site and read the fingerprint out over the phone. There, type:\n"
        f"  flower-server --config FOLDER/server.yaml --add-site {name} --public-key {public.name}\n"
        + (
            "That puts this site on the list."
            if has_kit
            else f"That makes the kit of this site. Put {key.name} into its folder when it has come."
        )
    )
    return 0


def _verify_audit(config: ClientConfig, as_json: bool) -> int:
    from client.guard.heads import verify_site  # noqa: PLC0415  (imports flwr)

    verdict = verify_site(Path(config.state_dir), Path(config.release_key))
    report, signed = verdict.report, verdict.countersigned
    last = signed[-1] if signed else None
    told = None if last is None or last.heads.seen is None else last.heads.seen
    if as_json:
        about = {"number": len(signed), "last": None if last is None else last.time}
        print(json.dumps({**vars(report), "countersigned": about}))
        return 0 if report.ok else 1
    if report.ok:
        print(f"The chain holds: {report.num_entries} entries, head {report.head}.")
    else:
        print(f"The chain is broken: {report.reason} ({report.num_entries} entries are sound.)")
    if last is not None:
        upto = "" if told is None else f", last that it had seen {told.length} entries"
        print(f"The server has countersigned it {len(signed)} times{upto}, at {last.time}.")
    return 0 if report.ok else 1


def _show_audit(config: ClientConfig, options: argparse.Namespace) -> int:
    from client.guard.audit_view import audit_to_json, render_audit  # noqa: PLC0415  (imports rich)

    show = audit_to_json if options.json else render_audit
    print(show(Path(config.state_dir), since=options.since, last=options.last))
    return 0


def _fetch_model(config: ClientConfig, *, accept_uncompared: bool) -> int:
    from client.release.collect import fetch_model  # noqa: PLC0415

    print(fetch_model(config, accept_uncompared=accept_uncompared))
    return 0


def _report_site(config: ClientConfig) -> int:
    from client.release.site_report import write_site_report  # noqa: PLC0415  (imports torch)

    page = write_site_report(config)
    print(f"This site's own report is in {page}. It stays here: it holds figures of small groups.")
    return 0


def _forget(config: ClientConfig, *, everything: bool) -> int:
    from client.supernode.keeping import list_left  # noqa: PLC0415
    from client.supernode.supervisor import forget  # noqa: PLC0415

    removed = forget(config, everything=everything)
    if not removed:
        print("There is nothing to remove.")
    for line in removed:
        print(f"removed: {line}")
    for line in list_left(Path(config.state_dir)):
        print(line)
    return 0
