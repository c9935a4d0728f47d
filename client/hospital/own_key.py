"""The key that a site makes for itself, so that its private part never travels."""

import tempfile
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedmed.config.server import SiteName
from fedmed.errors import ConfigError, KeyFileError
from fedmed.keys import make_site_key
from fedmed.keys.files import refuse_existing
from fedmed.keys.passphrases import ask_new_passphrase, check_passphrase, read_passphrase_file, take_passphrase

KEY_FILES = ("site.key", "site.pub")


def make_own_key(folder: Path, name: str, passphrase: bytes | None = None) -> str:
    """Make ``site.key`` and ``site.pub`` in a folder, whose mode stays as it is, and return the fingerprint.

    Parameters
    ----------
    folder : Path
        For example that of a kit, or any other before there is a kit.
    name : str
        Name of the site.
    passphrase : bytes, optional
        Locks the private key.

    Raises
    ------
    ConfigError
        If a site cannot have this name.
    KeyFileError
        If there is a key already, or the folder cannot be written.
    """
    try:
        TypeAdapter(SiteName).validate_python(name)
    except ValidationError:
        raise ConfigError(
            f"'{name[:80]}' cannot be the name of a site. Allowed: up to 60 letters, digits, '_', '-' and '.', "
            "beginning with a letter or digit; it is the name that the coordinating site uses."
        ) from None
    refuse_existing(folder, KEY_FILES)
    try:
        # In a private folder first: the current one may belong to others and must not become private.
        with tempfile.TemporaryDirectory(prefix=".site-key-", dir=folder) as draft:
            fingerprint = make_site_key(Path(draft), name, passphrase)
            for file in KEY_FILES:
                (Path(draft) / file).rename(folder / file)
    except OSError as error:
        raise KeyFileError(f"The key cannot be written to {folder}: {error.strerror or error}.") from error
    return fingerprint


def choose_passphrase(file: Path | None) -> bytes:
    """Return the passphrase of a new key: of a file, of the environment, or of the person at the terminal.

    Parameters
    ----------
    file : Path, optional
        Holds it.

    Raises
    ------
    ConfigError
        If there is none, or it cannot be used.
    KeyFileError
        If the file cannot be read.
    """
    word = read_passphrase_file(file) if file is not None else take_passphrase()
    found = check_passphrase(word, "the passphrase") if word else ask_new_passphrase("the new key")
    if found is None:
        raise ConfigError(
            "The key needs a passphrase, and nobody can be asked here. Type the command at a terminal, name a file "
            "with --passphrase-file, or set FEDMED_KEY_PASSPHRASE; for a trial on one machine: --no-passphrase."
        )
    return found
