"""What the round loop tells whoever watches it."""

import logging
from typing import Any, Protocol

_logger = logging.getLogger("fedmed.server")


class Listener(Protocol):
    """Is told what happens, as it happens."""

    def on_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        """Hear that a phase begins: ``"join"``, ``"train"``, ``"evaluate"`` or ``"test"``."""

    def on_answer(self, site: str, problem: str | None) -> None:
        """Hear that a site has answered; ``problem`` says why its answer does not count."""

    def on_round(self, record: dict[str, Any]) -> None:
        """Hear that a round is closed; ``record`` is its line of ``history.jsonl``."""

    def on_note(self, text: str) -> None:
        """Hear something that a person should know."""


class LogListener:
    """Writes everything to Python's logging."""

    def on_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        """Log the phase."""
        _logger.info("round %d: %s at %d sites", round_number, phase, num_sites)

    def on_answer(self, site: str, problem: str | None) -> None:
        """Log the answer."""
        if problem:
            _logger.warning("%s: %s", site, problem)
        else:
            _logger.info("%s: answered", site)

    def on_round(self, record: dict[str, Any]) -> None:
        """Log the round's figures."""
        _logger.info("round %d closed, loss %s", record["round"], record["loss"])

    def on_note(self, text: str) -> None:
        """Log the text."""
        _logger.warning("%s", text)
