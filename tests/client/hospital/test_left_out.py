"""Who is left out beside patients who withdrew: never fewer than hide them, and the same ones for good."""

import json
import stat
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.hospital.left_out import LeftOut, draw_further, leave_out, pad_groups
from fedmed.errors import RunFolderError

ORDER = LeftOut(b"7" * 32)
PARTS = ("train", "validation", "test")


def make_parts(**sizes: int) -> tuple[dict[str, str], dict[str, str]]:
    """Two images a patient."""
    images = [(f"{part}-{number}", part) for part, size in sizes.items() for number in range(2 * size)]
    return dict(images), {item: f"{part}-patient-{int(item.split('-')[1]) // 2}" for item, part in images}


def of(patients: dict[str, str], *names: str) -> set[str]:
    return {item for item, patient in patients.items() if patient in names}


def test_k_minus_1_further_patients_of_the_part_with_all_their_images() -> None:
    parts, patients = make_parts(train=40, validation=20)
    drawn = draw_further(of(patients, "train-patient-3"), parts, patients, 10, ORDER)
    assert {parts[item] for item in drawn} == {"train"}
    counts = Counter(patients[item] for item in drawn)
    assert (len(counts), set(counts.values())) == (9, {2})
    assert "train-patient-3" not in counts


def test_others_are_drawn_with_another_seed() -> None:
    parts, patients = make_parts(train=60)
    new = of(patients, "train-patient-3")
    assert draw_further(new, parts, patients, 10, ORDER) != draw_further(new, parts, patients, 10, LeftOut(b"8" * 32))


@pytest.mark.parametrize(("size", "left"), [(30, 20), (20, 10), (19, 0), (10, 0), (2, 0), (1, 0)])
def test_a_part_with_too_few_patients_loses_all(size: int, left: int) -> None:
    """k = 10: one withdraws, 9 are drawn, and 10 at least must stay."""
    parts, patients = make_parts(train=size, test=5)
    new = of(patients, "train-patient-0")
    drawn = draw_further(new, parts, patients, 10, ORDER)
    assert len(parts) - len(new | drawn) == 2 * left + 10, "the test loses nobody"


def test_a_threshold_of_1_draws_nobody() -> None:
    parts, patients = make_parts(train=5)
    assert draw_further(of(patients, "train-patient-0"), parts, patients, 1, ORDER) == set()


def test_a_patient_of_two_parts_is_not_the_one_that_both_have_lost() -> None:
    parts, patients = make_parts(train=40, validation=40)
    patients |= {f"validation-{number}": f"train-patient-{number // 2}" for number in range(24)}
    new = of(patients, "train-patient-3")
    assert {parts[item] for item in new} == {"train", "validation"}
    drawn = draw_further(new, parts, patients, 10, ORDER)
    in_both = [{patients[item] for item in drawn if parts[item] == part} for part in ("train", "validation")]
    assert len(in_both[0] & in_both[1]) == 9


@st.composite
def sites(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, str], list[set[str]], int]:
    number = draw(st.integers(1, 60))
    of_patient = draw(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3), min_size=1, max_size=number))
    parts = {f"{who}-{i}": part for who, places in enumerate(of_patient) for i, part in enumerate(places)}
    patients = {item: item.split("-")[0] for item in parts}
    lists = draw(st.lists(st.sets(st.sampled_from(sorted(parts)), max_size=3), min_size=1, max_size=5))
    return parts, patients, lists, draw(st.integers(2, 12))


@settings(max_examples=150, deadline=None)
@given(sites())
def test_no_part_ever_loses_fewer_than_k_patients_and_nobody_comes_back(
    tmp_path_factory: pytest.TempPathFactory, site: tuple[dict[str, str], dict[str, str], list[set[str]], int]
) -> None:
    """Withdrawals of patients and single images, in a row and undone: of each two states, in every part."""
    parts, patients, lists, k = site
    path = tmp_path_factory.mktemp("state") / "left_out.json"
    states: list[set[str]] = [set()]
    for named in lists:
        whole = {item for item in parts if patients[item] in {patients[one] for one in named}}
        withdrawn, further = leave_out(path, parts, patients, whole, k, told=True).select(parts)
        assert whole <= withdrawn | further
        states.append(withdrawn | further)
    for number, after in enumerate(states):
        for before in states[:number]:
            assert before <= after
            for part in PARTS:
                here = {item for item in parts if parts[item] == part}
                lost = {patients[item] for item in (after - before) & here}
                left = {patients[item] for item in here - after}
                assert not lost or len(lost) >= k or not left
                assert not lost or not left or len(left) >= k


def test_nobody_further_before_anything_was_told(tmp_path: Path) -> None:
    parts, patients = make_parts(train=40)
    first, other = of(patients, "train-patient-3"), of(patients, "train-patient-4")
    path = tmp_path / "left_out.json"
    for named in (first, set(), other):  # a list that is corrected before the start
        assert leave_out(path, parts, patients, named, 10, told=False).select(parts) == (named, set())
    assert leave_out(path, parts, patients, other, 10, told=True).select(parts) == (other, set())
    withdrawn, further = leave_out(path, parts, patients, first | other, 10, told=True).select(parts)
    assert (withdrawn, len(further)) == (first | other, 18)
    again = leave_out(path, parts, patients, set(), 10, told=False).select(parts)
    assert again == (withdrawn, further), "also where the traces of what was told are gone"


def test_one_who_was_left_out_beside_others_costs_nobody_when_he_withdraws(tmp_path: Path) -> None:
    parts, patients = make_parts(train=60)
    path = tmp_path / "left_out.json"
    first = of(patients, "train-patient-3")
    _, further = leave_out(path, parts, patients, first, 10, told=True).select(parts)
    later = of(patients, patients[min(further)])
    assert leave_out(path, parts, patients, first | later, 10, told=True).select(parts) == (first, further)


def test_the_file_is_secret_and_names_nobody(tmp_path: Path) -> None:
    parts, patients = make_parts(train=60)
    path = tmp_path / "left_out.json"
    leave_out(path, parts, patients, of(patients, "train-patient-3"), 10, told=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "train" not in path.read_text()
    other = leave_out(tmp_path / "other.json", parts, patients, of(patients, "train-patient-3"), 10, told=True)
    assert other.seed.hex() != json.loads(path.read_text())["seed"]


@pytest.mark.parametrize("content", ["", "{}", '{"seed": "7", "withdrawals": 1}', "[]"])
def test_a_damaged_file_stops_everything(tmp_path: Path, content: str) -> None:
    path = tmp_path / "left_out.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(RunFolderError, match="Nothing is computed without it"):
        leave_out(path, {}, {}, set(), 10, told=True)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=80),
    st.lists(st.sets(st.integers(0, 79), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(2, 10),
)
def test_no_group_ever_loses_fewer_than_k_patients(names: list[str], lost: list[set[int]], k: int) -> None:
    groups = {str(place): name for place, name in enumerate(names)}
    occasions = [{str(place) for place in one} & set(groups) for one in lost]
    states: list[set[str]] = [set()]
    for number in range(1, len(occasions) + 1):
        gone = set[str]().union(*occasions[:number])
        states.append(gone | pad_groups(groups, {}, occasions[:number], k, ORDER))
    for number, after in enumerate(states):
        for before in states[:number]:
            assert before <= after
            for group in set(names):
                members = {item for item, name in groups.items() if name == group}
                fewer = len((after - before) & members)
                assert fewer == 0 or fewer >= k or not members - after
