"""The last look before tables leave: each kind of fault is found and named."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmed.fairness.disclosure.breach import DIFFERENT, DIGITS_LEFT, find_breach
from fedmed.fairness.disclosure.rows import Disclosure
from fedmed.metrics.site_tables import FEDERATED, LOCAL, UNCALIBRATED, PairedTables, SiteTables
from fedmed.metrics.tables import Array, EvaluationTables
from tests.fairness.disclosure.test_tables import LABELS, LIMITS, LOGITS, OTHER, SITE, release

GROUPS = {**SITE, "sex": ["f", "m"] * 9}


def spoil(tables: SiteTables, name: str, change: Callable[[Array], None], attribute: str = "site") -> SiteTables:
    """Return tables in which one array of the federated model and of the others is changed alike."""
    models = {}
    for model, by_attribute in tables.models.items():
        arrays = {key: array.copy() for key, array in by_attribute[attribute].to_arrays().items()}
        change(arrays[name])
        changed = EvaluationTables(by_attribute[attribute].groups, **arrays)
        models[model] = {**by_attribute, attribute: changed}
    return replace(tables, models=models)


def put(place: object, value: object) -> Callable[[Array], None]:
    def change(array: Array) -> None:
        array[place] = value

    return change


def test_complete_tables_must_not_leave_a_hospital() -> None:
    complete = release(Disclosure())
    assert find_breach(complete, LIMITS, "north") == "a class has fewer than k_row = 5 images"
    assert find_breach(complete, Disclosure(19, 3), "north") == "a group has fewer than k = 19 images"
    assert find_breach(complete, Disclosure(scores=False), "north") == "they hold scores"
    assert find_breach(complete, Disclosure(), "south") == "they are of other groups than the site"
    assert find_breach(complete, Disclosure(), "north") is None


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("counts", put((0, 0, 0), 0), "a class has fewer than k_row = 5 images"),
        ("counts", put((0, 1, 1), 4), "a class has fewer than k_row = 5 images"),
        ("other_wrong", put((0, 3), 2), "a class has fewer than k_row = 5 images"),
        ("rare", put(0, [4, 1]), "the rare classes of a group have fewer than k_row = 5 images"),
        ("withheld", put((0, 0), 1), "they count a class that is withheld"),
        ("withheld", put((0, 1), 2), "they count a class that is withheld"),
        ("withheld", put((0, 1), 0), "they tell an empty class from one that is withheld"),
        ("counts", put((0, 0, 2), 4), "they tell fewer than k_row = 5 wrong answers class by class"),
        ("scores", put((0, 0, 0, 0), 5), "they hold histograms by class"),
        ("calibration", put((0, 0, 3), [5, 1, 1]), "they hold histograms by class"),
        ("mixed", put((0, 3, 0), 4), "a bin of confidence has fewer than k_bin = 5 images"),
        ("mixed", put((0, 14), [0, 1, 0]), "an empty bin of confidence has a sum"),
        ("mixed", put((0, 0, 1), 1.2345), DIGITS_LEFT),
        ("brier", put((0, 1), 1.2345), DIGITS_LEFT),
        ("brier", put((0, 2), 0.12345), DIGITS_LEFT),
        ("patients", put((0, 0, 1), 1.2345), DIGITS_LEFT),
        ("patients", put((0, 0, 2), -1.2345), DIGITS_LEFT),
        ("areas", put((0, 0, 1), 12.345), DIGITS_LEFT),
        ("areas", put((0, 0, 4), 12.345), DIGITS_LEFT),
        ("brier", put((0, 0), 10), DIFFERENT),
        ("mixed", put((0, 14, 0), 40), DIFFERENT),
        ("areas", put((0, 0, 0), 31), DIFFERENT),
        ("areas", put((0, 0, 5), 7), DIFFERENT),
        ("patients", put((0, 0, 0), 0), DIFFERENT),
    ],
)
def test_each_fault_has_its_name(name: str, change: Callable[[Array], None], expected: str) -> None:
    assert find_breach(release(LIMITS), LIMITS, "north") is None
    assert find_breach(spoil(release(LIMITS), name, change), LIMITS, "north") == expected


@pytest.mark.parametrize("name", ["mixed", "brier", "areas"])
def test_sums_of_groups_are_found(name: str) -> None:
    limits = Disclosure(6, 3, k_bin=3)
    told = release(limits, GROUPS)
    own = told.models[FEDERATED]["site"].to_arrays()[name]
    found = spoil(told, name, put(0, own[0]), "sex")
    assert find_breach(told, limits, "north") is None
    assert find_breach(found, limits, "north") == "they tell calibration, Brier score or AUC of groups"


def test_a_group_of_which_nothing_is_told_is_found() -> None:
    limits = Disclosure(6, 3, k_bin=3)
    told = release(limits, GROUPS)
    sex = told.models[FEDERATED]["sex"]
    more = EvaluationTables.make((*sex.groups, "x"), 4, withheld=np.ones((len(sex.groups) + 1, 4), np.int64))
    rest = {name: np.concatenate([array, more.to_arrays()[name][-1:]]) for name, array in sex.to_arrays().items()}
    named = EvaluationTables((*sex.groups, "x"), **rest)
    found = SiteTables({FEDERATED: {**told.models[FEDERATED], "sex": named}})
    assert find_breach(found, limits, "north") == "they name a group of which nothing is told"


def test_a_group_that_is_too_small_is_found() -> None:
    limits = Disclosure(12, 5, k_bin=5)
    labels = torch.zeros(11, dtype=torch.int64)
    told = release(LIMITS, {"site": ["north"] * 11}, labels, **{FEDERATED: LOGITS[:11, :2]})
    whole = spoil(told, "withheld", put((0, 1), 0))
    assert find_breach(whole, limits, "north") == "a group has fewer than k = 12 images"


def test_breach_of_other_models_is_found() -> None:
    found = release(LIMITS, **{LOCAL: OTHER})
    full = release(Disclosure(), **{LOCAL: OTHER})

    def swap(cells: Callable[[np.ndarray], np.ndarray]) -> SiteTables:
        paired = found.paired[LOCAL]["site"]
        return replace(found, paired={LOCAL: {"site": PairedTables(paired.groups, cells(paired.cells))}})

    assert find_breach(found, LIMITS, "north") is None
    assert find_breach(replace(found, paired=full.paired), LIMITS, "north") == DIFFERENT
    assert find_breach(swap(lambda cells: cells.swapaxes(2, 3).copy()), LIMITS, "north") == DIFFERENT
    assert find_breach(swap(lambda cells: cells[:, :3].copy()), LIMITS, "north") == DIFFERENT
    assert find_breach(replace(found, models={FEDERATED: found.models[FEDERATED]}), LIMITS, "north") == DIFFERENT
    exact = PairedTables(found.paired[LOCAL]["site"].groups, found.paired[LOCAL]["site"].cells, np.full((1, 4), 1.2345))
    assert find_breach(replace(found, paired={LOCAL: {"site": exact}}), LIMITS, "north") == DIGITS_LEFT
    smaller = release(LIMITS, labels=LABELS[:15], groups={"site": ["north"] * 15}).models[FEDERATED]
    mixed = replace(found, models={FEDERATED: found.models[FEDERATED], LOCAL: smaller})
    assert find_breach(mixed, LIMITS, "north") == DIFFERENT
    more = release(LIMITS, GROUPS).models[FEDERATED]
    other = SiteTables({FEDERATED: found.models[FEDERATED], LOCAL: more})
    assert find_breach(other, LIMITS, "north") == "their models are told by different attributes"


def test_another_models_sums_are_looked_at_too() -> None:
    found = release(LIMITS, **{UNCALIBRATED: LOGITS * 3})
    arrays = found.models[UNCALIBRATED]["site"].to_arrays()
    brier = arrays["brier"].copy()
    brier[0, 1] = 1.2345
    spoilt = EvaluationTables(("north",), **(arrays | {"brier": brier}))
    models = {**found.models, UNCALIBRATED: {"site": spoilt}}
    assert find_breach(replace(found, models=models), LIMITS, "north") == DIGITS_LEFT
