"""Which group of which attribute an image belongs to."""

import re

import pytest

from fedmed.config import FairnessConfig
from fedmed.errors import ConfigError, DataError
from fedmed.fairness.figures.groups import MOST_VALUES, assign_groups, is_crossing, order_groups

DATA = {
    "sex": ["female", "male", "", "female"],
    "age_band": ["60+", "0-39", "60+", "unknown"],
    "skin": ["I", "I", "II", "II"],
}


def test_site_comes_first_then_attributes_then_pairs() -> None:
    found = assign_groups("north", DATA, FairnessConfig())
    assert list(found) == ["site", "sex", "age_band", "skin", "sex x age_band", "sex x skin", "age_band x skin"]
    assert found["site"] == ("north",) * 4
    assert found["sex"] == ("female", "male", "unknown", "female")
    assert found["sex x age_band"] == ("female, 60+", "male, 0-39", "unknown", "unknown")
    assert [name for name in found if is_crossing(name)] == ["sex x age_band", "sex x skin", "age_band x skin"]


def test_only_what_is_asked_for_and_there() -> None:
    fairness = FairnessConfig(attributes=["sex", "weight", "skin"], intersections=[["skin", "sex"], ["sex", "weight"]])
    found = assign_groups("north", DATA, fairness)
    assert list(found) == ["site", "sex", "skin", "skin x sex"]
    assert found["skin x sex"][0] == "I, female"
    alone = assign_groups("north", DATA, FairnessConfig(attributes=[], intersections="none"))
    assert list(alone) == ["site"]
    three = FairnessConfig(attributes=["sex", "age_band", "skin"], intersections=[["sex", "age_band", "skin"]])
    assert assign_groups("north", DATA, three)["sex x age_band x skin"][1] == "male, 0-39, I"


def test_data_without_attributes_needs_the_number_of_images() -> None:
    assert assign_groups("north", {}, FairnessConfig(), num_images=2) == {"site": ("north", "north")}
    assert assign_groups("north", {}, FairnessConfig(), num_images=0) == {"site": ()}
    with pytest.raises(ValueError, match="num_images"):
        assign_groups("north", {}, FairnessConfig())


@pytest.mark.parametrize(
    ("fairness", "expected"),
    [
        ({"intersections": [["sex", "age_bnd"]]}, "no attribute in this site's data. Did you mean 'age_band'?"),
        ({"attributes": ["sex"], "intersections": [["sex", "skin"]]}, "no attribute named in fairness.attributes"),
        ({"intersections": [["sex", "sex"]]}, "holds [sex, sex]. Allowed: two or more different attributes"),
        ({"intersections": [["sex"]]}, "holds [sex]. Allowed: two or more different attributes"),
    ],
)
def test_crossing_that_cannot_be_made_is_explained(fairness: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        assign_groups("north", DATA, FairnessConfig.model_validate(fairness))


def test_attribute_that_is_likely_an_id_is_refused_without_its_values() -> None:
    ids = [f"PATIENT-{number % (MOST_VALUES + 1)}" for number in range(200)]
    few = [f"PATIENT-{number}" for number in range(11)] * 2
    for values, expected in ((ids, "51 different values for 200 images"), (few[1:], "11 different values for 21")):
        with pytest.raises(DataError, match=rf"'ward' .* has {expected}.* Allowed: up to 50") as caught:
            assign_groups("north", {"ward": values}, FairnessConfig())
        assert "PATIENT" not in str(caught.value)
    for values in (few, few[:10], [f"{number % MOST_VALUES}" for number in range(200)]):
        assert assign_groups("north", {"ward": values}, FairnessConfig())["ward"] == tuple(values)
    with pytest.raises(DataError, match="a value of more than 100 letters") as caught:
        assign_groups("north", {"note": ["ERIKA" * 30]}, FairnessConfig())
    assert "ERIKA" not in str(caught.value)


@pytest.mark.parametrize("name", ["site", "a x b", "n" * 101])
def test_name_that_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="Rename the column"):
        assign_groups("north", {name: ["a"]}, FairnessConfig())


def test_too_many_groups_or_attributes() -> None:
    values = {"a": [str(i % 50) for i in range(2500)], "b": [str(i // 50) for i in range(2500)]}
    assert list(assign_groups("north", values, FairnessConfig())) == ["site", "a", "b"]  # 2500 groups are left out
    with pytest.raises(DataError, match=r"2500 groups\. Allowed: 200"):
        assign_groups("north", values, FairnessConfig(intersections=[["a", "b"]]))
    many = {f"a{i}": ["x"] for i in range(9)}
    with pytest.raises(DataError, match="9 attributes and 36 crossings of them; at most 39"):
        assign_groups("north", many, FairnessConfig())


@pytest.mark.parametrize(
    "ordered",
    [
        ["<40", "40-59", ">=60", "unknown"],
        ["2", "10", "11"],
        ["-5", "-1", "0", "1.5 to <2.5", "2.5"],
        ["0-39", "40-59", "60+", "unknown"],
        ["<5", "5", "5-8", ">9", "10"],
        ["female", "male", "unknown"],
        ["female, <40", "female, 40-59", "female, >=100", "male, 2", "male, 10", "unknown"],
        ["1", "2", "3T", "high"],
    ],
)
def test_groups_are_ordered_as_a_person_reads_them(ordered: list[str]) -> None:
    assert order_groups(reversed(ordered)) == ordered
