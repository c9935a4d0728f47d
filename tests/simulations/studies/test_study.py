"""Studies with a runner that computes nothing: what is done, skipped, failed, stale and resumed."""

import json
from pathlib import Path

import pytest
import yaml

from fedmed.errors import ConfigError, FedmedError
from simulations.run import main
from simulations.studies import command as study_command
from simulations.studies.command import run_cells
from simulations.studies.report import describe_state, render_markdown, write_tables
from simulations.studies.study import digest_settings, list_studies, load_study, read_progress, save_result
from simulations.studies.table import build_table

BASE = """
name: small
sites: 2
rounds: 3
data: {source: phantom, images_per_site: 40}
"""


def figure(value, better="up"):
    return {"value": value, "better": better, "n": 10}


def cell_result(value, gap=0.1, worse=()):
    return {
        "wall_s": 2.0,
        "synthetic": True,
        "figures": {"balanced_accuracy": figure(value), "macro_f1": {"better": "up", "n": 10}},
        "sites": {
            "north": {"balanced_accuracy": figure(value + 0.1)},
            "south": {"balanced_accuracy": figure(value - 0.1)},
        },
        "groups": {"sex": {"female": {"accuracy": figure(0.5)}}},
        "gaps": {"sex": {"gap_accuracy": figure(gap, "down")}},
        "benefit_summary": {"better": [], "worse": list(worse), "undecided": ["north", "south"], "unknown": []},
    }


class FakeRunner:
    """Gives 0.5 for the baseline and 0.6 for others, plus a hundredth of the seed."""

    def __init__(self, fail=()):
        self.ran, self.fail = [], set(fail)

    def __call__(self, cell, on_rounds):
        self.ran.append(cell.name)
        on_rounds(1)
        if cell.name in self.fail:
            raise FedmedError("no images")
        return cell_result((0.5 if cell.arm == "plain" else 0.6) + cell.seed / 100, worse=["north"])


class Silence:
    def __init__(self):
        self.texts = []

    def on_cell(self, cell, done, mean_s):
        pass

    def on_rounds(self, rounds):
        pass

    def on_text(self, text):
        self.texts.append(text)


def study_content(**changes):
    content = {
        "name": "tiny",
        "description": "Two arms.",
        "base": "base.yaml",
        "set": {"rounds": 2},
        "arms": {
            "plain": {"description": "as it is"},
            "equal": {"description": "equal <weights>", "set": {"aggregation.weighting": "equal"}},
        },
        "baseline": "plain",
        "seeds": [0, 1, 2],
        "figures": ["balanced_accuracy", "gaps.sex.gap_accuracy", "benefit.worse"],
        "front": {"x": "balanced_accuracy", "y": ["gaps.sex.gap_accuracy"]},
    }
    return content | changes


@pytest.fixture
def no_drawing(monkeypatch):
    """Spares the time for drawing after every cell."""
    monkeypatch.setattr(study_command, "write_tables", lambda study, progress: None)


@pytest.fixture
def write_study(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)

    def write(**changes):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(study_content(**changes), sort_keys=False))
        return path

    return write


@pytest.fixture
def study(write_study, tmp_path):
    return load_study(write_study(), results=tmp_path / "results")


def test_cells_go_seed_by_seed_with_their_settings(study):
    assert [cell.name for cell in study.cells] == ["plain-0", "equal-0", "plain-1", "equal-1", "plain-2", "equal-2"]
    equal = study.cells[3]
    assert (equal.config.rounds, equal.config.seed, equal.config.aggregation.weighting) == (2, 1, "equal")
    assert study.cells[2].config.aggregation.weighting == "images"
    assert len({cell.digest for cell in study.cells}) == 6


def test_arms_that_are_last_wait_for_all_seeds_of_the_others(write_study):
    arms = study_content()["arms"]
    arms = {"spare": {"description": "if there is time", "last": True, "set": {"rounds": 1}}} | arms
    names = [cell.name for cell in load_study(write_study(arms=arms, seeds=[0, 1])).cells]
    assert names == ["plain-0", "equal-0", "plain-1", "equal-1", "spare-0", "spare-1"]


@pytest.mark.usefixtures("no_drawing")
def test_finished_cells_are_skipped(study):
    first, second = FakeRunner(), FakeRunner()
    run_cells(study, first, Silence())
    run_cells(study, second, Silence())
    assert first.ran == [cell.name for cell in study.cells]
    assert second.ran == []
    assert read_progress(study).is_complete
    assert read_progress(study).wall_s == 12.0


@pytest.mark.usefixtures("no_drawing")
def test_a_failing_cell_loses_no_other_and_is_tried_again(study):
    listener = Silence()
    run_cells(study, FakeRunner(fail=["equal-0"]), listener)
    progress = read_progress(study)
    assert progress.failed == {("equal", 0): "no images"}
    assert len(progress.results) == 5
    assert "equal-0 did not finish: no images" in listener.texts
    assert "equal-0 did not finish: no images" in render_markdown(build_table(study, progress))
    again = FakeRunner()
    run_cells(study, again, Silence())
    assert again.ran == ["equal-0"]
    assert read_progress(study).failed == {}


@pytest.mark.usefixtures("no_drawing")
def test_ctrl_c_keeps_what_is_done(study):
    def stop_at_third(cell, on_rounds):
        if cell.name == "plain-1":
            raise KeyboardInterrupt
        return cell_result(0.5)

    with pytest.raises(KeyboardInterrupt):
        run_cells(study, stop_at_third, Silence())
    assert sorted(read_progress(study).results) == [("equal", 0), ("plain", 0)]
    rest = FakeRunner()
    run_cells(study, rest, Silence())
    assert rest.ran == ["plain-1", "equal-1", "plain-2", "equal-2"]


@pytest.mark.usefixtures("no_drawing")
def test_changed_settings_make_cells_stale(study, write_study):
    run_cells(study, FakeRunner(), Silence())
    arms = study_content()["arms"]
    arms["equal"]["set"]["training.epochs_per_round"] = 2
    changed = load_study(write_study(arms=arms), results=study.results)
    progress = read_progress(changed)
    assert progress.stale == ["equal-0", "equal-1", "equal-2"]
    assert "Incomplete: 3 of 6 cells" in render_markdown(build_table(changed, progress))
    runner, listener = FakeRunner(), Silence()
    run_cells(changed, runner, listener)
    assert runner.ran == ["equal-0", "equal-1", "equal-2"]
    assert "settings of 3 cells have changed" in listener.texts[0]


def test_results_do_not_depend_on_places_workers_and_deadlines(write_study, tmp_path):
    plain = load_study(write_study()).cells[0]
    other = load_study(write_study(), ["workers=1", "round_deadline_s=5", "data.unit=lesion"]).cells[0]
    assert other.digest == plain.digest
    assert load_study(write_study(), ["rounds=9"]).cells[0].digest != plain.digest
    base = {"source": "image_table", "table": "t.csv", "site_column": "site"}
    digests = set()
    for folder, unit in (("one", "patient"), ("two", "patient"), ("two", "lesion")):
        data = base | {"root": str(tmp_path / folder / "data"), "unit": unit}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": data}))
        digests.add(digest_settings(load_study(write_study()).cells[0].config))
    assert len(digests) == 1


def test_a_setting_at_its_default_does_not_count(write_study):
    plain = load_study(write_study()).cells[0]
    assert load_study(write_study(), ["training.proximal_mu=0.0", "compression=none"]).cells[0].digest == plain.digest
    assert load_study(write_study(), ["training.proximal_mu=0.1"]).cells[0].digest != plain.digest


@pytest.mark.usefixtures("no_drawing")
def test_a_damaged_result_counts_as_missing(study):
    run_cells(study, FakeRunner(), Silence())
    study.result_file(study.cells[0]).write_text('{"digest": ')
    assert len(read_progress(study).results) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baseline": "plane"}, "Did you mean 'plain'"),
        ({"seeds": [1, 1]}, "each seed may be given once"),
        ({"seeds": []}, "seeds"),
        ({"set": {"seed": 3}}, "'set' sets seed, which the study sets itself"),
        ({"armz": {}}, "Did you mean 'arms'"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml' does not exist"),
        ({"figures": ["classes.tail.auc"]}, "'class_groups' says: none"),
        ({"class_groups": {"tail": ["df"]}, "figures": ["classes.tial.auc"]}, "Did you mean 'tail'"),
        ({"class_groups": {"tail": ["df"]}, "figures": ["classes.tail.acu"]}, "Did you mean 'auc'"),
        ({"class_groups": {"tail": []}}, "class_groups.tail"),
        ({"class_groups": {"the.tail": ["df"]}}, "class_groups"),
        ({"like": "nowhere.yaml"}, "nowhere.yaml' does not exist"),
        ({"arms": {"plain": {"description": "x", "set": {"aggregation.waiting": 1}}}}, "Did you mean 'weighting'"),
    ],
)
def test_wrong_studies_are_explained_before_anything_runs(changes, words, write_study):
    with pytest.raises(ConfigError) as caught:
        load_study(write_study(**changes))
    assert words in str(caught.value)
    assert "tiny.yaml" in str(caught.value)


def test_a_study_like_another_says_only_what_differs(write_study, tmp_path):
    """Keys take the place of the other study's; only ``set`` is laid over its ``set``."""
    write_study(set={"rounds": 2, "training.batch_size": 8})
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "more.yaml"
    path.write_text("name: more\nlike: ../tiny.yaml\nset: {rounds: 5}\nseeds: [7]\n")
    study = load_study(path)
    assert [cell.name for cell in study.cells] == ["plain-7", "equal-7"]
    assert study.config.name == "more"
    assert study.config.figures == study_content()["figures"]
    config = study.cells[1].config
    assert (config.rounds, config.training.batch_size, config.aggregation.weighting) == (5, 8, "equal")


def test_a_study_is_not_like_one_that_is_like_another(write_study, tmp_path):
    write_study(like="third.yaml")
    (tmp_path / "more.yaml").write_text("name: more\nlike: tiny.yaml\n")
    with pytest.raises(ConfigError, match=r"more.yaml: 'like' names .*tiny.yaml, which has a 'like' itself"):
        load_study(tmp_path / "more.yaml")


def test_classes_of_groups_are_checked_before_anything_runs(write_study, tmp_path, capsys):
    """The phantom has pigment_net and others, but no ``nett``."""
    path = write_study(class_groups={"tail": ["nett"]})
    assert main(["--study", str(path), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "arm 'plain': 'class_groups.tail' names the class 'nett'" in told
    assert "Allowed: " in told
    assert not (tmp_path / "out").exists()


def test_other_class_groups_need_no_new_run(write_study):
    plain, other = (load_study(write_study(class_groups={"tail": names})) for names in (["df"], ["df", "vasc"]))
    assert [cell.digest for cell in plain.cells] == [cell.digest for cell in other.cells]


def test_a_missing_study_names_those_that_are_shipped():
    with pytest.raises(ConfigError, match=r"Did you mean 'fairness'.*come with fedmed: .*fairness"):
        load_study(Path("fairnes"))


def test_the_long_tailed_study_differs_in_its_images_only():
    plain, tailed = (load_study(Path(name)) for name in ("fopro_kd", "fopro_kd_long_tail"))
    assert tailed.config.arms == plain.config.arms
    assert tailed.config.seeds == plain.config.seeds
    pairs = zip(plain.cells, tailed.cells, strict=True)
    assert all(
        other.config.model_copy(update={"name": cell.config.name, "data": cell.config.data}) == cell.config
        and other.config.data == cell.config.data.model_copy(update={"long_tail": 100.0})
        for cell, other in pairs
    )


@pytest.mark.parametrize("name", list_studies())
def test_shipped_studies_can_be_read(name, tmp_path):
    study = load_study(Path(name), results=tmp_path)
    assert study.config.name == name
    assert len(study.config.seeds) >= 3
    assert len({cell.digest for cell in study.cells}) == len(study.cells)


def test_the_state_is_told_in_words():
    assert describe_state(24, 5, 61.2) == "Incomplete: 5 of 24 cells done, which took 0:01:01 together."
    assert describe_state(2, 2, 3600) == "2 of 2 cells done, which took 1:00:00 together."


def test_the_table_is_drawn_from_results_alone(study):
    write_tables(study, read_progress(study))
    assert "Incomplete: 0 of 6 cells" in (study.results / "table.md").read_text()
    for cell in study.cells[:-1]:
        save_result(study, cell, cell_result(0.5))
    run_cells(study, FakeRunner(), Silence())
    table = json.loads((study.results / "table.json").read_text())
    (study.results / "table.json").unlink()
    write_tables(study, read_progress(study))
    assert json.loads((study.results / "table.json").read_text()) == table
    assert table["complete"]
    assert (study.results / "front-1.svg").read_text().lstrip().startswith(("<svg", "<?xml"))
