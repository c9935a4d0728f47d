"""Settings of a federation: typed, closed, and explained field by field.

``RunConfig`` is what ``server.yaml`` and ``simulation.yaml`` hold. ``Plan`` is the part of it that the server sends
to the sites. Reading files, ``--set`` and friendly errors are in :mod:`fedmed.config.files`.
"""

from fedmed.config.aggregation import (
    AggregationConfig,
    AgnosticConfig,
    DivergenceConfig,
    DivergenceReport,
    ExtensionRuleConfig,
    FairConfig,
    FairFedConfig,
    GapToLocalConfig,
    GroupMinimaxConfig,
    LossReport,
    QFedAvgConfig,
    RuleConfig,
)
from fedmed.config.data import (
    ClassFolderData,
    DataConfig,
    DataSection,
    ExtensionData,
    ImageTableData,
    NpzData,
    PartitionConfig,
    PhantomData,
    SitesData,
    SplitConfig,
)
from fedmed.config.distillation import (
    FolderProxy,
    FoproConfig,
    FoproPlan,
    GateConfig,
    PhantomProxy,
    PromptConfig,
    ProxyConfig,
    StudentConfig,
    StudentPlan,
    TeacherConfig,
    TeacherPlan,
)
from fedmed.config.fairness import (
    GROUP_FIGURES,
    SCORE_FIGURES,
    SITE_ATTRIBUTE,
    ChoiceFigure,
    FairnessConfig,
    SuppressionConfig,
)
from fedmed.config.federation import FederationConfig
from fedmed.config.model import LOCAL_MODEL_OPTIONS, ModelConfig
from fedmed.config.plan import Choice, Compression, Plan, plan_hash
from fedmed.config.section import Section
from fedmed.config.server_step import (
    AdaptiveConfig,
    AverageConfig,
    ExtensionStepConfig,
    FedAdamConfig,
    FedAvgMConfig,
    FedYogiConfig,
    ServerStepConfig,
)
from fedmed.config.simulation import RunConfig
from fedmed.config.small_plans import make_distil_plan, make_student_plan
from fedmed.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig

__all__ = [
    "GROUP_FIGURES",
    "LOCAL_MODEL_OPTIONS",
    "SCORE_FIGURES",
    "SITE_ATTRIBUTE",
    "AdaptiveConfig",
    "AggregationConfig",
    "AgnosticConfig",
    "AverageConfig",
    "Choice",
    "ChoiceFigure",
    "ClassFolderData",
    "Compression",
    "DataConfig",
    "DataSection",
    "DivergenceConfig",
    "DivergenceReport",
    "ExtensionData",
    "ExtensionRuleConfig",
    "ExtensionStepConfig",
    "FairConfig",
    "FairFedConfig",
    "FairnessConfig",
    "FedAdamConfig",
    "FedAvgMConfig",
    "FedYogiConfig",
    "FederationConfig",
    "FolderProxy",
    "FoproConfig",
    "FoproPlan",
    "GapToLocalConfig",
    "GateConfig",
    "GroupMinimaxConfig",
    "ImageTableData",
    "LossReport",
    "ModelConfig",
    "NpzData",
    "OptimizerConfig",
    "PartitionConfig",
    "PhantomData",
    "PhantomProxy",
    "Plan",
    "PromptConfig",
    "ProxyConfig",
    "QFedAvgConfig",
    "RuleConfig",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "ServerStepConfig",
    "SitesData",
    "SplitConfig",
    "StudentConfig",
    "StudentPlan",
    "SuppressionConfig",
    "TeacherConfig",
    "TeacherPlan",
    "TrainingConfig",
    "make_distil_plan",
    "make_student_plan",
    "plan_hash",
]
