"""The phantom: reproducible, long-tailed, different by site and by subgroup exactly as much as asked for."""

import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedmed.config import PhantomData
from fedmed.data.phantom import cohort as phantom
from fedmed.data.phantom.cohort import (
    PhantomImages,
    class_shares,
    generate_proxy,
    generate_site,
    phantom_classes,
    phantom_site_names,
)
from fedmed.data.phantom.patterns import PATTERNS
from fedmed.seeding import make_rng

SMALL = PhantomData(images_per_site=60, image_size=32)


def same(a: PhantomImages, b: PhantomImages) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.patient == b.patient


def change(config: PhantomData, **values) -> PhantomData:
    return PhantomData(**(config.model_dump() | values))


@pytest.mark.parametrize("num_classes", [2, 5, 8])
@pytest.mark.parametrize("size", [16, 33, 128])
def test_shapes_and_types(num_classes, size):
    config = PhantomData(num_classes=num_classes, image_size=size, images_per_site=40)
    site = generate_site(config, 0, 0)
    assert site.images.shape == (40, 3, size, size)
    assert site.images.dtype == torch.uint8
    assert site.labels.shape == (40,)
    assert site.labels.dtype == torch.int64
    assert set(site.labels.tolist()) == set(range(num_classes))
    assert len(site.patient) == 40
    assert set(site.attributes) == {"sex", "age_band"}
    assert all(len(values) == 40 for values in site.attributes.values())


def test_names():
    assert phantom_classes(PhantomData(num_classes=3)) == ("pattern_plain", "pattern_mesh", "pattern_globules")
    assert phantom_classes(PhantomData(num_classes=8)) == tuple(PATTERNS)
    assert phantom_site_names(2) == ("site_01", "site_02")
    names = phantom_site_names(100)
    assert (names[0], names[-1], len(set(names))) == ("site_001", "site_100", 100)
    assert list(names) == sorted(names)


def test_the_same_arguments_give_the_same_images():
    assert same(generate_site(SMALL, 1, 7), generate_site(SMALL, 1, 7))


def test_global_generators_neither_matter_nor_change():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate_site(SMALL, 0, 0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert same(first, generate_site(SMALL, 0, 0))


def test_seed_and_site_each_change_the_images():
    base = generate_site(SMALL, 0, 0)
    for other in (generate_site(SMALL, 0, 1), generate_site(SMALL, 1, 0)):
        assert not torch.equal(base.images, other.images)
        assert not torch.equal(base.labels, other.labels)


def test_patients_of_different_sites_have_different_ids():
    assert not set(generate_site(SMALL, 0, 0).patient) & set(generate_site(SMALL, 1, 0).patient)


def test_images_are_neither_black_nor_white_nor_flat():
    site = generate_site(PhantomData(images_per_site=100, scanner_strength=2, attribute_strength=2), 0, 0)
    images = site.images.double()
    means = images.mean((1, 2, 3))
    assert means.min() > 40
    assert means.max() < 235
    assert images.std((2, 3)).min() > 3
    assert len(torch.unique(site.images.flatten(1), dim=0)) == 100, "no two images are equal, not even of one lesion"


def test_class_shares_are_geometric():
    """With K = 3 and imbalance 4 the weights are 1, 1/2, 1/4, hence 4/7, 2/7, 1/7."""
    np.testing.assert_allclose(class_shares(3, 4.0), np.array([4, 2, 1]) / 7)
    np.testing.assert_allclose(class_shares(4, 1.0), np.full(4, 0.25))


@pytest.mark.parametrize("attribute_strength", [0.0, 1.0])
def test_the_long_tail_has_the_shares_asked_for(attribute_strength):
    """16,000 images; the rarest share, 0.055, has a standard error below 0.003 (lesions of 1.3 images on average)."""
    config = PhantomData(images_per_site=2000, image_size=16, imbalance=8, attribute_strength=attribute_strength)
    labels = torch.cat([generate_site(config, index, 0).labels for index in range(8)])
    counts = torch.bincount(labels, minlength=5).numpy()
    np.testing.assert_allclose(counts / counts.sum(), class_shares(5, 8.0), atol=0.012)
    assert 6.5 < counts[0] / counts[4] < 9.5


@pytest.mark.parametrize(("images", "classes", "fewest"), [(400, 5, 5), (60, 5, 5), (20, 5, 2), (20, 8, 1)])
def test_every_class_is_at_every_site(images, classes, fewest):
    config = PhantomData(images_per_site=images, num_classes=classes, imbalance=200, image_size=16)
    for index in range(20):
        counts = torch.bincount(generate_site(config, index, 3).labels, minlength=classes)
        assert counts.min() >= fewest
        assert counts.sum() == images


def test_filling_classes_ends_when_there_are_too_few_lesions():
    """Two lesions of three images cannot show three classes; one of them is given away only if its class keeps some."""
    labels = phantom._fill_classes(np.array([0, 0]), np.array([3, 3]), 3, np.random.default_rng(0))
    assert sorted(labels) == [0, 1]


def test_patients_have_one_to_three_images_and_one_set_of_attributes():
    site = generate_site(PhantomData(images_per_site=400, image_size=16), 0, 0)
    of_patient: dict[str, list[int]] = {}
    for index, patient in enumerate(site.patient):
        of_patient.setdefault(patient, []).append(index)
    sizes = [len(indices) for indices in of_patient.values()]
    assert set(sizes) == {1, 2, 3}
    assert 0.25 < np.mean([size > 1 for size in sizes]) < 0.55
    for indices in of_patient.values():
        assert indices == list(range(indices[0], indices[-1] + 1))
        assert len({(site.attributes["sex"][i], site.attributes["age_band"][i]) for i in indices}) == 1
    assert set(site.attributes["sex"]) == set(phantom.SEXES)
    assert set(site.attributes["age_band"]) == set(phantom.AGE_BANDS)


def skin_colours(site: PhantomImages) -> np.ndarray:
    """Return the mean colour of each image's rim, (N, 3), where no lesion is."""
    images = site.images.double()
    return torch.cat([images[:, :, :2].flatten(2), images[:, :, -2:].flatten(2)], dim=2).mean(2).numpy()


def test_images_of_one_patient_look_alike():
    """The skin of two images of a patient differs less than that of two patients; splits by patient matter."""
    site = generate_site(PhantomData(images_per_site=400, image_size=32), 0, 0)
    colours, patient = skin_colours(site), np.array(site.patient)
    neighbours = np.linalg.norm(np.diff(colours, axis=0), axis=1)
    same_patient = patient[1:] == patient[:-1]
    assert neighbours[same_patient].mean() < 0.75 * neighbours[~same_patient].mean()


def site_colours(strength: float) -> np.ndarray:
    """Return the mean colour of the skin at six sites, (6, 3)."""
    config = PhantomData(images_per_site=200, image_size=32, scanner_strength=strength)
    return np.stack([skin_colours(generate_site(config, index, 0)).mean(0) for index in range(6)])


def test_scanners_differ_by_site_as_much_as_asked_for():
    """At strength 0 the colours of sites differ by chance only: 200 images of standard deviation 20 give 1.5."""
    spreads = {strength: site_colours(strength).std(0).max() for strength in (0.0, 1.0, 2.0)}
    assert spreads[0.0] < 4
    assert spreads[1.0] > 8
    assert spreads[2.0] > spreads[1.0]


def test_scanners_are_one_at_strength_zero_and_never_alike_otherwise():
    scanners = [phantom._draw_scanner(1.0, np.random.default_rng(seed)) for seed in range(20)]
    assert len({scanner.blur for scanner in scanners}) == 20
    assert np.ptp([scanner.noise for scanner in scanners]) > 0.02
    assert np.ptp([scanner.contrast for scanner in scanners]) > 0.2
    assert len({phantom._draw_scanner(0.0, np.random.default_rng(seed)) for seed in range(20)}) == 1


def with_other_attributes(monkeypatch, config: PhantomData) -> tuple[PhantomImages, PhantomImages]:
    """Return a site twice; the second time its patients' attributes come from another stream, all else does not."""
    first = generate_site(config, 0, 0)

    def exchange(seed, *keys):
        return make_rng(seed, *("others" if key == "attributes" else key for key in keys))

    monkeypatch.setattr(phantom, "make_rng", exchange)
    second = generate_site(config, 0, 0)
    assert first.attributes != second.attributes
    return first, second


def test_attributes_have_no_influence_at_strength_zero(monkeypatch):
    assert same(*with_other_attributes(monkeypatch, change(SMALL, attribute_strength=0)))


def test_attributes_have_influence_otherwise(monkeypatch):
    first, second = with_other_attributes(monkeypatch, SMALL)
    assert first.patient == second.patient
    assert not torch.equal(first.images, second.images)


@pytest.mark.parametrize(("strength", "moves"), [(0.0, False), (1.0, True)])
def test_prevalence_and_appearance_by_attribute(strength, moves):
    config = PhantomData(images_per_site=1500, image_size=16, attribute_strength=strength, scanner_strength=0)
    sites = [generate_site(config, index, 0) for index in range(4)]
    labels = torch.cat([site.labels for site in sites]).numpy()
    sex = np.array([value for site in sites for value in site.attributes["sex"]])
    age = np.array([value for site in sites for value in site.attributes["age_band"]])
    skin = np.concatenate([skin_colours(site) for site in sites]).mean(1)
    mesh_men, mesh_women = (labels[sex == value] == 1 for value in ("male", "female"))
    assert (mesh_men.mean() - mesh_women.mean() > 0.05) == moves
    plain_young, plain_old = (labels[age == value] == 0 for value in ("0-39", "60+"))
    assert (plain_young.mean() - plain_old.mean() > 0.06) == moves
    assert (skin[sex == "female"].mean() - skin[sex == "male"].mean() > 3) == moves


def test_generating_is_fast():
    """A site of 400 images of 32 pixels takes about 0.05 s; 100 of them must stay well under a minute."""
    config = PhantomData(image_size=32)
    start = time.perf_counter()
    generate_site(config, 0, 0)
    assert time.perf_counter() - start < 2


def split_by_patient(sites: list[PhantomImages]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return the images, labels and membership of the test part: a third of each site's patients."""
    patients = np.array([patient for site in sites for patient in site.patient])
    names = np.unique(patients)
    chosen = np.random.default_rng(0).permutation(names)[: len(names) // 3]
    return (
        torch.cat([site.images for site in sites]),
        torch.cat([site.labels for site in sites]),
        np.isin(patients, chosen),
    )


def score_of_pixels(images: torch.Tensor, labels: torch.Tensor, test: np.ndarray) -> float:
    """Return the balanced accuracy of logistic regression on 16 x 16 pixels."""
    thumbnails = torch.nn.functional.interpolate(images.float(), size=(16, 16), mode="area").flatten(1).numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500, class_weight="balanced"))
    model.fit(thumbnails[~test], labels[~test])
    return float(balanced_accuracy_score(labels[test], model.predict(thumbnails[test])))


def test_pixels_alone_do_not_tell_the_classes():
    sites = [generate_site(PhantomData(), index, 0) for index in range(4)]
    assert score_of_pixels(*split_by_patient(sites)) < 0.40


def make_small_network() -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64), (64, 128)):
        layers += [
            torch.nn.Conv2d(before, after, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(after),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        ]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(128, 5))


@pytest.mark.slow
def test_a_small_network_learns_what_pixels_alone_do_not_tell():
    images, labels, test = split_by_patient([generate_site(PhantomData(), index, 0) for index in range(4)])
    x, train = images.float() / 255 - 0.5, torch.from_numpy(np.flatnonzero(~test))
    torch.manual_seed(0)
    network = make_small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    for _ in range(12):
        for batch in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            turned = x[batch].flip(2) if torch.rand(()) < 0.5 else x[batch]
            torch.nn.functional.cross_entropy(network(turned), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        predicted = network(x[torch.from_numpy(test)]).argmax(1)
    score = balanced_accuracy_score(labels[test], predicted)
    assert score > score_of_pixels(images, labels, test) + 0.2
    assert 0.6 < score < 0.97


def test_proxy_images_are_of_a_device_that_no_site_has() -> None:
    """They have their own streams: none of the sites' images, and other colours than any site's on average."""
    config = PhantomData(images_per_site=60, num_classes=3, image_size=32)
    proxy = generate_proxy(config, 40, seed=5)
    assert proxy.shape == (40, 3, 32, 32)
    assert proxy.equal(generate_proxy(config, 40, seed=5))
    assert not proxy.equal(generate_proxy(config, 40, seed=6))
    for index in range(4):
        images = generate_site(config, index, 5).images
        assert not any((image == other).all() for image in proxy for other in images)
        colours, others = (x.double().mean((0, 2, 3)) for x in (proxy, images))
        assert (colours - others).abs().max() > 1
