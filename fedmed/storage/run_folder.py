"""A run is a folder: where everything of it lies.

========================  ==========================================================================
``config.yaml``           resolved settings
``environment.json``      versions, machine and command of every start
``splits/``               which image is where, so that the same parts can be used again
``roster.json``           node id of the engine -> name of the site
``history.jsonl``         one line a round; ``metrics.csv`` is the same as a table
``checkpoints/``          the initial model, the last rounds and the best, with what a server step remembers
``tables/``               evaluation tables behind the checkpoints, the test tables, the temperature, how far the
                          sites' own models are, and how far the sites' images differ
``updates/``              what sites sent in the round under way
``compression/``          the small network that was distilled from the chosen one, phase by phase
``recalibrated/``         the chosen model with BatchNorm statistics of all sites, under that policy
``sites/``                in a simulation, each site's own state
``run_id``                name of the run for what sites keep, in a real federation
``finished.json``         chosen round, once everything is done
``audit.jsonl``           who sent and received what, hash-chained
``report/``, ``model/``   the product
``logs/``                 what the processes said
========================  ==========================================================================
"""

import json
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from fedmed.config import FederationConfig, RunConfig
from fedmed.config.files import dump_config, load_run_config, read_yaml, validate_settings
from fedmed.config.server import ServerConfig
from fedmed.errors import RunFolderError
from fedmed.extensions import Extension
from fedmed.formats import RUN_FOLDER
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.environment import Distillation, Start, TeacherOrigin, describe_environment
from fedmed.storage.records import CompressionRecord, TemperatureRecord

LOCK_FILE = "server.lock"
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class RunFolder:
    """Paths and small files of one run.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config_file = self.path / "config.yaml"
        self.environment_file = self.path / "environment.json"
        self.splits = self.path / "splits"
        self.roster_file = self.path / "roster.json"
        self.history_file = self.path / "history.jsonl"
        self.metrics_file = self.path / "metrics.csv"
        self.checkpoints = self.path / "checkpoints"
        self.tables = self.path / "tables"
        self.updates = self.path / "updates"
        self.sites = self.path / "sites"
        self.audit_file = self.path / "audit.jsonl"
        self.report = self.path / "report"
        self.model = self.path / "model"
        self.recalibrated = self.path / "recalibrated"
        self.compression = self.path / "compression"
        self.compression_file = self.tables / "compression.json"
        self.logs = self.path / "logs"
        self.initial_model = self.checkpoints / "initial.safetensors"
        self.temperature_file = self.tables / "temperature.json"
        self.finished_file = self.path / "finished.json"
        self._files = (self.environment_file, self.roster_file, self.audit_file, self.history_file, self.config_file)
        self._subfolders = (self.splits, self.checkpoints, self.tables, self.updates, self.sites, self.logs)

    @classmethod
    def create(cls, path: Path, resume_command: str, setting: str = "--out") -> "RunFolder":
        """Make a new run folder.

        Parameters
        ----------
        path : Path
            Must not exist, or be an empty folder.
        resume_command : str
            The line to type if the folder holds a run already.
        setting : str
            What names the folder, for the message.

        Raises
        ------
        RunFolderError
            If the folder is not empty or cannot be made.
        """
        folder = cls(path)
        if folder._is_failed_start():
            folder.clear()
        if folder.config_file.exists() and any(folder.checkpoints.glob("round_*")):
            raise RunFolderError(
                f"'{path}' holds a run already. To go on with it, type:\n  {resume_command}\n"
                f"For a new run, name another folder with {setting}."
            )
        folder.check_free(setting)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"The run folder '{path}' cannot be made: {error.strerror}.") from None
        folder.make_folders()
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run folder.

        Raises
        ------
        RunFolderError
            If there is none.
        """
        folder = cls(path)
        if not folder.config_file.is_file():
            raise RunFolderError(
                f"'{path}' is no run folder: it has no config.yaml. Give the folder printed at the start of the run."
            )
        folder.check_format()
        folder.make_folders()
        return folder

    def check_format(self) -> None:
        """Raise a FormatError if this version does not open the folder."""
        if self.environment_file.is_file():
            RUN_FOLDER.check(json.loads(self.environment_file.read_text()).get("format"), self.path)

    def check_free(self, setting: str) -> None:
        """Check that a new run may begin here: there is nothing, or what a start leaves that was stopped at once.

        Raises
        ------
        RunFolderError
            If there is anything else; ``setting`` is what names the folder.
        """
        if self.path.exists() and not (self.path.is_dir() and all(map(self._is_empty_start, self.path.iterdir()))):
            raise RunFolderError(f"'{self.path}' exists and is no empty folder. Name another folder with {setting}.")

    def _is_empty_start(self, path: Path) -> bool:
        if path in self._subfolders:
            return path.is_dir() and not any(path.iterdir())
        return path.name == LOCK_FILE or re.fullmatch(r"\.config\.yaml\..*partial", path.name) is not None

    def _is_failed_start(self) -> bool:
        """Return whether all that is here is of a start that failed early, as for want of data: nothing of a user's."""
        known = {*self._subfolders, *self._files, self.path / LOCK_FILE, self.path / "run_id"}
        is_ours = self.config_file.is_file() and set(self.path.iterdir()) <= known and bool(self._read_starts())
        return is_ours and not any(self.checkpoints.glob("round_*"))

    def make_folders(self) -> None:
        """Make the subfolders that are written during a run."""
        for folder in self._subfolders:
            folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Remove what a run writes, and nothing else."""
        for subfolder in self._subfolders:
            shutil.rmtree(subfolder, ignore_errors=True)
        for file in self._files:
            file.unlink(missing_ok=True)

    def write_config(self, config: FederationConfig) -> None:
        """Write the resolved settings."""
        write_atomically(self.config_file, dump_config(config).encode())

    def read_config(self) -> RunConfig:
        """Read the resolved settings of a simulation."""
        return load_run_config(self.config_file)

    def read_settings(self) -> RunConfig | ServerConfig:
        """Read the resolved settings of a simulation or of a real federation."""
        content = {"choice": "tables"} | read_yaml(self.config_file)  # as runs had it before there was a choice
        data = content.get("data")
        if isinstance(data, dict) and data.get("source") == "sites":
            return validate_settings(ServerConfig, content, str(self.config_file))
        return self.read_config()

    def read_run_id(self) -> str:
        """Return the name under which sites keep their state of this run; the first call makes it."""
        file = self.path / "run_id"
        if not file.is_file():
            write_atomically(file, uuid.uuid4().hex.encode())
        return file.read_text()

    def write_roster(self, names: dict[int, str]) -> None:
        """Write which node of the engine is which site."""
        write_atomically(self.roster_file, json.dumps({str(node): name for node, name in names.items()}).encode())

    def read_roster(self) -> dict[int, str]:
        """Return node id -> name of the site; empty where no site is known yet."""
        if not self.roster_file.is_file():
            return {}
        roster = {int(node): str(name) for node, name in json.loads(self.roster_file.read_text()).items()}
        for name in roster.values():
            # Names become file names, so a name such as ../x must not get through.
            if not _SITE_NAME.fullmatch(name):
                raise RunFolderError(
                    f"'{self.roster_file}' names a site {name!r}. Allowed: letters, digits, '_', '-' and '.', "
                    "beginning with a letter or digit."
                )
        return roster

    def read_temperature(self) -> TemperatureRecord | None:
        """Return the temperature of the chosen model; None where none was fitted.

        Returns
        -------
        TemperatureRecord or None
            ``temperature``, ``n`` (validation images), ``nll_before`` and ``nll_after``.

        Raises
        ------
        RunFolderError
            If the file is damaged.
        """
        try:
            found = json.loads(self.temperature_file.read_bytes())
            fitted: TemperatureRecord = {
                "temperature": found["temperature"],
                "n": found["n"],
                "nll_before": found["nll_before"],
                "nll_after": found["nll_after"],
            }
            return fitted if found["fitted"] else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"'{self.temperature_file}' cannot be read ({type(error).__name__}). Restore it from a backup; the "
                "model's probabilities depend on it."
            ) from None

    def read_compression(self) -> CompressionRecord | None:
        """Return what was decided about a compact network; None where nothing was, or not yet.

        Returns
        -------
        CompressionRecord or None
            Of a network that was judged with all numbers; its ``model_file`` is in this folder.

        Raises
        ------
        RunFolderError
            If the file is damaged.
        """
        try:
            found: CompressionRecord = json.loads(self.compression_file.read_bytes())
            needed = {"kind", "status", "reason", "from_sha256"}
            if not needed <= set(found) or (found["status"] == "accepted" and "model_file" not in found):
                raise ValueError("keys are missing")
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise RunFolderError(
                f"'{self.compression_file}' cannot be read ({type(error).__name__}). It says which network is "
                "released: restore it from a backup, or remove it, and resume the run."
            ) from None

    def free_bytes(self) -> int:
        """Return the free space on the run's disk."""
        return shutil.disk_usage(self.path).free

    def record_start(self) -> None:
        """Add this start of the run to ``environment.json``."""
        self._write_starts([*self._read_starts(), cast("Start", describe_environment())])

    def record_distillation(self, fopro: str, teacher: Mapping[str, object] | None) -> None:
        """Add to this start in ``environment.json`` what the sites distil.

        Parameters
        ----------
        fopro : str
            ``disabled``, ``client`` (FoPro-KD) or ``self``; see :func:`fedmed.distillation.name_distillation`.
        teacher : mapping, optional
            Name, source, SHA-256 and image size of the teacher.
        """
        starts = self._read_starts() or [Start()]
        starts[-1] |= {"fopro": fopro, "teacher": None if teacher is None else cast("TeacherOrigin", dict(teacher))}
        self._write_starts(starts)

    def record_extensions(self, extensions: Sequence[Extension]) -> None:
        """Add to this start in ``environment.json`` which code from outside fedmed runs.

        Raises
        ------
        RunFolderError
            If the run has begun with other code.
        """
        starts = self._read_starts() or [Start()]
        told = [one.model_dump() for one in extensions]
        before = next((start["extensions"] for start in starts if start.get("extensions")), told)
        if before != told:
            names = "; ".join(str(Extension.model_validate(one)) for one in before)
            raise RunFolderError(
                f"The run in '{self.path}' has begun with {names}. Found here: {'; '.join(map(str, extensions))}. "
                "Install again what it has begun with, or begin a new run."
            )
        if told:
            starts[-1] |= {"extensions": told}
            self._write_starts(starts)

    def read_distillation(self) -> Distillation:
        """Return ``fopro`` and ``teacher`` of the newest start; empty where a run does not say."""
        starts = self._read_starts() or [Start()]
        return cast("Distillation", {key: value for key, value in starts[-1].items() if key in ("fopro", "teacher")})

    def read_environment(self) -> dict[str, JsonValue]:
        """Return the newest start of ``environment.json``."""
        return cast("dict[str, JsonValue]", self._read_starts()[-1])

    def _read_starts(self) -> list[Start]:
        file = self.environment_file
        starts: list[Start] = json.loads(file.read_text())["starts"] if file.is_file() else []
        return starts

    def _write_starts(self, starts: list[Start]) -> None:
        content = {"format": RUN_FOLDER.number, "starts": starts}
        write_atomically(self.environment_file, json.dumps(content, indent=2).encode())
