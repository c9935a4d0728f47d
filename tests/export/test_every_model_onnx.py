"""Every registered network as an ONNX file: the same logits, for any batch size.

The exporter takes 5 to 50 seconds of one core for a network, so that only one of them is in the default suite.
"""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from fedmed import predict
from fedmed.export.compare import compare_outputs
from fedmed.export.onnx_file import write_onnx
from fedmed.export.plain_onnx import check_plain_onnx
from fedmed.models import create_model
from fedmed.reparameterization import reparameterize
from fedmed.seeding import seeded_torch
from tests.models.support.names import SHIPPED

SIZE, NUM_CLASSES = 64, 5
ONE_BLOCK = {"local_depths": [1, 1, 1, 1], "global_depths": [1, 1, 1, 1]}
SMALL: dict[str, dict[str, Any]] = {
    "hemf": {"width": 16, **ONE_BLOCK},
    "came": {"width": 32, **ONE_BLOCK},
    "hifuse_tiny": {"width": 32},
    "hifuse_small": {"width": 32},
    "hifuse_base": {"width": 32},
    "mobilenet_v2_erohprf": {"width_mult": 0.25},
}
QUICK = {"mobilenet_v2_erohprf"}
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SHIPPED]


def train_a_little(model: nn.Module) -> nn.Module:
    """Give all weights that begin at 0 a value, and BatchNorm statistics of data."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
        for _ in range(2):
            model(torch.randn(4, 3, SIZE, SIZE))
    return model.eval()


def read_all_but_weights(file: Path) -> bytes:
    """Return the file without the bytes of its weights, among which any three letters are found sooner or later."""
    network = onnx.load(file)
    for weight in network.graph.initializer:
        weight.ClearField("raw_data")
    return network.SerializeToString()


@pytest.mark.parametrize("name", NAMES)
def test_onnx_gives_the_logits_of_torch(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with seeded_torch(0, "tests", "onnx", name):
        model = train_a_little(create_model(name, NUM_CLASSES, **SMALL.get(name, {})))
        images = torch.randn(6, 3, SIZE, SIZE)
    deploy = reparameterize(model, fold_bn=True, example=images[:2])
    write_onnx(deploy, SIZE, file)
    session = predict.open_session(file, 1)
    batches = images.split([1, 5])
    found = compare_outputs(model, deploy, session, batches, torch.arange(6) % NUM_CLASSES, NUM_CLASSES)
    assert found.failures() == []
    assert found.onnx.num_images == 6
    assert found.onnx.max_abs_error <= 1e-4
    assert found.onnx.largest_logit > 1e-3
    weight_bytes = sum(weight.nbytes for weight in deploy.state_dict().values())
    check_plain_onnx(file.read_bytes(), weight_bytes=weight_bytes)
    words = read_all_but_weights(file)
    assert b".py" not in words
    assert b"site-packages" not in words
