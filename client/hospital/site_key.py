"""The site's private key, opened: where its passphrase comes from, and how child processes get it.

A person types it once, or a service has it in a file or in the environment. Child processes inherit a file in memory,
so that it is neither among their arguments nor in their environment.
"""

import argparse
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from fedmed.errors import KeyFileError
from fedmed.keys import is_locked, read_private_key
from fedmed.keys.passphrases import (
    ask_passphrase,
    hold_passphrase,
    read_held_passphrase,
    read_passphrase_file,
    take_passphrase,
)

_OPTION = "--passphrase-fd"
_held: list[int] = []
"""Number of the file in memory, once this process has the passphrase."""


class KeySettings(Protocol):
    """What of ``client.yaml`` tells which key a site has."""

    @property
    def name(self) -> str:
        """The site's name."""
        ...

    @property
    def key(self) -> str:
        """File of the private key."""
        ...

    @property
    def key_passphrase_file(self) -> str | None:
        """File with its passphrase."""
        ...


def open_site_key(config: KeySettings) -> ec.EllipticCurvePrivateKey:
    """Read the site's private key; ask for its passphrase if it has one and this process does not know it.

    Raises
    ------
    KeyFileError
        If the key cannot be used, or its passphrase is missing or wrong.
    """
    path = Path(config.key)
    return read_private_key(path, _find_passphrase(config) if is_locked(path) else None)


def prepare_site_key(config: KeySettings) -> None:
    """Get the passphrase, if there is one, before child processes start; a key that cannot be used is told by them.

    Raises
    ------
    KeyFileError
        If the passphrase is wrong.
    """
    try:
        locked = is_locked(Path(config.key))
    except KeyFileError:
        return
    if locked:
        open_site_key(config)


def inherit_passphrase() -> tuple[list[str], tuple[int, ...]]:
    """Return arguments and file descriptors with which a child process gets the passphrase; empty without one."""
    return ([_OPTION, str(_held[0])], (_held[0],)) if _held else ([], ())


def add_inherit_option(parser: argparse.ArgumentParser) -> None:
    """Let a child process take what :func:`inherit_passphrase` has given it."""
    parser.add_argument(
        _OPTION,
        type=lambda text: _held.append(int(text)),
        help="file descriptor with the key's passphrase, which flower-client sets",
    )


def _find_passphrase(config: KeySettings) -> bytes | None:
    if _held:
        return read_held_passphrase(_held[0])
    word = take_passphrase()
    if word is None and config.key_passphrase_file is not None:
        word = read_passphrase_file(Path(config.key_passphrase_file))
    if word is None:
        word = ask_passphrase(f"the private key of {config.name}")
    if word is None:
        return None
    _held.append(hold_passphrase(word.encode()))
    return word.encode()
