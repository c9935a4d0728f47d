"""What ``flower-server`` does about sites and their keys: ``--provision``, ``--add-site``, ``--delete-kit-keys``."""

import argparse
import sys
from pathlib import Path

from fedmed.config.server import ServerConfig
from fedmed.errors import ConfigError


def add_key_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on private keys."""
    parser.add_argument(
        "--keys-at-sites",
        action="store_true",
        help="with --provision: make kits without private keys; each site makes its own (recommended)",
    )
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="where private keys are made or used: the passphrase, or a line 'NAME: PASSPHRASE' for each site; mode "
        "0600. Default: the environment variable FEDMED_KEY_PASSPHRASE, else it is asked for",
    )
    parser.add_argument(
        "--no-passphrase", action="store_true", help="make private keys without one, for trials on one machine"
    )


def check_key_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with wrong arguments if one of those options does not go with the others."""
    if options.keys_at_sites and not options.provision:
        parser.error("--keys-at-sites goes with --provision")
    makes_keys = options.provision or options.add_site or options.make_operator_key
    if options.no_passphrase and not makes_keys:
        parser.error("--no-passphrase goes with --provision, --add-site or --make-operator-key")
    if options.passphrase_file and not (makes_keys or options.release):
        parser.error("--passphrase-file goes with --provision, --add-site, --make-operator-key or --release")


def run_provision(options: argparse.Namespace) -> int:
    """Make what is missing of a federation's folder, say where it is and what comes next; return the exit code."""
    from server.provisioning.kit_keys import choose_passphrases  # noqa: PLC0415
    from server.provisioning.provision import find_kept_settings, provision  # noqa: PLC0415

    find_passphrase = choose_passphrases(options)
    made = provision(options.provision, options.config, find_passphrase, keys_at_sites=options.keys_at_sites)
    kept = find_kept_settings(options.provision, options.config)
    if kept:
        print(
            f"{options.provision / 'server.yaml'} was there already and rules; other than given: {', '.join(kept)}.\n"
        )
    for site in made:
        print(f"{site.name:<20} {site.folder}\n{'':<20} {site.fingerprint or 'no key yet: the site makes it'}")
    command = f"flower-server --config {options.provision / 'server.yaml'}"
    if any(site.fingerprint is None for site in made):
        print(
            "\nBring each folder to its hospital; it holds no secret. There, in the folder, type:\n"
            "  flower-client --make-key\nWhen the site has sent its site.pub, and its fingerprint was compared over "
            f"the phone, type for each:\n  {command} --add-site NAME --public-key FILE\nThen type:\n  {command}"
        )
    else:
        print(
            "\nBring each folder to its hospital on a safe way (it holds the site's private key) and compare the "
            f"fingerprint over the phone.\nThen type:\n  {command}\nThe private keys of the sites are in these folders "
            "and nowhere else. When the sites have connected, remove them here:\n"
            f"  {command} --delete-kit-keys"
        )
    return 0


def run_change_sites(options: argparse.Namespace, config: ServerConfig) -> int:
    """Add or revoke a site; return the exit code."""
    from server.provisioning.kit_keys import choose_passphrases  # noqa: PLC0415
    from server.provisioning.provision import add_site, changing_sites, check_enough_sites, revoke_site  # noqa: PLC0415

    keys = Path(str(config.keys))
    if options.add_site:
        find_passphrase = choose_passphrases(options)
        with changing_sites(keys):
            site = add_site(config, options.add_site, options.public_key, find_passphrase)
        print(f"{site.name:<20} {site.folder}\n{'':<20} {site.fingerprint}")
        if options.public_key and config.tls == "mutual":
            print(f"Send {site.folder / 'site.crt'} to the site: with tls: mutual it belongs into its kit.")
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


def run_delete_kit_keys(config: ServerConfig, seen: set[str]) -> int:
    """Remove private keys of sites that have connected; return the exit code."""
    from server.provisioning.kit_keys import delete_kit_keys  # noqa: PLC0415

    deleted, kept = delete_kit_keys(config, seen)
    for name in deleted:
        print(f"removed: the private key of {name}")
    for name in kept:
        print(f"kept: the private key of {name}, which has not connected yet; its kit needs it")
    if not deleted and not kept:
        print("There are no private keys of sites here.")
    return 0
