"""What a site tells of its prompt, by hand."""

from typing import Any

import pytest

from client.guard.leaving import find_bands_breach


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, None),
        ({"num_images": 20, "prompt_bands": [1.0, None, 0.5]}, None),
        ({"num_images": 19, "prompt_bands": [1.0]}, "fewer than 20 images"),
        ({"prompt_bands": [1.0]}, "fewer than 20 images"),
        ({"num_images": 500, "prompt_bands": [1.0] * 9}, "more of its prompt"),
        ({"num_images": 500, "prompt_bands": [[1.0]]}, "more of its prompt"),
        ({"num_images": 500, "prompt_bands": "1.0"}, "more of its prompt"),
    ],
)
def test_of_a_prompt_a_few_numbers_leave(told: dict[str, Any], expected: str | None) -> None:
    found = find_bands_breach(told)
    assert found is None if expected is None else expected in str(found)
