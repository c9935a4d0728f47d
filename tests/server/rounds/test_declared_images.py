"""A site counts with the images that it joined with, however many it states later."""

from collections.abc import Callable
from typing import Any

from fedmed.protocol.messages import REPORT, make_content, read_values
from fedmed.storage.history import read_history
from server.rounds.attendance import load_sites, read_declared
from tests.support.federation import Federation, is_training

Make = Callable[..., Federation]


def test_more_images_later_are_a_note_and_no_more_weight(make_federation: Make) -> None:
    """In round 2 a site has 10^6 more training images: refused, asked again, and in round 3 weighed as in round 1."""
    federation = make_federation(rounds=3)
    growing, *_ = federation.sites
    grown = False

    def grow(site: str, request: Any, reply: Any) -> Any:
        nonlocal grown
        if site != growing:
            return reply
        grown = grown or is_training(request, 2)
        values = read_values(reply, REPORT)
        if grown and request.metadata.message_type == "query":
            values["num_images"]["train"] += 10**6
        elif grown and is_training(request):
            values["num_images"] += 10**6
        reply.content[REPORT] = make_content(REPORT, values)[REPORT]
        return reply

    federation.go(federation.grid(grow))
    history = read_history(federation.run.history_file)
    lines = [next(line for line in record.participation if line.site == growing) for record in history]
    assert [line.status for line in lines] == ["accepted", "quarantined", "accepted"]
    assert "It is asked again how many it has." in str(lines[1].reason)
    assert lines[2].images == lines[0].images
    assert history[2].weights == history[0].weights
    notes = [note for note in federation.listener.notes if note.startswith(f"{growing} now states")]
    assert len(notes) == 1
    assert f"{lines[0].images} when it joined. It counts with those" in notes[0]
    # What it joined with is known after a restart as well.
    assert load_sites(federation.run)[growing].num_images["train"] == lines[0].images
    assert read_declared(federation.run)[growing]["train"] == lines[0].images


def test_a_damaged_list_is_as_none(make_federation: Make) -> None:
    federation = make_federation(rounds=1)
    federation.go()
    assert set(read_declared(federation.run)) == set(federation.sites)
    (federation.run.tables / "sites.json").write_text("{")
    assert read_declared(federation.run) == {}
