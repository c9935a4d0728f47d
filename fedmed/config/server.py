"""Settings of a real federation: ``server.yaml`` at the coordinating site, ``client.yaml`` at each hospital.

Relative paths are relative to the folder of the file that names them. Secrets are never in these files: keys are files
of their own with mode 0600, and a proxy's password belongs in the environment variable ``HTTPS_PROXY``.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from fedmed.config import FederationConfig, Plan, Section, SitesData
from fedmed.config.addresses import check_loopback, split_address
from fedmed.config.files import read_yaml, resolve_path, resolve_paths, validate_settings

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,59}$")]
LOCAL_SETTINGS = ("address", "listen", "alternative_names", "keys", "run_dir", "health", "insecure", "link_mbit_s")
"""Keys of ``server.yaml`` that concern the server's machine and are no part of a report."""


class EthicsConfig(Section):
    """What the federation is for."""

    id: str = "unnamed"
    """Name of the study; a site can insist on it."""
    approval: str | None = None
    """Number of the ethics approval; a site can insist on it."""


class ServerConfig(FederationConfig):
    """All settings of ``server.yaml``."""

    address: str
    """``host:port`` under which the sites reach this server."""
    listen: str = "0.0.0.0:8443"
    """``host:port`` on which the server listens."""
    alternative_names: tuple[str, ...] = ()
    """Further host names or addresses for the server's certificate."""
    sites: Annotated[list[SiteName], Field(min_length=1)]
    """Names of the sites that ``--provision`` makes kits for."""
    attempts: Annotated[int, Field(ge=1, le=10_000)] = 200
    """How often a round is tried, until ``min_sites`` have sent an update that can be used; the pauses between two
    grow to ten minutes, so that 200 last longer than a day. Part of the plan that every site approves."""
    classes: Annotated[list[str], Field(min_length=2)]
    """Class names in order, the same at every site."""
    data: SitesData = SitesData()
    study: EthicsConfig = EthicsConfig()
    keys: str | None = None
    """Folder made by ``--provision``; null: the folder of this file."""
    run_dir: str = "run"
    """The run's folder."""
    health: str | None = None
    """``127.0.0.1:port`` of the gRPC health service; null: none."""
    insecure: bool = False
    """No TLS, on the loopback interface only, for tests. Sites still have to prove who they are."""
    link_mbit_s: Annotated[float, Field(gt=0)] = 100.0
    """Speed of a site's link, for the times that are printed before the first round."""
    collect_wait_s: Annotated[float, Field(ge=0)] = 600.0
    """Seconds to wait at the end for sites that have not collected the model."""

    def make_plan(self) -> Plan:
        """Return the part of the settings that the sites need."""
        told = {"study": self.study.id, "approval": self.study.approval, "release": self.batch_norm != "local"}
        return super().make_plan().model_copy(update=told)

    @model_validator(mode="after")
    def _check(self) -> "ServerConfig":
        for key in ("address", "listen", "health"):
            value = getattr(self, key)
            if value is not None:
                split_address(value, key)
        check_loopback(self.health, "health")
        if self.insecure:
            check_loopback(self.listen, "insecure: true allows only listen")
        if len(set(self.sites)) < len(self.sites):
            raise ValueError("sites: a name is given twice")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name is given twice")
        plan = self.distillation
        if plan is not None and plan.exchange == "aux":
            raise ValueError(
                "'fopro.exchange' is 'aux', with which the network's last layer stays at every site, so that there is "
                "no model to release. Set fopro.exchange: both or main; aux is for simulations"
            )
        return self


def load_server_config(path: Path) -> ServerConfig:
    """Read ``server.yaml``; its paths become absolute.

    Raises
    ------
    ConfigError
        With the file, the key, the value found and what is allowed.
    """
    config = validate_settings(ServerConfig, read_yaml(path), str(path))
    base = path.absolute().parent
    resolve_paths(config, str(path), base)
    config.run_dir = resolve_path(config.run_dir, f"{path}: run_dir", base)
    config.keys = resolve_path(config.keys or ".", f"{path}: keys", base)
    return config
