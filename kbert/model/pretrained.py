"""Base class of the models: config, saving and loading, freezing and LoRA."""

import contextlib
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.features import ENCODER_FEATURES, check_inputs, check_names
from kbert.model.attention import ConfiguredLayer, matrix_initializer, skip_initialization
from kbert.model.folder import ModelFolder
from kbert.model.inference_ops import onnx_compatible_ops
from kbert.model.weights import Tensors, heads_text, new_rows, part_of, write_weights

_ADAPTER = "lora_kernel"  # prefix of the adapter matrices' names in Keras
_FIELDS = {field.name for field in dataclasses.fields(BertConfig)}

Inputs = Mapping[str, keras.KerasTensor] | keras.KerasTensor


def _members(layer, path=""):
    """Yields (path, outer layer, member) of the layers and weights in a layer, outer ones first."""
    for member in (*layer._layers, *layer._trainable_variables):
        name = f"{path}{member.name}"
        yield name, layer, member
        if isinstance(member, keras.layers.Layer):
            yield from _members(member, f"{name}/")


# Keras has no type information. `basedpyright --verifytypes` reports an unknown base class wherever
# a model is used, unless its base class has a decorator of Keras.
@keras.saving.register_keras_serializable("kbert")
class PretrainedModel(keras.Model):
    """Base class of the models, which are built in their constructors.

    `get_config` and `.keras` files store which layers and weights are frozen, and which layers have
    LoRA adapters. A subclass creates its parts in its constructor and lists them in `parts`. The
    name of a weight in a folder starts with the name of its part, so that models can load each
    other's parts.
    """

    parts: tuple[str, ...] = ()
    task_heads: dict[str, type[ConfiguredLayer]] = {}  # part -> class of its layer
    input_rank = 2  # rank of the features: (B, L)

    def __init__(
        self,
        config: BertConfig | Mapping[str, Any],
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        extra_features: str | Sequence[str] = (),
        **kwargs: object,
    ):
        fields = sorted(_FIELDS & kwargs.keys())
        if fields:
            raise UserError(
                f"set {', '.join(fields)} in the config: "
                f"{type(self).__name__}(BertConfig({fields[0]}=...))."
            )
        super().__init__(**kwargs)
        self.config: BertConfig = config if isinstance(config, BertConfig) else BertConfig(**config)
        self.output_hidden_states = output_hidden_states
        self.output_attentions = output_attentions
        names = [extra_features] if isinstance(extra_features, str) else extra_features
        self.extra_features: tuple[str, ...] = tuple(names)

    def get_config(self) -> dict[str, Any]:
        members = [*_members(self)]
        return {
            **super().get_config(),
            "config": self.config.to_dict(),
            "output_hidden_states": self.output_hidden_states,
            "output_attentions": self.output_attentions,
            "extra_features": list(self.extra_features),
            "lora": {
                path: [member.lora_rank, member.lora_alpha]
                for path, _, member in members
                if getattr(member, "lora_enabled", False)
            },
            # Frozen in a trainable layer, or trainable in a frozen layer.
            "trainable_switched": [
                path for path, outer, member in members if member.trainable != outer.trainable
            ],
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        names = ("lora", "trainable_switched")
        lora, switched = (config.get(name, {}) for name in names)
        model = cls(**{name: value for name, value in config.items() if name not in names})
        layers = {path: member for path, _, member in _members(model)}
        for path, (rank, alpha) in lora.items():
            layers[path].enable_lora(rank, alpha)
        for path, outer, member in _members(model):
            member.trainable = outer.trainable != (path in switched)
        return model

    def __call__(self, inputs: Inputs, *args: Any, **kwargs: Any) -> dict[str, keras.KerasTensor]:
        """Calls the model. Casts float ids to int32; in bfloat16, Keras would round them."""
        return super().__call__(_integer_ids(inputs), *args, **kwargs)

    def features(self, inputs: Inputs) -> dict[str, keras.KerasTensor]:
        """Returns the inputs of a call as a dict, without `extra_features` and None values.

        Args:
            inputs: dict of features, or only `input_ids`.

        Raises:
            UserError: a feature is unknown, missing, or has the wrong shape.
        """
        inputs = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
        inputs = {name: x for name, x in inputs.items() if x is not None}
        check_names(inputs, self.extra_features)
        check_inputs(inputs, self._expected_rank(inputs))
        return {name: x for name, x in inputs.items() if name not in self.extra_features}

    def _expected_rank(self, inputs):
        """Returns the rank that the features must have."""
        return self.input_rank

    def named_weights(self) -> dict[str, keras.Variable]:
        """Returns a dict of name -> weight, without LoRA adapters.

        The names are as in kbert's format, such as
        "bert/encoder/layer_0/attention/query/kernel".
        """
        named = {}
        for part in self.parts:
            layer = getattr(self, part, self)  # a bare BertModel is its own part
            for weight in layer.weights:
                named[f"{part}/{weight.path.removeprefix(layer.path + '/')}"] = weight
        return {name: w for name, w in named.items() if not w.name.startswith(_ADAPTER)}

    def freeze_encoder(self, num_layers: int | None) -> None:
        """Freezes the embeddings and the first blocks of the encoder.

        Args:
            num_layers: number of blocks; 0 freezes only the embeddings. None freezes the
                embeddings, all blocks and the pooler.

        Raises:
            UserError: `num_layers` is negative, or larger than the number of blocks.
        """
        bert = getattr(self, "bert", self)
        N = self.config.num_hidden_layers
        if num_layers is not None and not 0 <= num_layers <= N:
            raise UserError(
                f"layers to freeze must be 0 to {N}, the number of blocks; got {num_layers}."
            )
        blocks = bert.encoder.blocks[:num_layers]
        parts = [bert] if num_layers is None else [bert.embeddings, *blocks]
        for weight in (weight for part in parts for weight in part.weights):
            weight.trainable = False

    def add_lora(self, rank: int, alpha: float | None = None) -> None:
        """Freezes `bert` and adds a trainable adapter to each query and value projection.

        A projection W, (D, H * K), becomes W + alpha / rank * A B, where A is (D, rank), and B is
        (rank, H * K) and initialized to 0. `save_pretrained` writes this sum in place of W. Source:
        Hu et al. 2021 (arXiv:2106.09685), sections 4.1 and 4.2, as implemented by Keras'
        `Dense.enable_lora`.

        Args:
            rank: number of columns of A, at least 1.
            alpha: numerator of the scale alpha / rank; None for 2 * rank.
        """
        self.freeze_encoder(num_layers=None)
        for block in getattr(self, "bert", self).encoder.blocks:
            for projection in (block.attention.query, block.attention.value):
                projection.enable_lora(rank, 2 * rank if alpha is None else alpha)

    def resize_token_embeddings(self, vocab_size: int) -> None:
        """Changes the number of vocabulary entries, V. Call it before `compile`.

        The rows of the remaining entries are unchanged. New rows of the word embeddings, and of an
        untied MLM matrix, are initialized as in a new model; new MLM biases are 0.

        Args:
            vocab_size: the new number of entries; a smaller value drops the last rows.

        Raises:
            UserError: `vocab_size` is not an int of at least 5.
        """
        config = dataclasses.replace(self.config, vocab_size=vocab_size)
        owners = {"_embeddings": getattr(self, "bert", self).embeddings.word_embeddings}
        owners |= dict.fromkeys(("output_bias", "decoder"), getattr(self, "mlm", None))
        for attribute, layer in owners.items():
            old = layer and getattr(layer, attribute)
            if old is not None:
                rows = ops.convert_to_numpy(old)[:vocab_size]
                fresh = new_rows(config, (vocab_size, *rows.shape[1:]), len(rows))
                _replace_weight(layer, attribute, np.concatenate([rows, fresh]))
        for layer in (self, *self._flatten_layers(include_self=False)):
            if isinstance(layer, PretrainedModel | ConfiguredLayer):
                layer.config = config
        getattr(self, "bert", self).embeddings.word_embeddings.input_dim = vocab_size

    def adapters(self) -> dict[str, tuple[keras.Variable, keras.Variable, float]]:
        """Returns a dict of weight name -> LoRA adapter (A, B, scale); see `add_lora`."""
        result = {}
        for i, block in enumerate(getattr(self, "bert", self).encoder.blocks):
            for name in ("query", "value"):
                dense = getattr(block.attention, name)
                if dense.lora_enabled:
                    a, b = dense.lora_kernel_a, dense.lora_kernel_b
                    scale = dense.lora_alpha / dense.lora_rank
                    result[f"bert/encoder/layer_{i}/attention/{name}/kernel"] = (a, b, scale)
        return result

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: list[object] | None = None,
        **kwargs: object,
    ) -> None:
        """Exports the model for inference without kbert; see `keras.Model.export`.

        Args:
            filepath, format, verbose, kwargs: as in `keras.Model.export`.
            input_signature: None for a dict of `ENCODER_FEATURES`, with all sizes variable.
        """
        if input_signature is None:
            shape = (None,) * self.input_rank
            features = ENCODER_FEATURES.items()
            input_signature = [{n: keras.InputSpec(t, shape, name=n) for n, (_, t) in features}]
        with onnx_compatible_ops():
            super().export(filepath, format, verbose, input_signature, **kwargs)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        format: str = "kbert",
        allow_missing: Sequence[str] = (),
    ) -> None:
        """Writes the config and the float32 weights, but not the tokenizer.

        Warns if the model in the format's library differs from this one: it computes other outputs,
        has no pooler or a random one, or stores pruned heads as zeros.

        Args:
            folder: created if missing; files of the same names are replaced.
            format: "kbert" (`config.json`, `weights.h5`), "google" (`bert_config.json`,
                `bert_model.ckpt`), "hf" (`config.json`, `model.safetensors`) or "keras_hub" (a
                preset).
            allow_missing: names or name prefixes, optionally with `*`, of weights to omit if the
                format does not support them, such as "nsp" in KerasHub.

        Raises:
            UserError: the format is unknown or does not support some weights; or the folder has
                weights in another format.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        named, adapters = self.named_weights(), self.adapters()
        shapes = {name: tuple(weight.shape) for name, weight in named.items()}

        def read(name):
            if name not in adapters:
                return ops.convert_to_numpy(named[name])
            a, b, scale = adapters[name]
            return ops.convert_to_numpy(named[name] + scale * ops.matmul(a, b))

        weights = Tensors(shapes, read)
        for note in write_weights(folder, format, self.config, weights, allow_missing):
            warnings.warn(note, stacklevel=2)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        allow_missing: Sequence[str] = (),
        layers: int | Sequence[int] | None = None,
        **kwargs: object,
    ) -> Self:
        """Creates a model from a folder of weights, which another model class may have written.

        Weights are read one at a time. If the folder lacks all weights of a part, such as a head or
        the pooler, the part is randomly initialized, with a warning. Parts that this class lacks
        are ignored.

        Args:
            folder: a folder written by `save_pretrained`, such as `final` or `best` of a run; a
                folder of google-research/bert, HF transformers or KerasHub; the name of a model on
                the Hugging Face hub; or a `kbert.model.folder.ModelFolder`.
            allow_missing: names or name prefixes, kbert's or the format's, optionally with `*`.
                Weights with such names are ignored if they are unknown, and randomly initialized if
                they are missing or have another shape.
            layers: the encoder blocks to load, for example for a student in distillation: their
                numbers, from 1; or how many, evenly spaced (3 of 12 are 4, 8 and 12). None for all.
            **kwargs: fields of BertConfig to override, such as `num_labels=3`, and constructor
                arguments, such as `dtype="mixed_bfloat16"`.

        Raises:
            UserError: the folder does not exist or has another architecture; files are missing or
                damaged, or the weights are only pickled; weights are unknown, partly missing, or
                have another shape; or an argument is invalid.
        """
        changes = {name: kwargs.pop(name) for name in _FIELDS & kwargs.keys()}
        options = {"allow_missing": allow_missing, "parts": cls.task_heads, "layers": layers}
        with ModelFolder.of(folder).open_weights(**options, **changes) as (config, weights):
            with skip_initialization():
                model = cls(config, **kwargs)
            for name, weight in model.named_weights().items():
                if name not in weights and len(weight.shape) == 2:  # vectors are already 0 or 1
                    weight.assign(matrix_initializer(config)(weight.shape))
            model._assign(weights, folder)
        return model

    def load_pretrained(
        self,
        folder: str | os.PathLike[str],
        allow_missing: Sequence[str] = (),
        skip_parts: Collection[str] = (),
        layers: int | Sequence[int] | None = None,
    ) -> None:
        """Loads the weights of a folder into this model.

        Weights that the folder lacks keep their values, with a warning.

        Args:
            folder, allow_missing, layers: as for `from_pretrained`.
            skip_parts: names of parts that keep their values, such as a head.

        Raises:
            UserError: as for `from_pretrained`; or the weights of the folder and of the model have
                different shapes, or their blocks different numbers of attention heads.
        """
        options = {"allow_missing": allow_missing, "parts": self.task_heads, "layers": layers}
        with ModelFolder.of(folder).open_weights(**options) as (config, weights):
            if config.attention_heads_per_layer != self.config.attention_heads_per_layer:
                raise UserError(
                    f"{folder} and the model have different numbers of attention heads per block: "
                    f"{heads_text(config.attention_heads_per_layer)} and "
                    f"{heads_text(self.config.attention_heads_per_layer)}. Create the model with "
                    f"the folder's config, as from_pretrained does."
                )
            shapes = {n: s for n, s in weights.shapes.items() if part_of(n) not in skip_parts}
            self._assign(Tensors(shapes, weights.__getitem__), folder, skip_parts)

    def _assign(self, weights, folder, skip_parts=()):
        fresh = []
        for name, weight in self.named_weights().items():
            if part_of(name) in skip_parts:
                continue
            if name not in weights:
                fresh.append(name)
                continue
            if weights.shapes[name] != tuple(weight.shape):
                raise UserError(
                    f"{folder}: {name} has the shape {weights.shapes[name]}, but the model has "
                    f"{tuple(weight.shape)}."
                )
            weight.assign(weights[name])
        for _, b, _ in self.adapters().values():  # the loaded weights include the adapters
            b.assign(ops.zeros(b.shape))
        if fresh:
            loaded_parts = {part_of(name) for name in weights}
            new_parts = {part_of(name) for name in fresh} - loaded_parts
            new_weights = {name for name in fresh if part_of(name) in loaded_parts}
            missing = ", ".join(sorted(new_parts | new_weights))
            warnings.warn(
                f"{folder} has no weights for {missing}; they are randomly initialized and need "
                f"training. This is expected when fine-tuning starts from a pretrained encoder.",
                stacklevel=3,
            )


def _integer_ids(inputs):
    """Casts ids and positions to int32 if they are floats."""
    if not isinstance(inputs, Mapping):
        return _as_integers(inputs)
    casts = {n: _as_integers(x) for n, x in inputs.items() if n.endswith(("_ids", "_positions"))}
    return {**inputs, **casts}


def _as_integers(x):
    return ops.cast(x, "int32") if "float" in str(getattr(x, "dtype", "")) else x


def _replace_weight(layer, attribute, value):
    """Replaces a weight of a built layer with one of the same name and another shape."""
    old = getattr(layer, attribute)
    with contextlib.ExitStack() as scopes:
        for name in old.path.split("/")[:-1]:
            scopes.enter_context(keras.name_scope(name))
        new = keras.Variable(value, dtype=old.dtype, name=old.name)
    layer._tracker.unlock()
    layer._untrack_variable(old)
    setattr(layer, attribute, new)
    layer._tracker.lock()
    new.trainable = old.trainable
