"""What the models share: their config, and folders of weights."""

import dataclasses
import pathlib
import warnings

import keras
from keras import ops

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.attention import matrix_initializer, undrawn_weights
from kbert.model.weights import Tensors, open_weights, part_of, write_weights

_FIELDS = {field.name for field in dataclasses.fields(BertConfig)}


class PretrainedModel(keras.Model):
    """What the models share: their config, building at once, and folders of weights.

    A subclass makes its parts in its constructor and names them in `parts`; the name of a weight in
    a folder starts with the name of its part, so that models share what they have in common.
    """

    parts = ()
    heads = {}  # part -> class of its layer

    def __init__(self, config, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.config = config if isinstance(config, BertConfig) else BertConfig(**config)

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def named_weights(self):
        """dict of name -> variable, such as 'bert/encoder/layer_0/attention/query/kernel'."""
        named = {}
        for part in self.parts:
            layer = getattr(self, part, self)  # a bare BertModel is its own part
            for weight in layer.weights:
                named[f"{part}/{weight.path.removeprefix(layer.path + '/')}"] = weight
        return named

    def save_pretrained(self, folder, format="kbert", allow_missing=()):
        """Writes config and weights, float32, in one of four formats.

        Warns where the code that the format belongs to computes something else with them.

        Args:
            folder: made if missing; files of the same names are replaced.
            format: "kbert" (`config.json`, `weights.h5`), "google" (`bert_config.json`,
                `bert_model.ckpt`), "hf" (`config.json`, `model.safetensors`) or "keras_hub" (a
                preset).
            allow_missing: names, or starts of names, of weights to leave out where the format has
                no place for them, such as `nsp` in KerasHub's.

        Raises:
            UserError: no such format, or weights that it has no place for.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        named = self.named_weights()
        shapes = {name: tuple(weight.shape) for name, weight in named.items()}
        weights = Tensors(shapes, lambda name: ops.convert_to_numpy(named[name]))
        for note in write_weights(folder, format, self.config, weights, allow_missing):
            warnings.warn(note, stacklevel=2)

    @classmethod
    def from_pretrained(cls, folder, allow_missing=(), **kwargs):
        """A model with the weights of a folder, which another class or other code may have written.

        Weights are read one at a time. Parts that the folder lacks as a whole, such as a head or
        the pooler, stay fresh, with a warning; parts that this class lacks are passed over.

        Args:
            folder: what `save_pretrained` wrote, such as `final` or `best` of a run; a folder of
                google-research/bert, of HF transformers or of KerasHub; or the name of a model on
                the Hugging Face hub.
            allow_missing: names, or starts of names, of weights that may be missing, unknown or of
                another shape: they stay fresh, or are left out. kbert's names or the folder's; with
                `*`.
            **kwargs: fields of BertConfig that are to differ from the folder's, such as
                `num_labels=3`, and arguments of the constructor, such as `dtype="mixed_bfloat16"`.

        Raises:
            UserError: no such folder, files that are missing, damaged or pickles, another
                architecture; weights that are unknown, missing in part, or of another shape.
        """
        changes = {name: kwargs.pop(name) for name in _FIELDS & kwargs.keys()}
        with open_weights(folder, allow_missing, cls.heads, **changes) as (config, weights):
            with undrawn_weights():
                model = cls(config, **kwargs)
            for name, weight in model.named_weights().items():
                if name not in weights and len(weight.shape) == 2:  # vectors are fresh as 0 or 1
                    weight.assign(matrix_initializer(config)(weight.shape))
            model._assign(weights, folder)
        return model

    def load_pretrained(self, folder, allow_missing=()):
        """Loads the weights of a folder into this model; see `from_pretrained`."""
        with open_weights(folder, allow_missing, self.heads) as (_, weights):
            self._assign(weights, folder)

    def _assign(self, weights, folder):
        fresh = []
        for name, weight in self.named_weights().items():
            if name not in weights:
                fresh.append(name)
                continue
            if weights.shapes[name] != tuple(weight.shape):
                raise UserError(
                    f"{folder}: {name} has the shape {weights.shapes[name]}, the model's is "
                    f"{tuple(weight.shape)}."
                )
            weight.assign(weights[name])
        if fresh:
            there = {part_of(name) for name in weights}
            whole = {part_of(name) for name in fresh} - there
            single = {name for name in fresh if part_of(name) in there}
            lacking = ", ".join(sorted(whole | single))
            warnings.warn(f"{folder} has no {lacking}: left as initialised.", stacklevel=3)
