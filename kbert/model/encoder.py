"""The parts of BERT's encoder (Devlin et al. 2019, section 3): embeddings, blocks, pooler."""

import keras
from keras import ops

from kbert.model.attention import ConfiguredLayer, SelfAttention, attention_bias


@keras.saving.register_keras_serializable("kbert")
class Embeddings(ConfiguredLayer):
    """Sum of the embeddings of word, position and segment, then LayerNorm and dropout.

    Call arguments:
        input_ids: (B, L) int. token_type_ids: (B, L) int, or None for all 0.

    Returns:
        (B, L, D).
    """

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        config = self.config

        def table(rows, name):
            return keras.layers.Embedding(
                rows,
                config.hidden_size,
                embeddings_initializer=self.initializer(),
                dtype=self.dtype_policy,
                name=name,
            )

        self.word_embeddings = table(config.vocab_size, "word_embeddings")
        self.position_embeddings = table(config.max_position_embeddings, "position_embeddings")
        self.token_type_embeddings = table(config.type_vocab_size, "token_type_embeddings")
        self.layer_norm = self.norm("layer_norm")
        self.output_dropout = self.dropout(config.hidden_dropout_prob, "dropout")

    def build(self, input_ids_shape):
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            table.build(input_ids_shape)
        self.layer_norm.build((*input_ids_shape, self.config.hidden_size))

    def call(self, input_ids, token_type_ids=None, training=None):
        if token_type_ids is None:
            token_type_ids = ops.zeros((1, 1), "int32")  # row 0, for every token
        L = ops.shape(input_ids)[1]
        x = self.word_embeddings(input_ids)  # (B, L, D)
        x = x + self.position_embeddings(ops.arange(L, dtype="int32"))
        x = x + self.token_type_embeddings(token_type_ids)
        return self.output_dropout(self.layer_norm(x), training=training)


@keras.saving.register_keras_serializable("kbert")
class EncoderBlock(ConfiguredLayer):
    """Self-attention and a feed-forward part, each with dropout, a residual and then LayerNorm.

    Call arguments and results are those of `SelfAttention`.
    """

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        config = self.config
        self.attention = SelfAttention(config, dtype=self.dtype_policy, name="attention")
        self.attention_norm = self.norm("attention_norm")
        self.attention_dropout = self.dropout(config.hidden_dropout_prob, "attention_dropout")
        self.intermediate = self.dense(config.intermediate_size, "intermediate")
        self.output_dense = self.dense(config.hidden_size, "output")
        self.output_norm = self.norm("output_norm")
        self.output_dropout = self.dropout(config.hidden_dropout_prob, "output_dropout")

    def build(self, x_shape):
        for layer in (self.attention, self.attention_norm, self.intermediate, self.output_norm):
            layer.build(x_shape)
        self.output_dense.build((*x_shape[:-1], self.config.intermediate_size))

    def call(self, x, bias=None, training=None):
        attended, weights = self.attention(x, bias, training=training)
        x = self.attention_norm(x + self.attention_dropout(attended, training=training))
        inner = self.activation(self.intermediate(x))  # (B, L, F)
        output = self.output_dropout(self.output_dense(inner), training=training)
        return self.output_norm(x + output), weights  # (B, L, D), (B, H, L, L)


@keras.saving.register_keras_serializable("kbert")
class Encoder(ConfiguredLayer):
    """N encoder blocks.

    Call arguments:
        x: (B, L, D). attention_mask: (B, L), 1 = token, 0 = padding; None = all tokens.

    Returns:
        tuple of N + 1 hidden states (B, L, D), the input first, and tuple of N attention weights
        (B, H, L, L).
    """

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        self.blocks = [
            EncoderBlock(self.config, dtype=self.dtype_policy, name=f"layer_{i}")
            for i in range(self.config.num_hidden_layers)
        ]

    def build(self, x_shape):
        for block in self.blocks:
            block.build(x_shape)

    def call(self, x, attention_mask=None, training=None):
        bias = None
        if attention_mask is not None:
            bias = attention_bias(attention_mask, self.compute_dtype)
        hidden_states, attentions = (x,), ()
        for block in self.blocks:
            x, weights = block(x, bias, training=training)
            hidden_states, attentions = (*hidden_states, x), (*attentions, weights)
        return hidden_states, attentions


@keras.saving.register_keras_serializable("kbert")
class Pooler(ConfiguredLayer):
    """Dense and tanh over the first token: (B, L, D) -> (B, D)."""

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        self.pooler_dense = self.dense(self.config.hidden_size, "dense", activation="tanh")

    def build(self, x_shape):
        self.pooler_dense.build((x_shape[0], x_shape[-1]))

    def call(self, x):
        return self.pooler_dense(x[:, 0])
