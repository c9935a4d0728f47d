"""Tables that can be true of a number of images; those that a bad site sends are in ``tests/attacks``."""

import numpy as np
import pytest

from fedmed.metrics.plausible import find_implausible
from tests.metrics.support.samples import draw_tables


def test_honest_tables_pass_at_exactly_their_number_of_images():
    arrays = draw_tables(300).to_arrays()
    assert find_implausible(arrays, 300) is None
    assert find_implausible(arrays, 299) == "The tables count 300 images and the site has declared 299."


def test_a_site_without_images_may_say_which_rows_it_withholds():
    arrays = {name: np.zeros_like(array) for name, array in draw_tables(300).to_arrays().items()}
    arrays["withheld"][:] = 1
    assert find_implausible(arrays, 0) is None
    arrays["withheld"][0, 0] = 2
    assert "'withheld' holds 2" in str(find_implausible(arrays, 0))


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63)])
def test_the_ends_of_int64_do_not_overflow(value):
    arrays = draw_tables(300).to_arrays()
    arrays["counts"] = np.full_like(arrays["counts"], value)
    assert "'counts' holds" in str(find_implausible(arrays, 300))


def test_arrays_of_a_later_format_are_held_to_the_same_bounds():
    """A row of 4 images: at most 4 patients, whose squares sum up to at most 16; pairs and areas likewise."""
    arrays = {
        "counts": np.array([[[2, 0], [0, 0]]]),
        "other_wrong": np.array([[2, 0]]),
        "patients": np.array([[[4.0, 16.0, -16.0, 16.0], [0.0, 0.0, 0.0, 0.0]]]),
        "rare": np.array([[3, 1]]),
        "areas": np.array([[[12.0, 9.0, 36.0, 36.0, -5.0, 4.0, 3.0], [0.0] * 7]]),
    }
    assert find_implausible(arrays, 7) is None
    assert "count 7 images" in str(find_implausible(arrays, 6))
    for name, place, value in (
        ("patients", (0, 0, 0), 5.0),
        ("patients", (0, 0, 0), 1.5),
        ("patients", (0, 0, 1), 17.0),
        ("patients", (0, 1, 2), 1.0),
        ("areas", (0, 0, 1), 13.0),
        ("areas", (0, 0, 2), 600.0),
        ("areas", (0, 0, 0), 2.5),
        ("other_wrong", (0, 0), -1),
    ):
        changed = arrays | {name: arrays[name].copy()}
        changed[name][place] = value
        assert find_implausible(changed, 7) is not None, (name, place, value)
