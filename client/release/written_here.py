"""What this hospital's own installation writes beside a released model: programs, packages, card and report's page."""

import re
from importlib import resources
from pathlib import Path
from typing import cast

from client.release.content import ReleaseError
from fedmed.errors import KeyFileError
from fedmed.export.artefact import make_requirements
from fedmed.export.manifest import ModelManifest
from fedmed.export.model_card import ReportData, write_model_card
from fedmed.predict import KEY_FILE
from fedmed.protocol.release import CARD_FILE, REPORT_DATA_FILE, REQUIREMENTS_FILE
from fedmed.report.page import render_page
from fedmed.report.schema.document import Document
from fedmed.storage.atomic_files import write_atomically, write_text_atomically

PROGRAMS = {
    "predict.py": "predict.py",
    "predict_tables.py": "predict_tables.py",
    "predict_watch.py": "predict_watch.py",
    "load_model.py": "export/torch_loader.py",
}
"""Programs beside the deploy form -> where they lie in the package that is installed here. None of them travels."""
_KEY_LINE = 'KEY = ""\n'
_PUBLIC_KEY = re.compile(r"(ssh-ed25519 [A-Za-z0-9+/]+={0,2})(\s.*)?", re.DOTALL)


def write_beside_model(folder: Path, manifest: ModelManifest, report: Document, release_key: Path) -> None:
    """Write what a person needs to use a deploy form.

    Parameters
    ----------
    folder : Path
        Of the model.
    manifest : ModelManifest
        As it was read.
    report : Document
        Of the same model.
    release_key : Path
        Public key with which releases of this federation are signed. ``predict.py`` gets it, so that it opens no model
        that is not signed with it, whatever is done to the other files.

    Raises
    ------
    FedmedError
        If the key cannot be used, or manifest and report lack something for the model card.
    """
    key = _read_key(release_key)
    for name, source in PROGRAMS.items():
        text = resources.files("fedmed").joinpath(source).read_text(encoding="utf-8")
        if name == "predict.py":
            before, line, after = text.partition(_KEY_LINE)
            assert line, "predict.py has a place for the key"
            text = f'{before}KEY = "{key}"\n{after}'
        write_text_atomically(folder / name, text)
    write_text_atomically(folder / KEY_FILE, f"{key}\n")
    write_text_atomically(folder / REQUIREMENTS_FILE, make_requirements("cryptography"))
    try:
        card = write_model_card(manifest, cast("ReportData", report))  # what the card needs of it
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReleaseError(
            f"The model card cannot be written, because manifest and report lack something ({type(error).__name__}: "
            f"{error}). Nothing was put in place. Tell the coordinating site."
        ) from None
    write_text_atomically(folder / CARD_FILE, card)


def write_federation_report(folder: Path, data: bytes, document: Document) -> None:
    """Draw the federation's report from its numbers; nothing that travelled is shown as it came.

    Raises
    ------
    ReleaseError
        If the numbers do not belong together, so that no page can be drawn.
    """
    try:
        page = render_page(document)
    except Exception as error:  # of whatever in it does not fit the rest
        raise ReleaseError(
            f"The file {REPORT_DATA_FILE} of the release is refused: no page can be drawn from it "
            f"({type(error).__name__}). Nothing was put in place. Tell the coordinating site."
        ) from error
    write_atomically(folder / REPORT_DATA_FILE, data)
    write_text_atomically(folder / "index.html", page)


def _read_key(file: Path) -> str:
    """Return a public key without its comment."""
    found = _PUBLIC_KEY.fullmatch(file.read_text("utf-8", "replace").strip())
    if found is None:
        raise KeyFileError(f"{file} is no Ed25519 key. Put back the release.pub of the kit.")
    return found[1]
