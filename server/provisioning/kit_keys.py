"""Private keys of sites at the coordinating site: how new ones are locked, and that none stays here."""

import argparse
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedmed.config.server import ServerConfig
from fedmed.errors import ConfigError, KeyFileError
from fedmed.keys.passphrases import (
    ask_new_passphrase,
    check_passphrase,
    read_passphrases,
    take_passphrase,
)
from fedmed.storage.atomic_files import sync_path
from server.provisioning.site_list import keys_folder, read_sites

FindPassphrase = Callable[[str], bytes | None]
"""From a site's name to the passphrase of its new key; None: it gets none."""


def use_none(name: str) -> None:
    """Give every key no passphrase."""


def choose_passphrases(options: argparse.Namespace) -> FindPassphrase:
    """Return where the passphrases of new keys come from: a file, the environment, or the person at the terminal.

    Parameters
    ----------
    options : argparse.Namespace
        ``no_passphrase`` and ``passphrase_file``.

    Raises
    ------
    KeyFileError
        If the file cannot be used.
    """
    if options.no_passphrase:
        return use_none
    given: dict[str | None, str] = {}
    if options.passphrase_file is not None:
        given = read_passphrases(options.passphrase_file)
    elif (word := take_passphrase()) is not None:
        given = {None: word}

    def find(name: str) -> bytes | None:
        if given:
            if name not in given and None not in given:
                raise ConfigError(f"{options.passphrase_file} has no line '{name}: PASSPHRASE'. Add one.")
            return check_passphrase(given.get(name) or given[None], f"the passphrase of {name}")
        asked = ask_new_passphrase(f"the private key of {name}")
        if asked is None:
            raise ConfigError(
                f"The private key of {name} needs a passphrase, and nobody can be asked here. Type the command at a "
                "terminal, name a file with --passphrase-file, or set FEDMED_KEY_PASSPHRASE. Better: --keys-at-sites, "
                "with which private keys never travel. For a trial on one machine: --no-passphrase."
            )
        return asked

    return find


def find_kit_keys(config: ServerConfig) -> dict[str, Path]:
    """Return the private keys of sites that lie in kits here, by site; those of revoked keys under their folder."""
    kits = keys_folder(config) / "kits"
    return {path.parent.name: path for path in sorted(kits.glob("*/site.key"))} if kits.is_dir() else {}


def describe_left_keys(config: ServerConfig, seen: set[str]) -> str | None:
    """Return a warning of private keys that are here although their sites have them; None if there are none.

    Parameters
    ----------
    config : ServerConfig
        Settings of the federation.
    seen : set of str
        Sites that have been connected.
    """
    left = [name for name in find_kit_keys(config) if name in seen]
    if not left:
        return None
    return (
        f"Private keys of sites that have connected still lie here, in {keys_folder(config) / 'kits'}: "
        f"{', '.join(left)}. Whoever reads them can answer as these sites. Unless these kits are used from here, as in "
        "a trial on one machine, remove them: flower-server --config FILE --delete-kit-keys"
    )


def delete_kit_keys(config: ServerConfig, seen: set[str]) -> tuple[list[str], list[str]]:
    """Remove the private keys from the kits of sites that have been connected, and from those of revoked keys.

    Returns
    -------
    deleted, kept : list of str
        Sites; a kit that no site has used yet needs its key.

    Raises
    ------
    KeyFileError
        If a file cannot be removed.
    """
    found, listed = find_kit_keys(config), read_sites(config)
    revoked = {name for name, entry in listed.items() if entry.revoked}
    gone = [name for name in found if name in seen | revoked or name.startswith(".")]
    for name in gone:
        _remove(found[name])
    return gone, [name for name in found if name not in gone]


def _remove(path: Path) -> None:
    try:
        with suppress(OSError), path.open("r+b") as file:  # what the disk itself keeps of it is out of reach
            file.write(b"\0" * path.stat().st_size)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        sync_path(path.parent)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be removed: {error.strerror}. Remove it yourself.") from None
