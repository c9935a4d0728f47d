"""Small files for the tests of the aggregation."""

import numpy as np

from fedmed.aggregation import WeightedUpdate
from fedmed.storage.tensor_files import write_tensors


def write_update(folder, site, tensors, weight=1.0):
    path = folder / f"{site}.safetensors"
    write_tensors(path, {name: np.asarray(values) for name, values in tensors.items()})
    return WeightedUpdate(site, path, weight)
