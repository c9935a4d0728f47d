"""From the sites' updates to the next global model: checks, exact averages, and what does not travel."""

from fedmed.aggregation.average import WeightedUpdate, average_updates, site_weights
from fedmed.aggregation.quarantine import UpdateCheck, check_num_images, check_update, compare_norms
from fedmed.storage.tensor_files import TensorFile, TensorSpec, make_header, write_tensors
from fedmed.training.batch_norm_policy import batch_norm_names, shared_names

__all__ = [
    "TensorFile",
    "TensorSpec",
    "UpdateCheck",
    "WeightedUpdate",
    "average_updates",
    "batch_norm_names",
    "check_num_images",
    "check_update",
    "compare_norms",
    "make_header",
    "shared_names",
    "site_weights",
    "write_tensors",
]
