"""From the sites' updates to the next global model: checks, exact averages and their weights."""

from fedmed.aggregation.average import WeightedUpdate, average_updates, site_weights
from fedmed.aggregation.quarantine import UpdateCheck, check_num_images, check_update, compare_norms

__all__ = [
    "UpdateCheck",
    "WeightedUpdate",
    "average_updates",
    "check_num_images",
    "check_update",
    "compare_norms",
    "site_weights",
]
