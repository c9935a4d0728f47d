"""Settings of one site's local work."""

from typing import Annotated, Literal

from pydantic import Field

from fedmed.config.section import Section


class OptimizerConfig(Section):
    """The optimiser at the sites."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.02
    """Base learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    nesterov: bool = False
    """Nesterov momentum for SGD."""


class ScheduleConfig(Section):
    """The learning rate over the whole run, counted in local epochs and not in rounds."""

    name: Literal["constant", "cosine", "step", "official"] = "cosine"
    """``official`` is the non-cumulative schedule of the ADSR authors' later configuration, for comparison."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up before the schedule; not for ``official``."""
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """``cosine``: share of the base rate that is left at the end."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[0.5, 0.75])
    """``step``: shares of all epochs after which the rate is multiplied by ``gamma``."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


class TrainingConfig(Section):
    """One site's local work in a round."""

    epochs_per_round: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Most images at a time, spread evenly; below 15 sometimes a few more, see :func:`fedmed.data.make_batches`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of a batch's gradient; null does not clip."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the FedProx term mu/2 ||w - w_global||^2; 0 is FedAvg."""
    keep_momentum: bool = False
    """Keep the optimiser's state at the site between rounds."""
    amp: Literal["auto", "off"] = "auto"
    """Automatic mixed precision on a GPU; a CPU always computes in float32."""
