"""A study: one base config, several arms, several seeds, and one simulation for each cell of that grid.

Cells are independent of each other. What a finished cell found is a small JSON file, from which the tables are drawn;
a study that is stopped and started again does only what is missing.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue, model_validator

from fedmed.config import LOCAL_MODEL_OPTIONS, RunConfig, Section
from fedmed.config.files import apply_override, load_run_config, read_yaml, validate_settings
from fedmed.errors import ConfigError, suggest_nearest
from fedmed.storage.atomic_files import encode_json, write_text_atomically
from simulations.studies.figures import check_class_figures
from simulations.studies.results import CellFailure, CellResult, FailedFile, FinishedFile

GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
_OWN_KEYS = {"seed", "name"}
# What may differ between two machines, or two starts, that give the same results.
_NOT_OF_RESULTS = ("name", "workers", "round_deadline_s")
_PLACES = ("root", "file")


class ArmConfig(Section):
    """One way to train, compared with the others."""

    description: str
    """A few words for the table."""
    set: dict[str, JsonValue] = Field(default={})
    """Settings that make the arm, by dotted key: ``{batch_norm: local, training.optimizer.lr: 0.01}``."""
    last: bool = False
    """Whether it waits until the others are done at all seeds, as an arm that the study can be without."""


class FrontConfig(Section):
    """Which figures are drawn against each other."""

    x: str
    y: list[str]


class StudyConfig(Section):
    """What a study's YAML file holds."""

    name: Name
    """Names the folder of its results."""
    description: str = ""
    """A sentence or two that stand above the table."""
    base: str
    """The config that all cells start from, relative to the study's file."""
    set: dict[str, JsonValue] = Field(default={})
    """Settings for all arms, by dotted key."""
    arms: dict[Name, ArmConfig]
    """What is compared."""
    baseline: Name
    """The arm with which the others are compared."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """One cell of each arm for each of them."""
    class_groups: dict[GroupName, Annotated[list[str], Field(min_length=1)]] = Field(default={})
    """Names for some of the classes, for example ``{tail: [df, vasc]}``, for figures that are means over them. Changing
    them needs no new run."""
    figures: Annotated[list[str], Field(min_length=1)]
    """What the table shows: a key of ``figures`` in report.json, ``gaps.ATTRIBUTE.KEY``,
    ``groups.ATTRIBUTE.GROUP.KEY``, ``classes.CLASS_GROUP.KEY``, or a number of sites, ``benefit.better`` or
    ``benefit.worse``."""
    front: FrontConfig | None = None

    @property
    def all_figures(self) -> list[str]:
        """The figures of the table and of the drawings, each once."""
        drawn = [self.front.x, *self.front.y] if self.front else []
        return list(dict.fromkeys([*self.figures, *drawn]))

    def select_arms(self, *, last: bool) -> list[str]:
        """Return the names of the arms that wait for the others, or of those others."""
        return [name for name, arm in self.arms.items() if arm.last == last]

    @model_validator(mode="after")
    def _check(self) -> "StudyConfig":
        if self.baseline not in self.arms:
            raise ValueError(
                f"'baseline' is {self.baseline!r}.{suggest_nearest(self.baseline, self.arms)} "
                f"Allowed: {', '.join(self.arms)}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"'seeds' is {self.seeds}: each seed may be given once")
        for place, settings in [("set", self.set), *((f"arms.{name}.set", arm.set) for name, arm in self.arms.items())]:
            if _OWN_KEYS & set(settings):
                raise ValueError(
                    f"'{place}' sets {', '.join(sorted(_OWN_KEYS & set(settings)))}, which the study sets itself"
                )
        check_class_figures(self.all_figures, self.class_groups)
        return self


@dataclass(frozen=True)
class Cell:
    """One run of a study: an arm with a seed."""

    arm: str
    seed: int
    config: RunConfig
    """With absolute paths."""
    digest: str
    """Of the settings that its result depends on."""

    @property
    def name(self) -> str:
        """Names its files."""
        return f"{self.arm}-{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study whose settings were checked, cell by cell."""

    config: StudyConfig
    source: Path
    cells: tuple[Cell, ...]
    """Seed by seed, so that a study that is stopped half-way has all arms of some seeds; then the ``last`` arms."""
    results: Path
    """Folder of the cells' results and of the tables."""

    def result_file(self, cell: Cell) -> Path:
        """Return where the result of a cell lies."""
        return self.results / f"{cell.name}.json"


@dataclass(frozen=True)
class Progress:
    """What there is of a study's results."""

    results: dict[tuple[str, int], CellResult]
    """(arm, seed) -> result of the cell, with the settings of today."""
    failed: dict[tuple[str, int], str]
    """(arm, seed) -> why it did not finish."""
    stale: list[str]
    """Cells whose settings have changed since; they count as not done."""
    planned: int

    @property
    def is_complete(self) -> bool:
        """Whether all cells are done."""
        return len(self.results) == self.planned

    @property
    def wall_s(self) -> float:
        """Seconds that the finished cells took together."""
        return float(sum(result["wall_s"] for result in self.results.values()))


def load_study(path: Path, overrides: Sequence[str] = (), results: Path | None = None) -> Study:
    """Read a study and check the settings of every cell.

    Parameters
    ----------
    path : Path
        YAML file; or the name of one that comes with fedmed, for example ``fairness``.
    overrides : sequence of str
        ``"a.b=value"``, for all arms, after what the file sets.
    results : Path, optional
        Folder of the results; default: :func:`default_results`.

    Raises
    ------
    ConfigError
        With the file, the arm, what was found and what is allowed.
    """
    path = _find_study(path)
    config = validate_settings(StudyConfig, _read_study(path), str(path))
    for override in overrides:
        if apply_override({}, override) in _OWN_KEYS:
            raise ConfigError(f"--set {override}: the study sets this itself. Change {path}.")
    order = [(arm, seed) for last in (False, True) for seed in config.seeds for arm in config.select_arms(last=last)]
    cells = tuple(_make_cell(config, path, arm, seed, overrides) for arm, seed in order)
    return Study(config, path, cells, results or default_results(config.name))


def default_results(name: str) -> Path:
    """Return the folder of a study's results: in a checkout ``simulations/results``, else ``results`` here."""
    own = Path(__file__).resolve().parents[1]
    is_checkout = (own.parent / "pyproject.toml").is_file()
    return (own / "results" if is_checkout else Path("results").absolute()) / name


def list_studies() -> list[str]:
    """Return the names of the studies that come with fedmed."""
    folder = resources.files("configs") / "studies"
    return sorted(Path(str(file)).stem for file in folder.iterdir() if str(file).endswith(".yaml"))


def read_progress(study: Study) -> Progress:
    """Return which cells are done, failed or stale."""
    results: dict[tuple[str, int], CellResult] = {}
    failed: dict[tuple[str, int], str] = {}
    stale: list[str] = []
    for cell in study.cells:
        found = _read_result(study.result_file(cell))
        if found is None:
            continue
        if found.get("digest") != cell.digest:
            stale.append(cell.name)
        elif "failed" in found:
            failed[cell.arm, cell.seed] = str(found["failed"])
        else:
            results[cell.arm, cell.seed] = found
    return Progress(results, failed, stale, len(study.cells))


def save_result(study: Study, cell: Cell, content: CellResult | CellFailure) -> None:
    """Write what a cell found, or why it failed."""
    study.results.mkdir(parents=True, exist_ok=True)
    head = {"study": study.config.name, "arm": cell.arm, "seed": cell.seed, "digest": cell.digest}
    lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in {**head, **content}.items())
    write_text_atomically(study.result_file(cell), "{\n" + ",\n".join(lines) + "\n}\n")


def digest_settings(config: RunConfig) -> str:
    """Return a digest of all settings that a run's results depend on.

    Where files lie does not count, nor words of the report, nor what is at its default: a setting that fedmed learns
    later leaves old results as they are. Who changes a default runs the studies again.
    """
    content = config.model_dump(mode="json", exclude_defaults=True)
    for key in _NOT_OF_RESULTS:
        content.pop(key, None)
    content.get("data", {}).pop("unit", None)  # a word of the report
    for section, keys in (("data", _PLACES), ("model", LOCAL_MODEL_OPTIONS)):
        found = content.get(section, {})
        for key in keys:
            if isinstance(found.get(key), str):
                found[key] = Path(found[key]).name
    return hashlib.sha256(encode_json(content).encode()).hexdigest()[:16]


def _find_study(path: Path) -> Path:
    if path.is_file():
        return path
    shipped = list_studies()
    if str(path) in shipped:
        return Path(str(resources.files("configs") / "studies" / f"{path}.yaml"))
    raise ConfigError(
        f"The study '{path}' does not exist.{suggest_nearest(path.stem, shipped)} Give a YAML file, or one of the "
        f"studies that come with fedmed: {', '.join(shipped)}."
    )


def _read_study(path: Path) -> dict[str, JsonValue]:
    """Return what a study's file says, laid over what the study says that it is ``like``."""
    own = read_yaml(path)
    if "like" not in own:
        return own
    source = path.parent / str(own.pop("like"))
    try:
        other = read_yaml(source)
    except ConfigError as error:
        raise ConfigError(f"{path}: like: {error}") from None
    if "like" in other:
        raise ConfigError(f"{path}: 'like' names {source}, which has a 'like' itself. Name the study that it is like.")
    if "base" in other:  # relative to the file that it stands in
        other["base"] = str((source.parent / str(other["base"])).resolve())
    common, further = other.get("set"), own.get("set")
    if isinstance(common, dict) and isinstance(further, dict):
        own["set"] = common | further
    return other | own


def _make_cell(config: StudyConfig, path: Path, arm: str, seed: int, overrides: Sequence[str]) -> Cell:
    settings = {**config.set, **config.arms[arm].set}
    own = [f"seed={seed}", *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
    try:
        run_config = load_run_config(path.parent / config.base, [*own, *overrides])
    except ConfigError as error:
        raise ConfigError(f"{path}: arm '{arm}': {error}") from None
    run_config.name = f"{config.name}-{arm}"[:60]
    return Cell(arm, seed, run_config, digest_settings(run_config))


def _read_result(file: Path) -> FinishedFile | FailedFile | None:
    """Return what a cell's file holds, None where there is none or it is damaged."""
    try:
        found: FinishedFile | FailedFile = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def cells_left(study: Study, progress: Progress) -> Iterator[Cell]:
    """Yield the cells that are still to be done."""
    return (cell for cell in study.cells if (cell.arm, cell.seed) not in progress.results)
