"""Settings of the programs: dataclasses whose fields are the programs' flags.

Their constructors raise UserError if a required setting is missing, if a value has the wrong type
or is out of range, or if two values contradict each other.
"""

from kbert.settings.data import LearnVocabConfig, PrepareConfig
from kbert.settings.models import (
    BACKENDS,
    EXPORT_METHODS,
    METHODS,
    SERVER_BACKENDS,
    EvaluateConfig,
    ExportConfig,
    MineConfig,
    PredictConfig,
    PruneConfig,
    TextLimits,
)
from kbert.settings.tasks import (
    ColumnConfig,
    DistillConfig,
    ExampleConfig,
    FinetuneConfig,
    ScoreConfig,
    TaskModuleConfig,
)
from kbert.settings.training import PretrainConfig, TeacherConfig, TrainingConfig

__all__ = [
    "BACKENDS",
    "EXPORT_METHODS",
    "METHODS",
    "SERVER_BACKENDS",
    "ColumnConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExampleConfig",
    "ExportConfig",
    "FinetuneConfig",
    "LearnVocabConfig",
    "MineConfig",
    "PredictConfig",
    "PrepareConfig",
    "PretrainConfig",
    "PruneConfig",
    "ScoreConfig",
    "TaskModuleConfig",
    "TeacherConfig",
    "TextLimits",
    "TrainingConfig",
]
