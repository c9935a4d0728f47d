"""What the server answers to a site that greets it."""

from typing import TypedDict

from pydantic import JsonValue


class Hello(TypedDict, total=False):
    """The answer; a server of another version may leave something out."""

    versions: dict[str, str]
    study: dict[str, JsonValue]
    plan: dict[str, JsonValue]
    expected_mean: tuple[float, float] | None
    expected_std: tuple[float, float] | None
    rounds: int
    model_digest: str | None
    round: int
    round_deadline_s: float
    time: str
    """The server's, as it answers."""
    site: str
    """Who the site is to the server."""
