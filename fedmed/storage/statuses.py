"""What can become of a site in a round: one row for each word of the participation table.

A row says how the word is shown and explained, and how it counts: for the rounds that the report calls missed, and for
the rounds missed in a row after which a site is no longer waited for.
"""

from dataclasses import dataclass
from typing import Literal

Streak = Literal["longer", "ended", "kept"]


@dataclass(frozen=True)
class Status:
    """One word of the participation table."""

    symbol: str
    """In the row of a site's rounds."""
    word: str
    """For people."""
    meaning: str
    """For people: what has happened."""
    streak: Streak
    """What becomes of the number of rounds that the site has missed in a row."""
    missed: bool = True
    """Whether the round counts among those that the site has missed."""


STATUSES = {
    "accepted": Status("●", "took part", "its update was averaged into the model", "ended", missed=False),
    "late": Status("L", "late", "its update came after the deadline", "longer"),
    "error": Status("E", "error", "the site reported an error", "longer"),
    "quarantined": Status("Q", "quarantined", "its update was refused by the checks", "ended"),
    "declined": Status(
        "S", "scores only", "it has too few training images, as its own policy says", "ended", missed=False
    ),
    "revoked": Status("R", "revoked", "it was taken from the list of sites", "ended"),
    "dormant": Status("D", "dormant", "not waited for, after missing several rounds in a row", "kept"),
    "absent": Status("·", "absent", "not connected, or not asked", "longer"),
}
"""By the word in a run's history, in the order in which the report explains them."""


def find_status(word: str) -> Status:
    """Return what a word means; one of another version of fedmed stands for itself."""
    unknown = Status("?", word, "a status that this page does not know", "kept")
    return STATUSES.get(word, unknown)
