"""What a served model answers: methods of `kbert.Predictor` as graphs, from text to results.

The tokenizer is part of the graph, and so is what makes readable results of logits. The answers are
those of the Predictor, with which an export is compared before it is named.
"""

import tensorflow as tf

from kbert.errors import UserError
from kbert.model.models import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from kbert.serving.endpoint import Endpoint, as_array
from kbert.tasks.outputs import MOST_MASKS, embeddings, masked_logits
from kbert.tasks.span_ops import (
    best_spans,
    in_parts,
    question_windows,
    span_scores,
    tagged_spans,
    text_windows,
    tokenize_questions,
)
from kbert.tokenizer.tokenizer import BertTokenizer


class Classify(Endpoint):
    """One of C labels."""

    name = "classify"
    model_class = BertForSequenceClassification
    output_spec = {
        "label": "(B,) string, the most probable label",
        "score": "(B,) float32, its probability",
        "probabilities": "(B, C) float32, of all labels",
    }

    def postprocess(self, outputs, features):
        probabilities = tf.nn.softmax(outputs["logits"])
        best = tf.argmax(probabilities, axis=-1)
        return {
            "label": tf.gather(tf.constant(self.task.label_names), best),
            "score": tf.reduce_max(probabilities, axis=-1),
            "probabilities": probabilities,
        }

    def reference_outputs(self, text, text_pair=None):
        predictions = self.predictor.classify(text, text_pair)
        named = {name: [row[name] for row in predictions] for name in ("label", "score")}
        return {**named, "probabilities": [list(row["scores"].values()) for row in predictions]}


class MultiLabel(Endpoint):
    """Any number of C labels."""

    name = "multilabel"
    model_class = BertForSequenceClassification
    output_spec = {
        "labels": "(B, S) string, those with a probability above 1/2; the rest is empty",
        "probabilities": "(B, C) float32, of all labels",
    }
    padded = {"labels": ""}

    def postprocess(self, outputs, features):
        logits = outputs["logits"]
        rows = tf.broadcast_to(tf.constant(self.task.label_names), tf.shape(logits))
        labels = tf.ragged.boolean_mask(rows, logits > 0)
        return {"labels": labels.to_tensor(""), "probabilities": tf.sigmoid(logits)}

    def reference_outputs(self, text, text_pair=None):
        predictions = self.predictor.classify(text, text_pair)
        probabilities = [list(row["scores"].values()) for row in predictions]
        return {
            "labels": as_array([r["labels"] for r in predictions], ""),
            "probabilities": probabilities,
        }


class Regress(Endpoint):
    """A number."""

    name = "regress"
    model_class = BertForSequenceClassification
    output_spec = {"score": "(B,) float32, the number"}

    def postprocess(self, outputs, features):
        return {"score": outputs["logits"][:, 0]}

    def reference_outputs(self, text, text_pair=None):
        return {"score": [row["score"] for row in self.predictor.classify(text, text_pair)]}


class NextSentence(Endpoint):
    """Whether the second text follows the first."""

    name = "next_sentence"
    model_class = BertForNextSentencePrediction
    texts = {"text": 1, "text_pair": 1}
    output_spec = {"is_next": "(B,) float32, the probability that text_pair follows text"}

    def postprocess(self, outputs, features):
        return {"is_next": tf.nn.softmax(outputs["logits"])[:, 0]}

    def reference_outputs(self, text, text_pair):
        return {"is_next": [r["is_next"] for r in self.predictor.next_sentence(text, text_pair)]}


class Embed(Endpoint):
    """A vector of length 1."""

    name = "embed"
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


class Tag(Endpoint):
    """What is found in a text: entities, or the tag of every word."""

    name = "tag"
    model_class = BertForTokenClassification
    output_spec = {
        "label": "(B, S) string, of each stretch that is found, in their order; the rest is empty",
        "text": "(B, S) string, the stretch itself",
        "start": "(B, S) int32, where it begins in the UTF-8 text, in bytes; -1 in the rest",
        "end": "(B, S) int32, where it ends, exclusive; -1 in the rest",
        "score": "(B, S) float32, the mean probability of its words' labels; 0 in the rest",
        "count": "(B,) int32, how many are found",
    }
    padded = {"start": -1, "label": "", "text": "", "end": -1, "score": 0.0}

    def from_texts(self, text):
        windows = text_windows(text, self.tokenizer, self.max_seq_length)
        probabilities = in_parts(self.from_ids, windows.features)["probabilities"]
        return tagged_spans(text, windows, probabilities, self.task.label_names, self.tokenizer)

    def postprocess(self, outputs, features):
        return {"probabilities": tf.nn.softmax(outputs["logits"])}

    def reference_outputs(self, text):
        predictions = self.predictor.tag(text)
        named = {
            n: as_array([[s[n] for s in row] for row in predictions], v)
            for n, v in self.padded.items()
        }
        return {**named, "count": [len(row) for row in predictions]}


class Answer(Endpoint):
    """Where a context answers a question."""

    name = "answer"
    model_class = BertForQuestionAnswering
    texts = {"question": 1, "context": 1}
    output_spec = {
        "answer": "(B,) string, a stretch of the context; empty: none",
        "start": "(B,) int32, where it begins in the UTF-8 context, in bytes; -1: none",
        "end": "(B,) int32, where it ends, exclusive; -1: none",
        "score": "(B,) float32, the sum of its two logits; of none its no_answer_score",
        "no_answer_score": "(B,) float32, the least sum of the logits of [CLS] in a window",
    }

    def __init__(self, *arguments):
        super().__init__(*arguments)
        longest = self.task.max_query_length
        if longest + 4 > self.max_seq_length:
            raise UserError(
                f"questions of {longest} tokens, as in fine-tuning, leave no room for a context: "
                f"max_seq_length must be at least {longest + 4}; got {self.max_seq_length}."
            )

    def from_texts(self, question, context):
        task = self.task
        tokens = tokenize_questions(question, context, self.tokenizer, task.max_query_length)
        windows = question_windows(*tokens, self.tokenizer, self.max_seq_length, task.doc_stride)
        logits = in_parts(self.from_ids, windows.features)
        scores, none = span_scores(windows, logits, task.max_answer_length)
        start, end, score = best_spans(windows, scores)
        answers = score > float("-inf")
        if task.allow_no_answer:
            answers &= none - score <= task.null_threshold
        return {
            "answer": tf.strings.substr(context, start, tf.where(answers, end - start, 0)),
            "start": tf.where(answers, start, -1),
            "end": tf.where(answers, end, -1),
            "score": tf.cast(tf.where(answers, score, none), tf.float32),
            "no_answer_score": tf.ensure_shape(tf.cast(none, tf.float32), [None]),
        }

    def forward(self, features):
        outputs = self.model(features, training=False)
        return {name: outputs[name] for name in ("start_logits", "end_logits")}

    def postprocess(self, outputs, features):
        return outputs

    def reference_outputs(self, question, context):
        predictions = self.predictor.answer(question, context)
        named = {
            n: [row[n] for row in predictions] for n in ("start", "end", "score", "no_answer_score")
        }
        for name in ("start", "end"):
            named[name] = [-1 if offset is None else offset for offset in named[name]]
        return {"answer": [row["text"] for row in predictions], **named}


class Choose(Endpoint):
    """The choice that goes best with a text."""

    name = "choose"
    model_class = BertForMultipleChoice
    texts = {"text": 1, "choices": 2}
    output_spec = {
        "choice": "(B,) int32, its number, from 0",
        "text": "(B,) string, the choice itself",
        "score": "(B,) float32, its probability",
        "probabilities": "(B, C) float32, of all choices",
    }

    def from_texts(self, text, choices):
        C = tf.shape(choices)[1]
        flat = self.encode(tf.repeat(text, C), tf.reshape(choices, [-1]))
        shape = tf.stack([tf.shape(choices)[0], C, tf.shape(flat["input_ids"])[1]])
        answers = self.from_ids({name: tf.reshape(x, shape) for name, x in flat.items()})
        return {**answers, "text": tf.gather(choices, answers["choice"], batch_dims=1)}

    def postprocess(self, outputs, features):
        probabilities = tf.nn.softmax(outputs["logits"])
        return {
            "choice": tf.argmax(probabilities, axis=-1, output_type=tf.int32),
            "score": tf.reduce_max(probabilities, axis=-1),
            "probabilities": probabilities,
        }

    def reference_outputs(self, text, choices):
        predictions = self.predictor.choose(text, choices)
        return {name: [row[name] for row in predictions] for name in ("choice", "text", "score")}


ENDPOINTS = {
    kind.name: kind
    for kind in (Classify, Tag, Answer, Choose, FillMask, NextSentence, Embed, Encode)
}  # what classifies may also be MultiLabel or Regress, by the model's problem_type
