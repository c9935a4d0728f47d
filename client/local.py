"""What a site's process holds: its images and its state between rounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fedmed.checkpoint import SiteState, write_atomically
from fedmed.data import SiteData, load_site
from fedmed.errors import FedmedError
from fedmed.run_folder import RunFolder
from fedmed.training import select_device

NodeConfig = Mapping[str, str | int | float | bool | bytes]


@dataclass(frozen=True)
class Site:
    """One site as its own process sees it."""

    name: str
    data: SiteData
    state: SiteState
    test_tables: Path
    device: torch.device
    share_class_counts: bool

    def read_test_tables(self, model_sha256: str) -> bytes | None:
        """Return the stored answer to a test of this model, so that test images are scored once only."""
        path = self.test_tables / f"{model_sha256}.safetensors"
        return path.read_bytes() if path.is_file() else None

    def store_test_tables(self, model_sha256: str, packed: bytes) -> None:
        """Store the answer to a test of this model."""
        self.test_tables.mkdir(parents=True, exist_ok=True)
        write_atomically(self.test_tables / f"{model_sha256}.safetensors", packed)


_sites: dict[tuple[str, str], Site] = {}


def open_site(node_config: NodeConfig) -> Site:
    """Return the site that this process answers for, loading its images at the first call.

    Parameters
    ----------
    node_config : mapping
        ``run-dir`` and ``site`` of a simulation, ``cache-mib`` for its decoded images.

    Raises
    ------
    FedmedError
        If the site's files cannot be used.
    """
    try:
        key = (str(node_config["run-dir"]), str(node_config["site"]))
    except KeyError as error:
        raise FedmedError(f"This process was started without the setting {error}; start it with its command.") from None
    if key not in _sites:
        _sites[key] = _load_simulated_site(Path(key[0]), key[1], float(node_config["cache-mib"]))
    return _sites[key]


def _load_simulated_site(run_dir: Path, name: str, cache_mib: float) -> Site:
    run = RunFolder.open(run_dir)
    config = run.read_config()
    data = load_site(config.data, config.sites, config.seed, run.splits, name, cache_mib)
    folder = run.sites / name
    folder.mkdir(exist_ok=True)
    return Site(
        name=name,
        data=data,
        state=SiteState(folder / "state"),
        test_tables=folder / "test_tables",
        device=select_device(config.device),
        share_class_counts=True,  # in a simulation one person holds all images
    )
