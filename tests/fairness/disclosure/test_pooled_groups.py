"""Which pooled groups are shown: never one that rests on one site, and none from which such a group would follow."""

import itertools

import numpy as np
import pytest

from fedmed.fairness.disclosure.pooled_groups import GIVES_AWAY, ONE_SITE, find_hidden_groups
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from tests.report.support.example import make_tables


def make_answer(site, **counts):
    """Return a site's answer with images in the given numbers by group; attribute ``a`` is ``a={"x": 3}``."""
    attributes = {name.replace("__", " x "): groups for name, groups in counts.items()}
    total = sum(next(iter(attributes.values())).values())
    tables = {"site": make_tables(site, [(0, 0)] * total)}
    for name, groups in attributes.items():
        filled = {group: number for group, number in groups.items() if number}
        names = [group for group, number in filled.items() for _ in range(number)]
        tables[name] = make_tables(site, [(0, 0)] * total, groups=names)
    return SiteTables({FEDERATED: tables})


def cross(site, cells):
    """Return a site's answer for a crossing of ``r`` and ``c`` from images by (row, column), with its parts."""
    rows, columns = ({}, {})
    for (row, column), number in cells.items():
        rows[row] = rows.get(row, 0) + number
        columns[column] = columns.get(column, 0) + number
    joined = {", ".join(cell): number for cell, number in cells.items()}
    return make_answer(site, r=rows, c=columns, r__c=joined)


def test_a_group_of_one_site_is_hidden_and_no_second_one_is_where_two_sites_share_the_hidden_ones():
    sites = {"north": make_answer("north", a={"x": 9, "y": 4}), "south": make_answer("south", a={"x": 8, "z": 3})}
    assert find_hidden_groups(sites, ()) == {"a": {"y": ONE_SITE, "z": ONE_SITE}}


def test_differencing_against_the_total_is_prevented_by_hiding_the_smallest_other_group():
    sites = {
        "north": make_answer("north", a={"x": 9, "y": 4, "w": 2}),
        "south": make_answer("south", a={"x": 8, "w": 3}),
    }
    # with x (17) and w (5) shown, y of north would be the total of 26 minus 22
    assert find_hidden_groups(sites, ()) == {"a": {"y": ONE_SITE, "w": GIVES_AWAY}}


def test_where_sites_agree_nothing_is_hidden():
    sites = {"north": make_answer("north", a={"x": 9, "y": 4}), "south": make_answer("south", a={"x": 8})}
    assert find_hidden_groups(sites, ("north",)) == {"a": {}}
    assert find_hidden_groups(sites, ("south",))["a"] == {"y": ONE_SITE, "x": GIVES_AWAY}


def test_a_group_without_images_is_not_hidden():
    sites = {name: make_answer(name, a={"x": 9, "y": 0}) for name in ("north", "south")}
    assert find_hidden_groups(sites, ()) == {"a": {}}


def test_a_crossing_does_not_follow_from_its_parts():
    cells = {cell: 5 + place for place, cell in enumerate(itertools.product("uv", "pq"))}
    north, south = cross("north", cells), cross("south", cells | {("u", "p"): 0})
    hidden = find_hidden_groups({"north": north, "south": south}, ())
    # u,p alone would follow from u minus u,q; a second cell of its row and column is not enough: then u,q follows from
    # its column, and so on around the square
    assert hidden == {
        "r": {},
        "c": {},
        "r x c": {"u, p": ONE_SITE, "u, q": GIVES_AWAY, "v, p": GIVES_AWAY, "v, q": GIVES_AWAY},
    }


def test_values_with_the_separator_in_them_are_still_found():
    cells = {("u, old", "p"): 5, ("u, old", "q"): 6, ("v", "p"): 7, ("v", "q"): 8}
    north, south = cross("north", cells), cross("south", cells | {("u, old", "p"): 0})
    assert len(find_hidden_groups({"north": north, "south": south}, ())["r x c"]) == 4


@pytest.mark.parametrize("seed", range(12))
def test_no_equation_between_the_shown_numbers_determines_a_hidden_group_of_one_site(seed):
    """The attack: solve for the hidden groups. There must be other numbers that fit all that is shown just as well."""
    rng = np.random.default_rng(seed)
    names = ["north", "south", "west"]
    cells = list(itertools.product("tuv", "pqr"))
    tables = {
        name: {cell: int(rng.integers(1, 20)) * int(rng.random() < 0.6) for cell in cells} | {("t", "p"): 3}
        for name in names
    }
    hidden = find_hidden_groups({name: cross(name, own) for name, own in tables.items()}, ())
    # unknowns: the cells of the crossing; every shown number is a row sum, a column sum, the total or a cell
    told = [np.ones(9)]
    for place, part in ((0, "r"), (1, "c")):
        for value in sorted({cell[place] for cell in cells}):
            if value not in hidden[part]:
                told.append(np.array([float(cell[place] == value) for cell in cells]))
    told += [np.eye(9)[i] for i, cell in enumerate(cells) if ", ".join(cell) not in hidden["r x c"]]
    _, values, basis = np.linalg.svd(np.array(told))
    free = basis[int((values > 1e-9).sum()) :]
    for name in names:
        own = [i for i, cell in enumerate(cells) if [s for s in names if tables[s][cell]] == [name]]
        if own:
            assert np.linalg.matrix_rank(free[:, own], tol=1e-9) == len(own), "some sum of these cells is determined"
