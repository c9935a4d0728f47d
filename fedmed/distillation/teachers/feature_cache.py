"""A site's teacher features of images whose views repeat, so that the teacher runs once for each.

Letters: B batch, D features.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK = 32


class FeatureCache:
    """Features by the key of a view, valid for one version of the prompt.

    What is stored is rounded to ``dtype`` the first time too. With :meth:`fill`, which computes in chunks of a fixed
    order, a run that was interrupted goes on with the same bits.

    Parameters
    ----------
    max_mib : float
        Memory for features. What does not fit is computed every time.
    dtype : torch.dtype
        float16 or float32.
    """

    def __init__(self, max_mib: float = 256.0, dtype: torch.dtype = torch.float16) -> None:
        assert dtype in (torch.float16, torch.float32), "a cache holds floats"
        self.max_bytes, self.dtype = int(max_mib * 2**20), dtype
        self.version = ""
        self.num_hits = self.num_misses = 0
        self._features: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._features)

    def fill(self, keys: Sequence[int], version: str, compute: Callable[[Sequence[int]], Tensor]) -> None:
        """Compute what is missing, :data:`CHUNK` views at a time, in the order of ``keys``.

        Parameters
        ----------
        keys : sequence of int
            For example image times number of views plus view.
        version : str
            Of the prompt, :meth:`FourierPrompt.digest`; another one empties the cache.
        compute : callable
            From keys to features (B,D).
        """
        self._renew(version)
        missing = [key for key in keys if key not in self._features]
        for first in range(0, len(missing), CHUNK):
            chunk = missing[first : first + CHUNK]
            if not self._store(chunk, compute(chunk)):
                return

    def fetch(self, keys: Sequence[int], version: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return features (B,D), float32, of a batch; ``compute`` gives those of the whole batch if one is missing."""
        self._renew(version)
        found = [self._features.get(key) for key in keys]
        stored = [features for features in found if features is not None]
        if len(stored) == len(keys) and keys:
            self.num_hits += len(keys)
            return torch.stack(stored).float()
        self.num_misses += len(keys)
        features = compute()
        self._store(keys, features)
        return features.to(self.dtype).float()

    def _renew(self, version: str) -> None:
        if version != self.version:
            self._features.clear()
            self._bytes, self.version = 0, version

    def _store(self, keys: Sequence[int], features_BD: Tensor) -> bool:
        """Keep what fits; return whether all did."""
        rounded = features_BD.detach().to(self.dtype)
        size = rounded.shape[1] * rounded.element_size()
        for key, features in zip(keys, rounded, strict=True):
            if key not in self._features:
                if self._bytes + size > self.max_bytes:
                    return False
                self._features[key] = features.clone()
                self._bytes += size
        return True
