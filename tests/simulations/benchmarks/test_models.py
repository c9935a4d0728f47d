"""The straightforward versions of the networks are the same networks, and the benchmark of both runs."""

import json

import pytest
import torch

from fedmed.models import create_model
from simulations.benchmarks import models
from simulations.benchmarks.literal_models import make_literal, make_plain

OPTIONS = {
    "hemf": {"width": 16},
    "came": {"width": 32},
    "hifuse_tiny": {"width": 32},
    "mobilenet_v2_erohprf": {},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_literal_version_is_the_same_network(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 5, **OPTIONS[name]).double()
    literal = make_literal(model)
    assert list(literal.state_dict()) == list(model.state_dict())
    # In train mode, the batch is normalised: weights as they are drawn leave evaluation at nearly 0.
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, found = model(x), literal(x)
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_plain_host_has_one_kernel_of_the_size_asked_for() -> None:
    model = create_model("shufflenet_v2_x0_5_erohprf", 5)
    plain = make_plain(model, lambda largest: largest)
    kernels = {
        layer.kernel_size for layer in plain.modules() if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1
    }
    assert kernels == {(7, 7)}
    assert plain(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.slow
def test_benchmark_runs(tmp_path, capsys) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--models", "shufflenet_v2_x0_5_erohprf", "--sizes", "32x2", "--turns", "1", "--threads", "1"]
    assert models.main([*arguments, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert {row["part"] for row in rows} == {"train", "deploy"}
    ours = next(row for row in rows if row["part"] == "train")
    assert ours["contender"] == "ours"
    assert ours["saved_mib"] > 0
    assert "| branch by branch, channels last |" in capsys.readouterr().out
