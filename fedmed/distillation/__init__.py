"""Distillation: frozen teachers, the Fourier prompt (a reconstruction), features at the sites, compact students.

>>> from fedmed.distillation import FourierPrompt, load_teacher
>>> teacher, prompt = load_teacher("efficientnet_lite0"), FourierPrompt()
>>> features = teacher(prompt(images))
"""

from fedmed.distillation.at_sites.ekd import (
    MIN_IMAGES_TO_SHARE_PROMPT,
    DistillationSettings,
    DistillationStudent,
    LossParts,
    SiteDistiller,
)
from fedmed.distillation.at_sites.losses import ekd_loss
from fedmed.distillation.prompt.fourier_prompt import FourierPrompt, make_prompt, summarize_gain
from fedmed.distillation.prompt.learning import ExploreResult, PromptSettings
from fedmed.distillation.small_network.acceptance import GateDecision, GateLimits, decide_gate
from fedmed.distillation.small_network.co_distil import CoDistiller
from fedmed.distillation.small_network.distil import CompactResult, compute_targets, copy_matching, distil_compact
from fedmed.distillation.small_network.losses import Ensemble, Targets, balance_predictions, compact_loss
from fedmed.distillation.small_network.proxy_images import (
    ProxyImages,
    describe_distance,
    open_proxy_folder,
    open_proxy_part,
    open_proxy_phantom,
)
from fedmed.distillation.small_network.training import CompactSettings
from fedmed.distillation.teachers.cache import (
    describe_teacher,
    get_teacher,
    name_distillation,
    set_teacher_file,
    take_teacher,
    use_teacher_file,
)
from fedmed.distillation.teachers.classifier import find_classifier
from fedmed.distillation.teachers.feature_cache import FeatureCache
from fedmed.distillation.teachers.frozen_classifier import FrozenTeacherClassifier, build_frozen_teacher
from fedmed.distillation.teachers.statistics_match import StatisticsMatch, measure_mismatch
from fedmed.distillation.teachers.teacher import Teacher, TeacherSettings, check_same_teacher, load_teacher
from fedmed.errors import FourierPromptError, ProxyDataUnavailableError, TeacherUnavailableError

__all__ = [
    "MIN_IMAGES_TO_SHARE_PROMPT",
    "CoDistiller",
    "CompactResult",
    "CompactSettings",
    "DistillationSettings",
    "DistillationStudent",
    "Ensemble",
    "ExploreResult",
    "FeatureCache",
    "FourierPrompt",
    "FourierPromptError",
    "FrozenTeacherClassifier",
    "GateDecision",
    "GateLimits",
    "LossParts",
    "PromptSettings",
    "ProxyDataUnavailableError",
    "ProxyImages",
    "SiteDistiller",
    "StatisticsMatch",
    "Targets",
    "Teacher",
    "TeacherSettings",
    "TeacherUnavailableError",
    "balance_predictions",
    "build_frozen_teacher",
    "check_same_teacher",
    "compact_loss",
    "compute_targets",
    "copy_matching",
    "decide_gate",
    "describe_distance",
    "describe_teacher",
    "distil_compact",
    "ekd_loss",
    "find_classifier",
    "get_teacher",
    "load_teacher",
    "make_prompt",
    "measure_mismatch",
    "name_distillation",
    "open_proxy_folder",
    "open_proxy_part",
    "open_proxy_phantom",
    "set_teacher_file",
    "summarize_gain",
    "take_teacher",
    "use_teacher_file",
]
