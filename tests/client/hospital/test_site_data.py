"""A hospital's data, exclusions and state, from its client.yaml."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from client.hospital.site_data import Site, find_hospital, open_site
from fedmed.config import Plan
from fedmed.config.client import PolicyConfig
from fedmed.errors import ConfigError, DataError, FedmedError, KeyFileError, RunFolderError, WireError
from fedmed.fairness.disclosure.rows import plan_disclosure
from fedmed.fairness.disclosure.tables import Disclosure, disclose_tables, tell_everything
from fedmed.metrics.site_tables import FEDERATED
from tests.client.support.hospital import CLASSES, FILE, PATIENT, PLAN, HospitalSite, make_rows
from tests.data.conftest import write_csv
from tests.support.federation import Federation

DATA = "12" * 32
PLAN_1 = Plan.model_validate(PLAN)
PHANTOM = {"source": "phantom", "num_classes": 3, "images_per_site": 40, "image_size": 16}


def write_config(folder: Path, **settings: Any) -> dict[str, str]:
    file = folder / "client.yaml"
    file.write_text(yaml.safe_dump({"name": "north", "server": "127.0.0.1:1", "device": "cpu"} | settings))
    return {"client-config": str(file)}


def items_of(site: Site) -> dict[str, tuple[str, ...]]:
    return {name: getattr(site.data, name).items for name in ("train", "validation", "test")}


def test_table_without_site_column_is_all_this_site(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path)
    site = open_site(hospital.config)
    assert (site.name, site.data.name, site.data.classes) == ("north", "north", tuple(CLASSES))
    found = [item for items in items_of(site).values() for item in items]
    assert sorted(found) == sorted(str(row["file"]) for row in hospital.rows)
    assert not site.synthetic
    assert not site.share_class_counts
    assert site.data.train.images([0])[0].shape == (3, 12, 12)


def test_state_folder_is_private(tmp_path: Path) -> None:
    site = HospitalSite(tmp_path)
    open_site(site.config)
    assert stat.S_IMODE(site.state.stat().st_mode) == 0o700


def test_split_survives_a_restart(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path)
    assert items_of(open_site(hospital.config)) == items_of(open_site(hospital.restart().config))


def test_column_of_sites_is_ignored_without_data_site_and_chosen_with_it(tmp_path: Path) -> None:
    rows = [row | {"place": ("Ost", "West")[number // 2 % 2]} for number, row in enumerate(make_rows())]
    hospital = HospitalSite(tmp_path, rows)
    data = hospital.settings["data"] | {"site_column": "place"}
    everything = open_site(hospital.restart(data=data, state_dir="state1").config)
    assert sum(map(len, items_of(everything).values())) == len(rows)
    west = open_site(hospital.restart(data=data, state_dir="state2", data_site="West").config)
    expected = sorted(str(row["file"]) for row in rows if row["place"] == "West")
    assert sorted(item for items in items_of(west).values() for item in items) == expected
    assert west.data.name == "north"
    with pytest.raises(ConfigError, match=r"'data_site' is 'Wst'\. Did you mean 'West'\? The data holds: Ost, West\."):
        open_site(hospital.restart(data=data, state_dir="state3", data_site="Wst").config)


@pytest.mark.parametrize("sites", [None, 3])
def test_phantom_is_one_site_or_several_together(tmp_path: Path, sites: int | None) -> None:
    site = open_site(write_config(tmp_path, data=PHANTOM, data_sites=sites))
    assert sum(map(len, items_of(site).values())) == 40 * (sites or 1)
    assert site.synthetic


def test_phantom_site_is_that_of_a_simulation(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "run", {"data": PHANTOM})
    simulated = open_site(federation.grid()._configs[2])
    own = open_site(write_config(tmp_path, data=PHANTOM, data_sites=3, data_site="site_02"))
    assert items_of(own) == items_of(simulated)
    for name in ("train", "validation", "test"):
        ours, theirs = getattr(own.data, name), getattr(simulated.data, name)
        assert torch.equal(ours.labels, theirs.labels)
        assert all(map(torch.equal, ours.images(range(len(ours))), theirs.images(range(len(ours)))))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data": PHANTOM, "data_site": "site_01"}, "'data_sites' does not say how many sites"),
        (
            {"data": PHANTOM | {"partition": {"kind": "pooled"}}, "data_site": "site_01", "data_sites": 2},
            r"'data_site' is 'site_01', but data\.partition\.kind is 'pooled'",
        ),
        ({"data": {"source": "image_table", "root": "nowhere"}}, r"\(data\.root\) does not exist"),
        ({"data": PHANTOM, "device": "tpu"}, "'device' is 'tpu'"),
    ],
)
def test_settings_that_do_not_fit_are_explained(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(FedmedError, match=expected):
        open_site(write_config(tmp_path, **settings))


def test_missing_settings_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no '.*client\.yaml'"):
        open_site({"client-config": str(tmp_path / "client.yaml")})


def test_state_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="cannot be made private"):
        open_site(write_config(tmp_path, data=PHANTOM, state_dir="file/state"))


def test_table_that_may_not_be_read_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = HospitalSite(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot be read: .*Permission denied.*Check 'data' in client\.yaml"):
        open_site(hospital.config)


def test_changed_table_says_what_a_new_split_costs(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path)
    open_site(hospital.config)
    write_csv(hospital.images / "labels.csv", hospital.rows[2:])
    with pytest.raises(RunFolderError, match=r"another version of .* do it between studies only.*'exclude' names"):
        open_site(hospital.restart().config)


def test_withdrawn_patients_are_left_out_from_the_next_message_on(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path, exclude="withdrawn.txt")
    file = tmp_path / "withdrawn.txt"
    file.write_text("")
    before = items_of(open_site(hospital.config))
    counts = find_hospital(hospital.config).data.exclusion_counts  # type: ignore[union-attr]
    assert (counts.listed, counts.matched, sum(counts.images.values())) == (0, 0, 0)

    patient_of = {str(row["file"]): str(row["patient"]) for row in hospital.rows}
    patient = patient_of[before["train"][0]]
    one_image = before["validation"][0]
    file.write_text(f"\ufeff{patient} \r\n\r\n{one_image}\r\n{Path(before['test'][0]).name}\r\nUNKNOWN-ID\r\n")
    after = items_of(open_site(hospital.config))
    gone = {item for item, name in patient_of.items() if name == patient} | {one_image, before["test"][0]}
    assert len(gone) == 4
    assert after == {name: tuple(item for item in items if item not in gone) for name, items in before.items()}
    counts = find_hospital(hospital.config).data.exclusion_counts  # type: ignore[union-attr]
    assert (counts.listed, counts.matched, counts.images) == (4, 3, {"train": 2, "validation": 1, "test": 1})

    file.unlink()
    file.write_text("")
    assert items_of(open_site(hospital.config)) == before


def test_images_and_labels_stay_together_when_some_are_left_out(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path)
    complete = open_site(hospital.config).data.train
    (tmp_path / "withdrawn.txt").write_text("\n".join(complete.items[1::3]))
    part = open_site(hospital.restart(exclude="withdrawn.txt").config).data.train
    kept = [index for index in range(len(complete)) if index % 3 != 1]
    assert part.labels.tolist() == complete.labels[kept].tolist()
    assert all(map(torch.equal, part.images(range(len(part))), complete.images(kept)))


def test_id_written_by_another_program_is_recognised(tmp_path: Path) -> None:
    rows = make_rows()
    rows[0]["patient"] = "M\u00fcller"  # one character
    hospital = HospitalSite(tmp_path, rows, exclude="withdrawn.txt")
    (tmp_path / "withdrawn.txt").write_text("Mu\u0308ller\n", encoding="utf-8")  # two
    assert all(rows[0]["file"] not in items for items in items_of(open_site(hospital.config)).values())


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00M"])
def test_list_of_withdrawn_patients_that_cannot_be_read_stops_everything(tmp_path: Path, content: bytes | None) -> None:
    hospital = HospitalSite(tmp_path, exclude="withdrawn.txt")
    if content is not None:
        (tmp_path / "withdrawn.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"list of withdrawn patients .*Nothing is computed without it") as caught:
        open_site(hospital.config)
    assert not caught.value.shareable
    (tmp_path / "withdrawn.txt").write_text(f"{PATIENT}-000")
    assert len(open_site(hospital.config).data.train) > 0


def test_list_is_not_read_again_while_it_is_the_same(tmp_path: Path) -> None:
    hospital = HospitalSite(tmp_path, exclude="withdrawn.txt")
    file = tmp_path / "withdrawn.txt"
    file.write_text(f"{FILE}-000.png")
    first = open_site(hospital.config).data
    assert open_site(hospital.config).data is first
    os.utime(file, ns=(1, 1))
    assert open_site(hospital.config).data is not first


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    site = open_site(HospitalSite(tmp_path).config)
    first, second = (site.files_of(PLAN_1.model_copy(update={"run_id": name})) for name in ("one", "two"))
    first.state.save(1, {"x": torch.ones(2)}, {})
    assert second.state.load_before(9) is None
    assert (tmp_path / "state/runs/one/state/round_00001.safetensors").is_file()
    with pytest.raises(WireError, match="has no run_id"):
        site.files_of(PLAN_1.model_copy(update={"run_id": ""}))


def test_stored_tables_below_raised_thresholds_or_damaged_are_not_sent_again(tmp_path: Path) -> None:
    files = open_site(HospitalSite(tmp_path).config).files_of(PLAN_1)
    logits, labels, groups = {FEDERATED: torch.eye(3).repeat(4, 1)}, torch.arange(3).repeat(4), {"site": ["north"] * 12}
    limits = Disclosure(12, 4, k_bin=4)
    plan = plan_disclosure(labels, groups, [str(place) for place in range(12)], limits)
    files.store_test_tables("ab" * 32, DATA, disclose_tables(logits, labels, groups, plan, limits))
    files.store_test_tables("ef" * 32, DATA, tell_everything(logits, labels, groups))
    assert files.read_test_tables("ef" * 32, DATA, Disclosure(), "north") is not None
    assert files.read_test_tables("ef" * 32, DATA, limits, "north") is None
    assert files.read_test_tables("ab" * 32, DATA, Disclosure(12, 4), "north") is not None
    assert files.read_test_tables("ab" * 32, DATA, Disclosure(12, 5), "north") is None
    assert files.read_test_tables("ab" * 32, "34" * 32, Disclosure(12, 4), "north") is None, "of other images"
    assert files.read_test_tables("ab" * 32, DATA, Disclosure(12, 4), "south") is None
    assert files.read_test_tables("cd" * 32, DATA, Disclosure(), "north") is None
    (tmp_path / "state/runs/run1/test_tables" / f"{'ab' * 32}.{DATA[:16]}.safetensors").write_bytes(b"damaged")
    assert files.read_test_tables("ab" * 32, DATA, Disclosure(), "north") is None


def test_share_of_the_gpu_is_claimed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr("client.hospital.site_data.select_device", lambda wish: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    config = write_config(tmp_path, data=PHANTOM, policy={"gpu_share": 0.25})
    open_site(config)
    open_site(config)
    assert shares == [0.25]


def test_simulation_holds_nothing_back(tmp_path: Path) -> None:
    site = open_site(Federation(tmp_path / "run", {}).grid()._configs[1])
    assert site.disclosure_of("validation") == site.disclosure_of("test") == Disclosure(1, 1, scores=True)
    assert site.synthetic


def test_hospital_holds_back_as_its_policy_says(tmp_path: Path) -> None:
    site = open_site(write_config(tmp_path, data=PHANTOM, policy=PolicyConfig().model_dump()))
    assert site.disclosure_of("validation") == Disclosure(10, 5, scores=False, k_bin=5)
    assert site.disclosure_of("test") == Disclosure(10, 5, scores=True, k_bin=5)
