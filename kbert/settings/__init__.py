"""Settings of the programs: dataclasses with one flag for each field."""

from kbert.settings.data import LearnVocabConfig, PrepareConfig
from kbert.settings.models import (
    ENGINES,
    EXPORT_METHODS,
    EXPORT_RUNTIMES,
    METHODS,
    QUANTIZATIONS,
    EvaluateConfig,
    PredictConfig,
    PruneConfig,
)
from kbert.settings.tasks import TASKS, ColumnConfig, DistillConfig, ExampleConfig, FinetuneConfig
from kbert.settings.training import PretrainConfig, TeacherConfig, TrainingConfig

__all__ = [
    "ENGINES",
    "EXPORT_METHODS",
    "EXPORT_RUNTIMES",
    "METHODS",
    "QUANTIZATIONS",
    "TASKS",
    "ColumnConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExampleConfig",
    "FinetuneConfig",
    "LearnVocabConfig",
    "PredictConfig",
    "PrepareConfig",
    "PretrainConfig",
    "PruneConfig",
    "TeacherConfig",
    "TrainingConfig",
]
