"""The phantom: a built-in synthetic data set, so that a federation can be tried without any patient's image.

Synthetic, not medical. The pictures are drawn by formulas: a blob with one of up to eight textures, taken by another
imaginary device at every site. Its classes are patterns and no diagnoses, its "patients" do not exist, and a result on
it says nothing about patients, whatever the figure. It is there to show that the software works, and to compare methods
under the difficulties that real federations have: a long tail of classes, devices that differ by site, subgroups that
look different and have other shares of the classes, and several images of one patient.

Evidence for a class is in texture and shape at a random place, size, rotation and colour, and its strength varies from
clear to hardly visible; a fainter pattern of another class may be mixed in. So no classifier can be perfect.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fedmed.config import PhantomData
from fedmed.data.phantom.drawing import Scanner, draw_images
from fedmed.data.phantom.patterns import PATTERNS, Array, Scenes
from fedmed.seeding import make_rng

SEXES = ("female", "male")
AGE_BANDS = ("0-39", "40-59", "60+")
AGE_SHARES = (0.3, 0.4, 0.3)
IMAGES_PER_PATIENT = (0.6, 0.28, 0.12)  # share of patients with 1, 2 and 3 images
SAME_LESION = 0.5  # share of a patient's further images that show the lesion of the image before
HANDFUL = 5  # fewest images of a class at a site, where the site has room for it
_NO_SITE = -1  # index of the streams that are no site's
UNCLEAR = 0.25  # share of lesions whose pattern is faint

# How much more often than on average a class is seen in men (women: less) and in the oldest band (youngest: less).
SEX_EFFECT = (-0.10, 0.20, -0.20, 0.20, 0.25, -0.20, 0.15, -0.15)
AGE_EFFECT = (-0.15, -0.10, 0.25, 0.20, 0.25, 0.25, -0.20, -0.20)

LIGHT_SKIN, DARK_SKIN = (0.93, 0.78, 0.69), (0.72, 0.52, 0.41)
BROWN, RED, GREY = (0.50, 0.95, 1.25), (0.25, 0.95, 0.85), (0.95, 0.95, 0.85)


@dataclass(frozen=True)
class PhantomImages:
    """All images of one site."""

    images: torch.Tensor
    """uint8 (N, 3, S, S), RGB."""
    labels: torch.Tensor
    """int64 (N,), index into :func:`phantom_classes`."""
    patient: tuple[str, ...]
    """N ids; a patient has one to three images, next to each other."""
    attributes: dict[str, tuple[str, ...]]
    """``sex`` and ``age_band``, N values each, the same for all images of a patient."""


@dataclass(frozen=True)
class _Cohort:
    """Who is at a site: indices that tie N images to lesions and lesions to patients."""

    patient_of_image: Array
    lesion_of_image: Array
    patient_of_lesion: Array
    sex: Array
    """(patients,) index into ``SEXES``."""
    age: Array
    """(patients,) index into ``AGE_BANDS``."""

    @property
    def sex_sign(self) -> Array:
        """-1 for female, +1 for male, (patients,)."""
        return 2.0 * self.sex - 1.0

    @property
    def age_sign(self) -> Array:
        """-1, 0 or 1 from the youngest to the oldest band, (patients,)."""
        return self.age - 1.0


def phantom_classes(config: PhantomData) -> tuple[str, ...]:
    """Return the names of the classes, the most frequent first."""
    return tuple(PATTERNS)[: config.num_classes]


def phantom_site_names(num: int) -> tuple[str, ...]:
    """Return names for ``num`` sites, ``site_01`` and on; all have the same length, so that they sort by number."""
    width = max(2, len(str(num)))
    return tuple(f"site_{number:0{width}d}" for number in range(1, num + 1))


def class_shares(num_classes: int, imbalance: float) -> Array:
    """Return the expected share of every class, (K,).

    Notes
    -----
    Geometric: ``p_k`` is proportional to ``imbalance ** (-k / (K - 1))``, so that ``p_0 / p_{K-1} = imbalance``.
    """
    weights = float(imbalance) ** (-np.arange(num_classes) / (num_classes - 1))
    return np.asarray(weights / weights.sum())


def generate_site(config: PhantomData, site_index: int, seed: int) -> PhantomImages:
    """Draw all images of one site.

    Parameters
    ----------
    config : PhantomData
        Size, number, classes, and how much devices and attributes matter.
    site_index : int
        Number of the site from 0. A site does not depend on how many others there are.
    seed : int
        Seed of the run.

    Returns
    -------
    PhantomImages
        ``config.images_per_site`` images; the same for the same arguments.
    """
    streams = {
        name: make_rng(seed, "phantom", site_index, name)
        for name in ("cohort", "attributes", "labels", "patients", "lesions", "views", "scanner", "noise")
    }
    cohort = _draw_cohort(config.images_per_site, streams["cohort"], streams["attributes"])
    labels_of_lesion = _draw_labels(config, cohort, streams["labels"])
    scenes = _draw_scenes(config, cohort, labels_of_lesion, streams)
    scanner = _draw_scanner(config.scanner_strength, streams["scanner"])
    images = draw_images(scenes, scanner, config.image_size, streams["noise"])
    people = cohort.patient_of_image
    return PhantomImages(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels_of_lesion[cohort.lesion_of_image]),
        patient=tuple(f"site{site_index + 1}_patient{person + 1:04d}" for person in people),
        attributes={
            "sex": tuple(SEXES[i] for i in cohort.sex[people]),
            "age_band": tuple(AGE_BANDS[i] for i in cohort.age[people]),
        },
    )


def generate_proxy(config: PhantomData, num_images: int, seed: int) -> torch.Tensor:
    """Draw images of a further device that no site has, without labels, uint8 (N, 3, S, S).

    Parameters
    ----------
    config : PhantomData
        As the sites' images are drawn, except for their number.
    num_images : int
        N.
    seed : int
        Seed of the run; the streams are none of the sites'.
    """
    return generate_site(config.model_copy(update={"images_per_site": num_images}), _NO_SITE, seed).images


def _draw_cohort(num_images: int, rng: np.random.Generator, attribute_rng: np.random.Generator) -> _Cohort:
    per_patient = 1 + rng.choice(3, size=num_images, p=IMAGES_PER_PATIENT)  # enough patients, however few images each
    patient_of_image = np.repeat(np.arange(num_images), per_patient)[:num_images]
    first = np.r_[True, np.diff(patient_of_image) > 0]
    starts_lesion = first | (rng.random(num_images) >= SAME_LESION)
    num_patients = int(patient_of_image[-1]) + 1
    return _Cohort(
        patient_of_image=patient_of_image,
        lesion_of_image=np.cumsum(starts_lesion) - 1,
        patient_of_lesion=patient_of_image[starts_lesion],
        sex=attribute_rng.integers(0, 2, num_patients),
        age=attribute_rng.choice(3, size=num_patients, p=AGE_SHARES),
    )


def _draw_labels(config: PhantomData, cohort: _Cohort, rng: np.random.Generator) -> Array:
    """Return the class of every lesion; the attributes shift the shares without changing their mean over patients."""
    num_classes = config.num_classes
    shares = class_shares(num_classes, config.imbalance)
    # Centred effects keep the sum of the shares at one, and signs that are zero on average keep their mean.
    by_sex = np.array(SEX_EFFECT[:num_classes]) - shares @ np.array(SEX_EFFECT[:num_classes])
    by_age = np.array(AGE_EFFECT[:num_classes]) - shares @ np.array(AGE_EFFECT[:num_classes])
    effect = cohort.sex_sign[:, None] * by_sex + cohort.age_sign[:, None] * by_age
    share_of_patient = shares * np.maximum(1 + config.attribute_strength * effect, 0.05)
    share_of_patient /= share_of_patient.sum(axis=1, keepdims=True)
    bounds = np.cumsum(share_of_patient, axis=1)[cohort.patient_of_lesion, :-1]
    labels = (rng.random(len(bounds))[:, None] >= bounds).sum(axis=1)
    images_of_lesion = np.bincount(cohort.lesion_of_image)
    return _fill_classes(labels, images_of_lesion, num_classes, rng)


def _fill_classes(labels: Array, images_of_lesion: Array, num_classes: int, rng: np.random.Generator) -> Array:
    """Give lesions of the fullest class to classes that have less than a handful of images."""
    minimum = min(HANDFUL, int(images_of_lesion.sum()) // (2 * num_classes))
    order = rng.permutation(len(labels))
    counts = np.bincount(labels, weights=images_of_lesion, minlength=num_classes)
    while counts.min() < minimum:
        movable = [i for i in order if counts[labels[i]] - images_of_lesion[i] >= minimum]
        if not movable:  # a tiny site whose few lesions have several images each
            break
        lesion = max(movable, key=lambda i: counts[labels[i]])
        poorest = int(counts.argmin())
        counts[labels[lesion]] -= images_of_lesion[lesion]
        counts[poorest] += images_of_lesion[lesion]
        labels[lesion] = poorest
    return labels


def _draw_scanner(strength: float, rng: np.random.Generator) -> Scanner:
    """Return a site's device; at strength 0 it is the same everywhere."""
    cast = rng.uniform(-1, 1, 3)
    cast -= cast.mean()
    brightness, contrast = rng.uniform(-1, 1, 2)
    blur, noise, vignette = rng.uniform(0, 1, 3)
    red, green, blue = (float(x) for x in np.exp(strength * (0.16 * cast + 0.10 * brightness)))
    return Scanner(
        gain=(red, green, blue),
        contrast=float(np.exp(strength * 0.22 * contrast)),
        blur=0.35 + strength * 0.55 * float(blur),
        noise=0.012 + strength * 0.035 * float(noise),
        vignette=0.10 + strength * 0.30 * float(vignette),
    )


def _draw_scenes(
    config: PhantomData, cohort: _Cohort, labels: Array, streams: dict[str, np.random.Generator]
) -> Scenes:
    """Return what every image shows: its patient's skin, its lesion, and its own view of them."""
    people, lesions = cohort.patient_of_image, cohort.lesion_of_image
    skin = _draw_skin(config.attribute_strength, cohort, streams["patients"])
    rows = {name: values[people] for name, values in skin.items()}
    rows |= {
        name: values[lesions] for name, values in _draw_lesions(config, cohort, labels, streams["lesions"]).items()
    }
    view = streams["views"]
    count = len(people)
    rows["angle"] = view.uniform(0, 2 * np.pi, count)
    rows["radius"] = rows["radius"] * view.uniform(0.92, 1.08, count)
    rows["centre"] = view.uniform(-0.22, 0.22, (count, 2))
    rows["light"] = np.stack([view.uniform(0.88, 1.08, count), *view.uniform(-0.08, 0.08, (2, count))], axis=1)
    rows["mottle"] = rows["mottle"][:, None, None] * view.standard_normal((count, 7, 7))
    hairs = view.uniform(0, 1, (count, 6, 4))
    visible = hairs[..., 3] < rows.pop("hairiness")[:, None]
    rows["hairs"] = np.stack(
        [hairs[..., 0] * 2 - 1, hairs[..., 1] * np.pi, hairs[..., 2] * 0.8 - 0.4, 0.6 * visible], axis=2
    )
    return Scenes(**{name: np.ascontiguousarray(values, np.float32) for name, values in rows.items()})


def _draw_skin(strength: float, cohort: _Cohort, rng: np.random.Generator) -> dict[str, Array]:
    """Return the look that all images of a patient share."""
    count = len(cohort.sex)
    sex, age = strength * cohort.sex_sign, strength * cohort.age_sign
    tone = np.clip(rng.uniform(0, 1, count) * 0.8 + 0.1 + 0.08 * sex - 0.06 * age, 0, 1)[:, None]
    skin = np.array(LIGHT_SKIN) * (1 - tone) + np.array(DARK_SKIN) * tone
    flush = rng.uniform(-0.03, 0.03, count) + 0.015 * sex
    yellow = rng.uniform(-0.02, 0.02, count) + 0.02 * age
    skin = skin * (1 + np.stack([flush, -flush, -yellow], axis=1))
    return {
        "skin": skin,
        "mottle": np.maximum(rng.uniform(0.02, 0.06, count) + 0.02 * age, 0.01),
        "hairiness": np.clip(rng.uniform(0, 0.35, count) + 0.12 * sex, 0, 1),
    }


def _draw_lesions(config: PhantomData, cohort: _Cohort, labels: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Return what all images of a lesion share."""
    count = len(labels)
    sex = (config.attribute_strength * cohort.sex_sign)[cohort.patient_of_lesion]
    age = (config.attribute_strength * cohort.age_sign)[cohort.patient_of_lesion]
    mix = rng.dirichlet((6.0, 1.2, 0.8), count)
    direction = rng.uniform(0, 2 * np.pi, (count, 4))
    pace = rng.uniform(1.0, 3.2, (count, 4))
    distance, around = np.sqrt(rng.uniform(0, 0.75, (count, 12))), rng.uniform(0, 2 * np.pi, (count, 12))
    roughness = rng.uniform(0.02, 0.10, (count, 1)) * np.array([1.2, 1.0, 0.7, 0.5])
    second = np.where(rng.random((count, 1)) < 0.5, RED, GREY)
    return {
        "patterns": _draw_strengths(labels, config.num_classes, age, rng),
        "radius": rng.uniform(0.50, 0.76, count) * (1 + 0.03 * sex),
        "aspect": rng.uniform(0.72, 1.0, count),
        "border": np.stack(
            [roughness * rng.uniform(0.3, 1, (count, 4)), rng.uniform(0, 2 * np.pi, (count, 4))], axis=2
        ),
        "softness": rng.uniform(0.06, 0.18, count),
        "density": rng.uniform(0.55, 1.05, count) * np.exp(-0.10 * age),
        "pigment": mix @ np.array([BROWN, RED, GREY]),
        "pigment_2": second,
        "waves": np.stack(
            [pace * np.cos(direction), pace * np.sin(direction), rng.uniform(0, 2 * np.pi, (count, 4))], axis=2
        ),
        "texture": rng.random((count, 3)),
        "dots": np.stack(
            [distance * np.cos(around), distance * np.sin(around), rng.uniform(0.10, 0.16, (count, 12))], axis=2
        ),
    }


def _draw_strengths(labels: Array, num_classes: int, age: Array, rng: np.random.Generator) -> Array:
    """Return how visible each pattern is, (lesions, P): the own one and, in some, a fainter one of another class.

    Most lesions are clear, so that few images suffice to learn the classes; an unclear share, larger in older patients,
    bounds what can be reached.
    """
    count = len(labels)
    unclear = rng.random(count) < np.clip(UNCLEAR * (1 + 0.7 * age), 0, 1)
    own = np.where(unclear, rng.uniform(0.10, 0.45, count), 0.50 + 0.70 * rng.beta(2.0, 1.5, count))
    other = own * np.where(unclear, rng.uniform(0.5, 1.0, count), rng.uniform(0.1, 0.5, count))
    mixed = rng.random(count) < np.where(unclear, 0.7, 0.3)
    distractor = (labels + rng.integers(1, num_classes, count)) % num_classes
    strengths = np.zeros((count, len(PATTERNS)))
    strengths[np.arange(count), distractor] = other * mixed
    strengths[np.arange(count), labels] = own
    return strengths
