"""A site that tells 0 training images: it is not asked to train, but to score."""

from collections.abc import Callable
from typing import Any

from flwr.app import Message

from fedmed.protocol.messages import REPORT, make_content, read_values
from fedmed.storage.history import read_history
from tests.support.federation import Federation


def test_a_site_that_tells_no_training_images_scores_only(make_federation: Callable[..., Federation]) -> None:
    federation = make_federation(rounds=2)

    def change(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "query" and site == "site_02":
            told: dict[str, Any] = dict(read_values(reply, REPORT))
            told["num_images"] = told["num_images"] | {"train": 0}
            reply.content[REPORT] = make_content(REPORT, told)[REPORT]
        return reply

    grid = federation.grid(change)
    federation.go(grid)
    assert ("site_02", "train") not in grid.sent
    for record in read_history(federation.run.history_file):
        line = next(line for line in record.participation if line.site == "site_02")
        assert (line.status, line.share) == ("few images", None)
        assert "site_02" in record.validation.sites
        assert record.coverage_images == 1.0


def test_a_site_that_does_not_train_any_more_is_told_once(make_federation: Callable[..., Federation]) -> None:
    """As one whose patients have withdrawn; it goes on scoring, and is not waited for in vain."""
    federation = make_federation(rounds=4)

    def change(site: str, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "train" and site == "site_02":
            reply.content[REPORT] = make_content(REPORT, {"declined": True})[REPORT]
        return reply

    federation.go(federation.grid(change))
    for record in read_history(federation.run.history_file):
        assert next(line.status for line in record.participation if line.site == "site_02") == "declined"
        assert "site_02" in record.validation.sites
    assert [note for note in federation.listener.notes if "site_02" in note] == [
        "site_02 is left out: it has fewer training images than its policy.min_images now, or fewer patients than its "
        "k; it only scores models"
    ]


def test_a_site_whose_images_became_few_is_asked_again(make_federation: Callable[..., Federation]) -> None:
    """Its first answer is left out, since it has no weight; then it has told 0 and is not asked."""
    federation = make_federation(rounds=3)
    has_few: set[int] = set()

    def change(site: str, request: Message, reply: Message) -> Message:
        if site != "site_02":
            return reply
        told: dict[str, Any] = dict(read_values(reply, REPORT))
        if request.metadata.message_type == "train":
            has_few.add(1)
            reply.content[REPORT] = make_content(REPORT, told | {"num_images": 0})[REPORT]
        elif request.metadata.message_type == "query" and has_few:
            told["num_images"] = told["num_images"] | {"train": 0}
            reply.content[REPORT] = make_content(REPORT, told)[REPORT]
        return reply

    federation.go(federation.grid(change))
    lines = [
        next(line.status for line in record.participation if line.site == "site_02")
        for record in read_history(federation.run.history_file)
    ]
    assert lines == ["quarantined", "few images", "few images"]
