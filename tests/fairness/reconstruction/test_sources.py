"""The report adds nothing to what the auditor reads: its sources are the tables and the history, and no others."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from fedmed.fairness.disclosure.rows import plan_disclosure
from fedmed.fairness.disclosure.tables import Disclosure, disclose_tables
from fedmed.fairness.reconstruction.run import read_told_parts
from fedmed.metrics.packing import pack_site_tables, unpack_site_tables
from fedmed.metrics.site_tables import FEDERATED, SiteTables
from fedmed.report import ReportContent, write_report
from fedmed.storage.history import Validation
from fedmed.storage.run_folder import RunFolder
from tests.report.support.example import make_content

SETTINGS = {
    "title",
    "config",
    "environment",
    "classes",
    "chosen_round",
    "rounds_done",
    "synthetic",
    "notes",
    "seed",
    "thresholds",
    "command",
    "single_sites",
    "agreed",
    "benefit_expected",
    "benefit_notes",
    "shift",
}
"""Hold no number about evaluation images."""
READ = {"validation", "test", "gate", "history"}
"""Tables and the history: :func:`fedmed.fairness.reconstruction.run.read_told_parts` reads each."""
WHOLE = {"composition", "temperature", "operating", "compression", "num_images", "pooled_auc", "found"}
"""Class counts, told only where no class is small; sums over all validation images; pooled figures of the gate. Of a
simulation, or of a site's own page, only: images by part, exact areas, images found and left out."""


def test_a_report_has_no_other_source() -> None:
    """Who adds one decides whether the auditor has to read it as well."""
    assert {field.name for field in dataclasses.fields(ReportContent)} == SETTINGS | READ | WHOLE
    assert set(Validation.model_fields) == {"pooled", "sites", "groups", "hidden", "gaps", "counts"}


def make_site(folder: Path) -> SiteTables:
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.integers(0, 2, 60))
    groups = {"site": ["north"] * 60, "sex": rng.choice(["f", "m"], 60).tolist()}
    limits = Disclosure(k=10, k_row=5, k_bin=5)
    plan = plan_disclosure(labels, groups, [str(place) for place in range(60)], limits)
    return disclose_tables({FEDERATED: torch.from_numpy(rng.normal(size=(60, 2)))}, labels, groups, plan, limits)


def test_a_report_is_computed_from_bytes_that_were_sent(tmp_path: Path) -> None:
    tables = make_site(tmp_path)
    packed = pack_site_tables(tables)
    written = []
    for name, told in (("site", tables), ("sent", unpack_site_tables(packed))):
        content = make_content(test={"north": told}, validation={"north": told})
        written.append(write_report(tmp_path / name, content).with_name("report.json").read_bytes())
    assert written[0] == written[1]


def test_the_auditor_reads_all_of_these_sources(tmp_path: Path) -> None:
    packed = pack_site_tables(make_site(tmp_path))
    (tmp_path / "config.yaml").write_text("{}")
    run = RunFolder.open(tmp_path)
    for folder in (run.tables / "round_001", run.tables / "test", run.compression / "gate"):
        folder.mkdir(parents=True)
        (folder / "north.safetensors").write_bytes(packed)
    parts = read_told_parts(run)
    assert {key: len(of_part) for key, of_part in parts.items()} == {("north", "validation"): 1, ("north", "test"): 1}
    assert len(parts["north", "validation"][0].models) == 2
