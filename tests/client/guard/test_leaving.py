"""What a site tells of its prompt, by hand."""

import pytest

from client.guard.leaving import find_bands_breach
from fedmed.protocol.reports import TrainReport


@pytest.mark.parametrize(
    ("num_images", "bands", "expected"),
    [
        (1, None, None),
        (20, [1.0, None, 0.5], None),
        (19, [1.0], "fewer than 20 images"),
        (0, [1.0], "fewer than 20 images"),
    ],
)
def test_of_a_prompt_of_few_images_nothing_leaves(
    num_images: int, bands: list[float | None] | None, expected: str | None
) -> None:
    told = TrainReport(num_images=num_images, loss=1.0, learning_rate=0.1, train_s=1.0, prompt_bands=bands)
    found = find_bands_breach(told)
    assert found is None if expected is None else expected in str(found)
