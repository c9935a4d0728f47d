"""What a site keeps of the figures that it has told of a run, see :mod:`client.answers.figure`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from fedmed.errors import RunFolderError
from fedmed.formats import FIGURES
from fedmed.processes import private_folder, write_secret


@dataclass(frozen=True)
class ToldFigures:
    """What is told of one model; nothing but ``n = 0`` where there are too few images."""

    n: int
    accuracy: float | None = None
    balanced_accuracy: float | None = None

    def to_values(self) -> dict[str, Any]:
        """Return what was set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class FigureStore:
    """The file of one run.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    RunFolderError
        If the file cannot be read: with other classes than before, figures would differ by few patients.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._classes: list[int] | None = None
        self._answers: dict[str, dict[str, JsonValue]] = {}
        try:
            values = json.loads(path.read_bytes())
            FIGURES.check(values.get("format"), path)
            self._classes = [int(label) for label in values["classes"]]
            self._answers = {str(model): dict(answer) for model, answer in values["answers"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunFolderError(
                f"{path}, in which this site keeps the figures that it has told in this run, cannot be read "
                f"({type(error).__name__}). No more are told in this run; put the file back from a backup."
            ) from error

    def fix_classes(self, classes: list[int]) -> list[int]:
        """Return the classes of this run: those of its first figures, else these."""
        if self._classes is None:
            self._classes = classes
        return self._classes

    def find(self, model_sha256: str, data: str) -> ToldFigures | None:
        """Return what was told of a model, None if that was of other images than those of now or nothing."""
        answer = self._answers.get(model_sha256)
        if answer is None or answer.get("data") != data:
            return None
        return ToldFigures(**{name: value for name, value in answer.items() if name != "data"})  # type: ignore[arg-type]

    def keep(self, model_sha256: str, data: str, told: ToldFigures) -> None:
        """Keep an answer, before it leaves."""
        self._answers[model_sha256] = {"data": data, **told.to_values()}
        values = {"format": FIGURES.number, "classes": self._classes or [], "answers": self._answers}
        private_folder(self._path.parent)
        write_secret(self._path, json.dumps(values, sort_keys=True).encode())
