"""The proof that the deploy form of a network is the same function as its train form: its content and tolerances."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from fedmed.errors import ReparameterizationError

if TYPE_CHECKING:
    from fedmed.reparameterization.class_figures import PerClass

RELATIVE_FLOAT64 = 1e-5
"""Largest difference allowed in float64, in units of the largest logit (of a block: of its largest output)."""
ABSOLUTE_FLOAT32, RELATIVE_FLOAT32 = 1e-4, 2e-6
"""Largest difference of a logit allowed in float32, and the same in units of the largest logit; the larger counts.
Between 256 and 512 the neighbours of a float32 are 3e-5 apart, and a logit is the sum of many."""
PROBABILITY_FLOAT32 = 1e-4
"""Largest difference of a class's probability allowed in float32."""
TIE_MARGIN = 2 * ABSOLUTE_FLOAT32
"""Two logits that may each move by the allowed difference can change places only if they are closer than twice that;
this is it where no logit is above 50, and in float64."""


def allowed_difference(largest_logit: float) -> float:
    """Return by how much a logit may differ in float32, from the largest absolute logit of all images."""
    scale = largest_logit if math.isfinite(largest_logit) else 0.0
    return max(ABSOLUTE_FLOAT32, RELATIVE_FLOAT32 * scale)


@dataclass(frozen=True)
class BlockProof:
    """One merged place alone, in float64, on the same input before and after.

    Attributes
    ----------
    name, kind, parts
        As of :class:`fedmed.reparameterization.places.Place`.
    max_abs_error, largest_output : float
        Largest difference, and largest absolute value of the block's output before merging.
    """

    name: str
    kind: str
    parts: tuple[str, ...]
    max_abs_error: float
    largest_output: float

    @property
    def relative_error(self) -> float:
        """Largest difference over the largest output."""
        return divide(self.max_abs_error, self.largest_output)


@dataclass(frozen=True)
class Comparison:
    """Logits before and after merging, of some images, in one precision; additive over sites by :func:`join`.

    Attributes
    ----------
    precision : {"float64", "float32"}
        In which both networks ran.
    max_abs_error, largest_logit : float
        Largest difference of a logit; largest absolute value of a logit before merging.
    num_images, num_ties, num_agreeing : int
        All images; those whose two largest logits are closer before merging than twice what :func:`allowed_difference`
        gives, in float64 than :data:`TIE_MARGIN`; those of the others whose class is the same after.
    max_probability_error : float, optional
        Largest difference of a class's probability; None in what was written before this was compared.
    """

    precision: str
    max_abs_error: float
    largest_logit: float
    num_images: int
    num_ties: int
    num_agreeing: int
    max_probability_error: float | None = None

    @property
    def relative_error(self) -> float:
        """Largest difference over the largest logit."""
        return divide(self.max_abs_error, self.largest_logit)

    def failures(self) -> list[str]:
        """Return what is above tolerance, in sentences; empty if nothing is."""
        where = f"Over {self.num_images} images in {self.precision}"
        found = []
        if self.precision == "float64" and not self.relative_error <= RELATIVE_FLOAT64:
            found.append(
                f"{where} the logits differ by {self.relative_error:.2e} of the largest logit; "
                f"allowed: {RELATIVE_FLOAT64:g}."
            )
        if self.precision == "float32":
            found += self._float32_failures(where)
        others = self.num_images - self.num_ties - self.num_agreeing
        if others:
            found.append(f"{where} the class differs for {others} of them, ties not counted; allowed: 0.")
        return found

    def _float32_failures(self, where: str) -> list[str]:
        found, allowed = [], allowed_difference(self.largest_logit)
        if not self.max_abs_error <= allowed:
            found.append(
                f"{where} a logit differs by {self.max_abs_error:.2e}; allowed: {allowed:g}, the larger of "
                f"{ABSOLUTE_FLOAT32:g} and {RELATIVE_FLOAT32:g} of the largest logit."
            )
        probability = self.max_probability_error
        if probability is not None and not probability <= PROBABILITY_FLOAT32:
            found.append(f"{where} a probability differs by {probability:.2e}; allowed: {PROBABILITY_FLOAT32:g}.")
        return found


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart the two forms are.

    Attributes
    ----------
    inputs : {"images", "seeded"}
        On what: images given by the caller, or seeded noise block by block.
    blocks : tuple of BlockProof
        Every merged place alone, float64.
    comparisons : tuple of Comparison
        End to end, by precision; empty for seeded inputs.
    per_class : PerClass, optional
        With labels.
    """

    inputs: str
    blocks: tuple[BlockProof, ...]
    comparisons: tuple[Comparison, ...] = ()
    per_class: "PerClass | None" = None

    def failures(self) -> list[str]:
        """Return what is above tolerance, in sentences; empty if the proof holds."""
        found = [
            f"Block '{block.name}' ({block.kind}) differs by {block.relative_error:.2e} of its largest output; "
            f"allowed: {RELATIVE_FLOAT64:g}."
            for block in self.blocks
            if not block.relative_error <= RELATIVE_FLOAT64
        ]
        return found + [failure for comparison in self.comparisons for failure in comparison.failures()]

    def passes(self) -> bool:
        """Return whether everything is within tolerance."""
        return not self.failures()

    def require(self) -> "Proof":
        """Return this proof if it passes.

        Raises
        ------
        ReparameterizationError
            If anything is above tolerance; the message lists up to five findings.
        """
        failures = self.failures()
        if failures:
            more = f" And {len(failures) - 5} more." if len(failures) > 5 else ""
            raise ReparameterizationError(
                f"The deploy form is not equal to the train form, so it is not released. {' '.join(failures[:5])}{more}"
            )
        return self

    def to_json(self) -> str:
        """Return the proof as JSON text, with the tolerances and whether it passes."""
        content = asdict(self) | {
            "tolerances": {
                "relative_float64": RELATIVE_FLOAT64,
                "absolute_float32": ABSOLUTE_FLOAT32,
                "relative_float32": RELATIVE_FLOAT32,
                "probability_float32": PROBABILITY_FLOAT32,
            },
            "tie_margin": TIE_MARGIN,
            "passes": self.passes(),
        }
        return json.dumps(_without_nan(content), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Proof":
        """Read a proof back; what it says about passing is computed anew.

        Raises
        ------
        ReparameterizationError
            If the text is no proof.
        """
        try:
            content = json.loads(text)
            return cls(
                str(content["inputs"]),
                _BLOCKS.validate_python(content["blocks"]),
                _COMPARISONS.validate_python(content["comparisons"]),
                content["per_class"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ReparameterizationError(f"This is no proof of equality ({error}).") from error


_BLOCKS = TypeAdapter(tuple[BlockProof, ...])
_COMPARISONS = TypeAdapter(tuple[Comparison, ...])
"""Both read the texts for infinity and NaN, which :func:`_without_nan` writes, as numbers."""


def compare_logits(before: Tensor, after: Tensor, precision: str) -> Comparison:
    """Compare the logits of the same images before and after merging.

    Parameters
    ----------
    before, after : Tensor
        (N,K).
    precision : {"float64", "float32"}
        In which they were computed.

    Returns
    -------
    Comparison
        A value that is not finite on either side counts as an infinite difference.

    Raises
    ------
    ValueError
        If the shapes differ or are not (N,K) with K from 2.
    """
    if before.shape != after.shape or before.dim() != 2 or before.shape[1] < 2:
        raise ValueError(
            f"logits of shapes {tuple(before.shape)} and {tuple(after.shape)}; needed: (N,K) twice, K >= 2"
        )
    error, largest = largest_difference(before, after)
    margin = 2 * allowed_difference(largest) if precision == "float32" else TIE_MARGIN
    top_N2 = before.double().topk(2, dim=1).values
    # Also true where a logit is not finite: then nothing agrees, and the image is no tie.
    clear_N = ~((top_N2[:, 0] - top_N2[:, 1]) < margin)
    same_N = (
        (before.argmax(dim=1) == after.argmax(dim=1)) & torch.isfinite(before).all(1) & torch.isfinite(after).all(1)
    )
    num_ties, num_agreeing = int((~clear_N).sum()), int((clear_N & same_N).sum())
    probability, _ = largest_difference(before.double().softmax(dim=1), after.double().softmax(dim=1))
    return Comparison(precision, error, largest, len(before), num_ties, num_agreeing, probability)


def join(comparisons: Sequence[Comparison]) -> Comparison:
    """Return the comparison over several sites' images, from the sites' own: largest errors, sums of images.

    Parameters
    ----------
    comparisons : sequence of Comparison
        At least one, all of one precision.

    Notes
    -----
    The largest logit is the *smallest* of the sites' largest ones, so that no site's relative error is understated.
    """
    if len({comparison.precision for comparison in comparisons}) != 1:
        raise ValueError("comparisons to join need one precision, and there must be at least one")
    probabilities = [comparison.max_probability_error for comparison in comparisons]
    known = [probability for probability in probabilities if probability is not None]
    return Comparison(
        comparisons[0].precision,
        max(comparison.max_abs_error for comparison in comparisons),
        min(comparison.largest_logit for comparison in comparisons),
        sum(comparison.num_images for comparison in comparisons),
        sum(comparison.num_ties for comparison in comparisons),
        sum(comparison.num_agreeing for comparison in comparisons),
        max(known) if len(known) == len(probabilities) else None,
    )


def paired_table(labels: Tensor, before: Tensor, after: Tensor) -> list[list[int]]:
    """Count images by true class and by which form is right.

    Parameters
    ----------
    labels : Tensor
        (N,), true classes.
    before, after : Tensor
        Logits, (N,K).

    Returns
    -------
    list of K lists
        Right in both forms, only before merging, only after, in neither. Additive over sites.
    """
    right = [logits.argmax(dim=1) == labels for logits in (before, after)]
    columns = [right[0] & right[1], right[0] & ~right[1], ~right[0] & right[1], ~right[0] & ~right[1]]
    num_classes = before.shape[1]
    counts = [torch.bincount(labels[column], minlength=num_classes) for column in columns]
    return torch.stack(counts, dim=1).tolist()  # 4 x (K,) -> (K,4)


def largest_difference(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return the largest difference and the largest absolute value of ``before``; infinity where one is not finite."""
    if not before.numel():
        return 0.0, 0.0
    error = float((after - before).abs().max())
    return error if math.isfinite(error) else math.inf, float(before.abs().max())


def divide(error: float, scale: float) -> float:
    """Return a relative error; 0 for no error at all, whatever the scale."""
    if error == 0:
        return 0.0
    return error / scale if scale > 0 and math.isfinite(scale) else math.inf


def _without_nan(value: Any) -> Any:
    """Return JSON's own values: infinity and NaN, which JSON lacks, become texts."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
