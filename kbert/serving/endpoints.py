"""What a served model without a task answers, as graphs; those of tasks are in `kbert.tasks`.

The tokenizer is part of the graph, and so is what makes readable results of logits. The answers are
those of the Predictor, with which an export is compared before it is named.
"""

import tensorflow as tf

from kbert.model.models import BertForMaskedLM, BertForNextSentencePrediction
from kbert.tasks import registry
from kbert.tasks.endpoint import Endpoint, as_array
from kbert.tasks.outputs import MOST_MASKS, embeddings, masked_logits
from kbert.tokenizer.tokenizer import BertTokenizer


class NextSentence(Endpoint):
    """Whether the second text follows the first."""

    name = "next_sentence"
    model_class = BertForNextSentencePrediction
    texts = {"text": 1, "text_pair": 1}
    forward_spec = {"logits": ("B2", "softmax: whether text_pair follows text, or does not")}
    output_spec = {"is_next": "(B,) float32, the probability that text_pair follows text"}

    def postprocess(self, outputs, features):
        return {"is_next": tf.nn.softmax(outputs["logits"])[:, 0]}

    def reference_outputs(self, text, text_pair):
        return {"is_next": [r["is_next"] for r in self.predictor.next_sentence(text, text_pair)]}


class Embed(Endpoint):
    """A vector of length 1."""

    name = "embed"
    forward_spec = {"mean": ("BD", "the mean over the tokens; divide it by its length")}
    output_spec = {"embedding": "(B, D) float32, the mean over the tokens, of length 1"}

    def forward(self, features):
        return {"mean": embeddings(self.model(features, training=False), features)["mean"]}

    def postprocess(self, outputs, features):
        vectors = outputs["mean"]
        norms = tf.maximum(tf.norm(vectors, axis=-1, keepdims=True), 1e-6)
        return {"embedding": vectors / norms}

    def reference_outputs(self, text):
        return {"embedding": self.predictor.embed(text)}


class Encode(Endpoint):
    """The bare encoder."""

    name = "encode"
    forward_spec = {
        "last_hidden_state": ("BLD", "of each token; without meaning at padding"),
        "pooler_output": ("BD", "of the text"),
    }
    output_spec = {
        "last_hidden_state": "(B, L, D) float32; 0 at padding",
        "pooler_output": "(B, D) float32",
        "attention_mask": "(B, L) int32, 1 = real token, 0 = padding",
    }

    padded = {"attention_mask": 0, "last_hidden_state": 0.0}

    def forward(self, features):
        outputs = self.model(features, training=False)
        names = ("last_hidden_state", "pooler_output")
        return {name: tf.cast(outputs[name], "float32") for name in names}

    def postprocess(self, outputs, features):
        mask = features["attention_mask"]
        states = tf.where(mask[:, :, None] == 1, outputs["last_hidden_state"], 0.0)
        return {**outputs, "last_hidden_state": states, "attention_mask": tf.identity(mask)}

    def reference_outputs(self, text):
        features = self.encode(tf.constant(text, tf.string))
        outputs = self.model(features, training=False)
        mask = features["attention_mask"]
        return {
            "last_hidden_state": outputs["last_hidden_state"]
            * tf.cast(mask, "float32")[:, :, None],
            "pooler_output": outputs["pooler_output"],
            "attention_mask": mask,
        }


class FillMask(Endpoint):
    """The top_k best words for each [MASK]; other special tokens in a text are no such tokens."""

    name = "fill_mask"
    model_class = BertForMaskedLM
    forward_spec = {
        "logits": ("BMV", f"of the words, at the first {MOST_MASKS} [MASK]; then of other tokens"),
    }
    output_spec = {
        "words": "(B, M, k) string, the 5 best for each [MASK], of 16 at most; the rest is empty",
        "scores": "(B, M, k) float32, their probabilities; 0 in the rest",
    }
    padded = {"words": "", "scores": 0.0}
    top_k = 5

    def __init__(self, *arguments):
        super().__init__(*arguments)
        tokenizer = self.tokenizer
        self.reading = BertTokenizer(
            tokenizer.vocab, special_tokens_in_text=("[MASK]",), **tokenizer.settings
        )

    def trackables(self):
        return [self.reading]

    def from_texts(self, text):
        return self.from_ids(self.encode(text, tokenizer=self.reading))

    def forward(self, features):
        return masked_logits(self.model, features, self.tokenizer)

    def postprocess(self, outputs, features):
        mask_id = self.tokenizer.mask_id
        counts = tf.math.count_nonzero(features["input_ids"] == mask_id, axis=1, dtype=tf.int32)
        M = tf.minimum(tf.reduce_max(tf.concat([counts, [0]], axis=0)), MOST_MASKS)
        best = tf.math.top_k(
            tf.nn.softmax(outputs["logits"][:, :M]), min(self.top_k, self.tokenizer.vocab_size)
        )
        words = tf.gather(tf.constant(self.tokenizer.vocab), best.indices)
        there = (tf.range(M) < counts[:, None])[:, :, None]
        return {"words": tf.where(there, words, ""), "scores": tf.where(there, best.values, 0.0)}

    def reference_outputs(self, text):
        predictions = [row["masks"] for row in self.predictor.fill_mask(text, self.top_k)]
        return {
            name: as_array(
                [[[w[key] for w in m] for m in row] for row in predictions], self.padded[name]
            )
            for name, key in (("words", "token"), ("scores", "score"))
        }


_WITHOUT_TASK = {kind.name: kind for kind in (FillMask, NextSentence, Embed, Encode)}


def endpoints():
    """dict of --method -> class of Endpoint, those of tasks first."""
    kinds = [kind for kind in registry.tasks().values() if kind.endpoint]
    return {kind.method: kind.endpoint for kind in reversed(kinds)} | _WITHOUT_TASK
