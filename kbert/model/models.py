"""BERT as Keras models: the bare encoder and the models of pretraining.

Every model takes a dict with the features of `kbert.features`, of which `attention_mask` (all
tokens real) and `token_type_ids` (all 0) may be left out, or the (B, L) `input_ids` alone. Features
that a model does not use are ignored, so a batch of any pipeline fits.
"""

import pathlib
import warnings

import h5py
import keras
import numpy as np
from keras import ops

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.encoder import Embeddings, Encoder, Pooler
from kbert.model.heads import MaskedLMHead, NextSentenceHead, gather_positions

CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.h5"


class PretrainedModel(keras.Model):
    """What the models share: their config, building at once, and folders of weights.

    A subclass makes its parts in its constructor and names them in `parts`; the name of a weight in
    a folder starts with the name of its part, so that models share what they have in common.
    """

    parts = ()

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

    def save_pretrained(self, folder):
        """Writes `config.json` and `weights.h5` (float32, named as in `named_weights`).

        Args:
            folder: made if missing; files of the same names are replaced.
        """
        arrays = {n: ops.convert_to_numpy(weight) for n, weight in self.named_weights().items()}
        write_pretrained(folder, self.config, arrays)

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        """A model with the weights of a folder, which another class of model may have written.

        Parts that the folder lacks, such as a head, stay fresh, with a warning.

        Args:
            folder: a folder that `save_pretrained` wrote, such as `final` or `best` of a run.
            **kwargs: for the constructor, such as `dtype="mixed_bfloat16"`.

        Raises:
            UserError: no such folder or files, a weight missing, or one of another shape.
        """
        folder = pathlib.Path(folder)
        model = cls(BertConfig.from_file(folder / CONFIG_FILE), **kwargs)
        model.load_pretrained(folder)
        return model

    def load_pretrained(self, folder):
        """Loads the weights of a folder into this model; see `from_pretrained`."""
        path = pathlib.Path(folder) / WEIGHTS_FILE
        try:
            with h5py.File(path, "r") as file:
                fresh = [part for part in self.parts if part not in file]
                for name, weight in self.named_weights().items():
                    if name.split("/")[0] not in fresh:
                        weight.assign(_read_weight(file, name, tuple(weight.shape), path))
        except OSError as error:
            raise UserError(f"cannot read the weights {path}: {error}.") from error
        if len(fresh) == len(self.parts):
            raise UserError(f"{path} has none of {', '.join(fresh)}; it is no file of weights.")
        if fresh:
            warnings.warn(f"{path} has no {', '.join(fresh)}: left as initialised.", stacklevel=3)


def write_pretrained(folder, config, arrays):
    """Writes what `PretrainedModel.from_pretrained` reads.

    Args:
        folder: made if missing; files of the same names are replaced.
        config: BertConfig. arrays: dict of the names of `named_weights` -> array.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / CONFIG_FILE)
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    write_arrays(folder / WEIGHTS_FILE, arrays)


def write_arrays(path, arrays):
    """Writes a dict of name -> array as HDF5.

    Through a file of Python's: HDF5's own writing ends the process (a segmentation fault in
    `close`) when the disk is full.
    """
    with open(path, "wb+") as raw, h5py.File(raw, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def _read_weight(file, name, shape, path):
    if name not in file:
        raise UserError(f"{path} lacks the weight {name}, of shape {shape}.")
    if file[name].shape != shape:
        raise UserError(f"{path}: {name} has the shape {file[name].shape}, the model's is {shape}.")
    return file[name][()]


def _features(inputs):
    return inputs if isinstance(inputs, dict) else {"input_ids": inputs}


@keras.saving.register_keras_serializable("kbert")
class BertModel(PretrainedModel):
    """BERT's encoder without a head.

    Args:
        config: BertConfig.
        add_pooling_layer: whether there is a `pooler_output`.
        output_hidden_states: return `hidden_states`, a tuple of N + 1 tensors (B, L, D), the
            embeddings first.
        output_attentions: return `attentions`, a tuple of N tensors (B, H, L, L).

    Returns, when called:
        dict of `last_hidden_state` (B, L, D), `pooler_output` (B, D) and what was asked for.
    """

    parts = ("bert",)

    def __init__(
        self,
        config,
        add_pooling_layer=True,
        output_hidden_states=False,
        output_attentions=False,
        name="bert",
        **kwargs,
    ):
        super().__init__(config, name=name, **kwargs)
        self.add_pooling_layer = add_pooling_layer
        self.output_hidden_states = output_hidden_states
        self.output_attentions = output_attentions
        self.embeddings = Embeddings(self.config, dtype=self.dtype_policy, name="embeddings")
        self.encoder = Encoder(self.config, dtype=self.dtype_policy, name="encoder")
        self.pooler = None
        if add_pooling_layer:
            self.pooler = Pooler(self.config, dtype=self.dtype_policy, name="pooler")
        self.build()

    def build(self, input_shape=None):
        x_shape = (None, None, self.config.hidden_size)
        self.embeddings.build((None, None))
        self.encoder.build(x_shape)
        if self.pooler:
            self.pooler.build(x_shape)

    def call(self, inputs, training=None):
        inputs = _features(inputs)
        x = self.embeddings(inputs["input_ids"], inputs.get("token_type_ids"), training=training)
        hidden_states, attentions = self.encoder(x, inputs.get("attention_mask"), training=training)
        outputs = {"last_hidden_state": hidden_states[-1]}
        if self.pooler:
            outputs["pooler_output"] = self.pooler(hidden_states[-1])
        if self.output_hidden_states:
            outputs["hidden_states"] = hidden_states
        if self.output_attentions:
            outputs["attentions"] = attentions
        return outputs

    def get_config(self):
        return {
            **super().get_config(),
            "add_pooling_layer": self.add_pooling_layer,
            "output_hidden_states": self.output_hidden_states,
            "output_attentions": self.output_attentions,
        }


class _HeadedModel(PretrainedModel):
    """A BertModel with heads on it: `heads` maps the name of each part to its layer class."""

    heads = {}
    pooled = True  # whether a head needs the pooler

    def __init__(self, config, output_hidden_states=False, output_attentions=False, **kwargs):
        super().__init__(config, **kwargs)
        self.output_hidden_states = output_hidden_states
        self.output_attentions = output_attentions
        self.bert = BertModel(
            self.config,
            add_pooling_layer=self.pooled,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            dtype=self.dtype_policy,
        )
        for name, head in self.heads.items():
            setattr(self, name, head(self.config, dtype=self.dtype_policy, name=name))
        self.build()

    @property
    def parts(self):
        return ("bert", *self.heads)

    def build(self, input_shape=None):
        for name in self.heads:
            getattr(self, name).build((None, None, self.config.hidden_size))

    def get_config(self):
        return {
            **super().get_config(),
            "output_hidden_states": self.output_hidden_states,
            "output_attentions": self.output_attentions,
        }

    def _masked_lm_logits(self, outputs, inputs):
        x = outputs["last_hidden_state"]
        if "masked_positions" in inputs:
            x = gather_positions(x, inputs["masked_positions"])
        return self.mlm(x, self.bert.embeddings.word_embeddings.embeddings)

    def _extras(self, outputs):
        return {key: outputs[key] for key in ("hidden_states", "attentions") if key in outputs}


@keras.saving.register_keras_serializable("kbert")
class BertForPreTraining(_HeadedModel):
    """BERT with both heads of pretraining.

    Args:
        config: BertConfig. output_hidden_states, output_attentions: as for `BertModel`.

    Returns, when called:
        dict of `mlm_logits` float32, (B, M, V) at `masked_positions`, or (B, L, V) without them,
        and `nsp_logits` (B, 2) float32.
    """

    heads = {"mlm": MaskedLMHead, "nsp": NextSentenceHead}

    def call(self, inputs, training=None):
        inputs = _features(inputs)
        outputs = self.bert(inputs, training=training)
        return {
            "mlm_logits": self._masked_lm_logits(outputs, inputs),
            "nsp_logits": self.nsp(outputs["pooler_output"]),
            **self._extras(outputs),
        }


@keras.saving.register_keras_serializable("kbert")
class BertForMaskedLM(_HeadedModel):
    """BERT that predicts masked words; it has no pooler, as in HF.

    Args:
        config: BertConfig. output_hidden_states, output_attentions: as for `BertModel`.

    Returns, when called:
        dict of `logits` float32, (B, M, V) at `masked_positions`, or (B, L, V) without them.
    """

    heads = {"mlm": MaskedLMHead}
    pooled = False

    def call(self, inputs, training=None):
        inputs = _features(inputs)
        outputs = self.bert(inputs, training=training)
        return {"logits": self._masked_lm_logits(outputs, inputs), **self._extras(outputs)}


@keras.saving.register_keras_serializable("kbert")
class BertForNextSentencePrediction(_HeadedModel):
    """BERT that tells whether segment B follows segment A (class 0) or not (class 1).

    Args:
        config: BertConfig. output_hidden_states, output_attentions: as for `BertModel`.

    Returns, when called:
        dict of `logits` (B, 2) float32.
    """

    heads = {"nsp": NextSentenceHead}

    def call(self, inputs, training=None):
        outputs = self.bert(inputs, training=training)
        return {"logits": self.nsp(outputs["pooler_output"]), **self._extras(outputs)}
