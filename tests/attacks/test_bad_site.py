"""One site sends an update that would blind the model, turn it back or be it: refused or bounded, and named.

Two sites that work together, each below the bounds, are not found; nor is one that sends plausible but wrong updates.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmed.aggregation import cap_weights, check_num_images, find_share_limit, shorten_updates
from fedmed.config import AggregationConfig, DeployedAggregationConfig
from fedmed.config.server import ServerConfig
from fedmed.protocol.tensors import pack_tensors
from fedmed.storage.history import read_history
from tests.attacks.support.bad_site import BAD, Closed, Round, State
from tests.support.federation import Federation, is_training

Change = Callable[[Round, State], None]


def change_buffers(part: str, value: float, *, layers: slice = slice(None), channels: slice = slice(None)) -> Change:
    def change(one: Round, update: State) -> None:
        for norm in one.norms[layers]:
            values = update[getattr(norm, part)]
            (values[channels] if values.ndim else values).fill_(value)

    return change


def shift_means(deviations: float, channels: slice = slice(None)) -> Change:
    def change(one: Round, update: State) -> None:
        norm = one.norms[1]
        update[norm.mean][channels] += deviations * update[norm.variance].max().sqrt()

    return change


def scale_variances(factor: float) -> Change:
    def change(one: Round, update: State) -> None:
        for norm in one.norms:
            update[norm.variance] *= factor

    return change


REFUSED = {
    "negative": (change_buffers("variance", -1.0), "running variance of the BatchNorm layer '1' is negative"),
    "negative in one channel": (change_buffers("variance", -1e-6, channels=slice(2, 3)), "negative"),
    "huge": (change_buffers("variance", 1e30), "running variance of the BatchNorm layer '1' is up to"),
    "huge in one layer": (change_buffers("variance", 1e30, layers=slice(2, 3)), "BatchNorm layer '7'"),
    "huge in one channel": (change_buffers("variance", 1e30, channels=slice(0, 1)), "BatchNorm layer '1'"),
    "tiny": (change_buffers("variance", 1e-30), "BatchNorm layer '1' is"),
    "tiny in one layer": (change_buffers("variance", 1e-30, layers=slice(1, 2)), "BatchNorm layer '4'"),
    "zero": (change_buffers("variance", 0.0), "BatchNorm layer '1'"),
    "2,000 times": (scale_variances(2e3), "allowed: 1000 times"),
    "a 2,000th": (scale_variances(1 / 2e3), "allowed: 0.001 times"),
    "mean": (change_buffers("mean", 3e38), "running mean of the BatchNorm layer '1'"),
    "mean of one layer": (shift_means(300.0), "running mean of the BatchNorm layer '4'"),
    "mean of one channel": (shift_means(-300.0, slice(3, 4)), "running mean of the BatchNorm layer '4'"),
    "NaN": (change_buffers("variance", float("nan")), "'1.running_var' holds NaN"),
    "infinite": (change_buffers("mean", float("inf"), layers=slice(2, 3)), "'7.running_mean' holds an infinite"),
}


def attack(folder: Path, change: Change, **options: Any) -> Closed:
    one = Round(folder, **options)
    update = one.make_honest()
    change(one, update)
    one.send(BAD, pack_tensors(update))
    return one.close()


@pytest.mark.parametrize("num_honest", [1, 3])
@pytest.mark.parametrize("name", REFUSED)
def test_statistics_that_no_training_gives_are_refused(name: str, num_honest: int, tmp_path: Path) -> None:
    """Beside one honest site the global model is the yardstick, beside three the median of the sites."""
    change, words = REFUSED[name]
    closed = attack(tmp_path, change, num_honest=num_honest)
    assert closed.status() == "quarantined"
    assert words in closed.reason()
    closed.check_unharmed()


@pytest.mark.parametrize("factor", [1e-2, 100.0])
@pytest.mark.parametrize("num_honest", [1, 2, 3])
def test_a_hospital_with_another_device_is_not_refused(factor: float, num_honest: int, tmp_path: Path) -> None:
    assert attack(tmp_path, scale_variances(factor), num_honest=num_honest).status() == "accepted"


def test_a_channel_that_is_dead_at_one_site_is_no_fault_and_does_no_harm(tmp_path: Path) -> None:
    """In the average the channel keeps the other sites' three quarters of its variance."""
    closed = attack(tmp_path, change_buffers("variance", 1e-30, channels=slice(0, 1)))
    assert closed.status() == "accepted"
    for norm in closed.round.norms:
        honest = torch.stack([update[norm.variance][0] for update in closed.round.updates.values()]).mean()
        assert float(closed.after[norm.variance][0]) == pytest.approx(0.75 * float(honest), rel=1e-4)
    closed.check_unharmed()


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 0])
def test_counters_are_the_servers_own(value: int, tmp_path: Path) -> None:
    """300 images are 10 batches of at most 32, at every honest site and so in the model."""
    closed = attack(tmp_path, change_buffers("counter", value))
    assert closed.status() == "accepted"
    for norm in closed.round.norms:
        assert norm.counter is not None
        assert int(closed.after[norm.counter]) == int(closed.round.before[norm.counter]) + 10
    closed.check_unharmed()


def go_back(one: Round, update: State, ratio: float) -> None:
    """Make the update go backwards, so many times as long as the honest ones."""
    honest = one.updates["h0"]
    for name in one.parameters:
        update[name] = one.before[name] - ratio * (honest[name] - one.before[name])


@pytest.mark.parametrize("num_honest", [2, 3, 7])
@pytest.mark.parametrize("ratio", [24.5, 6.0])
def test_a_long_update_backwards_does_not_turn_the_model_back(ratio: float, num_honest: int, tmp_path: Path) -> None:
    """It can hold a round up. That it stops there is exact only where the honest sites go exactly the same way."""
    closed = attack(tmp_path, lambda one, update: go_back(one, update, ratio), num_honest=num_honest)
    assert closed.status() == "accepted"
    assert "shortened" in closed.limits[BAD]
    closed.check_unharmed(least_progress=-0.1)


def test_without_the_bounds_it_would(tmp_path: Path) -> None:
    """(3 - 24.5) / 4 of a step: what the bounds are for."""
    unbounded = DeployedAggregationConfig(max_share=None, clip_norm_ratio=None)
    closed = attack(tmp_path, lambda one, update: go_back(one, update, 24.5), config=unbounded)
    assert closed.progress() < -4


def test_a_hundred_million_images_are_a_third_of_the_weight(tmp_path: Path) -> None:
    one = Round(tmp_path, declared_by_bad=10**8)
    one.send(BAD, pack_tensors(one.make_honest()), num_images=10**8)
    closed = one.close()
    assert closed.weights == pytest.approx({"h0": 2 / 9, "h1": 2 / 9, "h2": 2 / 9, BAD: 1 / 3})
    assert closed.limits == {BAD: "its weight would be 100.0% of all and is held to 33.3% ('aggregation.max_share')."}
    closed.check_unharmed()


def test_more_images_than_declared_are_refused(tmp_path: Path) -> None:
    one = Round(tmp_path)
    one.send(BAD, pack_tensors(one.make_honest()), num_images=301)
    assert one.close().reason() == check_num_images(301, 300)


def test_honest_sites_are_weighed_as_without_bounds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bounded = attack(tmp_path / "a", lambda *_: None)
    free = attack(
        tmp_path / "b", lambda *_: None, config=DeployedAggregationConfig(max_share=None, clip_norm_ratio=None)
    )
    assert bounded.limits == {}
    assert all(torch.equal(bounded.after[name], free.after[name]) for name in free.after)


def test_shares_by_hand() -> None:
    """Of 6, 3 and 1 tenths the first is held to a half; its tenth goes to the others 3 to 1."""
    weights, capped = cap_weights({"a": 0.6, "b": 0.3, "c": 0.1}, 0.5)
    assert weights == pytest.approx({"a": 0.5, "b": 0.375, "c": 0.125})
    assert capped == {"a": 0.6}
    # 0.5, 0.36 and 0.14 to at most 0.4: what a loses lifts b to 0.36 * 0.6 / 0.5 = 0.432, so it is held as well.
    weights, capped = cap_weights({"a": 0.5, "b": 0.36, "c": 0.14}, 0.4)
    assert weights == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.2})
    assert capped == {"a": 0.5}
    # A rule that leaves a fifth to the global model: the same of what is left.
    assert cap_weights({"a": 0.6, "b": 0.2}, 0.5)[0] == pytest.approx({"a": 0.4, "b": 0.4})
    # Nobody else has a weight: what is above stays with the global model.
    assert cap_weights({"a": 1.0, "b": 0.0}, 0.5)[0] == {"a": 0.5, "b": 0.0}


@pytest.mark.parametrize(
    ("setting", "num_sites", "limit"),
    [("auto", 1, 1.0), ("auto", 2, 0.5), ("auto", 3, 0.5), ("auto", 4, 1 / 3), (0.2, 4, 0.25), (0.2, 10, 0.2),
     (None, 4, None)],
)  # fmt: skip
def test_limit_by_number_of_sites(setting: Any, num_sites: int, limit: float | None) -> None:
    assert find_share_limit(setting, num_sites) == limit


def test_lengths_by_hand() -> None:
    """The others' usual length is 1; of 20, 5 are left, and then 3, since the three others pull with 3/4."""
    norms, weights = {"a": 20.0, "b": 1.0, "c": 1.0, "d": 1.0}, dict.fromkeys("abcd", 0.25)
    assert shorten_updates(weights, norms, [], 5.0) == pytest.approx({"a": 3 / 20})
    assert shorten_updates(weights, norms, [], 2.0) == pytest.approx({"a": 2 / 20})
    # With two sites nobody knows who is right: only the length counts.
    assert shorten_updates({"a": 0.5, "b": 0.5}, {"a": 20.0, "b": 1.0}, [], 5.0) == pytest.approx({"a": 5 / 20})
    assert shorten_updates(weights, norms, [], None) == {}
    assert shorten_updates({"a": 1.0}, {"a": 20.0}, [], 5.0) == {}


def test_a_real_federation_is_bounded_and_a_simulation_is_not() -> None:
    sites = {"address": "a:1", "sites": ["a"], "classes": ["k", "l"]}
    assert ServerConfig.model_validate(sites | {"aggregation": {"weighting": "equal"}}).aggregation.max_share == "auto"
    assert ServerConfig.model_validate(sites).aggregation.clip_norm_ratio == 5.0
    assert (AggregationConfig().max_share, AggregationConfig().clip_norm_ratio) == (None, None)


def test_a_federation_goes_on_and_names_the_site(make_federation: Callable[..., Federation]) -> None:
    """Round 1: 10^8 images; round 2: variances of 1e30; the other sites train all rounds."""
    from fedmed.protocol.messages import REPORT, make_content, read_model, read_values
    from fedmed.protocol.tensors import unpack_tensors

    federation = make_federation(sites=4, rounds=3, aggregation={"max_share": "auto", "clip_norm_ratio": 5.0})
    bad, *others = federation.sites

    def tamper(site: str, request: Any, reply: Any) -> Any:
        if site != bad:
            return reply
        if request.metadata.message_type == "query":
            values = read_values(reply, REPORT)
            values["num_images"]["train"] = 10**8
            reply.content[REPORT] = make_content(REPORT, values)[REPORT]
        elif is_training(request):
            values, tensors = read_values(reply, REPORT) | {"num_images": 10**8}, unpack_tensors(read_model(reply))
            if is_training(request, 2):
                tensors["1.running_var"].fill_(1e30)
            for key, record in make_content(REPORT, values, model=pack_tensors(tensors)).items():
                reply.content[key] = record
        return reply

    federation.go(federation.grid(tamper))
    history = read_history(federation.run.history_file)
    lines = [{line.site: line for line in record.participation} for record in history]
    assert [line[bad].status for line in lines] == ["accepted", "quarantined", "accepted"]
    assert all(line[site].status == "accepted" for line in lines for site in others)
    assert history[0].weights[bad] == pytest.approx(1 / 3)
    assert "held to 33.3%" in str(lines[0][bad].limit)
    assert "BatchNorm layer '1'" in str(lines[1][bad].reason)
    assert [note for note in federation.listener.notes if bad in note and "aggregation.max_share" in note]
    page = (federation.run.report / "index.html").read_text()
    assert "held to 33.3%" in page
