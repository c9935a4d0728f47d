import math

import pytest

from fedmed.config import ScheduleConfig
from fedmed.training.schedules import learning_rate


def rates(schedule: ScheduleConfig, num_epochs: int) -> list[float]:
    return [learning_rate(schedule, 2.0, epoch, num_epochs) for epoch in range(num_epochs)]


def test_constant() -> None:
    assert rates(ScheduleConfig(name="constant"), 3) == [2.0, 2.0, 2.0]


def test_cosine_by_hand() -> None:
    expected = [2.0, 1.0 + math.cos(math.pi / 4), 1.0, 1.0 + math.cos(3 * math.pi / 4)]
    assert rates(ScheduleConfig(name="cosine"), 4) == pytest.approx(expected)


def test_cosine_ends_at_its_final_share() -> None:
    # The epoch after the last would be at the bottom: share 0.175 of the base rate.
    assert learning_rate(ScheduleConfig(name="cosine", final_share=0.175), 0.002, 10, 10) == pytest.approx(3.5e-4)


def test_warmup_rises_to_the_full_rate() -> None:
    schedule = ScheduleConfig(name="constant", warmup_epochs=3)
    assert rates(schedule, 5) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_steps_multiply() -> None:
    schedule = ScheduleConfig(name="step", milestones=[0.5, 0.75], gamma=0.1)
    assert rates(schedule, 4) == pytest.approx([2.0, 2.0, 0.2, 0.02])


def test_official_is_not_cumulative() -> None:
    schedule = ScheduleConfig(name="official")
    # Base rate 0.002: 4e-4 in epochs 0, 20, ..., 100; 0.002 between; 3.5e-4 from epoch 101.
    found = {epoch: learning_rate(schedule, 0.002, epoch, 150) for epoch in (0, 1, 19, 20, 21, 100, 101, 120, 149)}
    assert found == pytest.approx(
        {0: 4e-4, 1: 0.002, 19: 0.002, 20: 4e-4, 21: 0.002, 100: 4e-4, 101: 3.5e-4, 120: 3.5e-4, 149: 3.5e-4}
    )
