"""kbert: BERT on TensorFlow and Keras 3, from plain text to a served model.

Names are imported on first use: `import kbert` alone imports neither TensorFlow nor Keras.
"""

import importlib
from typing import TYPE_CHECKING

from kbert.utils.keras_registration import register_classes

if TYPE_CHECKING:  # for type checkers and completion; at run time, `__getattr__` does the imports
    from kbert import corpus, data, hub, inference, model, serving, tasks, tokenizer, train
    from kbert.config import BertConfig, EmbeddingConfig
    from kbert.errors import UserError
    from kbert.inference.predictor import Predictor
    from kbert.model.models import (
        BertForEmbedding,
        BertForMaskedLM,
        BertForMultipleChoice,
        BertForNextSentencePrediction,
        BertForPreTraining,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
    )
    from kbert.tasks.examples import read_examples
    from kbert.tokenizer.tokenizer import BertTokenizer

__version__ = "0.1.0"

_MODULES = {
    "BertConfig": "kbert.config",
    "EmbeddingConfig": "kbert.config",
    "UserError": "kbert.errors",
    "BertTokenizer": "kbert.tokenizer.tokenizer",
    "BertModel": "kbert.model.models",
    "BertForPreTraining": "kbert.model.models",
    "BertForMaskedLM": "kbert.model.models",
    "BertForNextSentencePrediction": "kbert.model.models",
    "BertForSequenceClassification": "kbert.model.models",
    "BertForTokenClassification": "kbert.model.models",
    "BertForQuestionAnswering": "kbert.model.models",
    "BertForMultipleChoice": "kbert.model.models",
    "BertForEmbedding": "kbert.model.models",
    "Predictor": "kbert.inference.predictor",
    "read_examples": "kbert.tasks.examples",
}

__all__ = [
    "BertConfig",
    "BertForEmbedding",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertTokenizer",
    "EmbeddingConfig",
    "Predictor",
    "UserError",
    "__version__",
    "corpus",
    "data",
    "hub",
    "inference",
    "model",
    "read_examples",
    "serving",
    "tasks",
    "tokenizer",
    "train",
]

register_classes()


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kbert' has no attribute {name!r}")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    return importlib.import_module(f"kbert.{name}")


def __dir__() -> list[str]:
    return __all__
