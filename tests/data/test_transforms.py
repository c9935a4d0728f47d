import pytest
import torch
from torchvision.transforms import v2

from fedmed.data import make_eval_transform, make_train_transform, normalisation
from fedmed.data.transforms import draw_crops
from fedmed.errors import ConfigError
from fedmed.seeding import seeded_torch

RECIPES = ["adsr", "aptos", "hifuse", "flips", "none"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_images(sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


MIXED = make_images([(150, 200), (200, 150), (64, 64), (20, 33), (150, 200), (1, 1)])


def finish(recipe, image):
    return v2.functional.normalize(image.float() / 255, *normalisation(recipe))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("make", [make_train_transform, make_eval_transform])
@pytest.mark.parametrize("size", [16, 33, 64])
def test_shape_and_range(recipe, make, size):
    before = [image.clone() for image in MIXED]
    batch = make(recipe, size)(MIXED)
    assert batch.shape == (6, 3, size, size)
    assert batch.dtype == torch.float32
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation(recipe))
    values = batch * deviation + mean
    assert values.min() >= -1e-5
    assert values.max() <= 1 + 1e-5
    assert all(map(torch.equal, MIXED, before))


@pytest.mark.parametrize("recipe", ["adsr", "aptos", "flips", "none"])
def test_evaluation_is_a_direct_resize(recipe):
    batch = make_eval_transform(recipe, 64)(MIXED)
    for image, result in zip(MIXED, batch, strict=True):
        expected = v2.functional.resize(image, [64, 64], antialias=True)
        torch.testing.assert_close(result, finish(recipe, expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [32, 63, 64])
def test_evaluation_of_hifuse_is_resize_and_centre_crop(size):
    reference = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
    for image, result in zip(MIXED, make_eval_transform("hifuse", size)(MIXED), strict=True):
        torch.testing.assert_close(result, finish("hifuse", reference(image)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluation_does_not_depend_on_the_batch(recipe):
    transform = make_eval_transform(recipe, 32)
    batch = transform(MIXED)
    for index, image in enumerate(MIXED):
        assert torch.equal(transform([image])[0], batch[index])
    contiguous = transform([image.contiguous(memory_format=torch.contiguous_format) for image in MIXED])
    by_pixel = transform([image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in MIXED])
    assert torch.equal(contiguous, by_pixel)
    assert torch.equal(contiguous, batch)


def test_grey_seen_three_times():
    """The channels of an array's grey images share memory."""
    grey = torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8)
    for recipe in RECIPES:
        transform = make_eval_transform(recipe, 28)
        assert torch.equal(transform([grey.expand(3, -1, -1)]), transform([grey.repeat(3, 1, 1)]))
        make_train_transform(recipe, 28)([grey.expand(3, -1, -1)])


@pytest.mark.parametrize("recipe", ["adsr", "aptos", "hifuse", "flips"])
def test_training_follows_the_generator(recipe):
    transform = make_train_transform(recipe, 32)
    batches = []
    for seed in (0, 0, 1):
        with seeded_torch(seed, "transform"):
            batches.append(transform(MIXED))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("recipe", ["adsr", "aptos", "hifuse"])
def test_every_image_has_its_own_draw(recipe):
    images = make_images([(50, 50)]) * 8
    batch = make_train_transform(recipe, 32)(images)
    assert len({tuple(image.flatten().tolist()) for image in batch}) == 8


def test_none_trains_as_it_evaluates():
    assert torch.equal(make_train_transform("none", 32)(MIXED), make_eval_transform("none", 32)(MIXED))


def test_flips_gives_the_four_flips():
    images = make_images([(40, 50)]) * 64
    plain = make_eval_transform("flips", 16)(images[:1])[0]
    expected = {tuple(plain.flip(dims).flatten().tolist()) for dims in ((), (-1,), (-2,), (-1, -2))}
    with seeded_torch(0, "flips"):
        batch = make_train_transform("flips", 16)(images)
    assert {tuple(image.flatten().tolist()) for image in batch} == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_uniform_white_stays_white_where_the_picture_is(recipe):
    """No recipe but colour jitter and rotation's black corners changes a white picture."""
    white = [torch.full((3, 40, 40), 255, dtype=torch.uint8)] * 16
    batch = make_train_transform(recipe, 16)(white)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation(recipe))
    values = batch * deviation + mean
    if recipe in {"hifuse", "flips", "none"}:
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)
    else:
        assert values[..., 6:10, 6:10].min() > 0.55  # brightness 0.6 at least


def test_normalisation():
    assert normalisation("hifuse") == ((0.5,) * 3, (0.5,) * 3)
    for recipe in ("adsr", "aptos", "flips", "none"):
        assert normalisation(recipe) == IMAGENET


@pytest.mark.parametrize("make", [make_train_transform, make_eval_transform])
def test_unknown_recipe(make):
    with pytest.raises(ConfigError, match=r"no augmentation 'flip'. Did you mean 'flips'\? Allowed: adsr, aptos"):
        make("flip", 32)
    with pytest.raises(ConfigError, match="no augmentation"):
        normalisation("strong")


class TestCrops:
    @pytest.mark.parametrize("area", [(0.2, 1.0), (0.08, 1.0)])
    def test_bounds(self, area):
        sizes = torch.tensor([[150, 200]] * 2000)
        with seeded_torch(0, "crops"):
            top, left, height, width = draw_crops(sizes, area).unbind(1)
        assert min(top.min(), left.min()) == 0
        assert (top + height).max() == 150
        assert (left + width).max() == 200
        share = height * width / 30_000
        assert share.min() == pytest.approx(area[0], abs=0.02)
        assert share.max() <= 1
        ratio = width / height
        assert ratio.min() == pytest.approx(3 / 4, rel=0.03)
        assert ratio.max() == pytest.approx(4 / 3, rel=0.03)

    def test_agrees_with_torchvision_on_average(self):
        reference = v2.RandomResizedCrop(64, scale=(0.2, 1.0))
        with seeded_torch(0, "crops"):
            ours = draw_crops(torch.tensor([[150, 200]] * 4000), (0.2, 1.0)).double()
            image = torch.zeros(3, 150, 200)
            drawn = [reference.make_params([image]) for _ in range(4000)]
        theirs = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).double()
        error = (ours.var(0) / 4000 + theirs.var(0) / 4000).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
        torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.06, atol=0)

    def test_image_that_no_crop_fits_is_cut_in_the_middle(self):
        """10 x 100 with an area of at least 0.9: the widest allowed is 10 x 13, 100 x 10 gives 13 x 10."""
        crops = draw_crops(torch.tensor([[10, 100], [100, 10], [1, 1]]), (0.9, 1.0))
        assert crops.tolist() == [[0, 44, 10, 13], [44, 0, 13, 10], [0, 0, 1, 1]]
