"""Settings of a federation: typed, closed, and explained field by field.

``RunConfig`` is what ``server.yaml`` and ``simulation.yaml`` hold. ``Plan`` is the part of it that the server sends
to the sites. Reading files, ``--set`` and friendly errors are in :mod:`fedmed.config.files`.
"""

from fedmed.config.aggregation import (
    AggregationConfig,
    AgnosticConfig,
    DeployedAggregationConfig,
    DivergenceConfig,
    DivergenceReport,
    ExtensionRuleConfig,
    FairConfig,
    FairFedConfig,
    GapToLocalConfig,
    GroupMinimaxConfig,
    LossReport,
    MaxShare,
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
from fedmed.config.model import ModelConfig
from fedmed.config.plan import LOCAL_MODEL_OPTIONS, Compression, Plan
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
    "ChoiceFigure",
    "ClassFolderData",
    "Compression",
    "DataConfig",
    "DataSection",
    "DeployedAggregationConfig",
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
    "MaxShare",
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
    "SuppressionConfig",
    "TeacherConfig",
    "TeacherPlan",
    "TrainingConfig",
]
