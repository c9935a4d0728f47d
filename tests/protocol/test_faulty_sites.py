"""A computation over all sites goes on without the one that breaks it."""

import math
from collections.abc import Mapping

import pytest

from fedmed.errors import FederationError
from fedmed.protocol.faulty_sites import has_finite_numbers, without_faulty


def add(numbers: Mapping[str, float]) -> float:
    return 1 / math.fsum(numbers.values())


def test_a_result_of_all_sites_is_as_it_is() -> None:
    done = without_faulty({"a": 1.0, "b": 3.0}, add, what="the sum")
    assert (done.result, done.left_out) == (0.25, {})


def test_a_site_that_fails_by_itself_is_left_out_and_named() -> None:
    done = without_faulty({"a": 1.0, "bad": math.nan, "b": 3.0}, add, what="the sum")
    assert done.result == 0.25
    assert done.left_out == {"bad": "the sum cannot be computed with its answer (_UnsoundError)"}


def test_a_site_that_fails_beside_the_others_alone_is_found() -> None:
    """-4 divides by itself well enough, and by nothing together with 1 and 3."""
    done = without_faulty({"a": 1.0, "b": 3.0, "bad": -4.0}, add, what="the sum")
    # Without a the rest is -1: the first site whose absence mends it.
    assert list(done.left_out) == ["a"]
    assert "ZeroDivisionError" in done.left_out["a"]


def test_two_sites_that_fail_are_left_out() -> None:
    done = without_faulty({"a": 1.0, "x": math.nan, "y": math.nan, "b": 1.0}, add, what="the sum")
    assert (done.result, sorted(done.left_out)) == (0.5, ["x", "y"])


def test_what_is_about_the_run_is_raised() -> None:
    def fail(_: Mapping[str, float]) -> float:
        raise FederationError("the disk is full")

    with pytest.raises(FederationError, match="disk"):
        without_faulty({"a": 1.0, "b": 2.0}, fail, what="the sum")


def test_a_fault_of_our_own_is_raised_and_no_site_blamed() -> None:
    def fail(_: Mapping[str, float]) -> float:
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        without_faulty({"a": 1.0, "b": 2.0, "c": 3.0}, fail, what="the sum")


def test_numbers_of_any_depth() -> None:
    assert has_finite_numbers({"a": [1, 2.5, None, "inf", (True,)]})
    assert not has_finite_numbers({"a": [{"b": (1.0, math.nan)}]})
