"""Independent, reproducible streams of randomness.

Every use of randomness has its own stream, named by the run's seed and any number of keys (site name, round, purpose).
The stream's seed is a SHA-256 digest, so it is the same on every machine and in every process, which Python's ``hash``
is not.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *keys: str | int) -> int:
    """Return a 63-bit seed for the stream that ``keys`` name.

    Parameters
    ----------
    seed : int
        Seed of the run.
    *keys : str or int
        Names of the stream, for example ``("site_01", 3, "fit")``. ``1`` and ``"1"`` are different keys.

    Returns
    -------
    int
        In ``[0, 2**63)``.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_rng(seed: int, *keys: str | int) -> np.random.Generator:
    """Return NumPy's generator for the stream that ``keys`` name."""
    return np.random.default_rng(derive_seed(seed, *keys))


@contextmanager
def seeded_torch(seed: int, *keys: str | int) -> Iterator[None]:
    """Run a block with torch's global generators set to a stream, and restore them afterwards.

    Dropout and torchvision's transforms draw from the global generator only; this gives them a stream of their own.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, *keys))
        yield
