"""BERT as Keras models: the bare encoder, the pretraining models and the task models.

Every model takes a dict of features (`kbert.features`), or only `input_ids`. The features are
(B, L) int32; `BertForMultipleChoice` takes (B, C, L), and `BertForEmbedding` and
`BertForSequenceClassification` also (B, T, L):

- `input_ids`; or `inputs_embeds`, word embeddings, float32, with an additional axis D.
- Optional: `attention_mask` (default: all tokens are real), `token_type_ids` (default: all 0) and
  `position_ids` (default: 0 to L - 1).
- `sequence_ids` and `position_ids`, if a row holds several texts that do not attend to each other
  (`kbert.data.packed_rows`). Models with an output for each row reject such rows, and `BertModel`
  computes `pooler_output` from the first text of a row.
- `masked_positions` (B, M), only for models with an MLM head.

Models ignore labels (names that begin with "label", and HF's `start_positions` and `end_positions`)
and the features of other models, so that they accept the batches of all pipelines. Unknown names
are an error. The models with heads take `config`, `output_hidden_states`, `output_attentions` and
`extra_features` as `BertModel` does.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.features import ENCODER_FEATURES, OPTIONAL_FEATURES
from kbert.model.encoder import Embeddings, Encoder, Pooler, gather_positions
from kbert.model.pretrained import Inputs, PretrainedModel
from kbert.model.task_heads import (
    ChoiceHead,
    ClassificationHead,
    EmbeddingHead,
    MaskedLMHead,
    NextSentenceHead,
    SpanHead,
)

Outputs = dict[str, keras.KerasTensor | tuple[keras.KerasTensor, ...]]


def _tokens(inputs):
    """Returns a tensor of the shape of the token ids, even if the inputs are embeddings."""
    return inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]


def _flattened(inputs):
    """Returns features of the encoder with B * T rows if they are (B, T, L); else unchanged."""
    if len(_tokens(inputs).shape) < 3:
        return inputs
    names = [name for name in (*ENCODER_FEATURES, *OPTIONAL_FEATURES) if name in inputs]
    return {n: ops.reshape(inputs[n], (-1, *ops.shape(inputs[n])[2:])) for n in names}


def _stacked(x, inputs):
    """Returns the outputs of `_flattened(inputs)`, (B * T, E), as (B, T, E); else unchanged."""
    shape = ops.shape(_tokens(inputs))
    return x if len(shape) < 3 else ops.reshape(x, (-1, shape[1], x.shape[-1]))


@keras.saving.register_keras_serializable("kbert")
class BertModel(PretrainedModel):
    """BERT's encoder without a head.

    Args:
        config: BertConfig.
        add_pooling_layer: whether to return `pooler_output`.
        output_hidden_states: whether to return `hidden_states`, a tuple of N + 1 tensors (B, L, D),
            the embeddings first.
        output_attentions: whether to return `attentions`, a tuple of N tensors (B, H, L, L).
        extra_features: names of additional inputs, which the model ignores.
        name: name of the model.
        **kwargs: other arguments of `keras.Model`, such as `dtype`.

    Call arguments:
        inputs: features; see `kbert.model.models`.
        positions: (B, P) int, the positions of `last_hidden_state` to compute; None for all. With a
            pooler, the first position of each sequence must be 0. Most of the last block is skipped
            for other positions, unless `hidden_states` or `attentions` are returned.

    Returns, when called:
        dict with `last_hidden_state` (B, L, D) or (B, P, D), `pooler_output` (B, D) and the
        optional outputs.
    """

    parts = ("bert",)

    def __init__(
        self,
        config: BertConfig | Mapping[str, Any],
        add_pooling_layer: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        name: str = "bert",
        **kwargs: object,
    ):
        super().__init__(config, output_hidden_states, output_attentions, name=name, **kwargs)
        self.add_pooling_layer = add_pooling_layer
        self.embeddings: Embeddings = Embeddings(
            self.config, dtype=self.dtype_policy, name="embeddings"
        )
        self.encoder: Encoder = Encoder(self.config, dtype=self.dtype_policy, name="encoder")
        self.pooler: Pooler | None = None
        if add_pooling_layer:
            self.pooler = Pooler(self.config, dtype=self.dtype_policy, name="pooler")
        self.build()

    def build(self, input_shape: tuple[int | None, ...] | None = None) -> None:
        x_shape = (None, None, self.config.hidden_size)
        self.embeddings.build((None, None))
        self.encoder.build(x_shape)
        if self.pooler:
            self.pooler.build(x_shape)

    def call(
        self,
        inputs: Inputs,
        positions: keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> Outputs:
        inputs = self.features(inputs)
        shows_all = self.output_hidden_states or self.output_attentions
        names = ("input_ids", "token_type_ids", "position_ids", "inputs_embeds")
        x = self.embeddings(*map(inputs.get, names), training=training)
        masks = map(inputs.get, ("attention_mask", "sequence_ids"))
        rows = None if shows_all else positions
        hidden_states, attentions = self.encoder(x, *masks, rows, training=training)
        last = hidden_states[-1]
        if shows_all and positions is not None:
            last = gather_positions(last, positions)
        outputs = {"last_hidden_state": last}
        if self.pooler:
            outputs["pooler_output"] = self.pooler(last)
        if self.output_hidden_states:
            outputs["hidden_states"] = hidden_states
        if self.output_attentions:
            outputs["attentions"] = attentions
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "add_pooling_layer": self.add_pooling_layer}


class _HeadedModel(PretrainedModel):
    """A BertModel with heads: `task_heads` maps the name of each head to its layer class."""

    pooled = True  # whether a head needs the pooler
    by_row = True  # whether some output is computed for a whole row, not for each token
    stacked = False  # whether the features may also be (B, T, L), for T texts per example

    def __init__(
        self,
        config: BertConfig | Mapping[str, Any],
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **kwargs: object,
    ):
        super().__init__(config, output_hidden_states, output_attentions, **kwargs)
        outputs = (self.pooled, output_hidden_states, output_attentions)
        self.bert: BertModel = BertModel(self.config, *outputs, dtype=self.dtype_policy)
        for name, head in self.task_heads.items():
            setattr(self, name, head(self.config, dtype=self.dtype_policy, name=name))
        self.build()

    @property
    def parts(self) -> tuple[str, ...]:
        return ("bert", *self.task_heads)

    def build(self, input_shape: tuple[int | None, ...] | None = None) -> None:
        for name in self.task_heads:
            getattr(self, name).build((None, None, self.config.hidden_size))

    def _expected_rank(self, inputs):
        shape = getattr(inputs.get("input_ids"), "shape", ())
        return 3 if self.stacked and len(shape) == 3 else super()._expected_rank(inputs)

    def features(self, inputs: Inputs) -> dict[str, keras.KerasTensor]:
        features = super().features(inputs)
        if self.by_row and "sequence_ids" in features:
            raise UserError(
                f"{type(self).__name__} has an output for each row, so a row cannot hold several "
                f"texts. Remove sequence_ids and position_ids, and give each text its own row."
            )
        return features

    def _pooled(self, inputs, training):
        """Runs the encoder for `pooler_output` alone: `last_hidden_state` has only [CLS]."""
        first = ops.zeros_like(_tokens(inputs)[:, :1], dtype="int32")
        return self.bert(inputs, positions=first, training=training)

    def _masked_lm_logits(self, x, training):
        return self.mlm(x, self.bert.embeddings.word_embeddings.embeddings, training=training)

    def _optional_outputs(self, outputs):
        return {key: outputs[key] for key in ("hidden_states", "attentions") if key in outputs}


@keras.saving.register_keras_serializable("kbert")
class BertForPreTraining(_HeadedModel):
    """BERT with both pretraining heads.

    Returns, when called:
        dict with `mlm_logits` float32, (B, M, V) at `masked_positions`, or (B, L, V) without them,
        and `nsp_logits` (B, 2) float32.
    """

    task_heads = {"mlm": MaskedLMHead, "nsp": NextSentenceHead}
    mlm: MaskedLMHead
    nsp: NextSentenceHead

    def call(self, inputs: Inputs, training: bool | None = None) -> Outputs:
        inputs = self.features(inputs)
        positions = inputs.get("masked_positions")
        if positions is not None:  # prepend the position of [CLS], for the pooler
            positions = ops.pad(positions, ((0, 0), (1, 0)))
        outputs = self.bert(inputs, positions=positions, training=training)
        x = outputs["last_hidden_state"]
        return {
            "mlm_logits": self._masked_lm_logits(x if positions is None else x[:, 1:], training),
            "nsp_logits": self.nsp(outputs["pooler_output"]),
            **self._optional_outputs(outputs),
        }


@keras.saving.register_keras_serializable("kbert")
class BertForMaskedLM(_HeadedModel):
    """BERT that predicts masked tokens; it has no pooler, as in HF.

    Returns, when called:
        dict with `logits` float32, (B, M, V) at `masked_positions`, or (B, L, V) without them.
    """

    task_heads = {"mlm": MaskedLMHead}
    mlm: MaskedLMHead
    pooled = by_row = False

    def call(self, inputs: Inputs, training: bool | None = None) -> Outputs:
        inputs = self.features(inputs)
        positions = inputs.get("masked_positions")
        outputs = self.bert(inputs, positions=positions, training=training)
        logits = self._masked_lm_logits(outputs["last_hidden_state"], training)
        return {"logits": logits, **self._optional_outputs(outputs)}


@keras.saving.register_keras_serializable("kbert")
class BertForNextSentencePrediction(_HeadedModel):
    """BERT that predicts whether segment B follows segment A (class 0) or not (class 1).

    Returns, when called:
        dict with `logits` (B, 2) float32.
    """

    task_heads = {"nsp": NextSentenceHead}
    nsp: NextSentenceHead

    def call(self, inputs: Inputs, training: bool | None = None) -> Outputs:
        outputs = self._pooled(self.features(inputs), training)
        return {"logits": self.nsp(outputs["pooler_output"]), **self._optional_outputs(outputs)}


@keras.saving.register_keras_serializable("kbert")
class BertForSequenceClassification(_HeadedModel):
    """BERT for classification, or regression (C = 1), of a text or a pair of texts.

    Call arguments:
        inputs: features, (B, L) each; or (B, T, L) each, with `input_ids`, for T texts or pairs per
            example.

    Returns, when called:
        dict with `logits` float32, (B, C) or (B, T, C), where C is `num_labels` of the config.
        `hidden_states` and `attentions` have B * T rows.
    """

    task_heads = {"sequence_classifier": ClassificationHead}
    sequence_classifier: ClassificationHead
    stacked = True

    def call(self, inputs: Inputs, training: bool | None = None) -> Outputs:
        inputs = self.features(inputs)
        outputs = self._pooled(_flattened(inputs), training)
        logits = self.sequence_classifier(outputs["pooler_output"], training=training)
        return {"logits": _stacked(logits, inputs), **self._optional_outputs(outputs)}


@keras.saving.register_keras_serializable("kbert")
class BertForTokenClassification(_HeadedModel):
    """BERT that labels each token; it has no pooler, as in HF.

    Returns, when called:
        dict with `logits` (B, L, C) float32, where C is `num_labels` of the config.
    """

    task_heads = {"token_classifier": ClassificationHead}
    token_classifier: ClassificationHead
    pooled = by_row = False

    def call(self, inputs: Inputs, training: bool | None = None) -> Outputs:
        outputs = self.bert(self.features(inputs), training=training)
        logits = self.token_classifier(outputs["last_hidden_state"], training=training)
        return {"logits": logits, **self._optional_outputs(outputs)}


@keras.saving.register_keras_serializable("kbert")
class BertForQuestionAnswering(_HeadedModel):
    """BERT for extractive question answering; it has no pooler, as in HF.

    Returns, when called:
        dict with `start_logits` and `end_logits`, (B, L) float32 each.
    """

    task_heads = {"span_classifier": SpanHead}
    span_classifier: SpanHead
    pooled = by_row = False

    def call(self, inputs: Inputs, training: bool | None = None) -> Outputs:
        outputs = self.bert(self.features(inputs), training=training)
        logits = self.span_classifier(outputs["last_hidden_state"], training=training)
        spans = {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
        return {**spans, **self._optional_outputs(outputs)}


@keras.saving.register_keras_serializable("kbert")
class BertForMultipleChoice(_HeadedModel):
    """BERT for multiple choice; each choice is a separate sequence.

    Call arguments:
        inputs: features, (B, C, L) each, where C is the number of choices.

    Returns, when called:
        dict with `logits` (B, C) float32; `hidden_states` and `attentions` have B * C rows.
    """

    task_heads = {"choice_classifier": ChoiceHead}
    choice_classifier: ChoiceHead
    input_rank = 3

    def call(self, inputs: Inputs, training: bool | None = None) -> Outputs:
        inputs = self.features(inputs)
        C = ops.shape(_tokens(inputs))[1]
        outputs = self._pooled(_flattened(inputs), training)
        logits = self.choice_classifier(outputs["pooler_output"], training=training)  # (B * C, 1)
        return {"logits": ops.reshape(logits, (-1, C)), **self._optional_outputs(outputs)}


@keras.saving.register_keras_serializable("kbert")
class BertForEmbedding(_HeadedModel):
    """BERT that computes the embedding of a text; it has no pooler.

    `embedding` in the config (`EmbeddingConfig`) sets how the token vectors are combined.

    Call arguments:
        inputs: features, (B, L) each; or (B, T, L) each, with `input_ids`, for T texts per example.

    Returns, when called:
        dict with `embedding` float32, (B, E) or (B, T, E); E is `dense_size`, or D without a dense
        layer. `hidden_states` and `attentions` have B * T rows.
    """

    task_heads = {"embedding": EmbeddingHead}
    embedding: EmbeddingHead
    pooled = False
    stacked = True

    def call(self, inputs: Inputs, training: bool | None = None) -> Outputs:
        inputs = self.features(inputs)
        rows = _flattened(inputs)
        outputs = self.bert(rows, training=training)
        vectors = self.embedding(outputs["last_hidden_state"], rows.get("attention_mask"))
        return {"embedding": _stacked(vectors, inputs), **self._optional_outputs(outputs)}
