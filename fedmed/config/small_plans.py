"""Plans of the small network into which the trained one is compressed: as it is scored, and as the sites train it.

Both follow from the plan of the trained network, so that a site that has approved that one can derive them itself.
"""

from fedmed.config.plan import Plan


def make_student_plan(plan: Plan) -> Plan:
    """Return the plan of a run's compact student: another network, everything else the same."""
    assert plan.student is not None, "asked for where there is a small network only"
    small = plan.plain().model_copy(update={"model": plan.student.model, "student": None})
    described = [one for one in plan.extensions if one.path in small.extension_paths]
    return small.model_copy(update={"extensions": described})


def make_distil_plan(plan: Plan) -> Plan:
    """Return the plan of its rounds at the sites: with a schedule of its own and nothing that is kept or told."""
    settings, small = plan.student, make_student_plan(plan)
    assert settings is not None, "make_student_plan has looked"
    optimizer = small.training.optimizer.model_copy(update={"name": "adam", "lr": settings.lr})
    training = small.training.model_copy(update={"optimizer": optimizer, "proximal_mu": 0.0, "keep_momentum": False})
    changes = {"rounds": settings.rounds, "compression": "none", "losses": "none", "loss_attribute": None}
    return small.model_copy(update={"training": training, **changes})
