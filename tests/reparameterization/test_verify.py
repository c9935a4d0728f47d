"""A proof passes for equal forms, fails for any tampering, and survives its file."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import recall_score
from torch import Tensor, nn

from fedmed.models.bags.bag import HeterogeneousPyramidConv2d
from fedmed.reparameterization import (
    Comparison,
    Proof,
    ReparameterizationError,
    compare_logits,
    join,
    paired_table,
    reparameterize,
    verify,
    verify_blocks,
)
from fedmed.reparameterization.verify import running_branches
from tests.reparameterization.support.networks import SmallNet, randomize


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(0, 5, (10,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("fold_bn", [False, True])
def test_equal_forms_pass(fold_bn: bool, images: Tensor, labels: Tensor) -> None:
    model = randomize(SmallNet()).train()
    merged = reparameterize(model, fold_bn)
    states = [copy.deepcopy(network.state_dict()) for network in (model, merged)]
    proof = verify(model, merged, images, labels, batch_size=4).require()
    assert [block.name for block in proof.blocks] == (["bag", "conv1", "block.0"] if fold_bn else ["bag"])
    # Blocks of float32 weights that are rounded once: at most a few 2^-24 relative.
    assert all(block.relative_error < 1e-6 for block in proof.blocks)
    wide, single = proof.comparisons
    assert (wide.precision, single.precision) == ("float64", "float32")
    assert wide.num_images == single.num_images == 10
    few = verify(model, merged, images, batch_size=4, num_wide=6)
    assert [comparison.num_images for comparison in few.comparisons] == [6, 10]
    assert wide.relative_error < 1e-6
    assert 0 < wide.num_agreeing == 10 - wide.num_ties
    for network, state in zip((model, merged), states, strict=True):
        assert all(value.equal(state[name]) for name, value in network.state_dict().items())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_float64_networks_agree_to_the_last_digits(images: Tensor) -> None:
    model = randomize(SmallNet()).double()
    for fold_bn in (False, True):
        proof = verify(model, reparameterize(model, fold_bn), images)
        assert proof.comparisons[0].max_abs_error < 1e-12
        assert max(block.max_abs_error for block in proof.blocks) < 1e-12


def test_figures_by_class_are_those_of_sklearn(images: Tensor, labels: Tensor) -> None:
    model = randomize(SmallNet())
    merged = reparameterize(model, True)
    report = verify(model, merged, images, labels).per_class
    predicted = model.eval()(images).argmax(1)
    expected = recall_score(labels, predicted, labels=range(5), average=None, zero_division=0.0)
    for form in ("before", "after"):
        values = report[form]["sensitivity"]
        assert [0.0 if value is None else value for value in values] == pytest.approx(list(expected))
    assert sum(map(sum, report["paired"])) == 10
    assert all(row[1] == row[2] == 0 for row in report["paired"])


def test_batches_may_come_as_a_list_and_be_uneven(images: Tensor) -> None:
    model = randomize(SmallNet())
    merged = reparameterize(model)
    whole = verify(model, merged, images).comparisons[0]
    parts = verify(model, merged, [images[:3], images[3:]]).comparisons[0]
    assert parts.num_images == 10
    assert parts.largest_logit == pytest.approx(whole.largest_logit, rel=1e-12)
    for nothing in ([], images[:0]):
        with pytest.raises(ReparameterizationError, match="no images"):
            verify(model, merged, nothing)


@pytest.mark.parametrize("fold_bn", [False, True])
def test_seeded_blocks_need_no_images(fold_bn: bool) -> None:
    model = randomize(SmallNet())
    merged = reparameterize(model, fold_bn)
    proof = verify_blocks(model, merged, seed=3).require()
    assert proof == verify_blocks(model, merged, seed=3)
    assert proof != verify_blocks(model, merged, seed=4)
    assert proof.comparisons == ()
    assert len(proof.blocks) == (3 if fold_bn else 1)


def test_tampering_is_found(images: Tensor) -> None:
    model = randomize(SmallNet())
    merged = reparameterize(model, True)
    merged.bag.weight[3, 0, 0, 0] += 1e-2
    for proof in (verify(model, merged, images), verify_blocks(model, merged)):
        assert not proof.passes()
        with pytest.raises(ReparameterizationError, match="Block 'bag' \\(bag\\) differs by"):
            proof.require()
    merged = reparameterize(model, True)
    merged.fc.bias[0] += 1e-2
    proof = verify(model, merged, images)
    assert any("logit" in failure for failure in proof.failures())
    assert not any("Block" in failure for failure in proof.failures())
    with pytest.raises(ReparameterizationError, match=r"outside the merged places differ.*'fc\.bias'"):
        verify_blocks(model, merged)


def test_merging_with_other_statistics_is_found(images: Tensor) -> None:
    model = randomize(SmallNet())
    merged = reparameterize(randomize(copy.deepcopy(model), seed=1), False)
    assert not verify(model, merged, images).passes()


def test_another_network_is_refused(images: Tensor) -> None:
    model = SmallNet()
    with pytest.raises(ReparameterizationError, match="not in both networks"):
        verify(model, nn.Sequential(nn.Conv2d(3, 5, 1)), images)
    merged = reparameterize(model)
    merged.bag = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    with pytest.raises(ReparameterizationError, match="gives"):
        verify_blocks(model, merged)


def test_the_file(images: Tensor, labels: Tensor) -> None:
    model = randomize(SmallNet())
    proof = verify(model, reparameterize(model), images, labels)
    content = json.loads(proof.to_json())
    assert content["passes"] is True
    assert content["tolerances"] == {
        "relative_float64": 1e-5,
        "absolute_float32": 1e-4,
        "relative_float32": 2e-6,
        "probability_float32": 1e-4,
    }
    assert Proof.from_json(proof.to_json()) == proof
    for text in ("", "[]", "{}", '{"inputs": "images", "blocks": [{"name": 1}]}'):
        with pytest.raises(ReparameterizationError, match="no proof"):
            Proof.from_json(text)


def test_values_that_are_not_finite_never_pass() -> None:
    before = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    for value in (math.nan, math.inf):
        after = before.clone()
        after[1, 0] = value
        for pair in ((before, after), (after, before), (after, after)):
            proof = Proof("images", (), (compare_logits(*pair, "float32"),))
            assert not proof.passes()
            assert Proof.from_json(proof.to_json()).failures()
            json.loads(proof.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_ties_are_not_disagreements() -> None:
    # Margins 1e-4 (a tie, as both may move by 1e-4), 3e-4 and 1; the first changes its class.
    before = torch.tensor([[1.0001, 1.0], [1.0003, 1.0], [0.0, 1.0]], dtype=torch.float64)
    after = torch.tensor([[1.00002, 1.00003], [1.0003, 1.0], [0.0, 1.0]], dtype=torch.float64)
    found = compare_logits(before, after, "float32")
    assert (found.num_images, found.num_ties, found.num_agreeing) == (3, 1, 2)
    assert found.max_abs_error == pytest.approx(8e-5)
    assert found.failures() == []
    swapped = compare_logits(before, before.flip(1), "float32")
    assert swapped.num_agreeing == 0
    assert any("class differs for 2" in failure for failure in swapped.failures())


@pytest.mark.parametrize(("scale", "allowed"), [(1.0, 1e-4), (50.0, 1e-4), (500.0, 1e-3)])
@pytest.mark.parametrize(("share", "passes"), [(0.99, True), (1.01, False)])
def test_difference_allowed_in_float32_grows_with_the_largest_logit(
    scale: float, allowed: float, share: float, passes: bool
) -> None:
    """max(1e-4, 2e-6 x 1, 50 and 500). The last class's probability p < 0.1 moves by less than 0.1 x 1.01e-4."""
    before = torch.tensor([[scale, 0.0, -scale]], dtype=torch.float64)
    after = before + torch.tensor([[0.0, 0.0, share * allowed]], dtype=torch.float64)
    found = compare_logits(before, after, "float32").failures()
    assert (found == []) == passes
    assert passes or f"allowed: {allowed:g}, the larger of 0.0001 and 2e-06 of the largest logit" in found[0]


@pytest.mark.parametrize(("moved", "passes"), [(3e-4, True), (9e-4, False)])
def test_a_probability_may_move_less_than_a_large_logit(moved: float, passes: bool) -> None:
    """Logits 500 and 499.99 may move by 1e-3, and p = 1 / (1 + e^0.01) = 0.4975 by p (1 - p) = 0.25 times that."""
    before = torch.tensor([[500.0, 499.99, 0.0]], dtype=torch.float64)
    after = before + torch.tensor([[0.0, moved, 0.0]], dtype=torch.float64)
    found = compare_logits(before, after, "float32")
    assert found.max_probability_error == pytest.approx(moved / 4, rel=1e-3)
    assert (found.failures() == []) == passes
    assert passes or "a probability differs by 2.25e-04; allowed: 0.0001." in found.failures()[0]
    assert compare_logits(before, after, "float64").failures() == []  # 9e-4 is less than 1e-5 x 500


def test_margin_of_a_tie_is_twice_what_is_allowed() -> None:
    """2e-3 with logits of 500, and 2e-4 with logits of 50."""
    for scale, num_ties in ((500.0, 1), (50.0, 0)):
        before = torch.tensor([[scale, scale - 1.5e-3], [scale, scale - 2.5e-3]], dtype=torch.float64)
        assert compare_logits(before, before, "float32").num_ties == num_ties


def test_proof_without_probabilities_is_read() -> None:
    """As an earlier version wrote it."""
    proof = Proof("images", (), (Comparison("float32", 1e-6, 3.0, 10, 1, 9),))
    content = json.loads(proof.to_json())
    del content["comparisons"][0]["max_probability_error"]
    assert Proof.from_json(json.dumps(content)) == proof
    assert proof.passes()


def test_sites_join() -> None:
    sites = [Comparison("float32", 1e-6, 3.0, 10, 1, 9), Comparison("float32", 2e-4, 5.0, 7, 0, 7)]
    assert join(sites) == Comparison("float32", 2e-4, 3.0, 17, 1, 16)
    assert join(sites).failures()
    told = [replace(site, max_probability_error=error) for site, error in zip(sites, (3e-5, 2e-5), strict=True)]
    assert join(told) == replace(join(sites), max_probability_error=3e-5)
    assert join([told[0], sites[1]]).max_probability_error is None
    with pytest.raises(ValueError, match="one precision"):
        join([])


def test_paired_table_by_hand() -> None:
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    after = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert paired_table(torch.tensor([0, 0, 1, 0]), before, after) == [[1, 1, 0, 1], [0, 0, 1, 0]]


def test_shapes_of_logits_are_checked() -> None:
    with pytest.raises(ValueError, match="needed: \\(N,K\\) twice"):
        compare_logits(torch.zeros(2, 3), torch.zeros(3, 3), "float32")


def test_bags_run_branch_by_branch_for_a_while_only() -> None:
    """The merge of a bag in eval mode is spoilt here: the branches must not notice, and the bag must afterwards."""
    bag = HeterogeneousPyramidConv2d(4, 4).eval()
    images = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        expected = sum(branch(images) for branch in bag.branches)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bag, "equivalent_kernel", lambda *_, **__: (torch.zeros(4, 1, 7, 7), torch.zeros(4)))
            with running_branches(nn.Sequential(bag)):
                torch.testing.assert_close(bag(images), expected)
            assert bag.form == "auto"
