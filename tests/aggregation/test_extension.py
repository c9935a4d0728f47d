"""Rules and server steps from outside fedmed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmed.aggregation import GlobalModel, make_rule, make_step
from fedmed.aggregation.extension import check_weights
from fedmed.config import FederationConfig, RunConfig
from fedmed.config.files import load_run_config
from fedmed.errors import ConfigError, ExtensionError, FederationError
from fedmed.storage.tensor_files import TensorFile, write_tensors
from tests.aggregation.test_rule import make_updates
from tests.support.extension_package import MODEL, PACKAGE, RULE, STEP, importable, install


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    with importable(install(tmp_path / "site-packages")):
        yield


def make_config(fair: dict[str, Any] | None = None, step: dict[str, Any] | None = None) -> FederationConfig:
    settings: dict[str, Any] = {"sites": 2, "aggregation": {"fair": fair}}
    return RunConfig.model_validate(settings | ({"server_step": step} if step else {}))


def test_rule_weighs_with_its_options() -> None:
    """By hand: of the shares 1/2 and 1/2 each is capped at 0.3, the rest stays with the old model."""
    config = make_config({"kind": RULE, "options": {"most": 0.3}})
    assert make_rule(config.aggregation.fair).weigh(make_updates(a=1.0, b=2.0), {}) == ({"a": 0.3, "b": 0.3}, {})
    assert (config.aggregation.losses, config.aggregation.attribute) == ("none", None)
    assert config.code_at_server == [RULE]
    asking = make_config({"kind": RULE, "tell": "groups", "attribute": "sex"})
    assert (asking.aggregation.losses, asking.aggregation.attribute) == ("groups", "sex")
    with pytest.raises(ConfigError, match=r"looks at losses: none, .*: groups\. Set aggregation\.fair\.tell: none"):
        make_rule(asking.aggregation.fair)


def test_step_goes_its_share_and_leaves_moments_under_its_path(tmp_path: Path) -> None:
    """By hand: from 1 a quarter of the way to the average 5 is 2."""
    config = make_config(step={"kind": STEP, "options": {"share": 0.25}})
    assert config.server_step.describe() == f"{STEP} (share 0.25)"
    assert config.code_at_server == [STEP]
    for name, value in (("model", 1.0), ("average", 5.0)):
        write_tensors(tmp_path / name, {"w": np.array([value], np.float32)}, {"format": "pt"})
    step = make_step(config.server_step)
    after = step.take(GlobalModel(tmp_path / "model"), tmp_path / "average", {"w"}, tmp_path)
    assert TensorFile(after.model).load("w") == [2.0]
    assert after.moments is not None
    assert TensorFile(after.moments).load("last/w") == [4.0]
    assert TensorFile(after.moments).metadata["server_step"] == STEP
    assert step.num_files == 2


def test_what_is_no_rule_or_step_is_refused() -> None:
    for settings in (make_config({"kind": STEP}), make_config({"kind": f"{PACKAGE}.losses:SmoothedCrossEntropy"})):
        with pytest.raises(ConfigError):
            make_rule(settings.aggregation.fair)
    with pytest.raises(ExtensionError, match=r"is a CappedShares\. Needed: a subclass of fedmed\.aggregation\.S"):
        make_step(make_config(step={"kind": RULE}).server_step)
    with pytest.raises(ConfigError, match=r"has no option 'mots'\. Did you mean 'most'"):
        make_rule(make_config({"kind": RULE, "options": {"mots": 1}}).aggregation.fair)


def test_rule_and_step_without_their_method_are_refused(tmp_path: Path) -> None:
    (tmp_path / "unfinished_code.py").write_text(
        "from fedmed.aggregation import MomentStep, Rule, ServerStep\n"
        "class NoWeigh(Rule): pass\n"
        "class NoTake(ServerStep): pass\n"
    )
    with importable(tmp_path):
        with pytest.raises(ExtensionError, match=r"'unfinished_code:NoWeigh' has no 'weigh' of its own"):
            make_rule(make_config({"kind": "unfinished_code:NoWeigh"}).aggregation.fair)
        with pytest.raises(ExtensionError, match=r"'unfinished_code:NoTake' has no 'take' of its own"):
            make_step(make_config(step={"kind": "unfinished_code:NoTake"}).server_step)


@pytest.mark.parametrize("weights", [{"c": 0.5}, {"a": -0.1, "b": 0.5}, {"a": float("nan")}, {"a": 0.9, "b": 0.2}, {}])
def test_weights_that_cannot_be_end_the_run(weights: dict[str, float]) -> None:
    with pytest.raises(FederationError, match=rf"The rule '{MODEL}' has given the weights .*Allowed: for sites"):
        check_weights(MODEL, weights, ["a", "b"])
    check_weights(MODEL, {"a": 0.25, "b": 0.75}, ["a", "b"])
    check_weights(MODEL, {"a": 0.25}, ["a", "b"])


def test_settings_that_are_wrong_are_told_as_others(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sites: 2")
    with pytest.raises(ConfigError, match=r"no key 'aggregation.fair.most' .*Allowed here: attribute, kind, options"):
        load_run_config(tmp_path / "mine.yaml", [f"aggregation.fair={{kind: '{RULE}', most: 1}}"])
    with pytest.raises(ConfigError, match=r"'server_step.kind' is 'os:system'.*points into Python's own library"):
        load_run_config(tmp_path / "mine.yaml", ["server_step={kind: 'os:system'}"])
