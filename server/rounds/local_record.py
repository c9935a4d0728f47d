"""What is known of the sites' models of their own; ``local.json`` of the run folder."""

import json
from dataclasses import dataclass, field

from fedmed.storage.run_folder import RunFolder

LOCAL_FILE = "local.json"


@dataclass
class LocalRecord:
    """How far the sites' own models are."""

    rounds: int = 0
    """Rounds that the sites were asked for."""
    sites: dict[str, int] = field(default_factory=dict)
    """Site to rounds that it has trained."""
    losses: dict[str, float] = field(default_factory=dict)
    """Site to the mean loss of its own model on its training images, where the aggregation needs that."""
    declined: list[str] = field(default_factory=list)
    """Sites that train no model of their own."""
    problems: dict[str, str] = field(default_factory=dict)
    """Site to why its last call was in vain."""


def read_local(run: RunFolder) -> LocalRecord:
    """Return how far the sites' own models of a run are; a file that is lost or damaged costs a call to each site."""
    try:
        return LocalRecord(**json.loads((run.tables / LOCAL_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return LocalRecord()
