"""Learning rates over the whole run.

A schedule is a function of the local epoch counted from the start of the run, so a site that trains one epoch in each
of 100 rounds follows the same curve as central training over 100 epochs, and a site that was away rejoins at the
right rate.
"""

import math

from fedmed.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, base_lr: float, epoch: int, num_epochs: int) -> float:
    """Return the learning rate of one local epoch.

    Parameters
    ----------
    schedule : ScheduleConfig
        Which curve.
    base_lr : float
        Base learning rate.
    epoch : int
        Epochs already trained since the start of the run, from 0.
    num_epochs : int
        Epochs of the whole run, ``rounds * epochs_per_round``.

    Returns
    -------
    float

    Notes
    -----
    With w warm-up epochs the rate rises linearly, ``base * (epoch + 1) / (w + 1)``, and epoch w is the first at the
    full rate. ``cosine``: ``base * (f + (1 - f) (1 + cos(pi t)) / 2)`` with t the share of the epochs after warm-up
    that is done and f ``final_share``. ``step``: times ``gamma`` after every milestone. ``official``: the ADSR
    authors' later configuration, lr/5 only in epochs 0, 20, ..., 100, and 0.175 lr from epoch 101 on.
    """
    if schedule.name == "official":
        return base_lr * _official_share(epoch)
    warmup = schedule.warmup_epochs
    if epoch < warmup:
        return base_lr * (epoch + 1) / (warmup + 1)
    if schedule.name == "cosine":
        done = (epoch - warmup) / max(1, num_epochs - warmup)
        share = schedule.final_share
        return base_lr * (share + (1 - share) * (1 + math.cos(math.pi * done)) / 2)
    if schedule.name == "step":
        passed = sum(epoch >= milestone * num_epochs for milestone in schedule.milestones)
        return base_lr * float(schedule.gamma**passed)
    return base_lr


def _official_share(epoch: int) -> float:
    if epoch > 100:
        return 0.175
    return 0.2 if epoch % 20 == 0 else 1.0
