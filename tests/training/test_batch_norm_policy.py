import pytest
from torch import nn

from fedmed.training.batch_norm_policy import batch_norm_names, shared_names

PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class BatchNormWithActivation(nn.BatchNorm2d):
    """Like timm's: a derived layer that owns another module with parameters."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.PReLU()


def test_batch_norm_is_found_by_type_and_not_by_name():
    model = nn.ModuleDict(
        {
            "bn1": nn.Linear(2, 2),
            "stem": nn.BatchNorm2d(2),
            "line": nn.BatchNorm1d(2),
            "cube": nn.BatchNorm3d(2),
            "sync": nn.SyncBatchNorm(2),
            "group": nn.GroupNorm(1, 2),
            "layer": nn.LayerNorm(2),
            "instance": nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        }
    )
    assert batch_norm_names(model) == {
        f"{layer}.{part}" for layer in ("stem", "line", "cube", "sync") for part in PARTS
    }


def test_layers_without_scale_or_statistics_have_fewer_names():
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, track_running_stats=False))
    assert batch_norm_names(model) == {"0.running_mean", "0.running_var", "0.num_batches_tracked", "1.weight", "1.bias"}


def test_a_derived_layer_keeps_its_activation_shared():
    model = nn.Sequential(BatchNormWithActivation(2))
    assert shared_names(model, "local") == ["0.act.weight"]


def test_a_layer_used_twice_and_a_model_that_is_a_batch_norm():
    norm = nn.BatchNorm1d(2)
    assert batch_norm_names(nn.Sequential(norm, norm)) == {f"{i}.{part}" for i in (0, 1) for part in PARTS}
    assert batch_norm_names(norm) == set(PARTS)


def test_shared_names_follow_the_state_dict():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    assert shared_names(model, "average") == list(model.state_dict())
    assert shared_names(model, "local") == ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
    with pytest.raises(ValueError, match="'fedbn'; allowed are 'average', 'local' and 'recalibrate'"):
        shared_names(model, "fedbn")
