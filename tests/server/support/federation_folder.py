"""A provisioned federation in a folder, for tests of what runs at the coordinating site."""

from pathlib import Path
from typing import Any

import yaml

from fedmed.config.server import ServerConfig, load_server_config
from fedmed.processes import find_free_port
from server.provisioning.provision import provision

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "server.yaml"


def provision_folder(folder: Path) -> Path:
    """Provision the shipped demonstration with a free port and return its server.yaml; its sites are two."""
    address = f"127.0.0.1:{find_free_port()}"
    plain = folder.with_suffix(".yaml")
    plain.write_text(yaml.safe_dump({**yaml.safe_load(SHIPPED.read_text()), "address": address, "listen": address}))
    provision(folder, plain)
    return folder / "server.yaml"


def change(file: Path, **values: Any) -> ServerConfig:
    """Change keys of a server.yaml and return its settings."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))
    return load_server_config(file)
