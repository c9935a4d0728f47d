"""What a person sees of the rounds."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from fedmed.storage.history import Participation, RoundRecord, Validation
from server.supervision.console import BarListener, PlainListener, describe_round


def record(loss: float | None, accuracy: float | None, number: int = 2) -> RoundRecord:
    participation = [Participation(site="a", status="accepted"), Participation(site="b", status="late")]
    validation = Validation(pooled={"balanced_accuracy": accuracy})
    return RoundRecord(round=number, loss=loss, validation=validation, participation=participation, wall_s=1.25)


@pytest.mark.parametrize(
    ("loss", "accuracy", "words"),
    [
        (0.5, 0.25, "loss 0.500  balanced accuracy 0.250"),
        (None, 0.25, "loss n/a  balanced accuracy 0.250"),
        (0.5, None, "loss 0.500  balanced accuracy n/a"),
    ],
)
def test_a_figure_that_is_unknown_is_said_to_be(loss: float | None, accuracy: float | None, words: str) -> None:
    assert describe_round(record(loss, accuracy), 8) == f"round 2/8  {words}  1 sites, 1 left out  1.2 s"


def test_plain_lines_take_a_round_without_a_loss(capsys: pytest.CaptureFixture[str]) -> None:
    PlainListener(8).on_round(record(None, None))
    assert "loss n/a" in capsys.readouterr().err


def test_the_bar_begins_with_what_it_is_told() -> None:
    console = Console(file=io.StringIO(), width=100)
    progress = Progress(TextColumn("{task.description}"), console=console)
    listener = BarListener(8, progress, "starting")
    assert progress.tasks[0].description == "starting"
    listener.on_phase("train", 1, 2)
    listener.on_answer("a", None)
    assert progress.tasks[0].description == "round 1/8 training: 1/2 sites"
    listener.on_round(record(None, None))
    assert progress.tasks[0].completed == 2


def test_training_of_each_site_alone_has_a_bar_of_its_own() -> None:
    """After eight rounds it begins anew; a call for four rounds of which one of two sites is done is two rounds."""
    progress = Progress(TextColumn("{task.description}"), console=Console(file=io.StringIO(), width=100))
    listener = BarListener(8, progress, "starting")
    listener.on_phase("evaluate", 8, 2)
    listener.on_round(record(None, None, 8))
    assert progress.tasks[0].completed == 8
    listener.on_phase("local", 4, 2)
    assert progress.tasks[0].completed == 0
    listener.on_answer("a", None)
    assert progress.tasks[0].completed == 2
    assert progress.tasks[0].description == "round 4/8 training of each site alone: 1/2 sites"
    listener.on_phase("local", 8, 2)
    assert progress.tasks[0].completed == 4
    listener.on_phase("test", 6, 2)
    assert progress.tasks[0].completed == 6


def test_plain_lines_say_what_takes_time(capsys: pytest.CaptureFixture[str]) -> None:
    listener = PlainListener(8)
    for phase, number in {"train": 1, "evaluate": 1, "local": 4, "recalibrate": 2, "calibrate": 2, "test": 2}.items():
        listener.on_phase(phase, number, 3)
    assert capsys.readouterr().err.splitlines() == [
        "training of each site alone: up to round 4/8, 3 sites",
        "BatchNorm statistics: 3 sites",
        "temperature: 3 sites",
        "test: 3 sites",
    ]


def test_a_problem_of_a_site_is_shown_by_its_note_only(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    bar = BarListener(8, Progress(TextColumn("{task.description}"), console=Console(file=file, width=100)), "starting")
    for listener in (PlainListener(8), bar):
        listener.on_answer("a", "it was not asked by its own people")
        listener.on_note("a cannot join: it was not asked by its own people")
    assert capsys.readouterr().err.count("not asked") == 1
    assert file.getvalue().count("not asked") == 1
