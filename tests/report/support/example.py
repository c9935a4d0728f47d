"""Content of a report, small enough to check by hand."""

from typing import Any

import numpy as np
import torch

from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.metrics.tables import EvaluationTables, tables_from_logits
from fedmed.report import ReportContent
from fedmed.storage.history import RoundRecord


def make_tables(
    site: str,
    pairs: list[tuple[int, int]],
    num_classes: int = 2,
    confidence: float = 0.8,
    groups: list[str] | None = None,
) -> EvaluationTables:
    """Return the tables of one image for each (true class, predicted class)."""
    logits = np.zeros((len(pairs), num_classes))
    odds = np.log(confidence / (1 - confidence) * (num_classes - 1))
    for row, (_, predicted) in enumerate(pairs):
        logits[row, predicted] = odds
    labels = torch.tensor([true for true, _ in pairs], dtype=torch.int64)
    return tables_from_logits(torch.tensor(logits), labels, groups or [site] * len(pairs))


def make_site(site: str, pairs: list[tuple[int, int]], num_classes: int = 2) -> SiteTables:
    """Return a site's answer that tells nothing but the site itself apart."""
    return SiteTables({FEDERATED: {"site": make_tables(site, pairs, num_classes)}})


def make_record(number: int, sites: dict[str, str], value: float = 0.5) -> dict[str, Any]:
    """Return a record of ``history.jsonl`` in which each site has the given status."""
    accepted = [site for site, status in sites.items() if status == "accepted"]
    return {
        "round": number,
        "attempt": 1,
        "finished": "2025-01-01T00:00:00+00:00",
        "wall_s": 2.5,
        "loss": 1.0 / number,
        "learning_rate": 0.02,
        "model_sha256": "00",
        "coverage_images": 1.0,
        "bytes_to_sites": 2000,
        "bytes_from_sites": 1000 * len(accepted),
        "participation": [
            {
                "site": site,
                "status": status,
                "reason": None if status == "accepted" else f"was {status}",
                "images": 40 if status == "accepted" else None,
                "share": 1 / len(accepted) if status == "accepted" else 0.0,
                "update_bytes": 1000 if status == "accepted" else None,
            }
            for site, status in sites.items()
        ],
        "validation": {
            "pooled": {"balanced_accuracy": value, "accuracy": value, "macro_f1": value},
            "sites": {site: {"balanced_accuracy": value, "accuracy": value} for site in sites},
        },
    }


def make_content(**changes: Any) -> ReportContent:
    """Return two sites, two classes, three rounds; pooled test: 6 of 8 ``benign`` and 1 of 2 ``malignant`` right."""
    north = make_site("north", [(0, 0)] * 4 + [(0, 1)] * 1 + [(1, 1)] * 1)
    south = make_site("south", [(0, 0)] * 2 + [(0, 1)] * 1 + [(1, 0)] * 1)
    statuses = [{"north": "accepted", "south": status} for status in ("accepted", "late", "late")]
    values: dict[str, Any] = {
        "title": "example",
        "config": {"name": "example", "choose_by": "balanced_accuracy", "model": {"name": "resnet18"}},
        "environment": {"python": "3.11", "packages": {"torch": "2.11"}},
        "classes": ("benign", "malignant"),
        "chosen_round": 2,
        "rounds_done": 3,
        "history": [make_record(number, status) for number, status in enumerate(statuses, start=1)],
        "validation": {"north": north, "south": south},
        "test": {"north": north, "south": south},
        "composition": {
            "north": {"train": [30, 10], "validation": [5, 1], "test": [5, 1]},
            "south": {"train": [20, 20], "validation": [3, 1], "test": [3, 1]},
        },
        "synthetic": False,
        "notes": ["a note"],
        "seed": 0,
    }
    values |= changes
    values["history"] = [RoundRecord.model_validate(record) for record in values["history"]]
    return ReportContent(**values)


def make_large_content(num_sites: int, num_rounds: int, num_classes: int) -> ReportContent:
    """Return many sites and rounds, in which one site in ten is late."""
    sites = [f"site_{index:03d}" for index in range(num_sites)]
    pairs = [(true, (true * (1 + row)) % num_classes) for true in range(num_classes) for row in range(4)]
    tables = {site: make_site(site, pairs[index % 4 :], num_classes) for index, site in enumerate(sites)}
    history = [
        make_record(
            number, {site: "late" if (index + number) % 10 == 0 else "accepted" for index, site in enumerate(sites)}
        )
        for number in range(1, num_rounds + 1)
    ]
    parts = {"train": [10] * num_classes, "validation": [4] * num_classes, "test": [4] * num_classes}
    return make_content(
        classes=tuple(f"class_{index}" for index in range(num_classes)),
        rounds_done=num_rounds,
        history=history,
        validation=tables,
        test=tables,
        composition=dict.fromkeys(sites, parts),
    )
