"""Apps are loaded by name and PyTorch is made ready with the same code in a hospital, a simulation and the server."""

import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from client.supernode import worker
from fedmed.protocol.apps import load_app, warm_up
from server.superlink import executor
from simulations.backend import worker as ray_worker
from tests.client.support.apps import app
from tests.server.support import executor_apps


def test_only_a_client_app_is_loaded_at_a_site() -> None:
    assert load_app("tests.client.support.apps:app", ClientApp) is app
    with pytest.raises(TypeError, match=r"'tests\.client\.support\.apps:not_an_app' is a object, not a ClientApp\."):
        load_app("tests.client.support.apps:not_an_app", ClientApp)
    with pytest.raises(TypeError, match="is a ServerApp, not a ClientApp"):
        load_app("tests.server.support.executor_apps:finishes", ClientApp)


def test_only_a_server_app_is_run_at_the_server() -> None:
    assert load_app("tests.server.support.executor_apps:finishes", ServerApp) is executor_apps.finishes
    with pytest.raises(TypeError, match="not a ServerApp"):
        load_app("tests.server.support.executor_apps:no_app", ServerApp)


def test_same_torch_settings_at_a_site_as_in_a_simulation() -> None:
    """Both warm up with the same code: a difference in PyTorch's settings would change bits."""
    assert vars(worker)["warm_up"] is warm_up
    assert vars(ray_worker)["warm_up"] is warm_up
    for module in (worker, ray_worker, executor):
        assert vars(module)["load_app"] is load_app


def test_warming_up_leaves_the_random_numbers_as_they_were() -> None:
    before = torch.get_rng_state()
    warm_up(torch.get_num_threads(), "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gpu_is_left_alone_where_the_site_says_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("the GPU was looked at"))
    warm_up(torch.get_num_threads(), "cpu")
