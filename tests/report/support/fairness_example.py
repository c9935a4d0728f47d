"""A run with patient groups, personalised and local-only models, and a temperature: drawn, with known differences."""

from typing import Any

import numpy as np
import torch

from fedmed.metrics.site_tables import BATCH_NORM, FEDERATED, FINE_TUNED, LOCAL, UNCALIBRATED, SiteTables, make_paired
from fedmed.metrics.tables import tables_from_logits
from fedmed.report import ReportContent
from tests.report.support.example import make_content, make_record

CLASSES = ("benign", "malignant", "unclear")
MODELS = {FEDERATED: 0.75, BATCH_NORM: 0.77, FINE_TUNED: 0.8, LOCAL: 0.65}


def draw_site(
    site: str,
    sizes: dict[tuple[str, str], int],
    right: dict[str, float] | None = None,
    penalty: dict[str, float] | None = None,
    seed: int = 0,
) -> SiteTables:
    """Return the answer of a site with images of ``(sex, age band)`` in the given numbers.

    ``right`` is each model's chance of a right answer, ``penalty`` what a sex or an age band takes off it.
    """
    right, penalty = right or MODELS, penalty or {}
    rng = np.random.default_rng([seed, *site.encode()])
    cells = [cell for cell, number in sizes.items() for _ in range(number)]
    labels = rng.integers(0, len(CLASSES), len(cells))
    groups = {
        "site": [site] * len(cells),
        "sex": [sex for sex, _ in cells],
        "age_band": [age for _, age in cells],
        "sex x age_band": ["unknown" if "unknown" in cell else ", ".join(cell) for cell in cells],
    }
    loss = np.array([penalty.get(sex, 0.0) + penalty.get(age, 0.0) for sex, age in cells])
    luck = rng.random(len(cells))
    models: dict[str, Any] = {}
    hits = {}
    for model, chance in right.items():
        own_luck = np.where(rng.random(len(cells)) < 0.6, luck, rng.random(len(cells)))
        hits[model] = own_luck < chance - loss
        answers = np.where(hits[model], labels, (labels + 1) % len(CLASSES))
        logits = rng.normal(0, 0.4, (len(cells), len(CLASSES)))
        logits[np.arange(len(cells)), answers] = logits.max(axis=1) + rng.exponential(1.6, len(cells))
        forms = {FEDERATED: 1.0, UNCALIBRATED: 1.6} if model == FEDERATED else {model: 1.0}
        for name, sharpness in forms.items():
            models[name] = {
                attribute: tables_from_logits(torch.tensor(logits * sharpness), torch.tensor(labels), values)
                for attribute, values in groups.items()
            }
    paired = {
        model: {
            attribute: make_paired(hits[FEDERATED], hits[model], labels, values, len(CLASSES))
            for attribute, values in groups.items()
        }
        for model in right
        if model != FEDERATED
    }
    return SiteTables(models, paired)


def make_sites() -> dict[str, SiteTables]:
    """Return four sites; at ``north`` the local-only model is better, at ``east`` the images are few."""
    ages = ("0-39", "40-59", "60+")
    sizes = {(sex, age): 40 for sex in ("female", "male") for age in ages} | {("unknown", "60+"): 12}
    few = dict.fromkeys(sizes, 5)
    penalty = {"male": 0.18, "60+": 0.04}
    worse = MODELS | {LOCAL: 0.9, FEDERATED: 0.72}
    return {
        "east": draw_site("east", few, penalty=penalty),
        "north": draw_site("north", sizes, right=worse, penalty=penalty),
        "south": draw_site("south", sizes, penalty=penalty),
        "west": draw_site("west", sizes, penalty=penalty),
    }


def only_federated(sites: dict[str, SiteTables]) -> dict[str, SiteTables]:
    """Return what the same sites answer in a round: the federated model alone."""
    return {name: SiteTables({FEDERATED: tables.models[FEDERATED]}) for name, tables in sites.items()}


def make_fair_record(number: int, sites: list[str]) -> dict[str, Any]:
    """Return a record with figures by group and gaps."""
    record = make_record(number, dict.fromkeys(sites, "accepted"), value=0.4 + 0.03 * number)
    values = {"female": 0.45 + 0.03 * number, "male": 0.4 + 0.02 * number, "unknown": 0.4}
    record["validation"] |= {
        "groups": {
            "sex": {name: {"balanced_accuracy": value, "n": 50} for name, value in values.items()},
            "age_band": {
                name: {"balanced_accuracy": 0.4 + 0.02 * number + 0.03 * index, "n": 30}
                for index, name in enumerate(("0-39", "40-59", "60+"))
            },
        },
        "gaps": {
            "site": {"gap_balanced_accuracy": 0.2 - 0.01 * number},
            "sex": {"gap_balanced_accuracy": 0.05 + 0.01 * number},
            "age_band": {"gap_balanced_accuracy": 0.06},
        },
        "hidden": {},
    }
    return record


def make_fair_content(**changes: Any) -> ReportContent:
    """Return a run of ten rounds with four sites, three attributes, benefit and temperature."""
    sites = make_sites()
    history = [make_fair_record(number, list(sites)) for number in range(1, 11)]
    history[6]["alarms"] = [
        {
            "kind": "fall",
            "attribute": "sex",
            "group": "male",
            "figure": "balanced_accuracy",
            "value": 0.41,
            "reference": 0.55,
            "reference_round": 5,
            "p_value": 0.003,
            "text": "Balanced accuracy of male (sex) fell from 0.550 in round 5 to 0.410.",
        }
    ]
    values: dict[str, Any] = {
        "classes": CLASSES,
        "chosen_round": 9,
        "rounds_done": 10,
        "history": history,
        "validation": only_federated(sites),
        "test": sites,
        "composition": None,
        "temperature": {"temperature": 1.6, "n": 400, "nll_before": 0.91, "nll_after": 0.72},
        "benefit_expected": True,
        "single_sites": True,
    }
    return make_content(**values | changes)
