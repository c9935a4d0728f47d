"""Train form, deploy form and ONNX file on the same images: how far apart their answers are.

Letters: N images, K classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter
from torch import nn

from fedmed import predict
from fedmed.config import Plan
from fedmed.data import ImagePart, make_eval_transform
from fedmed.export.onnx_file import INPUT, ExportError
from fedmed.reparameterization.proof import Comparison, compare_logits, paired_table
from fedmed.reparameterization.verify import running_branches

_MOST_AT_ONCE, _PIXELS_AT_ONCE = 32, 8 * 224 * 224


@dataclass(frozen=True)
class FormComparison:
    """How far apart the forms are, in float32; no image and no score is in it.

    Attributes
    ----------
    deploy, onnx : Comparison
        Deploy form in PyTorch, and ONNX file, each against the train form.
    paired : list of K lists
        By true class: images right in train form and ONNX file, only in the train form, only in the ONNX file, in
        neither. Additive over sites.
    """

    deploy: Comparison
    onnx: Comparison
    paired: list[list[int]]

    def failures(self) -> list[str]:
        """Return what is above tolerance, in sentences; empty if nothing is."""
        named = {"Deploy form": self.deploy, "ONNX file": self.onnx}
        return [f"{form}: {failure}" for form, comparison in named.items() for failure in comparison.failures()]

    def to_values(self) -> dict[str, JsonValue]:
        """Return plain JSON types, which :func:`read_comparison` reads back."""
        return asdict(self)


_COMPARISON = TypeAdapter(FormComparison)


def read_comparison(values: Mapping[str, JsonValue]) -> FormComparison:
    """Return what :meth:`FormComparison.to_values` described.

    Raises
    ------
    ValueError
        If the values are of another kind.
    """
    return _COMPARISON.validate_python(values)


def read_batches(part: ImagePart, plan: Plan) -> Iterator[torch.Tensor]:
    """Yield a part's images as the network sees them, float32 (B, 3, S, S)."""
    transform = make_eval_transform(plan.augmentation, plan.image_size)
    size = choose_batch_size(plan.image_size)
    for first in range(0, len(part), size):
        yield transform(part.images(range(first, min(first + size, len(part)))))


def choose_batch_size(image_size: int) -> int:
    """Return how many images of S x S pixels run at once: 32, fewer where they are so large that memory counts."""
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // image_size**2))


@torch.no_grad()
def compare_outputs(  # noqa: PLR0917  (three forms and three numbers of the images)
    train_model: nn.Module,
    deploy_model: nn.Module,
    session: Any,
    batches: Iterable[torch.Tensor],
    labels: torch.Tensor,
    num_classes: int,
) -> FormComparison:
    """Compare what is in memory already.

    Parameters
    ----------
    train_model, deploy_model : nn.Module
        On the CPU; set to evaluation mode.
    session : onnxruntime.InferenceSession
        Of the ONNX file.
    batches : iterable of Tensor
        N images, normalised float32 (B, 3, S, S).
    labels : Tensor
        int64 (N,).
    num_classes : int
        K.
    """
    train_model.eval()
    deploy_model.eval()
    before, deploy, onnx = ([torch.zeros(0, num_classes)] for _ in range(3))
    with running_branches(train_model):  # a bag that merges itself would prove nothing
        for x_BCHW in batches:
            before.append(train_model(x_BCHW))
            deploy.append(deploy_model(x_BCHW))
            onnx.append(run_onnx(session, x_BCHW))
    before_NK, deploy_NK, onnx_NK = (torch.cat(parts) for parts in (before, deploy, onnx))
    return FormComparison(
        compare_logits(before_NK, deploy_NK, "float32"),
        compare_logits(before_NK, onnx_NK, "float32"),
        paired_table(labels, before_NK, onnx_NK),
    )


def open_session(artefact: Path, threads: int) -> Any:
    """Return an ``onnxruntime.InferenceSession`` of an artefact, whose hash is checked; 0 threads: one a core.

    Raises
    ------
    ExportError
        If the artefact is incomplete or was changed, or cannot be run here.
    """
    try:
        return predict.open_artefact(artefact, threads).session
    except predict.PredictionError as error:
        raise ExportError(str(error)) from None


def run_onnx(session: Any, x_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the logits, float32 (B, K), of an ``onnxruntime.InferenceSession``."""
    return torch.from_numpy(session.run(None, {INPUT: x_BCHW.contiguous().numpy()})[0])
