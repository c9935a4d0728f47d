"""What belongs to a released model: its signed manifest and its files."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from client.release.json_files import read_json
from client.release.manifest_form import ManifestForm, SiteComparisonForm
from fedmed.config import Plan
from fedmed.errors import FedmedError, tame
from fedmed.protocol.release import (
    ARTEFACT_FILES,
    HISTORY_FILE,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MODEL_FILE,
    MOST_BYTES,
    REPORT_DATA_FILE,
    SIGNATURE_FILE,
    name_compared,
)

if TYPE_CHECKING:  # it imports torch, which a waiting process does without
    from fedmed.export.manifest import ModelManifest

ASK = "Nothing was put in place. Try again: flower-client --fetch-model; if it stays, tell the coordinating site."
_FORMATS = {"train": 1, "deploy": 2}
_AHEAD = timedelta(days=1)


class ReleaseError(FedmedError):
    """The released model cannot be used: it is damaged, incomplete, or not the one that was announced or compared."""


@dataclass(frozen=True)
class Manifest:
    """The signed list of what belongs to a release."""

    sha256: str
    """Of the manifest's bytes; the name of the release."""
    content: "ModelManifest"
    """What is read of it, and nothing else."""
    run_id: str
    model_sha256: str
    """Hash of the model in train form, as in the rounds."""
    files: dict[str, tuple[str, int]]
    """File name -> SHA-256 and bytes."""
    released: datetime | None
    compared: dict[str, SiteComparisonForm]
    """What the sites compared before the release."""
    names: dict[str, str]
    """Hashes of what must have been compared, see :func:`fedmed.protocol.release.name_compared`."""
    compared_by: str = ""
    """Who compared it, for people, once that was checked."""

    @property
    def is_deployable(self) -> bool:
        """Whether it is the deploy form; else it is the train form, from which this site may make its own."""
        return self.content.get("form") == "deploy"

    @property
    def model_files(self) -> list[str]:
        """What goes into the folder of the model."""
        more = ARTEFACT_FILES if self.is_deployable else ()
        return [MODEL_FILE, *more, MANIFEST_FILE, SIGNATURE_FILE]

    @property
    def wanted(self) -> list[str]:
        """Files that a site fetches beside manifest and signature."""
        return list_wanted(is_deployable=self.is_deployable)


def list_wanted(*, is_deployable: bool) -> list[str]:
    """Return the files that a site fetches beside manifest and signature."""
    more = ARTEFACT_FILES if is_deployable else ()
    return [MODEL_FILE, *more, REPORT_DATA_FILE, HISTORY_FILE]


def parse_manifest(data: bytes, sha256: str) -> Manifest:
    """Read a manifest whose signature was checked.

    Raises
    ------
    ReleaseError
        If it does not have the agreed form.
    """
    try:
        content = read_json(data, MAX_MANIFEST_BYTES)
        form = ManifestForm.model_validate(content)
        Plan.model_validate(form.plan)
        names = name_compared(cast("dict[str, object]", content))
        released = _read_time(form.released)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = tame(".".join(map(str, first["loc"])), 100)
        raise _refuse(f"'{place}': {tame(first['msg'], 200)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refuse(tame(f"{type(error).__name__}: {error}", 200)) from None
    values = cast("ModelManifest", form.model_dump(exclude_none=True))
    files = {name: (entry.sha256, entry.bytes) for name, entry in form.files.items()}
    manifest = Manifest(sha256, values, form.run_id, form.model_sha256, files, released, form.compared, names)
    problem = _find_problem(manifest, form)
    if problem is not None:
        raise ReleaseError(f"The manifest of the release cannot be used: {problem}. {ASK}")
    return manifest


def _refuse(reason: str) -> ReleaseError:
    return ReleaseError(
        f"The manifest of the release cannot be read ({reason}). Server and site must run the same version of fedmed. "
        f"{ASK}"
    )


def _read_time(text: str) -> datetime | None:
    """Return when a model was released; an empty text is no time."""
    if not text:
        return None
    time = datetime.fromisoformat(text)
    if time.tzinfo is None or time > datetime.now(UTC) + _AHEAD:
        raise ValueError("it was released at a time that has not come")
    return time


def _find_problem(manifest: Manifest, form: ManifestForm) -> str | None:
    """Return what does not fit each other in a manifest."""
    missing = [name for name in manifest.wanted if name not in manifest.files]
    if missing:
        return f"it lacks {', '.join(missing)}"
    if form.format != _FORMATS[form.form]:
        return f"it is of format {form.format}, and this version of fedmed reads another one for this kind of model"
    if form.form == "deploy" and (form.proof is None or form.sizes is None):
        return "it lacks its proof"
    large = [name for name in manifest.wanted if manifest.files[name][1] > MOST_BYTES[name]]
    if large:
        return f"{large[0]} has {manifest.files[large[0]][1]:,} bytes, allowed are {MOST_BYTES[large[0]]:,}"
    wrong = [name for name, digest in manifest.names.items() if name in manifest.files
             and digest != manifest.files[name][0]]  # fmt: skip
    unnamed = [name for name in manifest.model_files if name in manifest.wanted and name not in manifest.names]
    if wrong or unnamed:
        return f"it names two hashes of {wrong[0]}" if wrong else f"it names no hash of {unnamed[0]} for the comparison"
    trained = form.trained_sha256 or manifest.names[MODEL_FILE]
    return None if trained == form.model_sha256 else "it names two hashes of the trained model"
