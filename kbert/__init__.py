"""kbert: BERT on TensorFlow and Keras 3, from plain text to a served model.

Names are loaded on first use: `import kbert` alone imports neither TensorFlow nor Keras.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "BertConfig": "kbert.config",
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
    "Predictor": "kbert.inference.predictor",
    "corpus": None,
    "data": None,
    "model": None,
    "hub": None,
    "inference": None,
    "serving": None,
    "tasks": None,
    "tokenizer": None,
    "train": None,
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'kbert' has no attribute {name!r}")
    home = _HOMES[name]
    if home is None:
        return importlib.import_module(f"kbert.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__():
    return __all__
