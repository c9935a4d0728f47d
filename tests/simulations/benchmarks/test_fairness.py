"""The benchmark of disparities compares the same figures, and runs."""

import json

import numpy as np
import pytest
import torch

from fedmed.metrics.tables import tables_from_logits
from simulations.benchmarks import fairness


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(fairness, "NUM_IMAGES", 400)
    monkeypatch.setattr(fairness, "NUM_DRAWS", 20)
    threads = torch.get_num_threads()
    path = tmp_path / "figures.json"
    assert fairness.main(["--fairlearn-draws", "2", "--turns", "1", "--json", str(path)]) == 0
    torch.set_num_threads(threads)
    figures = json.loads(path.read_text())
    assert set(figures) == {"ours_s", "fairlearn_s", "ratio", "everything_s", "report_s"}
    assert figures["ratio"] == pytest.approx(figures["fairlearn_s"] / figures["ours_s"])
    assert "scaled to 20" in capsys.readouterr().out


def test_other_figures_would_not_be_timed() -> None:
    labels, logits = fairness.draw_images(200, seed=0)
    groups = np.array(["a", "b"] * 100)
    tables = tables_from_logits(torch.from_numpy(logits), torch.from_numpy(labels), list(groups))
    answers = logits.argmax(axis=1)
    fairness.check_same_figures(tables, labels, answers, groups)
    with pytest.raises(ValueError, match="not those of fairlearn"):
        fairness.check_same_figures(tables, labels, np.roll(answers, 1), groups)
