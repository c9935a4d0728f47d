"""What a report is made from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from fedmed.data.found import FoundImages
from fedmed.metrics.site_tables import SiteTables
from fedmed.report.schema.document import Thresholds
from fedmed.storage.history import RoundRecord
from fedmed.storage.records import CompressionRecord, OperatingRecord, PooledAucRecord, ShiftRecord, TemperatureRecord

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
    history : list of RoundRecord
        The records of ``history.jsonl``.
    validation, test : dict of str to SiteTables
        The chosen model's tables, by site. A site that returned none is absent. Without test tables (the run is still
        going on) the groups are compared on the validation tables.
    composition : dict or None
        Images by site, part and class; ``None`` where class counts stay at the sites.
    synthetic : bool
        Whether the images are phantoms and no medical data.
    notes : list of str
        Whatever else a reader should know, one paragraph each.
    seed : int
        Seed of the run; the bootstrap intervals are drawn from it.
    thresholds : dict of str to int
        Fewest patients of a group (``k``) and of a class in a group (``k_row``) below which a site withholds its
        tables, and what is counted (``unit``).
    command : str
        The line that repeats the run; ``RUN`` and ``NEW_FOLDER`` are for the reader to fill in.
    single_sites : bool
        Whether figures of any patient group that rests on one site's images may be shown: only where one party holds
        all images, as in a simulation or on a site's own page.
    agreed : collection of str
        Otherwise: the sites that agree to show groups that rest on them alone.
    temperature : dict or None
        ``temperature``, ``n`` (images it was fitted on), ``nll_before`` and ``nll_after`` (mean negative
        log-likelihood); ``None`` where none was fitted.
    operating : dict or None
        The operating point of alerts, see :func:`fedmed.storage.operating_records.read_operating_point`; ``None`` where
        the study has no alert classes.
    benefit_expected : bool
        Whether the sites were asked to compare the federated model with their own ones.
    benefit_notes : dict of str to str
        Why a site has no such comparison, by site.
    compression : dict or None
        What was decided about a small network, see :meth:`fedmed.storage.run_folder.RunFolder.read_compression`.
    num_images : dict of str to dict of str to int
        Images by site and part, as the sites told them; empty where nobody knows.
    gate : dict of str to SiteTables
        By site, the tables that this rests on: the trained network as the federated one, and the student.
    shift : dict or None
        How far the sites' images differ; ``None`` where it is not known.
    pooled_auc : dict or None
        Of a simulation: exact areas over the test images of all sites.
    found : dict of str to FoundImages or None
        By site, images that were kept and left out; ``None`` where nobody knows, as in a federation of hospitals.
    """

    title: str
    config: Mapping[str, JsonValue]
    environment: Mapping[str, JsonValue]
    classes: tuple[str, ...]
    chosen_round: int
    rounds_done: int
    history: list[RoundRecord]
    validation: Mapping[str, SiteTables]
    test: Mapping[str, SiteTables]
    composition: Mapping[str, Mapping[str, list[int]]] | None
    synthetic: bool
    notes: list[str]
    seed: int
    thresholds: Thresholds = field(default_factory=lambda: Thresholds(k=1, k_row=1))
    command: str = SIMULATION_COMMAND
    single_sites: bool = False
    agreed: Collection[str] = ()
    temperature: TemperatureRecord | None = None
    operating: OperatingRecord | None = None
    benefit_expected: bool = False
    benefit_notes: Mapping[str, str] = field(default_factory=dict)
    compression: CompressionRecord | None = None
    num_images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    gate: Mapping[str, SiteTables] = field(default_factory=dict)
    shift: ShiftRecord | None = None
    pooled_auc: PooledAucRecord | None = None
    found: Mapping[str, FoundImages] | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)
