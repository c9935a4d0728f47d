"""What a site gets from the coordinating site: a folder with its settings and keys."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fedmed.config.server import ServerConfig
from fedmed.errors import KeyFileError
from fedmed.keys import Authority, fingerprint, make_site_key, read_public_key
from fedmed.processes import private_folder
from fedmed.storage.atomic_files import write_atomically
from server.provisioning.kit_keys import FindPassphrase, use_none

_LARGEST_PHANTOM = 8
Value = str | int | bool | None | Mapping[str, str]


@dataclass(frozen=True)
class Kit:
    """Who a kit is for.

    Attributes
    ----------
    folder : Path
        Where it lies.
    name : str
        The site.
    place : int
        Position of the site among all that are known, from 0; decides which synthetic images it has.
    num_sites : int
        How many are known with this one.
    """

    folder: Path
    name: str
    place: int
    num_sites: int


def make_kit(
    kit: Kit, config: ServerConfig, public_line: str | None = None, find_passphrase: FindPassphrase = use_none
) -> str:
    """Write what is missing of a kit and return the site's public key.

    Parameters
    ----------
    kit : Kit
        Who it is for.
    config : ServerConfig
        Settings of the federation; ``config.keys`` holds the authority's certificate and the release key.
    public_line : str, optional
        Public key that the site has made itself; then the kit has no private key. Default: a pair is made.
    find_passphrase : callable
        Says how a new private key is locked.

    Returns
    -------
    str
        The line ``TYPE BASE64``.

    Raises
    ------
    KeyFileError
        If a key is damaged or of another kind, or the federation's own files are missing.
    """
    shared = _read_shared(Path(str(config.keys)))
    own = private_folder(kit.folder) / "site.pub"
    if public_line is not None:
        write_atomically(own, f"{public_line} {kit.name}\n".encode())
    elif not own.exists():
        make_site_key(kit.folder, kit.name, find_passphrase(kit.name))
    line = read_public_key(own)
    is_complete = (kit.folder / "README.txt").exists() and public_line is None
    _write_missing(kit, config, shared)
    if not is_complete:
        explanation = _explain(kit.name, fingerprint(line), has_key=public_line is None)
        write_atomically(kit.folder / "README.txt", explanation.encode())
    if config.tls == "mutual":
        add_certificate(kit.folder, config, kit.name, line)
    return line


def make_keyless_kit(kit: Kit, config: ServerConfig) -> None:
    """Write what is missing of a kit whose site makes its key itself.

    Raises
    ------
    KeyFileError
        If the federation's own files are missing.
    """
    shared = _read_shared(Path(str(config.keys)))
    private_folder(kit.folder)
    _write_missing(kit, config, shared)
    if not (kit.folder / "README.txt").exists():
        write_atomically(kit.folder / "README.txt", _EXPLAIN_KEYLESS.encode())


def add_certificate(folder: Path, config: ServerConfig, name: str, public_line: str) -> bool:
    """Add a site's certificate for ``tls: mutual`` to its kit where it is missing; return whether it was.

    Raises
    ------
    KeyFileError
        If the authority's key is not here.
    """
    path = folder / "site.crt"
    if path.exists():
        return False
    keys = Path(str(config.keys))
    if not (keys / "ca.key").exists():
        raise KeyFileError(
            f"With tls: mutual the certificate of {name} has to be signed by the federation's authority, and "
            f"{keys / 'ca.key'} is not there. Put it back for this command."
        )
    Authority.load(keys).issue_site_certificate(path, name, public_line)
    return True


def _write_missing(kit: Kit, config: ServerConfig, shared: Mapping[str, bytes]) -> None:
    files = {**shared, "client.yaml": _fill_in(kit, config).encode()}
    for name, data in files.items():
        if not (kit.folder / name).exists():
            write_atomically(kit.folder / name, data)


def replace_values(text: str, values: Mapping[str, Value]) -> str:
    """Replace values in YAML text that has one key a line; comments stay.

    Parameters
    ----------
    text : str
        The text.
    values : mapping of str to str, int, bool or None
        ``"key"`` at the left margin, or ``"section.key"`` below a section at the left margin.

    Returns
    -------
    str
        The text; a key that it does not have is left out.
    """
    lines, section = text.splitlines(), ""
    for number, line in enumerate(lines):
        match = re.match(r"(?P<indent> *)(?P<key>\w+):(?P<rest>[^#]*)(?P<comment>#.*)?$", line)
        if match is None:
            continue
        if not match["indent"]:
            section = match["key"]
        key = match["key"] if not match["indent"] else f"{section}.{match['key']}"
        if key in values:
            filled = f"{match['indent']}{match['key']}: {json.dumps(values[key], ensure_ascii=False)}"
            column = len(line) - len(match["comment"] or "")
            lines[number] = f"{filled:<{column - 1}} {match['comment']}" if match["comment"] else filled
    return "\n".join(lines) + "\n"


def _fill_in(kit: Kit, config: ServerConfig) -> str:
    """Return the kit's ``client.yaml``: the shipped template with this site's values."""
    from fedmed.data.phantom.cohort import phantom_site_names  # noqa: PLC0415  (imports torch)

    template = (resources.files("configs") / "client.yaml").read_text(encoding="utf-8")
    values: dict[str, Value] = {
        "name": kit.name,
        "server": config.address,
        "seed": config.seed,
        "insecure": config.insecure,
        "certificate": "site.crt" if config.tls == "mutual" else None,
        "data.image_size": config.data.image_size,
        "data.num_classes": min(len(config.classes), _LARGEST_PHANTOM),
        "data_sites": kit.num_sites,
        "data_site": phantom_site_names(kit.num_sites)[kit.place],
    }
    if config.study.id != type(config.study)().id:
        values["policy.study"] = config.study.id
    if config.study.approval is not None:
        values["policy.approval"] = config.study.approval
    return replace_values(template, values)


_EXPLAIN_KEYLESS = (
    "1. In this folder, at the hospital, type 'flower-client --make-key'. It makes site.key, which never leaves, and "
    "site.pub.\n2. Send site.pub to the coordinating site and read the fingerprint that it prints out over the phone.\n"
    "3. Name your images under 'data' in client.yaml; when the coordinating site has put this site on its list, type "
    "'flower-client --check', then 'flower-client --approve', which shows the study's plan, then 'flower-client'.\n"
)


def _explain(name: str, own_fingerprint: str, *, has_key: bool) -> str:
    key = (
        "Keep site.key secret (mode 0600): whoever has it can answer as this site."
        if has_key
        else "The private key that you made yourself belongs into this folder as site.key (mode 0600)."
    )
    return (
        "1. Name your images under 'data' in client.yaml; in this folder type 'flower-client --check', then "
        f"'flower-client --approve', which shows the study's plan, then 'flower-client'.\n2. {key}\n"
        f"3. Over the phone, compare with the coordinating site: {name} has the fingerprint {own_fingerprint}\n"
    )


def _read_shared(folder: Path) -> dict[str, bytes]:
    """Return the files that are the same in all kits."""
    try:
        return {name: (folder / name).read_bytes() for name in ("ca.pem", "release.pub")}
    except OSError as error:
        raise KeyFileError(
            f"{error.filename} cannot be read: {error.strerror}. Nothing was provisioned in this folder; make it with: "
            "flower-server --config server.yaml --provision DIR"
        ) from None
