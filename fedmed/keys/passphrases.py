"""Passphrases of private keys: asked for, read from where a service has them, and handed to child processes.

A passphrase is never an argument of a command, where everybody on the machine could read it, and never in a log.
"""

import getpass
import os
import sys
import tempfile
from pathlib import Path

from fedmed.errors import ConfigError, KeyFileError
from fedmed.processes import read_secret
from fedmed.processes.children import PASSPHRASE_VARIABLE

__all__ = [
    "PASSPHRASE_VARIABLE",
    "ask_new_passphrase",
    "ask_passphrase",
    "check_passphrase",
    "hold_passphrase",
    "read_held_passphrase",
    "read_passphrase_file",
    "read_passphrases",
    "take_passphrase",
]
FEWEST_LETTERS, MOST_LETTERS = 12, 1000


def check_passphrase(text: str, source: str) -> bytes:
    """Return a new passphrase as keys are locked with it.

    Raises
    ------
    ConfigError
        If it is too short or too long, or not one line.
    """
    if not (FEWEST_LETTERS <= len(text) <= MOST_LETTERS) or not text.isprintable():
        raise ConfigError(
            f"{source}: a passphrase has {FEWEST_LETTERS} letters or more, all in one line; a few words are good."
        )
    return text.encode()


def take_passphrase() -> str | None:
    """Return the passphrase of the environment, which then no longer has it; None if there is none."""
    return os.environ.pop(PASSPHRASE_VARIABLE, None) or None


def read_passphrase_file(path: Path) -> str:
    """Read a file with one passphrase.

    Raises
    ------
    KeyFileError
        If it is missing, empty, of more than one line, no text, or can be read by others.
    """
    return _read_lines(path, 1)[0]


def read_passphrases(path: Path) -> dict[str | None, str]:
    """Read a file with one passphrase for all sites, or with a line ``NAME: PASSPHRASE`` for each.

    Returns
    -------
    dict of str or None to str
        Of one for all, the key is None.

    Raises
    ------
    KeyFileError
        If it is missing, empty, no text, in another form, or can be read by others.
    """
    lines = _read_lines(path, None)
    if len(lines) == 1:
        return {None: lines[0]}
    found: dict[str | None, str] = {}
    for line in lines:
        name, mark, passphrase = line.partition(": ")
        if not mark or name in found:
            raise KeyFileError(
                f"{path}: allowed is one line, the passphrase of all kits, or a line 'NAME: PASSPHRASE' for each site."
            )
        found[name] = passphrase
    return found


def ask_passphrase(what: str) -> str | None:
    """Ask the person at the terminal; None where there is no terminal."""
    return getpass.getpass(f"Passphrase of {what}: ") if sys.stdin is not None and sys.stdin.isatty() else None


def ask_new_passphrase(what: str) -> bytes | None:
    """Ask twice for a passphrase that does not exist yet; None where there is no terminal.

    Raises
    ------
    ConfigError
        If the two differ, or it cannot be used.
    """
    first = ask_passphrase(f"{what} ({FEWEST_LETTERS} letters or more)")
    if first is None:
        return None
    found = check_passphrase(first, what)
    if ask_passphrase(f"{what}, again") != first:
        raise ConfigError(f"{what}: the two passphrases differ. Nothing was made; type the command again.")
    return found


def hold_passphrase(passphrase: bytes) -> int:
    """Return the number of a file in memory that child processes can inherit and read as often as they are started."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("passphrase", os.MFD_CLOEXEC)
    else:  # no Linux: a file that has no name from the beginning
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.write(number, passphrase)
    return number


def read_held_passphrase(number: int) -> bytes:
    """Return the passphrase that a parent process holds.

    Raises
    ------
    KeyFileError
        If there is no such file.
    """
    try:
        return os.pread(number, 4 * MOST_LETTERS, 0)
    except OSError:
        raise KeyFileError("This process was not given the passphrase; start it with flower-client.") from None


def _read_lines(path: Path, most: int | None) -> list[str]:
    try:
        lines = [line for line in read_secret(path).decode().splitlines() if line]
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is no text in UTF-8; it holds one line, the passphrase.") from None
    if not lines or (most is not None and len(lines) > most):
        raise KeyFileError(f"{path} holds {len(lines)} lines that are not empty; allowed is one, the passphrase.")
    return lines
