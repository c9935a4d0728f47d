"""Several images of one patient: how much right answers vary from patient to patient.

Of a row let p = r / n be its share of right answers, and r_i and n_i right answers and images of its patient i. Then

    m = number of patients,  Q = sum_i (r_i - p n_i)^2,  C = sum_i (r_i - p n_i) n_i,  D = sum_i n_i^2.

About any other share q the sum of squares is ``Q - 2 (q - p) C + (q - p)^2 D``, so that rows of several sites can be
put together about their common share. Source of the use, variances of shares in clusters: Rao and Scott, A Simple
Method for the Analysis of Clustered Binary Data, Biometrics 48, 1992. Where images have no patient, each is one by
itself.

Letters: N images, G groups, K classes.
"""

from collections.abc import Sequence

import numpy as np

from fedmed.metrics.values import Array, divide_defined

PATIENTS, SQUARES, PRODUCTS, SIZES = range(4)
"""Places of m, Q, C and D in the last axis of an array ``patients``."""


def number_patients(patients: Sequence[str] | None, num_images: int) -> Array:
    """Return a number for the patient of each image, shape (N,); each image its own where there are no ids."""
    if patients is None:
        return np.arange(num_images)
    if len(patients) != num_images:
        raise ValueError(
            f"There are {num_images} images and {len(patients)} patients' ids. Needed: one for each image."
        )
    numbers: Array = np.unique(np.array(patients, dtype=str), return_inverse=True)[1].reshape(-1).astype(np.int64)
    return numbers


def sum_by_patient(row_N: Array, patient_N: Array, values: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Add values up over the images of one patient in one row.

    Parameters
    ----------
    row_N : ndarray of int64, shape (N,)
        Row of each image, from 0.
    patient_N : ndarray of int64, shape (N,)
        Patient of each image, from 0.
    values : sequence of ndarray, each of shape (N,)
        What is added up.

    Returns
    -------
    row_P : ndarray of int64, shape (P,)
        Row of each of the P pairs of a row and one of its patients.
    sums : list of ndarray, each of shape (P,)
        Sums of the values in the pair.
    """
    width = int(patient_N.max(initial=0)) + 1
    pair_P, place_N = np.unique(row_N * width + patient_N, return_inverse=True)
    place_N = place_N.reshape(-1)
    return pair_P // width, [np.bincount(place_N, weights=value, minlength=len(pair_P)) for value in values]


def count_clusters(row_N: Array, patient_N: Array, right_N: Array, num_rows: int) -> Array:
    """Return m, Q, C and D of every row, float64 (rows, 4).

    Parameters
    ----------
    row_N, patient_N
        As for :func:`sum_by_patient`.
    right_N : ndarray of bool, shape (N,)
        Whether the answer is right.
    num_rows : int
        Number of rows.
    """
    row_P, (right_P, images_P) = sum_by_patient(row_N, patient_N, [right_N.astype(np.float64), np.ones(len(row_N))])
    right, images = (np.bincount(row_P, weights=value, minlength=num_rows) for value in (right_P, images_P))
    # Times the row's images it is a whole number, so that what is 0 comes out as 0.
    surplus_P = (images[row_P] * right_P - right[row_P] * images_P) / images[row_P]
    terms = (np.ones(len(row_P)), surplus_P**2, surplus_P * images_P, images_P**2)
    sums = [np.bincount(row_P, weights=term, minlength=num_rows) for term in terms]
    return np.stack(sums, axis=-1).astype(np.float64)  # of no image at all, numpy's sums are integers


def assume_single_images(right: Array, images: Array) -> Array:
    """Return m, Q, C and D of rows in which every image is a patient of its own, shape (..., 4)."""
    share = np.nan_to_num(divide_defined(right, images))
    return np.stack([images, images * share * (1 - share), np.zeros_like(share), images], axis=-1).astype(np.float64)


def move_share(clusters: Array, distance: Array) -> Array:
    """Return m, Q, C and D about another share, ``distance`` above the one that they were about.

    Parameters
    ----------
    clusters : ndarray, shape (..., 4)
        m, Q, C, D.
    distance : ndarray, shape (...)
        q - p.
    """
    m, squares, products, sizes = np.moveaxis(clusters, -1, 0)
    moved = squares - 2 * distance * products + distance**2 * sizes
    return np.stack([m, np.maximum(moved, 0.0), products - distance * sizes, sizes], axis=-1)


def spread_of_differences(row_N: Array, patient_N: Array, difference_N: Array, num_rows: int) -> Array:
    """Return ``sum_i (d_i - d n_i)^2`` over the patients i of every row, shape (rows,).

    Parameters
    ----------
    row_N, patient_N, num_rows
        As for :func:`count_clusters`.
    difference_N : ndarray, shape (N,)
        Right answers of one model minus those of another; d_i is their sum over a patient's n_i images, and d their
        mean over the row's images.
    """
    row_P, (d_P, n_P) = sum_by_patient(row_N, patient_N, [difference_N.astype(np.float64), np.ones(len(row_N))])
    total, images = (np.bincount(row_P, weights=value, minlength=num_rows) for value in (d_P, n_P))
    surplus_P = (images[row_P] * d_P - total[row_P] * n_P) / images[row_P]
    spread: Array = np.bincount(row_P, weights=surplus_P**2, minlength=num_rows)
    return spread.astype(np.float64)
