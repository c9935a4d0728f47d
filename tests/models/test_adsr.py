"""The ADSR module against oracles that share no code with it."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import ConfigError
from fedmed.models.adsr import ADSR, GlobalStyleAdaptation, PixelStyleFusion, StyleGate
from fedmed.models.blocks.layers import compute_moments


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shake(module: nn.Module) -> nn.Module:
    """Move every parameter and running statistic off its initial value, so that nothing is hidden by a 0 or a 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module


def silence(module: ADSR) -> ADSR:
    """Zero gate weights and biases of GSA and the BatchNorms of PSF: both gates are 1/2."""
    with torch.no_grad():
        for gate in (module.gsa.first, module.gsa.second):
            gate.adapt.weight.zero_()
            gate.adapt.bias.zero_()
        for branch in module.psf.branches.values():
            branch[1].weight.zero_()
            branch[1].bias.zero_()
    return module


@pytest.mark.parametrize(
    ("channels", "count"),
    [(64, 6_178), (128, 20_514), (256, 73_762), (512, 278_562), (1024, 1_081_378), (2048, 4_259_874), (15, 760)],
)
def test_parameter_counts(channels: int, count: int) -> None:
    # C=15: c1=7, c2=8, 2*49 + 2*64 + 12*7 + 52*8 + 34 = 760; even C: C^2 + 32C + 34
    with torch.device("meta"):
        assert count_parameters(ADSR(channels)) == count
        assert count_parameters(ADSR(channels).psf) == 34


@pytest.mark.parametrize("channels", [2, 64, 512])
def test_depthwise_gate_has_34_parameters_a_channel(channels: int) -> None:
    assert count_parameters(ADSR(channels, gate="depthwise")) == 34 * channels + 34


def test_zero_gates_quarter_the_map_exactly() -> None:
    x = torch.randn(3, 8, 5, 6)
    module = silence(ADSR(8))
    assert torch.equal(module(x), x / 4)
    assert torch.equal(module.eval()(x), x / 4)
    assert torch.equal(silence(ADSR(8, gate_gain=2))(x), x)


def oracle_gates(half: StyleGate, x: Tensor) -> Tensor:
    """Gates of one half, eval mode, by einsum: weight (c, 2, c) against stacked style (B, 2, c)."""
    channels = x.shape[1]
    d = functional.conv2d(x, half.conv.weight, padding=half.conv.kernel_size[0] // 2, groups=channels)
    bn = half.norm
    scale = bn.weight / torch.sqrt(bn.running_var + 1e-5)
    d = (d - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]
    d = d.clamp(min=0).flatten(2)
    style = torch.stack([d.mean(2), torch.sqrt(d.var(2, unbiased=True) + 1e-5)], dim=1)
    if half.dense:
        logits = torch.einsum("jsi,bsi->bj", half.adapt.weight.view(channels, 2, channels), style)
    else:
        logits = torch.einsum("js,bsj->bj", half.adapt.weight[:, 0], style)
    return 1 / (1 + torch.exp(-(logits + half.adapt.bias)))


@pytest.mark.parametrize("gate", ["dense", "depthwise"])
@pytest.mark.parametrize("channels", [8, 15])
def test_gsa_equals_einsum_oracle(gate: str, channels: int) -> None:
    gsa = shake(GlobalStyleAdaptation(channels, gate=gate)).double().eval()
    x = torch.randn(4, channels, 7, 5, dtype=torch.float64)
    half = channels // 2
    gates = torch.cat([oracle_gates(gsa.first, x[:, :half]), oracle_gates(gsa.second, x[:, half:])], dim=1)
    torch.testing.assert_close(gsa(x), x * gates[:, :, None, None], rtol=0, atol=1e-12)


def test_style_is_unbiased_with_eps_inside_the_root() -> None:
    """With A = 0, B = identity and b = 0 the gate is sigmoid(std); 7 x 7 positions give the factor 49/48."""
    half = StyleGate(2, 1, gate="dense", statistics="both", eps=1e-5, bn_momentum=0.1).double().eval()
    with torch.no_grad():
        half.conv.weight.fill_(math.sqrt(1 + 1e-5))  # undoes the BatchNorm's eps: d = x for x >= 0
        half.adapt.weight.copy_(torch.cat([torch.zeros(2, 2), torch.eye(2)], dim=1))
        half.adapt.bias.zero_()
    x = torch.rand(3, 2, 7, 7, dtype=torch.float64)
    biased = ((x - x.mean((2, 3), keepdim=True)) ** 2).mean((2, 3))
    torch.testing.assert_close(torch.logit(half(x)), torch.sqrt(biased * 49 / 48 + 1e-5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [(1,), (2, 3)])
def test_moments_equal_torch(dims: tuple[int, ...]) -> None:
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    mean, variance = compute_moments(x, dims)
    expected_variance, expected_mean = torch.var_mean(x, dims)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(variance, expected_variance)
    assert compute_moments(x[:1, :1, :1, :1], dims)[1].item() == 0.0


def test_gate_multiplies_the_input_and_not_the_view() -> None:
    gsa = GlobalStyleAdaptation(6).eval()
    with torch.no_grad():  # gates that do not depend on the input
        for half in (gsa.first, gsa.second):
            half.adapt.weight.zero_()
            half.adapt.bias.normal_()
    x = torch.randn(2, 6, 5, 5)
    moved = x.clone()
    moved[:, 4] += torch.randn(5, 5)
    difference = (gsa(moved) - gsa(x)).abs().amax(dim=(0, 2, 3))
    assert difference[4] > 0
    assert torch.equal(difference[[0, 1, 2, 3, 5]], torch.zeros(5))
    ratio = gsa(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))


def test_no_cross_talk_between_halves() -> None:
    gsa = shake(GlobalStyleAdaptation(8))
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    gates = gsa(x) / x.detach()  # the division keeps the gates' graph; the direct path is diagonal in channels
    (gradient,) = torch.autograd.grad(gates[:, :4].sum(), x)
    assert torch.equal(gradient[:, 4:], torch.zeros(2, 4, 6, 6))
    assert gradient[:, :4].abs().sum() > 0


class DoubleEvaluation(nn.Module):
    """PSF as released: the 3x3 branch is called twice, and both BatchNorms have momentum 0.01."""

    def __init__(self, fusion: PixelStyleFusion) -> None:
        super().__init__()
        self.one = copy.deepcopy(fusion.branches["1"])
        self.three = copy.deepcopy(fusion.branches["3"])
        self.one[1].momentum = self.three[1].momentum = 0.01

    def forward(self, u: Tensor) -> Tensor:
        pooled = torch.stack([u.max(dim=1)[0], u.mean(dim=1), u.std(dim=1)], dim=1)
        fused = (self.one(pooled) + self.three(pooled) + self.three(pooled)) / 3
        return u * torch.sigmoid(fused)


def test_psf_equals_double_evaluation() -> None:
    fusion = shake(PixelStyleFusion()).double()
    reference = DoubleEvaluation(fusion)
    assert fusion.branches["1"][1].momentum == pytest.approx(0.01)
    assert fusion.branches["3"][1].momentum == pytest.approx(0.0199)
    for _ in range(3):
        u = torch.randn(4, 6, 7, 5, dtype=torch.float64, requires_grad=True)
        twin = u.detach().clone().requires_grad_()
        output, expected = fusion(u), reference(twin)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)
        target = torch.randn_like(output)
        (output * target).sum().backward()
        (expected * target).sum().backward()
        torch.testing.assert_close(u.grad, twin.grad, rtol=0, atol=1e-9)
    pairs = ((fusion.branches["1"], reference.one), (fusion.branches["3"], reference.three))
    for branch, other in pairs:
        for name, value in branch.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=1e-9)
        for parameter, twin_parameter in zip(branch.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, twin_parameter.grad, rtol=0, atol=1e-8)
    u = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(fusion.eval()(u), reference.eval()(u), rtol=0, atol=1e-9)


def test_three_scale_averages_three_branches() -> None:
    fusion = shake(PixelStyleFusion("three_scale")).eval()
    u = torch.randn(2, 6, 7, 7)
    pooled = torch.stack([u.max(dim=1)[0], u.mean(dim=1), u.std(dim=1)], dim=1)
    fused = sum(fusion.branches[side](pooled) for side in "135") / 3
    torch.testing.assert_close(fusion(u), u * torch.sigmoid(fused))
    assert count_parameters(fusion) == 34 + 3 * 25 + 2
    assert [branch[1].momentum for branch in fusion.branches.values()] == pytest.approx([0.01] * 3)


@pytest.mark.parametrize(("stats", "expected"), [(["max"], "max"), (["std", "mean"], "mean std"), (("std",), "std")])
def test_psf_statistics(stats: list[str], expected: str) -> None:
    fusion = PixelStyleFusion(stats=stats)
    u = torch.randn(2, 5, 3, 3)
    oracle = {"max": u.max(dim=1)[0], "mean": u.mean(dim=1), "std": u.std(dim=1)}
    pooled = torch.stack([oracle[name] for name in expected.split()], dim=1)
    torch.testing.assert_close(fusion.pool_channels(u), pooled)
    assert count_parameters(fusion) == 10 * pooled.shape[1] + 4


@pytest.mark.parametrize("side", [1, 3])
def test_single_psf_branch_counts_fully(side: int) -> None:
    fusion = shake(PixelStyleFusion(branches=[side])).eval()
    u = torch.randn(2, 5, 4, 4)
    gate = torch.sigmoid(fusion.branches[str(side)](fusion.pool_channels(u)))
    torch.testing.assert_close(fusion(u), u * gate)
    assert list(fusion.branches) == [str(side)]


def test_psf_of_one_channel_and_of_equal_channels_has_finite_gradients() -> None:
    for u in (torch.randn(2, 1, 4, 4), torch.ones(2, 5, 4, 4)):
        fusion = shake(PixelStyleFusion())
        u.requires_grad_()
        output = fusion(u)
        output.sum().backward()
        assert torch.isfinite(output).all()
        assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("statistics", ["mean", "std", "both"])
@pytest.mark.parametrize("gate", ["dense", "depthwise"])
def test_gsa_statistics(statistics: str, gate: str) -> None:
    """A statistic that is left out is a gate whose weights for it are 0."""
    part = StyleGate(4, 3, gate=gate, statistics=statistics, eps=1e-5, bn_momentum=0.1)
    both = StyleGate(4, 3, gate=gate, statistics="both", eps=1e-5, bn_momentum=0.1)
    taken = {"mean": slice(0, 1), "std": slice(1, 2), "both": slice(0, 2)}[statistics]
    with torch.no_grad():
        weight = torch.zeros(4, 2, 4) if gate == "dense" else torch.zeros(4, 1, 2)
        if gate == "dense":
            weight[:, taken] = part.adapt.weight.view(4, -1, 4)
        else:
            weight[:, :, taken] = part.adapt.weight
        both.adapt.weight.copy_(weight.view_as(both.adapt.weight))
        both.adapt.bias.copy_(part.adapt.bias)
        both.conv.weight.copy_(part.conv.weight)
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(part(x), both(x))


@pytest.mark.parametrize("kernels", [(3, 3), (3, 5), [3, 7], (7, 7)])
def test_kernel_pairs(kernels: tuple[int, int]) -> None:
    gsa = GlobalStyleAdaptation(8, kernels)
    # per half of 4: 32 gate weights and, a channel, k^2 + 2 (BatchNorm) + 1 (bias)
    assert count_parameters(gsa) == 64 + 4 * (kernels[0] ** 2 + 3) + 4 * (kernels[1] ** 2 + 3)
    assert gsa(torch.randn(2, 8, 5, 5)).shape == (2, 8, 5, 5)


def test_psf_follows_gsa_and_either_can_be_left_out() -> None:
    module = shake(ADSR(8)).eval()
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(module(x), module.psf(module.gsa(x)))
    assert not torch.allclose(module(x), module.gsa(module.psf(x)), atol=1e-4)
    assert count_parameters(ADSR(8, use_psf=False)) == 8 * 8 + 32 * 8
    assert count_parameters(ADSR(8, use_gsa=False)) == 34


def test_momentum_options() -> None:
    module = ADSR(8, bn_momentum=0.2, psf_bn_momentum=0.1)
    assert module.gsa.first.norm.momentum == module.gsa.second.norm.momentum == 0.2
    assert [branch[1].momentum for branch in module.psf.branches.values()] == pytest.approx([0.1, 0.19])


def test_initialisation() -> None:
    module = ADSR(256).eval()
    gates: list[Tensor] = []
    for half in (module.gsa.first, module.gsa.second):
        half.register_forward_hook(lambda _module, _input, output: gates.append(output))
    x = torch.randn(8, 256, 8, 8)
    pooled = module.psf.pool_channels(module.gsa(x))
    fused = sum(
        share * branch(pooled) for share, branch in zip(module.psf.shares, module.psf.branches.values(), strict=True)
    )
    assert torch.equal(torch.sigmoid(fused), torch.full((8, 1, 8, 8), 0.5))
    assert torch.cat(gates, dim=1).mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.cat(gates, dim=1).std().item() < 0.03
    torch.testing.assert_close(module(x).std() / x.std(), torch.tensor(0.25), rtol=0.02, atol=0)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif "norm" in name or ".1.weight" in name:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.startswith("psf") else 1.0)), name
    for half in (module.gsa.first, module.gsa.second):
        side = half.conv.kernel_size[0]
        fan_out = 128 * side * side  # as torch counts it, blind to the groups
        assert half.conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
        bound = 1 / math.sqrt(2 * 128)
        assert bound * 0.95 < half.adapt.weight.abs().max().item() <= bound


def test_first_step_moves_psf_norms_and_not_its_convolutions() -> None:
    module = ADSR(8)
    (module(torch.randn(4, 8, 6, 6)) ** 2).sum().backward()
    for conv, norm in module.psf.branches.values():
        assert torch.equal(conv.weight.grad, torch.zeros_like(conv.weight))
        assert norm.weight.grad.abs().sum() > 0
        assert norm.bias.grad.abs().sum() > 0


def test_double_backward() -> None:
    module = shake(ADSR(4, gate="depthwise")).double().eval()
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(module, (x,))


def test_one_position_in_train_mode() -> None:
    x = torch.randn(4, 8, 1, 1, requires_grad=True)
    module = shake(ADSR(8))
    output = module(x)
    output.sum().backward()
    assert torch.isfinite(output).all()
    assert torch.isfinite(x.grad).all()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(x[:1])
    assert torch.isfinite(module.eval()(x[:1])).all()


def test_statistics_are_float32_under_autocast() -> None:
    seen = []
    module = shake(ADSR(8)).eval()
    for half in (module.gsa.first, module.gsa.second):
        half.adapt.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
    x = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half_output = module(x.bfloat16())
        assert module.psf.pool_channels(x.bfloat16()).dtype == torch.float32
    assert seen == [torch.float32, torch.float32]
    assert half_output.dtype == torch.bfloat16
    torch.testing.assert_close(half_output.float(), module(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": "sparse"}, "'gate' is 'sparse'. Allowed: dense, depthwise"),
        ({"statistics": ["mean"]}, "Allowed: mean, std, both"),
        ({"kernels": [3]}, "two odd numbers"),
        ({"kernels": [3, 4]}, "two odd numbers"),
        ({"kernels": 3}, "two odd numbers"),
        ({"psf": "both"}, "Allowed: official, three_scale"),
        ({"psf_stats": []}, "one or more of max, mean, std"),
        ({"psf_stats": ["max", "max"]}, "each once"),
        ({"psf_stats": "max"}, "one or more of"),
        ({"psf_branches": [5]}, "one or more of 1, 3, each once"),
        ({"gate_gain": 0}, "a number above 0"),
        ({"gate_gain": math.nan}, "a number above 0"),
        ({"bn_momentum": 1.5}, "above 0 and at most 1"),
        ({"psf_bn_momentum": True}, "above 0 and at most 1"),
        ({"use_gsa": "no"}, "Allowed: true, false"),
        ({"use_gsa": False, "use_psf": False}, "nothing is left"),
    ],
)
def test_bad_values_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ADSR(8, **options)
    assert words in str(caught.value)


def test_gsa_needs_two_channels() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        ADSR(1)
