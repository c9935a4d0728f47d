"""A site whose data settings do not suit the study: the server's line names it and where to look, and no more."""

from typing import Any, cast

from client.hospital.measurements import advise_bands, describe_measurements
from fedmed.errors import DataSettingsError, describe_error
from server.rounds.attendance import Attendance
from server.rounds.exchange import Answer
from tests.support.federation import Notes


def test_the_line_says_which_site_and_that_its_log_has_the_reason() -> None:
    """The reason travels as the site's program tells any error of its own."""
    text = f"{describe_measurements(['years_of_age'])} {advise_bands(['years_of_age'])}"
    notes = Notes()
    attendance = Attendance(cast(Any, None), "")
    attendance.admit(Answer("north", None, describe_error(DataSettingsError(text)), 0.1), notes)
    (line,) = notes.notes
    assert line.startswith(
        "north cannot join: its data settings (data in the site's client.yaml) do not suit the study"
    )
    assert "were refused at the site itself; the site's log has the line" in line
    assert "years_of_age" not in line
    assert notes.problems == {"north": line.removeprefix("north cannot join: ")}
