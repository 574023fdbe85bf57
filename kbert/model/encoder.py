"""BERT's encoder (Devlin et al. 2019, section 3): embeddings, blocks, pooler."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model import fused
from kbert.model.attention import ConfiguredLayer, SelfAttention, attention_bias, matrix_initializer


def gather_positions(x: keras.KerasTensor, positions: keras.KerasTensor) -> keras.KerasTensor:
    """Gathers the rows of each sequence at the given positions: (B, L, D), (B, M) -> (B, M, D)."""
    B, L, D = ops.shape(x)
    rows = positions + ops.arange(B, dtype=positions.dtype)[:, None] * L
    return ops.take(ops.reshape(x, (-1, D)), rows, axis=0)


def _check_length(L, max_position_embeddings):
    """Raises UserError if the length L is known and exceeds the size of the position table."""
    if L is not None and max_position_embeddings < L:
        raise UserError(
            f"the sequences have {L} tokens, but the model's max_position_embeddings is "
            f"{max_position_embeddings}. Truncate them, for example with "
            f"tokenizer(texts, max_length={max_position_embeddings})."
        )


def _look_up(table, ids, name, field):
    """Returns the rows of a table whose size is the config's `field`; `name` names the ids.

    Checks the ids only in eager execution on TensorFlow, whose own error would name neither.
    """
    if keras.backend.backend() == "tensorflow" and hasattr(ids, "numpy"):
        values = ids.numpy()
        wrong = values[(values < 0) | (values >= table.input_dim)]
        if len(wrong):
            raise UserError(
                f"{name} must be 0 to {table.input_dim - 1}, because the model's {field} is "
                f"{table.input_dim}; got {wrong[0]}."
            )
    return table(ids)


@keras.saving.register_keras_serializable("kbert")
class Embeddings(ConfiguredLayer):
    """Sum of word, position and segment embeddings, then LayerNorm and dropout.

    Call arguments:
        input_ids: (B, L) int, or None.
        token_type_ids: (B, L) int, or None for all 0.
        position_ids: (B, L) int, or None for 0 to L - 1.
        inputs_embeds: (B, L, D), word embeddings to use if `input_ids` is None.

    Returns:
        (B, L, D).

    Raises:
        UserError: the length L is static and greater than `max_position_embeddings`, and
            `position_ids` is None; or, in eager execution on TensorFlow, an id is out of range.
    """

    def __init__(self, config: BertConfig | Mapping[str, Any], **kwargs: object):
        super().__init__(config, **kwargs)
        config = self.config

        def table(rows, name):
            return keras.layers.Embedding(
                rows,
                config.hidden_size,
                embeddings_initializer=matrix_initializer(config),
                dtype=self.dtype_policy,
                name=name,
            )

        self.word_embeddings = table(config.vocab_size, "word_embeddings")
        self.position_embeddings = table(config.max_position_embeddings, "position_embeddings")
        self.token_type_embeddings = table(config.type_vocab_size, "token_type_embeddings")
        self.layer_norm = self.norm("layer_norm")
        self.output_dropout = self.dropout(config.hidden_dropout_prob, "dropout")

    def build(self, input_ids_shape: tuple[int | None, ...]) -> None:
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            table.build(input_ids_shape)
        self.layer_norm.build((*input_ids_shape, self.config.hidden_size))

    def call(
        self,
        input_ids: keras.KerasTensor | None,
        token_type_ids: keras.KerasTensor | None = None,
        position_ids: keras.KerasTensor | None = None,
        inputs_embeds: keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> keras.KerasTensor:
        tokens = inputs_embeds[..., 0] if input_ids is None else input_ids
        if position_ids is None:
            _check_length(tokens.shape[1], self.config.max_position_embeddings)
            position_ids = ops.arange(ops.shape(tokens)[1], dtype="int32")
        if token_type_ids is None:
            token_type_ids = ops.zeros_like(tokens, dtype="int32")
        words = inputs_embeds
        if input_ids is not None:
            words = _look_up(self.word_embeddings, input_ids, "input_ids", "vocab_size")
        positions = _look_up(
            self.position_embeddings, position_ids, "position_ids", "max_position_embeddings"
        )
        types = _look_up(
            self.token_type_embeddings, token_type_ids, "token_type_ids", "type_vocab_size"
        )
        others = types + positions  # (B, L, D)
        x = fused.add_norm(self.layer_norm, words, others, training)
        return self.output_dropout(x, training=training)


@keras.saving.register_keras_serializable("kbert")
class EncoderBlock(ConfiguredLayer):
    """Self-attention and a feed-forward network.

    Each is followed by dropout, a residual connection and LayerNorm. The arguments and the call
    arguments are the same as for `SelfAttention`. Returns the hidden states (B, P, D) and the
    attention weights (B, H, P, L).
    """

    def __init__(
        self,
        config: BertConfig | Mapping[str, Any],
        attention_heads: int | None = None,
        **kwargs: object,
    ):
        super().__init__(config, **kwargs)
        config = self.config
        self.attention = SelfAttention(
            config, attention_heads, dtype=self.dtype_policy, name="attention"
        )
        self.attention_norm = self.norm("attention_norm")
        self.attention_dropout = self.dropout(config.hidden_dropout_prob, "attention_dropout")
        self.intermediate = self.dense(config.intermediate_size, "intermediate")
        self.output_dense = self.dense(config.hidden_size, "output")
        self.output_norm = self.norm("output_norm")
        self.output_dropout = self.dropout(config.hidden_dropout_prob, "output_dropout")

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        for layer in (self.attention, self.attention_norm, self.intermediate, self.output_norm):
            layer.build(x_shape)
        self.output_dense.build((*x_shape[:-1], self.config.intermediate_size))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "attention_heads": self.attention.attention_heads}

    def call(
        self,
        x: keras.KerasTensor,
        bias: keras.KerasTensor | None = None,
        query_inputs: keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        context, weights = self.attention(x, bias, query_inputs, training=training)
        residual = x if query_inputs is None else query_inputs
        layers = (self.attention.output_dense, self.attention_dropout, self.attention_norm)
        x = fused.dense_add_norm(*layers, context, residual, training)
        approximate = self.config.hidden_act == "gelu_new"
        inner = fused.dense_gelu(self.intermediate, x, approximate, training)  # (B, P, F)
        layers = (self.output_dense, self.output_dropout, self.output_norm)
        x = fused.dense_add_norm(*layers, inner, x, training)
        return x, weights  # (B, P, D), (B, H, P, L)


def _rematerialize(block, x, bias):
    """Computes `block(x, bias, training=True)[0]`, keeping only `x` for the backward pass."""
    # The recomputation must drop the same elements, so it uses the seeds' values before the call.
    # The weights are arguments, because not all backends track variables inside `keras.remat`.
    weights = block.trainable_variables
    known = {id(weight) for weight in block.weights}  # including frozen ones
    seeds = [variable for variable in block.variables if id(variable) not in known]
    seed_values = [ops.copy(seed.value) for seed in seeds]

    def run(x, *values):
        given = [*zip(weights, values, strict=True), *zip(seeds, seed_values, strict=True)]
        with keras.StatelessScope(given):
            return block(x, bias, training=True)[0]

    output = keras.remat(run)(x, *(ops.convert_to_tensor(weight.value) for weight in weights))
    for seed in seeds:
        seed.assign(seed + ops.convert_to_tensor([0, 1], dtype=seed.dtype))
    return output


@keras.saving.register_keras_serializable("kbert")
class Encoder(ConfiguredLayer):
    """N encoder blocks.

    Attributes:
        remat: bool, False by default. If True, training stores only the inputs of the blocks before
            the last one and recomputes their other activations in the backward pass (Chen et al.
            2016, arXiv:1604.06174). No attention weights are then returned in training.

    Call arguments:
        x: (B, L, D).
        attention_mask: (B, L), 1 = token, 0 = padding; None = all tokens.
        sequence_ids: (B, L) int, the number of each token's text in the row; tokens attend only to
            tokens with the same number. None = one text per row.
        positions: (B, P) int, the positions of the last hidden state to compute; None for all. The
            last block computes only keys and values for the other positions.

    Returns:
        A tuple of N + 1 hidden states (B, L, D), the input first, and a tuple of the N attention
        weights (B, H, L, L). With `positions`, the last elements are (B, P, D) and (B, H, P, L).
    """

    remat = False

    def __init__(self, config: BertConfig | Mapping[str, Any], **kwargs: object):
        super().__init__(config, **kwargs)
        config, dtype = self.config, self.dtype_policy
        self.blocks = [
            EncoderBlock(config, config.block_heads(i), dtype=dtype, name=f"layer_{i}")
            for i in range(config.num_hidden_layers)
        ]

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        for block in self.blocks:
            block.build(x_shape)

    def call(
        self,
        x: keras.KerasTensor,
        attention_mask: keras.KerasTensor | None = None,
        sequence_ids: keras.KerasTensor | None = None,
        positions: keras.KerasTensor | None = None,
        training: bool | None = None,
    ) -> tuple[tuple[keras.KerasTensor, ...], tuple[keras.KerasTensor, ...]]:
        bias = attention_bias(attention_mask, sequence_ids, self.compute_dtype)
        hidden_states, attentions = (x,), ()
        for block in self.blocks:
            is_last = block is self.blocks[-1]
            # Recomputing the last block would save no memory: the backward pass starts with it.
            if self.remat and training and not is_last:
                x = _rematerialize(block, x, bias)
            else:
                query_inputs = None
                if is_last and positions is not None:
                    query_inputs = gather_positions(x, positions)
                    if sequence_ids is not None:  # (B, 1, P, L)
                        bias = gather_positions(bias[:, 0], positions)[:, None]
                x, weights = block(x, bias, query_inputs, training=training)
                attentions = () if self.remat and training else (*attentions, weights)
            hidden_states = (*hidden_states, x)
        return hidden_states, attentions


@keras.saving.register_keras_serializable("kbert")
class Pooler(ConfiguredLayer):
    """Applies a dense layer with tanh to the first token: (B, L, D) -> (B, D)."""

    def __init__(self, config: BertConfig | Mapping[str, Any], **kwargs: object):
        super().__init__(config, **kwargs)
        self.pooler_dense = self.dense(self.config.hidden_size, "dense", activation="tanh")

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        self.pooler_dense.build((x_shape[0], x_shape[-1]))

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return self.pooler_dense(x[:, 0])
