"""Keys, certificates and the list of sites of one federation.

The folder that ``--provision`` makes::

    server.yaml                      settings, from now on the ones that rule
    ca.pem ca.key                    the federation's own certificate authority
    server.pem server.key            the server's certificate
    release.pub release.key          signature of released models
    sites.json                       the known sites and their public keys
    kits/NAME/                       one folder for each site

``ca.key`` is needed only to issue a certificate, and a kit only until its site has it: both may be kept elsewhere.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedmed.config import LOCAL_MODEL_OPTIONS
from fedmed.config.addresses import is_loopback, split_address
from fedmed.config.server import ServerConfig, SiteName, load_server_config
from fedmed.errors import ConfigError, KeyFileError, suggest_nearest
from fedmed.keys import Authority, fingerprint, make_release_key, read_public_key
from fedmed.processes import private_folder, single_instance
from fedmed.storage.atomic_files import write_atomically
from server.provisioning.certificate_renewal import renew_certificate
from server.provisioning.kit_keys import FindPassphrase, use_none
from server.provisioning.kits import Kit, Value, add_certificate, make_keyless_kit, make_kit, replace_values
from server.provisioning.site_list import (
    SITES_FILE,
    SiteEntry,
    check_enough_sites,
    keys_folder,
    read_sites,
    write_sites,
)

__all__ = [
    "ProvisionedSite",
    "SiteEntry",
    "add_site",
    "changing_sites",
    "check_enough_sites",
    "find_kept_settings",
    "provision",
    "read_sites",
    "renew_certificate",
    "revoke_site",
]


@dataclass(frozen=True)
class ProvisionedSite:
    """A site and its kit.

    Attributes
    ----------
    name : str
        The site.
    folder : Path
        Its kit. Once it was brought to the site, it can be deleted here.
    fingerprint : str, optional
        Of its public key, to be compared over the phone; None while the site has to make its key.
    """

    name: str
    folder: Path
    fingerprint: str | None


def provision(
    directory: Path, config_file: Path, find_passphrase: FindPassphrase = use_none, *, keys_at_sites: bool = False
) -> list[ProvisionedSite]:
    """Make what is missing of a federation's folder; keys and settings that are there stay as they are.

    Parameters
    ----------
    directory : Path
        The folder, private to its owner afterwards.
    config_file : Path
        ``server.yaml``, copied into the folder where that has none.
    find_passphrase : callable
        Says how new private keys of sites are locked.
    keys_at_sites : bool
        Whether the sites make their keys themselves: new kits then hold none, and a site is on the list only when
        :func:`add_site` has got its public key.

    Returns
    -------
    list of ProvisionedSite
        The sites that ``config_file`` names, without those that are revoked.

    Raises
    ------
    ConfigError
        If the settings cannot be used.
    KeyFileError
        If a file is damaged or cannot be written.
    """
    config = load_server_config(config_file)
    _check_insecure(config)
    private_folder(directory)
    with changing_sites(directory):
        return _provision(directory, config_file, config, None if keys_at_sites else find_passphrase)


@contextmanager
def changing_sites(keys: Path) -> Iterator[None]:
    """Keep other commands off the list of sites: two at a time could each write the list that it has read.

    Raises
    ------
    ProcessError
        If another one is at it.
    """
    with single_instance(keys / ".sites.lock", "a command that changes the list of sites"):
        yield


def _provision(
    directory: Path, config_file: Path, config: ServerConfig, find_passphrase: FindPassphrase | None
) -> list[ProvisionedSite]:
    given, config = config, config.model_copy(update={"keys": str(directory.absolute())})
    if not (directory / "ca.pem").exists():
        Authority.create(directory)
    renew_certificate(config)
    if not (directory / "release.pub").exists():
        make_release_key(directory)
    _copy_settings(config_file, given, directory)
    known = read_sites(config) if (directory / SITES_FILE).exists() else {}
    for name in config.sites:
        if name in known:
            _complete(config, name, known[name])
        elif find_passphrase is None:
            make_keyless_kit(_place(config, known, name), config)
        else:
            _add(config, known, name, None, find_passphrase)
    if not known:
        write_sites(config, {})
    return [_describe(config, name, known.get(name)) for name in config.sites if not _is_revoked(known, name)]


def add_site(
    config: ServerConfig, name: str, public_key: Path | None = None, find_passphrase: FindPassphrase = use_none
) -> ProvisionedSite:
    """Put a site on the list and make its kit.

    Parameters
    ----------
    config : ServerConfig
        Settings of the federation.
    name : str
        A new name, or the one of a revoked site, which gets a new key.
    public_key : Path, optional
        Public key that the site has made itself; default: a pair is made.
    find_passphrase : callable
        Says how a new private key is locked.

    Raises
    ------
    ConfigError
        If the name is taken or not allowed.
    KeyFileError
        If the public key cannot be used, or nothing was provisioned yet.
    """
    _check_insecure(config)
    try:
        TypeAdapter(SiteName).validate_python(name)
    except ValidationError:
        raise ConfigError(
            f"'{name}' is no name for a site. Allowed: up to 60 letters, digits, '.', '_' and '-', the first a letter "
            "or digit."
        ) from None
    known = read_sites(config)
    if name in known and not known[name].revoked:
        raise ConfigError(
            f"The site '{name}' is known since {known[name].added[:10]}. To give it a new key, first type "
            f"--revoke-site {name}, then --add-site {name}."
        )
    _add(config, known, name, public_key, find_passphrase)
    return _describe(config, name, known[name])


def revoke_site(config: ServerConfig, name: str) -> None:
    """Refuse a site from now on, also while a run goes on.

    Raises
    ------
    ConfigError
        If there is no such site.
    KeyFileError
        If nothing was provisioned yet.
    """
    known = read_sites(config)
    if name not in known:
        raise ConfigError(
            f"There is no site '{name}'.{suggest_nearest(name, known)} Known sites: {', '.join(known) or 'none'}."
        )
    write_sites(config, {**known, name: replace(known[name], revoked=True)})


def find_kept_settings(directory: Path, config_file: Path) -> list[str]:
    """Return the keys whose value in the folder's ``server.yaml``, which rules, is another than in a given file.

    Raises
    ------
    ConfigError
        If one of the two cannot be used.
    """
    given, rules = load_server_config(config_file), load_server_config(directory / "server.yaml")
    places = {"keys", "run_dir"}
    return [key for key in type(given).model_fields if key not in places and getattr(given, key) != getattr(rules, key)]


def _copy_settings(config_file: Path, config: ServerConfig, directory: Path) -> None:
    """Copy ``server.yaml`` with its comments, so that its keys are those of the folder."""
    target = directory / "server.yaml"
    if target.exists():
        return
    options = config.model.options
    values: dict[str, Value] = {f"model.{name}": options[name] for name in LOCAL_MODEL_OPTIONS if name in options}
    if config.operators:
        values["operators"] = config.operators
    text = replace_values(config_file.read_text(encoding="utf-8"), {"keys": None, **values})
    write_atomically(target, text.encode())
    differing = find_kept_settings(directory, config_file)
    if differing or load_server_config(target).keys != os.path.abspath(directory):
        target.unlink()
        raise ConfigError(
            f"{config_file} cannot be copied to another folder as it is written: 'keys' and the options of 'model' "
            "and 'operators' must be lines of their own, 'key: value'."
        )


def _add(
    config: ServerConfig,
    known: dict[str, SiteEntry],
    name: str,
    public_key: Path | None,
    find_passphrase: FindPassphrase,
) -> None:
    """Make a kit and put the site on the list, the list last: what a crash leaves is completed by the next try."""
    line = None if public_key is None else read_public_key(public_key)
    _check_unused(known, line, f"{public_key}")
    kit, now = _place(config, known, name), datetime.now(UTC)
    folder = kit.folder
    if name in known and folder.exists():  # revoked: its old key must not come back
        folder.rename(folder.with_name(f".{name}.revoked-{now:%Y%m%dT%H%M%S.%f}"))
    line = make_kit(kit, config, line, find_passphrase)
    _check_unused(known, line, f"{folder / 'site.pub'}")  # of a kit that lay there already
    earlier = known[name].all_keys if name in known else ()
    known[name] = SiteEntry(line, revoked=False, added=now.isoformat(timespec="seconds"), earlier_keys=earlier)
    write_sites(config, known)


def _place(config: ServerConfig, known: dict[str, SiteEntry], name: str) -> Kit:
    """Return what a site's kit is made from; the kits' folder is there afterwards."""
    folder = private_folder(keys_folder(config) / "kits") / name
    order = list(dict.fromkeys([*known, *(site for site in config.sites if site not in known), name]))
    return Kit(folder, name, order.index(name), len(order))


def _complete(config: ServerConfig, name: str, entry: SiteEntry) -> None:
    """Add to a kit what a setting that came later wants: the certificate of tls: mutual."""
    folder = keys_folder(config) / "kits" / name
    if config.tls == "mutual" and not entry.revoked and folder.is_dir():
        add_certificate(folder, config, name, entry.public_key)


def _is_revoked(known: dict[str, SiteEntry], name: str) -> bool:
    return name in known and known[name].revoked


def _check_unused(known: dict[str, SiteEntry], line: str | None, source: str) -> None:
    """Refuse a key that a site has or ever had: Flower, too, takes no key a second time."""
    for holder, entry in known.items():
        if line in entry.all_keys:
            revoked = ", which is revoked" if entry.revoked or line != entry.public_key else ""
            raise KeyFileError(
                f"{source} is the key of the site '{holder}'{revoked}. Every site needs a key of its own; have a new "
                "pair made."
            )


def _describe(config: ServerConfig, name: str, entry: SiteEntry | None) -> ProvisionedSite:
    own = None if entry is None else fingerprint(entry.public_key)
    return ProvisionedSite(name, keys_folder(config) / "kits" / name, own)


def _check_insecure(config: ServerConfig) -> None:
    if config.insecure and not is_loopback(split_address(config.address, "address")[0]):
        raise ConfigError(
            f"insecure: true allows only sites on this very machine, but 'address' is '{config.address}'. Write for "
            "example 127.0.0.1:8443, or insecure: false."
        )
