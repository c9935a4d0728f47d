"""From the train form of a network to its deploy form, and the proof that both are the same function.

>>> from fedmed.reparameterization import reparameterize, verify
>>> merged = reparameterize(model)
>>> verify(model, merged, images).require()
"""

from fedmed.errors import ReparameterizationError
from fedmed.reparameterization.convert import Conversion, convert, find_places, reparameterize
from fedmed.reparameterization.loading import Form, describe_form, load_into_deploy_form, load_state
from fedmed.reparameterization.places import Place
from fedmed.reparameterization.proof import BlockProof, Comparison, Proof, compare_logits, join, paired_table
from fedmed.reparameterization.statistics import apply_sums, collect_sums, pool_sums
from fedmed.reparameterization.verify import verify, verify_blocks

__all__ = [
    "BlockProof",
    "Comparison",
    "Conversion",
    "Form",
    "Place",
    "Proof",
    "ReparameterizationError",
    "apply_sums",
    "collect_sums",
    "compare_logits",
    "convert",
    "describe_form",
    "find_places",
    "join",
    "load_into_deploy_form",
    "load_state",
    "paired_table",
    "pool_sums",
    "reparameterize",
    "verify",
    "verify_blocks",
]
