"""The operating point for alerts, from the sites' counts to the record."""

from collections.abc import Callable

import pytest

from fedmed.storage.operating_records import read_operating_point
from tests.support.federation import Federation

Make = Callable[..., Federation]


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and candidates have tests of their own and take most of the time."""
    for name in ("write_final_report", "make_candidate"):
        monkeypatch.setattr(f"server.federation.{name}", lambda *_: None)


def test_sites_whose_thresholds_hold_the_counts_back_are_not_blamed(make_federation: Make) -> None:
    limits = {"k": 20, "k_row": 20, "k_bin": 20}  # more than a site has in validation, fewer than in training
    federation = make_federation(rounds=1, benefit=False, positive_class="pattern_mesh", suppression=limits)
    federation.go()
    notes = [note for note in federation.listener.notes if "alert" in note]
    for site in federation.sites:
        assert f"{site} tells no counts of alert scores: its thresholds hold them back" in notes
    record = read_operating_point(federation.run)
    assert record is not None
    assert (record["threshold"], record["sites"]) == (None, [])
    assert "0 validation images of an alert class and 0 others are told" in str(record["note"])
