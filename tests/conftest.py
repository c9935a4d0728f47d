"""Fixtures of several folders."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from tests.support.federation import Federation


if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # two processes of two threads each would wait for each other

# The same examples in every run; FEDMED_EXAMPLES asks for more of them.
hypothesis.settings.register_profile(
    "fedmed",
    max_examples=int(os.environ.get("FEDMED_EXAMPLES", "100")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("fedmed")


@pytest.fixture
def make_federation(tmp_path: Path) -> "Callable[..., Federation]":
    """Return a function that makes a small federation in this process; see ``tests/support/federation.py``."""
    from tests.support.federation import Federation

    torch.set_num_threads(1)

    def make(name: str = "run", **settings: Any) -> Federation:
        return Federation(tmp_path / name, settings)

    return make
