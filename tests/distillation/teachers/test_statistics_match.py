"""Tests of faithfulness 6 to 8: the objective that guides a prompt, a reconstruction."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedmed.data.sources.decoding import decode_image
from fedmed.distillation import FourierPrompt, StatisticsMatch, measure_mismatch
from fedmed.distillation.prompt.learning import PromptSettings, explore
from fedmed.distillation.teachers.statistics_match import measure_statistics
from fedmed.errors import ConfigError, FourierPromptError
from tests.distillation.support.helpers import SmallNet, hash_state, make_teacher, real_teacher


def two_layers() -> nn.Sequential:
    """Return norm, doubling, norm on one channel, with statistics set by hand."""
    network = nn.Sequential(
        nn.BatchNorm2d(1, eps=1e-12), nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=1e-12)
    ).eval()
    nn.init.constant_(network[1].weight, 2.0)
    network[0].running_mean.fill_(1.0), network[0].running_var.fill_(4.0)
    network[2].running_mean.fill_(3.0), network[2].running_var.fill_(9.0)
    return network


def test_moments_of_two_layers_by_hand() -> None:
    # Values 1 and 5: mean 3, biased variance 4. First layer: |3 - 1| + |4 - 4| = 2.
    # It gives (x - 1) / 2 = 0 and 2, doubled 0 and 4: mean 2, variance 4. Second: |2 - 3| + |4 - 9| = 6. Mean: 4.
    images = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    assert measure_mismatch(StatisticsMatch(two_layers()), [images]) == pytest.approx(4.0)


def test_l1std_of_two_layers_by_hand() -> None:
    # Deviations: 2 against 2, and 2 against 3. First: 2 + 0; second: 1 + 1. Mean: 2.
    images = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    assert measure_mismatch(StatisticsMatch(two_layers(), "l1std"), [images]) == pytest.approx(2.0)


def test_the_norm_is_over_channels() -> None:
    # Means 3 and 4 away, variances right: sqrt(9 + 16) = 5.
    network = nn.Sequential(nn.BatchNorm2d(2)).eval()
    network[0].running_mean.copy_(torch.tensor([3.0, 4.0]))
    images = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).view(2, 2, 1, 1)
    assert measure_mismatch(StatisticsMatch(network), [images]) == pytest.approx(5.0)


@pytest.mark.parametrize("form", ["moments", "l1std"])
def test_the_batch_of_the_statistics_is_at_no_distance(form: str) -> None:
    torch.manual_seed(0)
    network = SmallNet()
    images = torch.rand(8, 3, 16, 16)
    for norm in (network.bn1, network.bn2):  # in turn: the second sees what the first, by then in eval mode, gives
        network.eval()
        inputs: list[torch.Tensor] = []
        handle = norm.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        network(images)
        handle.remove()
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)).detach())  # type: ignore[union-attr]
        norm.running_var.copy_(inputs[0].var((0, 2, 3), unbiased=False).detach())  # type: ignore[union-attr]
    assert measure_mismatch(StatisticsMatch(network, form), [images]) < 1e-5


def test_the_result_is_the_networks_own_and_hooks_are_gone() -> None:
    teacher = make_teacher()
    images = torch.rand(2, 3, 16, 16)
    features, _ = StatisticsMatch(teacher)(images)
    assert torch.equal(features, teacher(images))
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_the_mean_over_batches_is_weighted_by_their_size() -> None:
    match = StatisticsMatch(make_teacher())
    first, second = torch.rand(3, 3, 16, 16), torch.rand(1, 3, 16, 16)
    expected = (3 * float(match(first)[1]) + float(match(second)[1])) / 4
    assert measure_mismatch(match, [first, second]) == pytest.approx(expected)
    with pytest.raises(FourierPromptError, match="no images"):
        measure_mismatch(match, [])


def test_a_teacher_without_batch_norm_is_refused_by_name() -> None:
    transformer = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.LayerNorm(8))
    with pytest.raises(FourierPromptError, match=r"no BatchNorm layers.*fpg.mode=none"):
        StatisticsMatch(transformer)
    with pytest.raises(FourierPromptError, match="no BatchNorm layers"):
        explore(FourierPrompt(), transformer, [torch.rand(2, 3, 16, 16)], PromptSettings())


def test_a_statistics_file_stands_for_batch_norm() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x.flatten(2).transpose(1, 2)).mean(dim=1)

    network, images = Tokens().eval(), torch.rand(4, 3, 16, 16)
    found = measure_statistics(network, [images[:1], images[1:]], nn.LayerNorm)
    assert set(found) == {"norm"}
    expected = torch.stack([images.mean((0, 2, 3)), images.var((0, 2, 3), unbiased=False)])
    torch.testing.assert_close(found["norm"], expected)
    assert measure_mismatch(StatisticsMatch(network, statistics=found), [images]) < 1e-6
    settings = PromptSettings(objective="stats", lr=0.05)
    result = explore(FourierPrompt(grid=4), network, [images * 0.5] * 10, settings, statistics=found)
    assert result.mismatches[-1] < result.mismatches[0]
    with pytest.raises(FourierPromptError, match=r"'body\.norm'"):
        StatisticsMatch(network, statistics={"body.norm": found["norm"]})


def test_exploring_lowers_the_distance_and_changes_nothing_else() -> None:
    teacher = make_teacher()
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 0.3
    prompt, before = FourierPrompt(grid=8, g_max=4.0), hash_state(teacher)
    settings = PromptSettings(rho=0.0)
    result = explore(prompt, teacher, [images] * 25, settings)
    assert len(result.losses) == len(result.mismatches) == 25
    assert result.mismatches[-1] <= 0.95 * result.mismatches[0]
    assert hash_state(teacher) == before
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(parameter.requires_grad for parameter in prompt.parameters())
    assert 0 < result.outside < 1
    assert len(result.bands) == 5


def test_staying_near_the_identity_is_weighed() -> None:
    images = torch.rand(4, 3, 16, 16)
    free, held = FourierPrompt(grid=4), FourierPrompt(grid=4)
    explore(free, make_teacher(), [images] * 10, PromptSettings(rho=0.0))
    explore(held, make_teacher(), [images] * 10, PromptSettings(rho=1e4))
    assert held.log_gain(images).square().mean() < free.log_gain(images).square().mean()


def test_objectives_that_lack_something_are_refused() -> None:
    teacher, images = make_teacher(), [torch.rand(2, 3, 16, 16)]
    with pytest.raises(ConfigError, match="statistics file"):
        explore(FourierPrompt(), teacher, images, PromptSettings(objective="stats"))
    with pytest.raises(FourierPromptError, match=r"gamma"):
        explore(FourierPrompt(), teacher, images, PromptSettings(objective="adversarial"))
    with pytest.raises(ConfigError, match="no student"):
        explore(FourierPrompt(), teacher, images, PromptSettings(gamma=0.1))


def test_no_prompt_needs_no_batch_norm() -> None:
    assert explore(FourierPrompt("none"), nn.Identity(), [], PromptSettings()).losses == ()


def photographs(size: int) -> torch.Tensor:
    from sklearn.datasets import load_sample_images

    patches = []
    for image in load_sample_images().images:
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()[None] / 255
        small = torch.nn.functional.interpolate(whole, (2 * size, 3 * size), mode="bilinear", antialias=True)
        patches += [part for row in small[0].split(size, 1) for part in row.split(size, 2)]
    return torch.stack(patches)


def skin_images(size: int, num: int) -> torch.Tensor:
    root = Path(os.environ.get("FEDMED_DATA", Path(__file__).parents[3] / ".." / "shared" / "data")).resolve()
    files = sorted((root / "ham10000" / "images").rglob("*.jpg"))[:num]
    if not files:
        pytest.skip(f"HAM10000 is not at '{root}' (FEDMED_DATA)")
    images = [decode_image(file)[None].float() / 255 for file in files]
    return torch.cat(
        [torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True) for image in images]
    )


def test_a_real_teacher_orders_photographs_skin_and_noise() -> None:
    match = StatisticsMatch(real_teacher("efficientnet_lite0", image_size=96))
    batches = (photographs(96), skin_images(96, 12), torch.rand(12, 3, 96, 96))
    photo, skin, noise = (measure_mismatch(match, [batch]) for batch in batches)
    assert photo < skin < noise


@pytest.mark.slow
def test_a_prompt_moves_skin_images_towards_a_real_teacher_at_its_own_size() -> None:
    teacher = real_teacher("efficientnet_lite0")
    images = skin_images(224, 8)
    result = explore(FourierPrompt(), teacher, [images] * 25, PromptSettings())
    assert result.mismatches[-1] <= 0.95 * result.mismatches[0]
