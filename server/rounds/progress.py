"""What the round loop tells whoever watches it."""

import json
import logging
from typing import Protocol

from pydantic import JsonValue

from fedmed.storage.history import RoundRecord

WAITING = "Waiting for sites"
"""Begins the line on how many sites are there; a round that begins makes it old."""

_logger = logging.getLogger("fedmed.server")


class Listener(Protocol):
    """Is told what happens, as it happens."""

    def on_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        """Hear that a phase of :data:`fedmed.protocol.kinds.KINDS` begins; at no site where the server works alone."""

    def on_answer(self, site: str, problem: str | None) -> None:
        """Hear that a site has answered; ``problem`` says why its answer does not count, which a note tells, too."""

    def on_round(self, record: RoundRecord) -> None:
        """Hear that a round is closed; ``record`` is its line of ``history.jsonl``."""

    def on_info(self, text: str) -> None:
        """Hear something that is as it should be, for example the sizes of messages."""

    def on_note(self, text: str) -> None:
        """Hear something that a person should know."""


class LogListener:
    """Writes everything to Python's logging."""

    def on_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        """Log the phase."""
        _logger.info("round %d: %s at %d sites", round_number, phase, num_sites)

    def on_answer(self, site: str, problem: str | None) -> None:
        """Log the answer; a problem comes as a note, too."""
        if problem is None:
            _logger.info("%s: answered", site)

    def on_round(self, record: RoundRecord) -> None:
        """Log the round's figures."""
        _logger.info("round %d closed, loss %s", record.round, record.loss)

    def on_info(self, text: str) -> None:
        """Log the text."""
        _logger.info("%s", text)

    def on_note(self, text: str) -> None:
        """Log the text."""
        _logger.warning("%s", text)


class EventListener(LogListener):
    """Writes everything to Python's logging and, as JSON lines, to standard output, which ``flower-server`` reads."""

    def on_phase(self, phase: str, round_number: int, num_sites: int) -> None:
        """Write the phase."""
        super().on_phase(phase, round_number, num_sites)
        _print_event("phase", phase=phase, round=round_number, num_sites=num_sites)

    def on_answer(self, site: str, problem: str | None) -> None:
        """Write the answer."""
        super().on_answer(site, problem)
        _print_event("answer", site=site, problem=problem)

    def on_round(self, record: RoundRecord) -> None:
        """Write the closed round."""
        super().on_round(record)
        _print_event("round", record=record.to_json())

    def on_info(self, text: str) -> None:
        """Write the text."""
        super().on_info(text)
        _print_event("info", text=text)

    def on_note(self, text: str) -> None:
        """Write the text."""
        super().on_note(text)
        _print_event("note", text=text)

    def tell_model(self, digest: str) -> None:
        """Write the digest of the model's definition, with which sites compare theirs."""
        _print_event("model", digest=digest)


def _print_event(event: str, **fields: JsonValue) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)
