"""The distillation at the sites as the server sees it: what a round's record says, and prompts that must not count."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fedmed.config import Plan
from fedmed.distillation import make_prompt
from fedmed.distillation.at_sites.objective import summarize_static
from fedmed.distillation.network import PROMPT
from fedmed.protocol.tensors import load_state
from fedmed.storage.history import RoundDistillation, SiteDistillation
from fedmed.storage.tensor_files import TensorFile

LARGEST_PROMPT_VALUE = 20.0
"""Of a prompt, a reconstruction, in either direction. Its gains are ``exp(ln g_max tanh(u))``, and in float32 ``tanh``
is 1 from u = 9.02: what lies beyond changes no gain and has no gradient, so no honest training goes there. Averaged, it
would hold all other sites' gains at their limit, for ever."""


class DistilledUpdate(Protocol):
    """A site's part in a round, as far as it concerns the distillation."""

    site: str
    images: int | None
    ekd: float | None
    prompt_bands: list[float | None] | None


def check_prompt(update: TensorFile) -> str | None:
    """Return why the prompt in an update, a reconstruction, must not be averaged, or None.

    The update must hold nothing but finite numbers; see :func:`fedmed.aggregation.check_update`.
    """
    for name in update.names:
        if name.startswith(PROMPT):
            largest = float(np.abs(update.load(name)).max(initial=0.0))
            if largest > LARGEST_PROMPT_VALUE:
                return (
                    f"The prompt ('{name}') holds the value {largest:.4g}, and {LARGEST_PROMPT_VALUE:g} is the largest "
                    "that may be averaged: its gains are at their limit long before. Lower fopro.prompt.lr, or look "
                    "for a fault in the site's software."
                )
    return None


def describe_round(plan: Plan, updates: Sequence[DistilledUpdate], averaged: Path) -> RoundDistillation:
    """Return the entry ``fopro`` of a round's record.

    Parameters
    ----------
    plan : Plan
        With a teacher.
    updates : sequence
        The accepted ones, by site.
    averaged : Path
        The new global model.

    Returns
    -------
    RoundDistillation
        ``teacher``; ``ekd``, the mean over the sites weighted by images; ``bands``, the gain of the averaged prompt, a
        reconstruction, by band (``low`` and ``high`` in shares of the Nyquist frequency), None unless it is static; and
        ``sites``: by site ``ekd`` and ``bands``, the gains alone, as far as they were told.
    """
    assert plan.fopro is not None, "the plan has a teacher"
    parts = [(u.images, u.ekd) for u in updates if u.images is not None and u.ekd is not None]
    total = sum(images for images, _ in parts)
    return RoundDistillation(
        teacher=plan.fopro.teacher.name,
        ekd=sum(images * ekd for images, ekd in parts) / total if total else None,
        bands=_summarise_average(plan, averaged),
        sites={u.site: SiteDistillation(ekd=u.ekd, bands=u.prompt_bands) for u in updates},
    )


def _summarise_average(plan: Plan, averaged: Path) -> list[dict[str, float | None]] | None:
    assert plan.fopro is not None, "the plan has a teacher"
    prompt = make_prompt(plan.fopro.prompt.options)
    file = TensorFile(averaged)
    names = list(prompt.state_dict())
    load_state(prompt, {name: torch.from_numpy(file.load(PROMPT + name)) for name in names}, names)
    bands = summarize_static(prompt, plan.image_size)
    if bands is None:
        return None
    return [{"low": band["low"], "high": band["high"], "gain": band["gain"]} for band in bands]
