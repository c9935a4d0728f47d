"""A site's own report: the released model on the test images of this site alone, with nothing held back.

Before it is written, its figures by group are compared with what fairlearn computes from the images' predictions.
"""

import json
from pathlib import Path
from typing import cast

from pydantic import JsonValue, TypeAdapter

from client.hospital.own_rows import check_rows, read_outputs
from client.hospital.site_data import Site
from client.release.own_images import count_parts, find_own
from client.release.patient_intervals import use_patient_intervals
from fedmed.clinical.entry import read_operating_entry
from fedmed.config.client import ClientConfig
from fedmed.export.manifest import ModelManifest, read_temperature
from fedmed.metrics.site_tables import COMPARED_MODELS, SiteTables
from fedmed.protocol.messages import unpack_tables
from fedmed.report import ReportContent
from fedmed.report.document import build_document
from fedmed.report.page import save_report
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.environment import describe_environment
from fedmed.storage.history import RoundRecord

_STAYS = (
    "Stays here: this page is for {site} alone and must not leave it. It holds figures of small groups and rare "
    "classes that the site withholds from everybody else."
)
_SCOPE = (
    "All figures are of this site's own test images, except for the course of the rounds (loss, pooled validation "
    "figures), which is that of the whole federation. The federation's report is in the folder federation_report."
)
_HISTORY_FILE = "history.json"
_HISTORY = TypeAdapter(list[RoundRecord])
_NO_TABLES = (
    "This site has no tables of its test images for the released model, because it did not take part in the test or "
    "its state was removed. So there are no figures of this site. flower-client --site-report makes them from its "
    "images."
)


def write_own_report(
    config: ClientConfig,
    manifest: ModelManifest,
    history: list[RoundRecord],
    manifest_sha256: str,
    site: Site | None = None,
) -> bool:
    """Write ``state_dir/report/index.html`` and ``report.json``.

    A report with figures of the same release stays as it is when the tables behind it have been removed meanwhile.

    Parameters
    ----------
    config : ClientConfig
        Settings of this site.
    manifest : ModelManifest
        Content of the released model's ``manifest.json``.
    history : list of RoundRecord
        The federation's rounds, without what they say about single sites.
    manifest_sha256 : str
        Hash of the manifest, the name of the release.
    site : Site, optional
        This site as it is now, where its images were opened: then images of patients who withdrew are counted, too.

    Returns
    -------
    bool
        Whether there are figures of this site; without them the report says why.

    Raises
    ------
    FedmedError
        If this site's tables are damaged, or are not what fairlearn finds; then no report is written.
    KeyError, TypeError, ValueError
        If the manifest or the history is not as agreed.
    """
    stored = find_stored(Path(config.state_dir), str(manifest["run_id"]), str(manifest["model_sha256"]))
    tables = _read_tables(stored)
    mark = Path(config.state_dir) / "report" / "release.sha256"
    if tables is None and _has_report(mark, manifest_sha256):
        return True
    classes = tuple(manifest["classes"])
    notes = [_STAYS.format(site=config.name), _SCOPE]
    if tables is None:
        notes.append(_NO_TABLES)
    environment = describe_environment()
    environment.pop("command")  # it holds paths
    content = ReportContent(
        title=f"Stays here: the released model at {config.name}",
        config=cast("dict[str, JsonValue]", manifest["plan"]) | {"data": {"unit": config.data.unit}},
        environment=environment,
        classes=classes,
        chosen_round=int(manifest["chosen_round"]),
        rounds_done=len(history) or int(manifest["plan"]["rounds"]),
        history=history,
        validation={},
        test={} if tables is None else {config.name: tables},
        composition=_read_composition(config, classes, site),
        found=find_own(config, site),
        synthetic=config.data.source == "phantom",
        notes=notes,
        seed=int(manifest["plan"]["seed"]),
        thresholds={"k": 1, "k_row": 1},
        command="flower-client --fetch-model",
        single_sites=True,
        temperature=read_temperature(manifest),
        operating=read_operating_entry(manifest.get("operating_point")),
        benefit_expected=bool(manifest["plan"].get("benefit")),
        benefit_notes=_explain_benefit(config, tables),
    )
    mark.unlink(missing_ok=True)
    document = build_document(content)
    outputs = None if tables is None else read_outputs(stored.with_suffix(".rows.json"))
    if outputs is not None:
        use_patient_intervals(document, config.name, outputs, content.seed)
    save_report(Path(config.state_dir), document)
    write_atomically(mark.parent / _HISTORY_FILE, _HISTORY.dump_json(history))
    if tables is not None:
        write_atomically(mark, manifest_sha256.encode())
    return tables is not None


def find_stored(state_dir: Path, run_id: str, model_sha256: str) -> Path:
    """Return where a site keeps its own tables of a model, with nothing held back."""
    return state_dir / "runs" / run_id / "own_tables" / f"{model_sha256}.safetensors"


def read_history(state_dir: Path) -> list[RoundRecord]:
    """Return the rounds that the site's report of before was drawn with; none where it was never drawn."""
    path = state_dir / "report" / _HISTORY_FILE
    try:
        return _HISTORY.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return []


def _has_report(mark: Path, manifest_sha256: str) -> bool:
    """Return whether there is a complete report with figures of a release; ``mark`` beside it names the release."""
    return (
        mark.is_file()
        and mark.read_bytes() == manifest_sha256.encode()
        and all((mark.parent / name).is_file() for name in ("index.html", "report.json"))
    )


def _read_tables(path: Path) -> SiteTables | None:
    if not path.is_file():
        return None
    tables = unpack_tables(path.read_bytes())
    check_rows(path.with_suffix(".rows.json"), tables)
    return tables


def _explain_benefit(config: ClientConfig, tables: SiteTables | None) -> dict[str, str]:
    """Return why the federation's model is not compared with one of this site alone, if it is not."""
    if tables is None or any(model in tables.paired for model in COMPARED_MODELS):
        return {}
    reason = (
        "client.yaml says policy.benefit: false"
        if not config.policy.benefit
        else "this site's own model was not ready when the test images were scored; its log says why"
    )
    return {config.name: reason}


def _read_composition(
    config: ClientConfig, classes: tuple[str, ...], site: Site | None
) -> dict[str, dict[str, list[int]]] | None:
    """Return this site's images by part and class; None where the split does not say, as after withdrawals."""
    if site is not None:
        return count_parts(site) if site.data.classes == classes else None
    try:
        index = json.loads((Path(config.state_dir) / "splits" / "splits.json").read_text(encoding="utf-8"))
        composition: dict[str, dict[str, list[int]]] = index["composition"]
    except (OSError, ValueError, KeyError):
        return None
    name = config.data_site or (next(iter(composition)) if len(composition) == 1 else None)
    if config.exclude is not None or name not in composition or tuple(index["classes"]) != classes:
        return None
    return {config.name: composition[name]}
