"""Settings of a simulation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedmed.config.data import DataConfig, PhantomData
from fedmed.config.fairness import SuppressionConfig
from fedmed.config.federation import FederationConfig


class RunConfig(FederationConfig):
    """All settings of a simulation."""

    sites: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Number of sites where the partition makes them; null where a column names them."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes that serve the sites; ``auto``: cores / threads. Results do not depend on it."""
    threads: Annotated[int, Field(ge=1)] = 1
    """PyTorch threads of one worker. Results may differ in the last bits between values."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where sites train: ``auto`` takes a GPU if there is one."""
    data: DataConfig = PhantomData()
    suppression: SuppressionConfig = SuppressionConfig(k=1, k_row=1, k_bin=1)
    """Thresholds below which a site withholds its tables; 1 and 1, because in a simulation one person holds all
    images."""

    @model_validator(mode="after")
    def _check_sites(self) -> "RunConfig":
        if self.sites is None and (isinstance(self.data, PhantomData) or self.data.partition.kind == "dirichlet"):
            raise ValueError("'sites' must be a number, because the partition makes the sites")
        if self.release != "automatic":
            raise ValueError("'release' is 'manual', which is for real federations. Allowed in a simulation: automatic")
        return self
