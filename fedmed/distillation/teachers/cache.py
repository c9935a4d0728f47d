"""The teachers of this process: each is loaded once, however many sites it serves."""

from functools import lru_cache
from typing import Literal

from fedmed.config import FederationConfig, FoproPlan, TeacherPlan
from fedmed.distillation.teachers.statistics_match import StatisticsMatch
from fedmed.distillation.teachers.teacher import Teacher, TeacherSettings, load_teacher
from fedmed.errors import TeacherUnavailableError
from fedmed.protocol.reports import TeacherDescription

_own_file: list[str | None] = [None]


def set_teacher_file(path: str | None) -> None:
    """Say where this process's copy of a teacher with ``source: file`` is; no path ever comes from elsewhere."""
    if _own_file[0] != path:
        _own_file[0] = path
        _load.cache_clear()


def use_teacher_file(config: FederationConfig) -> None:
    """Say so from the settings of a run, on the machine on which they were written."""
    teacher = config.fopro.teacher if config.fopro is not None else None
    set_teacher_file(teacher.path if teacher is not None else None)


def take_teacher(plan: FoproPlan) -> Teacher:
    """Return the teacher of a plan that suits its prompt.

    Raises
    ------
    TeacherUnavailableError
        As for :func:`get_teacher`.
    FourierPromptError
        If its BatchNorm statistics are to guide the prompt, a reconstruction, and it has none.
    """
    teacher, prompt = get_teacher(plan.teacher), plan.prompt
    if prompt.mode != "none" and prompt.objective == "batch_norm":
        StatisticsMatch(teacher, prompt.bn)
    return teacher


def describe_teacher(plan: FoproPlan | None) -> TeacherDescription | None:
    """Return what two sites must have in common; None where there is no teacher but the global model, or none at all.

    Raises
    ------
    TeacherUnavailableError
        As for :func:`get_teacher`.
    """
    if plan is None or plan.teacher.is_self:
        return None
    return TeacherDescription.read(get_teacher(plan.teacher).describe())


def name_distillation(plan: FoproPlan | None) -> Literal["disabled", "client", "self"]:
    """Return what a run's record calls its distillation at the sites; ``client`` is that of FoPro-KD."""
    if plan is None:
        return "disabled"
    return "self" if plan.teacher.is_self else "client"


def get_teacher(plan: TeacherPlan) -> Teacher:
    """Return the teacher that a plan names; the next caller gets the same object.

    Raises
    ------
    TeacherUnavailableError
        If it is not here; with what to do. No other takes its place.
    ConfigError
        If there is no such teacher.
    """
    return _load(plan.model_dump_json())


@lru_cache(maxsize=2)
def _load(plan_json: str) -> Teacher:
    plan = TeacherPlan.model_validate_json(plan_json)
    if plan.source == "file" and _own_file[0] is None:
        raise TeacherUnavailableError(
            f"The teacher '{plan.name}' comes from a file, and this site names none. Set teacher_file in its "
            "client.yaml to the file's path, or switch the teacher off with fopro.teacher: none in server.yaml."
        )
    path = _own_file[0] if plan.source == "file" else None
    return load_teacher(TeacherSettings(**plan.model_dump(), path=path))
