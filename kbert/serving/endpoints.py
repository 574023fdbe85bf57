"""Endpoints for methods without a task; the endpoints of tasks are in `kbert.tasks`."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kbert.model.models import BertForMaskedLM, BertForNextSentencePrediction
from kbert.tasks import registry
from kbert.tasks.endpoint import Endpoint, as_array
from kbert.tasks.outputs import MAX_MASKS, TensorDict, masked_logits
from kbert.tokenizer.tokenizer import BertTokenizer


class NextSentence(Endpoint):
    """Predicts whether the second text follows the first."""

    name: str = "next_sentence"
    model_class: type[BertForNextSentencePrediction] = BertForNextSentencePrediction
    texts: dict[str, int] = {"text": 1, "text_pair": 1}
    forward_spec: dict[str, tuple[str, str]] = {
        "logits": ("B2", "one per class (0: text_pair follows text, 1: it does not)")
    }
    output_spec: dict[str, str] = {
        "is_next": "(B,) float32, the probability that text_pair follows text"
    }

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        return {"is_next": tf.nn.softmax(outputs["logits"])[:, 0]}

    def reference_outputs(self, text: Sequence[str], text_pair: Sequence[str]) -> dict[str, Any]:
        return {"is_next": [r["is_next"] for r in self.predictor.next_sentence(text, text_pair)]}


class Encode(Endpoint):
    """Computes the outputs of the encoder."""

    name: str = "encode"
    forward_spec: dict[str, tuple[str, str]] = {
        "last_hidden_state": ("BLD", "the outputs of the last layer; arbitrary at padding"),
        "pooler_output": ("BD", "the outputs of the pooler"),
    }
    output_spec: dict[str, str] = {
        "last_hidden_state": "(B, L, D) float32; 0 at padding",
        "pooler_output": "(B, D) float32",
        "attention_mask": "(B, L) int32, 1 = real token, 0 = padding",
    }

    token_outputs: tuple[str, ...] = ("attention_mask", "last_hidden_state")

    def forward(self, features: TensorDict) -> TensorDict:
        return {name: tf.cast(x, "float32") for name, x in super().forward(features).items()}

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        mask = features["attention_mask"]
        states = tf.where(mask[:, :, None] == 1, outputs["last_hidden_state"], 0.0)
        return {**outputs, "last_hidden_state": states, "attention_mask": tf.identity(mask)}

    def reference_outputs(self, text: Sequence[str]) -> dict[str, Any]:
        return self.from_ids(self.encode(tf.constant(text, tf.string)))


class FillMask(Endpoint):
    """Predicts the top_k tokens for each [MASK]; other special tokens in a text are plain text."""

    name: str = "fill_mask"
    model_class: type[BertForMaskedLM] = BertForMaskedLM
    forward_spec: dict[str, tuple[str, str]] = {
        "logits": (
            "BMV",
            f"one per vocabulary entry, at the first {MAX_MASKS} [MASK]; arbitrary in other slots",
        ),
    }
    output_spec: dict[str, str] = {
        "words": "(B, M, k) string, the top 5 for each of at most 16 [MASK]; empty in other slots",
        "scores": "(B, M, k) float32, the probabilities of the words; 0 in other slots",
    }
    padded: dict[str, str | int | float] = {"words": "", "scores": 0.0}
    top_k: int = 5

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        tokenizer = self.tokenizer
        self.mask_tokenizer: BertTokenizer = BertTokenizer(
            tokenizer.vocab, special_tokens_in_text=("[MASK]",), **tokenizer.settings
        )

    def trackables(self) -> list[Any]:
        return [self.mask_tokenizer]

    def encode_texts(self, text: tf.Tensor) -> tuple[TensorDict, TensorDict]:
        return self.encode(text, tokenizer=self.mask_tokenizer), {}

    def forward(self, features: TensorDict) -> TensorDict:
        return masked_logits(self.model, features, self.tokenizer)

    def postprocess(self, outputs: TensorDict, features: TensorDict) -> TensorDict:
        mask_id = self.tokenizer.mask_id
        counts = tf.math.count_nonzero(features["input_ids"] == mask_id, axis=1, dtype=tf.int32)
        M = tf.minimum(tf.reduce_max(tf.concat([counts, [0]], axis=0)), MAX_MASKS)
        best = tf.math.top_k(
            tf.nn.softmax(outputs["logits"][:, :M]), min(self.top_k, self.tokenizer.vocab_size)
        )
        words = tf.gather(tf.constant(self.tokenizer.vocab), best.indices)
        there = (tf.range(M) < counts[:, None])[:, :, None]
        return {"words": tf.where(there, words, ""), "scores": tf.where(there, best.values, 0.0)}

    def reference_outputs(self, text: Sequence[str]) -> dict[str, Any]:
        predictions = [row["masks"] for row in self.predictor.fill_mask(text, self.top_k)]
        return {
            name: as_array(
                [[[w[key] for w in m] for m in row] for row in predictions], self.padded[name]
            )
            for name, key in (("words", "token"), ("scores", "score"))
        }


_WITHOUT_TASK = {kind.name: kind for kind in (FillMask, NextSentence, Encode)}


def endpoints() -> dict[str, type[Endpoint]]:
    """Returns a dict of the methods that can be exported -> subclasses of Endpoint."""
    kinds = [kind for kind in registry.tasks().values() if kind.endpoint]
    return {kind.method: kind.endpoint for kind in reversed(kinds)} | _WITHOUT_TASK
