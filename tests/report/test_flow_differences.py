"""The data flow as a reviewer of disclosure reads it: no difference of the shown totals is a small number of patients.

At a hospital's thresholds (k 10, k_row 5) the page has patients by site, by class and by group. Groups of an attribute
add up to the site totals but for what is held back, and the cells of a crossing to its parts. Only such nested totals
are subtracted: of two overlapping ones a small difference is no group of few patients.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmed.fairness.disclosure.row_span import Mask
from fedmed.fairness.disclosure.rows import AttributePlan, plan_disclosure
from fedmed.fairness.disclosure.tables import Disclosure, disclose_tables
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.report.document import build_document
from fedmed.report.schema.flow import DataFlow
from tests.report.support.example import make_content

LIMITS = Disclosure(k=10, k_row=5, k_bin=5)
SEXES, AGES = ("female", "male", "divers"), ("under_40", "40_60", "over_60")
NUM_CLASSES = 3


def make_site(rng: np.random.Generator, name: str, *, naive: bool = False) -> SiteTables:
    """Return what a hospital tells: a rare class, a rare sex, a rare age, and patients with up to three images.

    ``naive``: only rows of too few patients are held back, whatever follows by subtraction.
    """
    number = int(rng.integers(60, 160))
    sex = rng.choice(SEXES, number, p=[0.54, 0.44, 0.02])
    age = rng.choice(AGES, number, p=[0.52, 0.45, 0.03])
    disease = rng.choice(NUM_CLASSES, number, p=[0.58, 0.38, 0.04])
    patient = np.repeat(np.arange(number), rng.integers(1, 4, number))
    labels = torch.from_numpy(disease[patient])
    groups = {
        "site": [name] * len(labels),
        "sex": sex[patient].tolist(),
        "age": age[patient].tolist(),
        "age x sex": [f"{a}, {s}" for a, s in zip(age[patient], sex[patient], strict=True)],
    }
    ids = [f"{name}{one}" for one in patient]
    items = [f"{name}-{place}" for place in range(len(labels))]
    plan = plan_disclosure(labels, groups, items, LIMITS, None, ids)
    if naive:
        attributes = {
            own: AttributePlan(_find_large(labels, values, ids), plan.set_aside & False)
            for own, values in groups.items()
        }
        plan = replace(plan, attributes=attributes)
    logits = torch.from_numpy(rng.normal(size=(len(labels), NUM_CLASSES)))
    return disclose_tables({FEDERATED: logits}, labels, groups, plan, LIMITS, ids)


def _find_large(labels: torch.Tensor, groups: Sequence[str], patients: Sequence[str]) -> Mask:
    """Return which images are of a row (group, class) with enough patients."""
    rows = list(zip(groups, labels.tolist(), strict=True))
    owners: dict[tuple[str, int], set[str]] = {}
    for row, patient in zip(rows, patients, strict=True):
        owners.setdefault(row, set()).add(patient)
    return np.array([len(owners[row]) >= LIMITS.k_row for row in rows])


def make_flow(seed: int, *, naive: bool = False) -> tuple[DataFlow, set[str]]:
    """Return the flow, and the groups whose patients are not all in it, since a site tells rare classes together."""
    rng = np.random.default_rng(seed)
    names = [f"site_{number}" for number in range(int(rng.integers(2, 4)))]
    tables = {name: make_site(rng, name, naive=naive) for name in names}
    content = make_content(
        classes=("nevus", "melanoma", "vascular"),
        composition=None,
        history=[],
        test=tables,
        validation={},
        thresholds={"k": 10, "k_row": 5, "unit": "patients"},
        single_sites=False,
    )
    partial = {
        group
        for own in tables.values()
        for of_attribute in own.models[FEDERATED].values()
        for group, rare in zip(of_attribute.groups, of_attribute.rare, strict=True)
        if rare.any()
    }
    return build_document(content)["flow"], partial


def list_differences(flow: DataFlow, partial: set[str]) -> dict[str, int]:
    """Return what a reader gets by subtracting parts from a whole, of wholes that have all their patients."""
    patients = flow["patients"]
    assert patients is not None
    groups = {name: {group: n or 0 for group, n in own.items()} for name, own in patients["groups"].items()}
    by_site = sum(site["patients"] or 0 for site in flow["sites"].values())
    found = {"sites and classes": by_site - sum(patients["by_class"].values())}
    for name, own in groups.items():
        if partial & set(flow["sites"]):
            break
        found[f"all but the groups of {name}"] = by_site - sum(own.values())
    for part, place in (("age", 0), ("sex", 1)):
        for value, number in groups[part].items():
            if value in partial:
                continue
            cells = [n for cell, n in groups["age x sex"].items() if cell.split(", ")[place] == value]
            found[f"{value} but its cells"] = number - sum(cells)
    return found


def find_small(seed: int, *, naive: bool = False) -> dict[str, int]:
    differences = list_differences(*make_flow(seed, naive=naive))
    return {what: number for what, number in differences.items() if 0 < abs(number) < LIMITS.k_row}


@pytest.mark.parametrize("seed", range(8))
def test_no_difference_of_shown_totals_is_a_small_number(seed: int) -> None:
    assert find_small(seed) == {}


def test_holding_back_small_rows_alone_would_give_some_away() -> None:
    assert any(find_small(seed, naive=True) for seed in range(4))
