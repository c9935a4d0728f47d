from collections.abc import Iterator

import pytest
import torch

from fedmed.seeding import seeded_torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with seeded_torch(0, "tests", "models"):
        yield
    torch.set_num_threads(threads)
