"""How right answers vary between patients, against a loop over the patients."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed.metrics.clusters import move_share
from fedmed.metrics.site_tables import combine_paired, make_paired
from fedmed.metrics.tables import combine_tables, tables_from_logits

IMAGES = st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(0, 4)), min_size=1, max_size=30)
"""True class, whether it is recognised, patient."""


def count(images, site="a"):
    labels = torch.tensor([label for label, _, _ in images])
    answers = torch.tensor([label if right else 1 - label for label, right, _ in images])
    logits = torch.nn.functional.one_hot(answers, 2).double()
    return tables_from_logits(logits, labels, [site] * len(images), [f"{site}{who}" for _, _, who in images])


def sum_squares(images, label, share):
    """Return m, and sum (r - share n)^2, sum (r - share n) n and sum n^2 of one class."""
    people = defaultdict(lambda: [0, 0])
    for own, right, who in images:
        if own == label:
            people[who][0] += right
            people[who][1] += 1
    rest = [(r - share * n, n) for r, n in people.values()]
    return len(rest), sum(d * d for d, _ in rest), sum(d * n for d, n in rest), sum(n * n for _, n in rest)


def share_of(images, label):
    own = [right for of, right, _ in images if of == label]
    return sum(own) / len(own) if own else 0.0


def test_by_hand():
    """Three patients with 2 of 2, 0 of 1 and 1 of 3 right: p = 1/2, rests 1, -1/2 and -1/2."""
    images = [(0, True, 0), (0, True, 0), (0, False, 1), (0, True, 2), (0, False, 2), (0, False, 2)]
    np.testing.assert_allclose(count(images).patients[0, 0], [3, 1.5, 2 * 1 - 0.5 - 1.5, 4 + 1 + 9])


@settings(max_examples=100, deadline=None)
@given(IMAGES, st.floats(0, 1))
def test_the_identity_holds_about_any_share(images, share):
    tables = count(images)
    for label in (0, 1):
        own = share_of(images, label)
        np.testing.assert_allclose(tables.patients[0, label], sum_squares(images, label, own), atol=1e-9)
        moved = move_share(tables.patients[0, label], np.array(share - own))
        np.testing.assert_allclose(moved, sum_squares(images, label, share), atol=1e-9)
        _, squares, products, sizes = tables.patients[0, label]
        variance = squares - 2 * (share - own) * products + (share - own) ** 2 * sizes
        assert variance == pytest.approx(sum_squares(images, label, share)[1], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(IMAGES, IMAGES)
def test_two_sites_together_are_about_their_common_share(first, second):
    """Patients of different sites are different ones."""
    everyone = first + [(label, right, who + 10) for label, right, who in second]
    for found in (count(first, "x") + count(second, "x"), combine_tables([count(first), count(second, "b")]).pool()):
        for label in (0, 1):
            expected = sum_squares(everyone, label, share_of(everyone, label))
            np.testing.assert_allclose(found.patients[0, label], expected, atol=1e-9)


def test_without_ids_every_image_is_a_patient():
    """Q is n p (1 - p), C is 0 and D is n."""
    logits = torch.eye(2).double()[[0, 0, 0, 1]]
    found = tables_from_logits(logits, torch.zeros(4, dtype=torch.int64), ["a"] * 4).patients[0]
    np.testing.assert_allclose(found, [[4, 0.75, 0, 4], [0, 0, 0, 0]], atol=1e-12)


def test_ids_are_as_many_as_images():
    with pytest.raises(ValueError, match="4 images and 3 patients"):
        tables_from_logits(torch.eye(4), torch.arange(4), ["a"] * 4, ["p"] * 3)


def test_spread_of_a_difference_by_hand():
    """Patients with differences 2 of 2, 0 of 1 and -1 of 1 images: d = 1/4, rests 1.5, -0.25 and -1.25."""
    first, second = np.array([1, 1, 1, 0], bool), np.array([0, 0, 1, 1], bool)
    found = make_paired(first, second, np.zeros(4, np.int64), ["a"] * 4, 2, ["x", "x", "y", "z"])
    np.testing.assert_allclose(found.spread, [[1.5**2 + 0.25**2 + 1.25**2, 0]])
    twice = combine_paired([found, found])
    np.testing.assert_allclose(twice.spread, 2 * found.spread)
    np.testing.assert_allclose(twice.pool().spread, twice.select("a").spread)
