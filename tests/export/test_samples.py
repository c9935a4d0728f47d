"""Evenly chosen images of several parts."""

import pytest
import torch

from fedmed.data import ImagePart
from fedmed.export.samples import describe_parts, take_proof_images
from tests.export.test_artefact import PLAN, SIZE


class Greys(ImagePart):
    """N grey images; the n-th has value and label n, and n more columns than the first."""

    def __init__(self, number: int) -> None:
        self.items = tuple(map(str, range(number)))
        self.labels = torch.arange(number)
        self.attributes = {}

    def images(self, indices: list[int]) -> list[torch.Tensor]:
        return [torch.full((3, SIZE, SIZE + index), index, dtype=torch.uint8) for index in indices]


@pytest.mark.parametrize(
    ("sizes", "most", "labels"),
    [
        ([10], 4, [0, 2, 5, 7]),
        ([3], 4, [0, 1, 2]),
        ([10, 0, 2], 6, [0, 3, 6, 0, 1]),  # 3 of each that has images
        ([4, 4], 3, [0, 2, 0, 2]),
    ],
)
def test_images_are_spread_over_all_parts(sizes: list[int], most: int, labels: list[int]) -> None:
    images = take_proof_images(list(map(Greys, sizes)), PLAN, most, "test images")
    assert images is not None
    assert images.labels.tolist() == labels
    assert images.pixels.shape == (len(labels), 3, SIZE, SIZE)
    steps = images.pixels[:, 0, 0, 0] - images.pixels[0, 0, 0, 0]
    torch.testing.assert_close(steps / steps.max(), images.labels / images.labels.max())
    assert images.source == f"{len(labels)} test images"
    ranges = describe_parts(list(map(Greys, sizes)), most, "training images")
    assert ranges["basis"] == f"from {len(labels)} training images"
    assert ranges["width"] == [SIZE // 2, 2 * (SIZE + max(labels))]


def test_without_images() -> None:
    assert take_proof_images([Greys(0)], PLAN, 4, "test images") is None
    assert describe_parts([Greys(0)], 4, "training images") == {}
