"""Plans of the small network into which the trained one is compressed: as it is scored, and as the sites train it."""

from fedmed.config import LOCAL_MODEL_OPTIONS, Plan, StudentConfig


def make_student_plan(plan: Plan, settings: StudentConfig) -> Plan:
    """Return the plan of a run's compact student: another network, everything else the same."""
    small = plan.plain().model_copy(update={"model": settings.student.without(LOCAL_MODEL_OPTIONS)})
    return small.describe_extensions()


def make_distil_plan(plan: Plan, settings: StudentConfig) -> Plan:
    """Return the plan of its rounds at the sites: with a schedule of its own and nothing that is kept or told."""
    student = make_student_plan(plan, settings)
    optimizer = student.training.optimizer.model_copy(update={"name": "adam", "lr": settings.lr})
    training = student.training.model_copy(update={"optimizer": optimizer, "proximal_mu": 0.0, "keep_momentum": False})
    changes = {"rounds": settings.rounds, "compression": "none", "losses": "none", "loss_attribute": None}
    return student.model_copy(update={"training": training, **changes})
