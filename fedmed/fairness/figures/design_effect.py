"""How much wider an interval has to be because patients have several images."""

import numpy as np

from fedmed.metrics.clusters import SQUARES
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import divide_defined


def find_design_effect(tables: EvaluationTables) -> float:
    """Return by which factor the number of right answers varies more than with one image a patient.

    Parameters
    ----------
    tables : EvaluationTables
        Any number of groups.

    Returns
    -------
    float
        At least 1, and 1 where nobody knows or where all answers are right or all are wrong.

    Notes
    -----
    ``sum Q / sum n p (1 - p)`` over the rows (group, true class) with n images, the share p of right answers and the
    sum of squares Q of :mod:`fedmed.metrics.clusters` (Rao and Scott, Biometrics 48, 1992).
    """
    right, n = np.diagonal(tables.counts, axis1=1, axis2=2), tables.row_images
    single = float(np.nansum(divide_defined(right * (n - right), n)))
    squares = float(tables.patients[..., SQUARES].sum())
    return max(squares / single, 1.0) if single > 0 else 1.0
