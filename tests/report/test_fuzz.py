"""``python -m fedmed.report`` on numbers that somebody has changed: a page or one line, never a traceback.

The parts that only newer versions write are changed here, in the ways in which the form of the file still holds and in
those in which it does not.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmed.report.__main__ import main
from fedmed.report.document import build_document
from tests.report.figures.test_clinical import POINT, make_site
from tests.report.sections.clinical.test_shift import make_record
from tests.report.support.example import make_content

PARTS = ("clinical", "shift", "pooled_auc", "flow")
OTHERS: list[Any] = [
    None,
    -1,
    0,
    1e300,
    "text",
    "<b>",
    "two\nlines",
    True,
    [],
    {},
    [None],
    {"x": 1},
    "9" * 400,
    -0.5,
    7,
    math.nan,
    math.inf,
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    sites = ("north", "south")
    content = make_content(
        test={name: make_site(name, (6, 2)) for name in sites},
        operating=POINT,
        single_sites=True,
        shift=make_record([0.1, 0.2, 0.1, 3.0]),
        pooled_auc={"model_sha256": "00", "n": 240, "limit": 20_000, "by_class": [0.75, 0.8]},
        found={
            name: {"kept": {"train": 80, "validation": 20, "test": 20}, "excluded": {"unreadable": 2}} for name in sites
        },
    )
    made: dict[str, Any] = json.loads(json.dumps(build_document(content)))
    return made


def list_places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inside in list(items) for place in [(value, key), *list_places(inside)]]


def change(document: dict[str, Any], part: str, rng: np.random.Generator) -> dict[str, Any]:
    """Return a copy with one to three places of a part removed, renamed, replaced or doubled."""
    changed = copy.deepcopy(document)
    for _ in range(int(rng.integers(1, 4))):
        places = list_places({part: changed[part]})[1:] or [(changed, part)]
        container, key = places[int(rng.integers(len(places)))]
        kind = int(rng.integers(4))
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container["another"] = container.pop(key)
        elif kind == 2 and isinstance(container[key], list):
            container[key] = container[key] * 2
        elif isinstance(container[key], int | float) and rng.random() < 0.5:
            container[key] = type(container[key])(container[key] * -1000)
        else:
            container[key] = OTHERS[int(rng.integers(len(OTHERS)))]
        if part not in changed:
            return changed
    return changed


def check(folder: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> int:
    (folder / "report.json").write_text(json.dumps(document))
    code = main([str(folder), "--out", str(folder / "page")])
    told = capsys.readouterr().err
    assert (code, told.count("\n")) in {(0, 0), (1, 1)}, told
    assert code == 0 or told.startswith("Nothing was drawn. ")
    return code


def test_numbers_as_they_were_written_are_drawn(
    tmp_path: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(document[part] is not None for part in PARTS)
    assert check(tmp_path, document, capsys) == 0


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.ci) for seed in range(6, 100))])
@pytest.mark.parametrize("part", PARTS)
def test_changed_numbers_are_drawn_or_refused_in_one_line(
    part: str, seed: int, tmp_path: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check(tmp_path, change(document, part, np.random.default_rng(seed)), capsys)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_or_null_is_as_from_an_earlier_version(
    part: str, tmp_path: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    without = {name: value for name, value in document.items() if name != part}
    assert check(tmp_path, without, capsys) == 0


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(
    number: str, tmp_path: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(document).replace(json.dumps(document["pooled_auc"]["exact"]), number)
    assert number in text
    (tmp_path / "report.json").write_text(text)
    assert main([str(tmp_path)]) == 1
    assert "The report holds NaN or Infinity" in capsys.readouterr().err
