"""One site's tables would overflow, wrap around, drown all others or cost minutes: refused at the door, and named."""

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedmed.fairness.disclosure import whole_answer
from fedmed.fairness.disclosure.whole_answer import find_most_bytes
from fedmed.metrics.site_tables import SITE_ATTRIBUTE, PairedTables, SiteTables
from fedmed.metrics.tables import EvaluationTables
from fedmed.protocol.messages import REPORT, TABLES, make_content
from fedmed.storage.history import to_plain_json
from server.rounds.scoring import Scores
from tests.attacks.support.bad_site import BAD, MODEL_SHA256, NUM_CLASSES, close_evaluation, draw_answers
from tests.support.federation import Notes

Arrays = dict[str, np.ndarray]


def pack(tables: SiteTables) -> RecordDict:
    return make_content(REPORT, {"model_sha256": MODEL_SHA256}, tables=tables)


def close(bad: RecordDict, most_images: int = 1000, **fairness: Any) -> tuple[Scores, list[str]]:
    """Close a round of two honest sites and a bad one; what is kept of it is JSON without NaN."""
    notes = Notes()
    drawn = {site: draw_answers(site, seed) for seed, site in enumerate(("h0", "h1"))}
    if fairness:  # which may not ask for what is drawn
        drawn = {site: SiteTables({"federated": {SITE_ATTRIBUTE: own.site}}) for site, own in drawn.items()}
    honest = {site: pack(own) for site, own in drawn.items()}
    scores, validation = close_evaluation({**honest, BAD: bad}, most_images, notes, **fairness)
    assert {"h0", "h1"} <= set(scores.tables)
    json.dumps(to_plain_json(validation.model_dump()), allow_nan=False)
    assert all(value is None or abs(value) <= 10 or key == "n" for key, value in validation.pooled.items())
    return scores, notes.notes


def change_site(change: Callable[[Arrays], None]) -> SiteTables:
    honest = draw_answers(BAD, 9)
    return replace_attribute(honest, SITE_ATTRIBUTE, change)


def replace_attribute(honest: SiteTables, attribute: str, change: Callable[[Arrays], None]) -> SiteTables:
    federated = dict(honest.models["federated"])
    arrays = {name: array.copy() for name, array in federated[attribute].to_arrays().items()}
    change(arrays)
    federated[attribute] = EvaluationTables(federated[attribute].groups, **arrays)
    return SiteTables({"federated": federated})


def set_cells(name: str, place: Any, value: Any, *, empty: tuple[str, ...] = ()) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for other in empty:
            arrays[other][:] = 0
        arrays[name][place] = value

    return change


def all_right(number: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for array in arrays.values():
            array[:] = 0
        arrays["counts"][0, range(NUM_CLASSES), range(NUM_CLASSES)] = number

    return change


BINS = ("scores", "calibration", "brier")
TRIALS = {
    "bin of 1e308": set_cells("calibration", (0, 0, 0), [1e308, 1e308, 0.0]),
    "bins of 1e308": set_cells("calibration", (0, slice(None), slice(None), 0), 1e308),
    "Brier of 1e308": set_cells("brier", slice(None), 1e308),
    "infinite": set_cells("calibration", (0, 0, 0, 1), np.inf),
    "NaN": set_cells("brier", (0, 1), np.nan),
    "negative": set_cells("counts", (0, 0, 0), -1),
    "negative sum": set_cells("calibration", (0, 0, 0, 1), -0.5),
    "counts of 2^62 that are 0 modulo 2^64": set_cells("counts", (0, 0, slice(0, 4)), 2**62, empty=BINS),
    "four times 2^62 right": set_cells("counts", (0, range(1, 5), range(1, 5)), 2**62, empty=BINS),
    "the smallest number": set_cells("counts", (0, 1, 1), -(2**63), empty=BINS),
    "withheld 2^62": set_cells("withheld", slice(None), 2**62),
    "more images than declared": all_right(201),
    "scores of others": set_cells("scores", (0, 0, slice(None), 0), 900),
    "half an image": set_cells("calibration", (0, 0, 0), [0.5, 0.5, 0.0]),
    "confidence above 1": set_cells("calibration", (0, 0, 14), [1.0, 3.9, 1.0]),
    "Brier above 2": set_cells("brier", (0, 1), 900.0),
}


@pytest.mark.parametrize("name", TRIALS)
def test_numbers_that_cannot_be_are_refused(name: str) -> None:
    scores, notes = close(pack(change_site(TRIALS[name])))
    assert BAD not in scores.tables
    assert notes == [f"{BAD} gave no evaluation: {scores.refused[BAD]}"]


def test_honest_tables_are_taken_also_at_the_limit() -> None:
    assert BAD in close(pack(draw_answers(BAD, 9)))[0].tables
    assert BAD in close(pack(draw_answers(BAD, 9)), most_images=200)[0].tables
    assert BAD in close(pack(change_site(all_right(200))))[0].tables
    assert "has declared 199" in close_alone(pack(draw_answers(BAD, 9)), 199)


def close_alone(bad: RecordDict, most_images: int) -> str:
    return close_evaluation({BAD: bad}, most_images)[0].refused[BAD]


def name_groups(**groups: list[str]) -> SiteTables:
    """Tables of one image of class 0 in each of many groups."""
    federated = {SITE_ATTRIBUTE: draw_answers(BAD, 9).site}
    for attribute, names in groups.items():
        zeros = {
            name: np.zeros((len(names), *array.shape[1:]), array.dtype)
            for name, array in federated[SITE_ATTRIBUTE].to_arrays().items()
        }
        zeros["counts"][:, 0, 0] = 1
        federated[attribute.replace("_x_", " x ")] = EvaluationTables(tuple(names), **zeros)
    return SiteTables({"federated": federated})


def number(size: int) -> list[str]:
    return [f"v{index:03d}" for index in range(size)]


GROUPS: dict[str, tuple[SiteTables, dict[str, Any], str]] = {
    "many values": (name_groups(sex=number(65)), {}, "at most 64"),
    "many crossed": (name_groups(sex=number(9), age=number(9), sex_x_age=number(200)), {}, ""),
    "crossing of three": (name_groups(a=number(9), b=number(9), c=number(9), a_x_b_x_c=number(9)), {}, "this crossing"),
    "crossing of the untold": (name_groups(sex=number(2), sex_x_age=number(2)), {}, "is not told"),
    "crossing of one": (name_groups(sex=number(2), sex_x_sex=number(2)), {}, "one twice"),
    "outside the plan": (name_groups(sex=number(2), wealth=number(2)), {"attributes": ["sex"]}, "this attribute"),
    "no crossings": (
        name_groups(sex=number(2), age=number(2), sex_x_age=number(2)), {"intersections": "none"}, "this crossing",
    ),
    "another crossing": (
        name_groups(a=number(2), b=number(2), c=number(2), a_x_c=number(2)), {"intersections": [["a", "b"]]},
        "this crossing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_groups_outside_the_plan_or_too_many_are_refused(name: str) -> None:
    tables, fairness, words = GROUPS[name]
    scores, _ = close(pack(tables), **fairness)
    assert (words in scores.refused[BAD]) if words else (BAD in scores.tables)


def test_a_crossing_of_three_is_taken_where_the_plan_asks_for_it() -> None:
    tables = name_groups(a=number(2), b=number(2), c=number(2), a_x_b_x_c=number(2))
    assert BAD in close(pack(tables), intersections=[["a", "b", "c"]])[0].tables


def test_crossings_of_hundreds_of_values_never_reach_the_sums() -> None:
    """Of three attributes with 100 values each: the million combinations are not looked at."""
    tables = name_groups(a=number(100), b=number(100), c=number(100), a_x_b_x_c=["v000, v000, v000"])
    assert "at most 64 can be told apart" in close(pack(tables))[0].refused[BAD]


def test_tables_of_another_site_or_number_of_classes_are_refused() -> None:
    assert "not of this site" in close(pack(draw_answers("h0", 9)))[0].refused[BAD]
    other = draw_answers(BAD, 9).site
    arrays, by_class = other.to_arrays(), {"withheld", "calibration", "other_wrong", "patients", "areas", "alerts"}
    fewer = {
        name: array[:, :4, :4] if name in {"counts", "scores"} else array[:, :4] if name in by_class else array
        for name, array in arrays.items()
    }
    fewer |= {name: fewer[name] * 0 for name in ("scores", "brier", "patients", "areas", "calibration")}
    tables = SiteTables({"federated": {SITE_ATTRIBUTE: EvaluationTables((BAD,), **fewer)}})
    assert "4 classes" in close(pack(tables))[0].refused[BAD]


def test_other_models_and_paired_tables_are_of_the_same_images() -> None:
    own, other = draw_answers(BAD, 9), draw_answers(BAD, 10)
    tables = SiteTables({"federated": own.models["federated"], "local": other.models["federated"]})
    assert "other images" in close(pack(tables))[0].refused[BAD]
    site = {SITE_ATTRIBUTE: own.site}
    cells = np.zeros((1, NUM_CLASSES, 2, 2), np.int64)
    cells[0, 0, 1, 1] = own.site.counts[0, 0].sum()  # all of a class right, of which some are wrong
    paired = {"local": {SITE_ATTRIBUTE: PairedTables((BAD,), cells)}}
    tables = SiteTables({"federated": site, "local": site}, paired)
    assert "do not fit" in close(pack(tables))[0].refused[BAD]


def test_a_message_that_is_too_long_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_answer, "_MOST_BYTES", 1000)
    assert "at most 1000 are read" in close_alone(pack(draw_answers(BAD, 9)), 1000)


def test_a_list_of_contents_that_is_too_long_is_not_read() -> None:
    content = pack(draw_answers(BAD, 9))
    assert find_most_bytes(NUM_CLASSES) > 10**6
    data = struct.pack("<Q", 9 * 2**20) + b"{" + b" " * 100
    content[TABLES]["bytes"].data = data
    assert "too long to be read" in close_alone(content, 1000)
