"""The list of known sites, ``sites.json``: names, public keys, and who is revoked."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmed.config.server import ServerConfig
from fedmed.errors import ConfigError, KeyFileError
from fedmed.formats import SITE_LIST
from fedmed.keys import fingerprint
from fedmed.storage.atomic_files import write_atomically

SITES_FILE = "sites.json"


@dataclass(frozen=True)
class SiteEntry:
    """A site of the list.

    Attributes
    ----------
    public_key : str
        ``TYPE BASE64`` in OpenSSH's form.
    revoked : bool
        Whether it is refused.
    added : str
        When it came on the list, ISO 8601 in UTC.
    earlier_keys : tuple of str
        Keys that it had before it was revoked; nobody may use them again.
    """

    public_key: str
    revoked: bool
    added: str
    earlier_keys: tuple[str, ...] = ()

    @property
    def all_keys(self) -> tuple[str, ...]:
        """Every key that this site ever had."""
        return (*self.earlier_keys, self.public_key)


def keys_folder(config: ServerConfig) -> Path:
    """Return the folder that ``--provision`` made."""
    assert config.keys is not None, "load_server_config fills it in"
    return Path(config.keys)


def read_sites(config: ServerConfig) -> dict[str, SiteEntry]:
    """Return the list of sites, in the order in which they were added.

    Raises
    ------
    KeyFileError
        If it is missing or damaged.
    """
    path = keys_folder(config) / SITES_FILE
    try:
        content = json.loads(path.read_bytes())
        SITE_LIST.check(content.get("format"), path)
        return {str(name): _parse_entry(entry) for name, entry in content["sites"].items()}
    except OSError as error:
        raise KeyFileError(
            f"The list of sites {path} cannot be read: {error.strerror}. Where nothing was provisioned yet, type: "
            "flower-server --config server.yaml --provision DIR\nand then use DIR/server.yaml; or let 'keys' name the "
            "folder that was provisioned."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise KeyFileError(f"The list of sites {path} is damaged. Put back a copy of it.") from None


def write_sites(config: ServerConfig, sites: Mapping[str, SiteEntry]) -> None:
    """Replace the list of sites in one step.

    Raises
    ------
    CheckpointError
        If the disk is full or the file cannot be written.
    """
    content = {"format": SITE_LIST.number, "sites": {name: asdict(entry) for name, entry in sites.items()}}
    write_atomically(keys_folder(config) / SITES_FILE, (json.dumps(content, indent=2) + "\n").encode())


def _parse_entry(entry: dict[str, Any]) -> SiteEntry:
    if not isinstance(entry["revoked"], bool):
        raise TypeError("revoked is no truth value")
    found = SiteEntry(entry["public_key"], entry["revoked"], str(entry["added"]), tuple(entry.get("earlier_keys", ())))
    for line in found.all_keys:
        fingerprint(line)
    return found


def check_enough_sites(config: ServerConfig) -> None:
    """Check that a round can ever have ``min_sites``.

    Raises
    ------
    ConfigError
        If too few sites are on the list.
    KeyFileError
        If the list is missing or damaged.
    """
    num_sites = sum(not entry.revoked for entry in read_sites(config).values())
    if num_sites < config.min_sites:
        raise ConfigError(
            f"Only {num_sites} {'site is' if num_sites == 1 else 'sites are'} on the list, min_sites = "
            f"{config.min_sites} are needed for a round. Add one with --add-site NAME --public-key FILE, or "
            "lower min_sites in server.yaml."
        )
