"""Registers kbert's Keras classes by name, so that `import kbert` suffices to load a `.keras` file.

Keras finds a class once it is registered, and a class registers itself when its module is imported.
`import kbert` imports neither these modules nor Keras. Instead, it registers placeholders that
import the class on first use. It does so immediately if Keras is already imported, otherwise in an
import hook that runs at the end of `import keras`.
"""

import importlib
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

CLASSES = {
    "kbert.model.attention": ("ConfiguredLayer", "Dense", "Dropout", "SelfAttention"),
    "kbert.model.encoder": ("Embeddings", "Encoder", "EncoderBlock", "Pooler"),
    "kbert.model.task_heads": (
        *("ChoiceHead", "ClassificationHead", "EmbeddingHead", "MaskedLMHead"),
        *("NextSentenceHead", "SpanHead"),
    ),
    "kbert.model.models": (
        *("BertForEmbedding", "BertForMaskedLM", "BertForMultipleChoice", "BertForPreTraining"),
        *("BertForNextSentencePrediction", "BertForQuestionAnswering", "BertModel"),
        *("BertForSequenceClassification", "BertForTokenClassification"),
    ),
    "kbert.model.pretrained": ("PretrainedModel",),
    "kbert.train.optimizer": ("AdamW", "LAMB", "Muon", "SGD"),
    "kbert.train.schedule": ("WarmupPolynomialDecay", "WarmupStableDecay"),
    "kbert.hub": ("BertLayer", "PreprocessLayer"),
}


class _Placeholder:
    """Stands for a class in Keras' registry, until the import of its module replaces it."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def from_config(self, config: dict[str, object], **kwargs: object) -> object:
        cls = getattr(importlib.import_module(self._module), self._name)
        return cls.from_config(config, **kwargs)


def _register(keras):
    objects = keras.saving.get_custom_objects()
    for module, names in CLASSES.items():
        for name in names:
            objects.setdefault(f"kbert>{name}", _Placeholder(module, name))


class _KerasFinder:
    """Import hook that calls `_register` at the end of `import keras`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "keras":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _register(module)

        spec.loader.exec_module = exec_module
        return spec


def register_classes() -> None:
    """Registers all classes now, or when Keras is imported."""
    if "keras" in sys.modules:
        _register(sys.modules["keras"])
    else:
        sys.meta_path.insert(0, _KerasFinder())
