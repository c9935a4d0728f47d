"""``flower-client --check`` on code from outside fedmed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.check.context import CheckContext
from client.check.extensions import check_extensions
from client.check.results import CheckFailedError
from client.check.run import CHECKS, run_preflight
from fedmed.config import Plan
from fedmed.config.client import ClientConfig
from fedmed.extensions import find_extension
from tests.client.support.kit import PLAN, FakeFleet, connect_to, make_class_folders, make_hello, make_kit, serve
from tests.support.extension_package import MODEL, PACKAGE, importable, install


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    with importable(install(tmp_path / "site-packages")):
        yield


def make_context(tmp_path: Path, extensions: list[Any], **changes: Any) -> CheckContext:
    """Return what the check works on, once the server has told a plan with the example's network."""
    config = make_kit(tmp_path / "kit", policy={"extensions": extensions})
    context = CheckContext(config, False, connect_to(FakeFleet({})), tmp_path, tmp_path / "skipped.csv")
    plan = Plan.model_validate(PLAN | {"model": {"name": MODEL}}).describe_extensions()
    context.plan = plan.model_copy(update={"extensions": [plan.extensions[0].model_copy(update=changes)]})
    return context


def test_what_is_allowed_and_the_same_is_told(tmp_path: Path) -> None:
    result = check_extensions(make_context(tmp_path, [MODEL]), "extensions")
    assert (result.status, result.found) == (
        "ok",
        f"{find_extension(MODEL)}: allowed, and the same here (policy.extensions)",
    )


@pytest.mark.parametrize(
    ("extensions", "changes", "found"),
    [
        (
            [],
            {},
            r"The plan wants 'example_extension.networks:build' of .*; policy\.extensions",
        ),
        ([MODEL], {"version": "2.0"}, r"Found here: .*Wanted: .* 2\.0"),
        ([MODEL], {"sha256": "0" * 64}, "the file differs"),
    ],
)
def test_what_does_not_agree_fails(tmp_path: Path, extensions: list[Any], changes: dict[str, str], found: str) -> None:
    with pytest.raises(CheckFailedError, match=found) as caught:
        check_extensions(make_context(tmp_path, extensions, **changes), "extensions")
    assert caught.value.advice
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]


def test_network_that_is_not_allowed_is_not_built(tmp_path: Path) -> None:
    counts = {"benign": 40, "malignant": 20, "other": 8}
    config = make_kit(tmp_path / "kit", make_class_folders(tmp_path / "images", counts), insecure=True)
    hello = make_hello(
        Plan.model_validate(PLAN | {"model": {"name": MODEL}}).describe_extensions().model_dump(mode="json")
    )
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]  # the server has built it
    found = {one.name: one for one in _check(config, hello)}
    assert found["extensions"].status == "failed"
    assert found["policy"].status == "ok"
    assert found["model"].found == "Not run, because 'extensions' failed."
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]
    allowed = config.policy.model_validate(config.policy.model_dump() | {"extensions": [MODEL]})
    found = {one.name: one for one in _check(config.model_copy(update={"policy": allowed}), hello)}
    assert {found[name].status for name in ("extensions", "model", "training step")} == {"ok"}
    assert [one.name for one in CHECKS].index("extensions") < [one.name for one in CHECKS].index("model")


def _check(config: ClientConfig, hello: dict[str, Any]) -> list[Any]:
    with serve(lambda connection: None) as port:
        local = config.model_copy(update={"server": f"127.0.0.1:{port}"})
        return run_preflight(local, connect=connect_to(FakeFleet(hello)))
