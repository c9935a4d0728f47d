"""Lines that come again and again are counted."""

from fedmed.processes import RepeatedLines


def test_the_first_is_shown_at_once_and_the_same_again_once_a_minute() -> None:
    seconds = 0.0
    lines = RepeatedLines(clock=lambda: seconds)
    assert lines.take("no") == ["no"]
    shown = []
    for second in range(1, 131):
        seconds = float(second)
        shown += lines.take("no")
    assert shown == ["no (the same again 59 times)", "no (the same again 60 times)"]
    assert lines.flush() == ["no (the same again 11 times)"]
    assert lines.flush() == []
    seconds = 400.0
    assert lines.poll() == []
    assert lines.take("no") == ["no"]


def test_what_is_different_each_time_is_a_number() -> None:
    seconds = 0.0
    lines = RepeatedLines(most=3, clock=lambda: seconds)
    shown = [line for number in range(1000) for line in lines.take(f"no {number}")]
    assert shown == ["no 0", "no 1", "no 2"]
    seconds = 60.0
    assert lines.poll() == ["997 further lines of this kind are not shown."]
    assert lines.take("yes") == ["yes"]


def test_several_times_at_once_and_long_lines() -> None:
    lines = RepeatedLines(clock=lambda: 0.0)
    assert lines.take("x" * 10_000, 5) == ["x" * 500]
    assert lines.flush() == [f"{'x' * 500} (the same again 4 times)"]
