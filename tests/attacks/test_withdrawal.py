"""A server that asks the same before and after a patient withdraws: no difference of two answers is about the patient.

What is told is compared with what only the site knows: which images were in each number. Every number may differ by
nobody or by at least k patients; rows of tables by k_row.
"""

import itertools
import random
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.answers import losses
from client.hospital.site_data import Site, open_site
from fedmed.errors import FedmedError
from fedmed.metrics.rounding import has_digits
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.protocol.kinds import TABLES
from fedmed.protocol.messages import REPORT, read_sums, read_tables, read_values
from fedmed.protocol.tensors import pack_tensors, unpack_tensors
from fedmed.training.network import hash_model
from tests.client.support.hospital import CLASSES, FILE, PATIENT, HospitalSite

K, K_ROW = 10, 5
POLICY = {"suppression": {"k": K, "k_row": K_ROW}, "validation_tables": True}
GROUPS = {"losses": "groups", "loss_attribute": "sex x age"}


def make_rows() -> list[dict[str, object]]:
    """400 patients with one image each, dealt out in no order: three classes, two sexes, two ages."""
    draw = random.Random(3)
    return [
        {
            "file": f"scans/{FILE}-{number:03d}.png",
            "label": draw.choices(CLASSES, (5, 3, 2))[0],
            "patient": f"{PATIENT}-{number:03d}",
            "sex": draw.choice("fm"),
            "age": draw.choice(("old", "young")),
        }
        for number in range(400)
    ]


@dataclass
class Look:
    """What the server got, and what it was of."""

    told: dict[str, Any]
    tables: dict[str, SiteTables]
    images: dict[str, frozenset[str]] = field(default_factory=dict)
    """Name of a number to the images in it."""


class Attack:
    """The same questions, again and again."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "withdrawn.txt").write_text("")
        self.list = folder / "withdrawn.txt"
        hospital = HospitalSite(folder, make_rows(), policy=POLICY, exclude="withdrawn.txt")
        data = hospital.settings["data"] | {"attribute_columns": ["sex", "age"], "cache_mib": 50}
        self.hospital = hospital.restart(data=data)
        self.hospital.settings["data"] = data
        self.patient_of = {str(row["file"]): str(row["patient"]) for row in hospital.rows}
        self.row_of = {str(row["file"]): row for row in hospital.rows}
        self._seen: list[tuple[str, int]] = []
        disclose = losses.disclose_group_losses

        def note(losses_N: torch.Tensor, groups: list[str], k: int, patients: list[str]) -> Any:
            self._seen = list(Counter(groups).items())
            return disclose(losses_N, groups, k, patients)

        monkeypatch.setattr(losses, "disclose_group_losses", note)

    def withdraw(self, *items: str) -> None:
        """Write the list anew."""
        self.list.write_text("\n".join(self.patient_of[item] for item in items))

    def site(self) -> Site:
        return open_site(self.hospital.config)

    def look(self) -> tuple[Look, dict[str, int]]:
        """Ask everything of one model; also return how many patients each group's losses are of."""
        ask, model = self.hospital.ask, self.hospital.model
        trained = read_values(ask("train", model, GROUPS, round=1), REPORT)
        by_group = dict(self._seen)
        start = read_values(ask("train", model, {"losses": "site"}, round=1), REPORT)
        figure = ask("evaluate.figure", model, {"choice": "figure"}, round=1, part="validation")
        calibrated = ask("evaluate.calibrate", model, round=1)
        told = {
            "query": read_values(ask("query"), REPORT)["num_images"],
            "trained": trained["num_images"],
            "loss": trained["loss"],
            "groups": trained["group_losses"],
            "start_loss": start["start_loss"],
            "norm": read_sums(ask("evaluate.recalibrate", model, {"batch_norm": "recalibrate"}, round=1)),
            "temperature": read_values(calibrated, REPORT)["n"],
            "figure": read_values(figure, REPORT),
        }
        tables = {part: read_tables(ask("evaluate", model, round=1, part=part)) for part in ("validation", "test")}
        data = self.site().data
        images = {part: frozenset(getattr(data, part).items) for part in ("train", "validation", "test")}
        return Look(told, tables, images), by_group


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    return Attack(tmp_path, monkeypatch)


def find_rare(attack: Attack, part: str) -> list[str]:
    """Return images of the rarest class of a part."""
    images = getattr(attack.site().data, part)
    return [item for item, label in zip(images.items, images.labels.tolist(), strict=True) if label == 2]


def check_pair(first: tuple[Look, dict[str, int]], second: tuple[Look, dict[str, int]]) -> None:
    """Nothing that was told twice differs by fewer than it may."""
    (before, groups_before), (after, groups_after) = first, second
    for part, images in before.images.items():
        assert len(images ^ after.images[part]) == 0 or len(images ^ after.images[part]) >= K, part
    for group in set(before.told["groups"]) & set(after.told["groups"]):
        lost = groups_before[group] - groups_after[group]
        assert lost == 0 or lost >= K, group
    for part, tables in before.tables.items():
        for attribute in tables.attributes:
            rows = [find_rows(look.tables[part], attribute) for look in (before, after)]
            for row in set(rows[0]) & set(rows[1]):
                lost = abs(rows[0][row] - rows[1][row])
                assert lost == 0 or lost >= K_ROW, (part, attribute, row)


def find_rows(tables: SiteTables, attribute: str) -> dict[tuple[str, int], int]:
    """Return the number of images of every row that is told."""
    own = tables.models[FEDERATED].get(attribute)
    if own is None:
        return {}
    sizes = own.counts.sum(axis=-1)
    return {
        (group, label): int(sizes[place, label])
        for place, group in enumerate(own.groups)
        for label in range(own.num_classes)
        if sizes[place, label]
    }


def check_numbers(look: Look) -> None:
    """Numbers of images are multiples of k, and sums have three digits."""
    told = look.told
    numbers = [*told["query"].values(), told["trained"], told["temperature"], told["figure"]["n"]]
    numbers += [n for n, _ in told["groups"].values()]
    assert [number % K for number in numbers] == [0] * len(numbers)
    for values in told["norm"].values():
        assert (values[0] / told["trained"] % 1 == 0).all(), "so many positions of so many images"
    figures = [told["figure"].get(key, 0.0) for key in ("accuracy", "balanced_accuracy")]
    assert all(map(has_digits, [told["loss"], told["start_loss"], *figures, *(s for _, s in told["groups"].values())]))


Course = Callable[[Attack], list[list[str]]]


def two_in_a_row(attack: Attack) -> list[list[str]]:
    rare = find_rare(attack, "train")
    return [[], rare[:1], rare[:2]]


def undone(attack: Attack) -> list[list[str]]:
    rare = find_rare(attack, "train")
    return [[], rare[:1], [], rare[1:2]]


def of_every_part(attack: Attack) -> list[list[str]]:
    rare = [find_rare(attack, part)[0] for part in ("train", "validation", "test")]
    return [[], *(rare[:number] for number in (1, 2, 3))]


def together(attack: Attack) -> list[list[str]]:
    return [[], [find_rare(attack, part)[0] for part in ("validation", "test")], []]


LONGER = [pytest.param(course, marks=pytest.mark.slow) for course in (two_in_a_row, of_every_part, together)]


@pytest.mark.parametrize("course", [undone, *LONGER])
def test_no_two_answers_differ_by_one_patient(attack: Attack, course: Course) -> None:
    looks = []
    for named in course(attack):
        attack.withdraw(*named)
        looks.append(attack.look())
        check_numbers(looks[-1][0])
        assert not set(named) & frozenset[str]().union(*looks[-1][0].images.values()), "who withdrew is gone"
    assert len({look.images["train"] | look.images["validation"] | look.images["test"] for look, _ in looks}) > 1
    for first, second in itertools.combinations(looks, 2):
        check_pair(first, second)


def test_the_mean_loss_of_one_patient_does_not_follow(attack: Attack) -> None:
    """As it followed from two exact means: n times mean before, less n times mean after, was the patient's loss."""

    def ask_mean() -> float:
        reply = attack.hospital.ask("train", attack.hospital.model, {"losses": "site"}, round=1)
        return float(read_values(reply, REPORT)["start_loss"])

    target, before, n = find_rare(attack, "train")[0], ask_mean(), len(attack.site().data.train)
    attack.withdraw(target)
    after, lost = ask_mean(), n - len(attack.site().data.train)
    assert lost == K
    assert n * before - (n - K) * after > K / 2 * before, "it is the loss of ten"


def test_stored_answers_with_the_patient_are_not_sent_again(attack: Attack) -> None:
    first, _ = attack.look()
    targets = [find_rare(attack, part)[0] for part in ("validation", "test")]
    sha256 = hash_model(attack.hospital.model)
    attack.withdraw(*targets)
    asked = {"model_sha256": sha256, "round": 1}
    other = pack_tensors({name: t + 1 for name, t in unpack_tensors(attack.hospital.model).items()})
    attack.hospital.ask("train", other, {"losses": "site"}, round=1)  # so that the model is not at hand
    for kind, plan, part in (("evaluate", {}, "test"), ("evaluate.figure", {"choice": "figure"}, "validation")):
        reply = attack.hospital.ask(kind, None, plan, part=part, **asked)
        assert TABLES not in reply.content
        assert read_values(reply, REPORT) == {"missing_model": True}, "it has to be scored anew"
    second, _ = attack.look()
    kept = list((attack.hospital.state / "runs/run1/test_tables").iterdir())
    assert len(kept) == 1, "the old answer is gone from the disk"
    again = read_tables(attack.hospital.ask("evaluate", None, {}, part="test", **asked))
    assert np.array_equal(again.site.counts, second.tables["test"].site.counts)
    assert not np.array_equal(again.site.counts, first.tables["test"].site.counts)


def test_the_same_ones_are_left_out_by_another_process_and_without_the_list(attack: Attack) -> None:
    attack.hospital.ask("query")
    attack.withdraw(find_rare(attack, "train")[0])
    expected = attack.site().data.train.items
    for settings in ({}, {"exclude": None}):
        assert open_site(attack.hospital.restart(**settings).config).data.train.items == expected
    record = attack.hospital.state / "left_out.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600


def test_the_audit_log_counts_and_names_nobody(attack: Attack) -> None:
    attack.hospital.ask("query")
    target = find_rare(attack, "train")[0]
    attack.withdraw(target)
    attack.hospital.ask("query")
    last = attack.hospital.exclusions()[-1]
    assert (last["listed"], last["matched"]) == (1, 1)
    assert last["images"] == {"train": 1, "validation": 0, "test": 0}
    assert last["further"] == {"train": K - 1, "validation": 0, "test": 0}
    log = (attack.hospital.state / "audit.jsonl").read_text()
    assert PATIENT not in log
    assert FILE not in log


def test_sums_of_batchnorm_need_k_bin_patients(tmp_path: Path) -> None:
    """The policy says how many: 5 by default, of whom the split gives some to other parts."""
    rows: list[dict[str, object]] = [
        {"file": f"scans/{FILE}-{number:03d}.png", "label": CLASSES[number % 3], "patient": f"{PATIENT}-{number // 20}"}
        for number in range(100)
    ]
    few = HospitalSite(tmp_path, rows, policy={"suppression": {"k": 10, "k_row": 5}})
    number = open_site(few.config).count_patients("train")
    assert 1 < number < 5
    assert len(open_site(few.config).data.train) > K
    asked = {"plan": {"batch_norm": "recalibrate"}, "round": 1}
    with pytest.raises(FedmedError, match="fewer than 5 patients"):
        few.ask("evaluate.recalibrate", few.model, **asked)
    for k_bin, is_told in ((number, True), (number + 1, False)):
        site = few.restart(policy={"suppression": {"k": 10, "k_row": 5, "k_bin": k_bin}})
        if is_told:
            assert read_sums(site.ask("evaluate.recalibrate", few.model, **asked))
        else:
            with pytest.raises(FedmedError, match=f"fewer than {k_bin} patients"):
                site.ask("evaluate.recalibrate", few.model, **asked)


def test_a_part_that_becomes_too_small_is_empty_and_the_site_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "withdrawn.txt").write_text("")
    small = HospitalSite(
        tmp_path, make_rows()[:24], policy={"suppression": {"k": 10, "k_row": 5}}, exclude="withdrawn.txt"
    )
    first = read_values(small.ask("train", small.model, round=1), REPORT)
    assert first["num_images"] == 10
    item = open_site(small.config).data.train.items[0]
    (tmp_path / "withdrawn.txt").write_text(item)
    assert read_values(small.ask("train", small.model, round=2), REPORT) == {"declined": True}, "it is no error"
    assert "cannot take part with them any more" in caplog.text
    assert read_values(small.ask("query"), REPORT)["num_images"]["train"] == 0
