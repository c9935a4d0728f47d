from collections.abc import Iterator

import pytest
import torch

from fedmed.export import measure


@pytest.fixture(scope="package", autouse=True)
def quick() -> Iterator[None]:
    """One thread, and the shortest measurement of times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_BUDGET_S", 0.0)
        yield
    torch.set_num_threads(threads)
