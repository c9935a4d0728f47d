"""What a report is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedmed.metrics.tables import EvaluationTables

SIMULATION_COMMAND = "python simulations/run.py --config RUN/config.yaml --out NEW_FOLDER"


@dataclass(frozen=True)
class ReportContent:
    """Everything that a run's report shows; the figures themselves are computed from the tables.

    Attributes
    ----------
    title : str
        Heading of the page.
    config : dict
        The resolved settings, as ``config.yaml`` holds them.
    environment : dict
        Versions and hardware, as ``environment.json`` holds them.
    classes : tuple of str
        Names of the K classes, in order.
    chosen_round : int
        The round whose model was tested.
    rounds_done : int
        Rounds that were run.
    history : list of dict
        The records of ``history.jsonl``.
    validation, test : dict of str to EvaluationTables
        The chosen model's tables, by site. A site that returned none is absent.
    composition : dict or None
        Images by site, part and class; ``None`` where class counts stay at the sites.
    synthetic : bool
        Whether the images are phantoms and no medical data.
    notes : list of str
        Whatever else a reader should know, one paragraph each.
    seed : int
        Seed of the run; the bootstrap intervals are drawn from it.
    thresholds : dict of str to int
        Fewest images of a group (``k``) and of a class in a group (``k_row``) below which a site withholds its tables.
    command : str
        The line that repeats the run; ``RUN`` and ``NEW_FOLDER`` are for the reader to fill in.
    """

    title: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    classes: tuple[str, ...]
    chosen_round: int
    rounds_done: int
    history: list[dict[str, Any]]
    validation: Mapping[str, EvaluationTables]
    test: Mapping[str, EvaluationTables]
    composition: Mapping[str, Mapping[str, list[int]]] | None
    synthetic: bool
    notes: list[str]
    seed: int
    thresholds: Mapping[str, int] = field(default_factory=lambda: {"k": 1, "k_row": 1})
    command: str = SIMULATION_COMMAND
