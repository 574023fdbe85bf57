"""A method of answering texts, as a graph: what those of the tasks and others share."""

import abc

import numpy as np

from kbert.model.models import BertModel


class Endpoint(abc.ABC):
    """A method of answering texts.

    Args:
        predictor: Predictor of a model of the task's `model_class`; without a task, of this one.
        task: of `kbert.tasks`, or None.
        takes_pairs: whether a text comes with a second one, `text_pair`.

    Attributes:
        name: str. texts: dict of the inputs' names -> their number of axes, all of them strings.
        forward_spec: dict of the outputs of `forward` -> their shape, a letter for each axis
            (B texts, L tokens, C labels or choices, M masks, V words, D width), and their meaning.
        standard_api: which of TensorFlow Serving's standard APIs it has: "classify" (on
            `probabilities`), "regress" (on `score`), or None.
        scored_by_ids: whether examples are scored by `from_ids`, since they are words.
        decisions: function from `logits` (numpy) to what a text is labelled with, (B, S), or None.
        output_spec: dict of the outputs' names -> shape, dtype and meaning, for a person.
        padded: dict of the outputs that have as many columns as the fullest row of a batch -> what
            fills the rest of a row. In the first of them, what is filled has no other values.
        compute: function, `forward`; a backend of `kbert.inference.backends` may take its place.
    """

    model_class = BertModel
    texts = {"text": 1}
    forward_spec = {}
    standard_api = None
    decisions = None
    scored_by_ids = False
    output_spec = {}
    padded = {}

    def __init__(self, predictor, task=None, takes_pairs=False):
        self.predictor, self.task = predictor, task
        self.model, self.tokenizer = predictor.model, predictor.tokenizer
        self.max_seq_length = task.max_seq_length if task else predictor.max_seq_length
        self.compute = self.forward
        if takes_pairs:
            self.texts = {**self.texts, "text_pair": 1}

    @property
    def takes_choices(self):
        """Whether each text comes with several others, so that ids are (B, C, L)."""
        return 2 in self.texts.values()

    def from_texts(self, text, text_pair=None):
        """The answers to texts, (B,) string each: a dict of tensors with the batch first."""
        return self.from_ids(self.encode(text, text_pair))

    def reference_outputs(self, *texts, **named_texts):
        """What `kbert.Predictor` says to lists of str, as a dict of columns like `from_texts`."""
        texts = [*texts, *(named_texts[name] for name in self.texts if name in named_texts)]
        predictions = self.predictor.ask(self.task.name, *texts)
        rows = [self.task.output_of(prediction) for prediction in predictions]
        columns = {n: [row[n] for row in rows] for n in self.output_spec if n in rows[0]}
        return columns | {n: as_array(columns[n], fill) for n, fill in self.padded.items()}

    def from_ids(self, features):
        """The answers to the `ENCODER_FEATURES`, (B, L) int32 each."""
        return self.postprocess(self.compute(features), features)

    def forward(self, features):
        """What the model makes of features: a dict of float32 tensors, the batch first."""
        outputs = self.model(features, training=False)
        return {name: outputs[name] for name in self.forward_spec}

    @abc.abstractmethod
    def postprocess(self, outputs, features):
        """The answers that lie in the outputs of `forward` for features."""

    def encode(self, text, text_pair=None, tokenizer=None):
        """The features of texts, as long as the longest of them needs."""
        tokenizer = tokenizer or self.tokenizer
        return tokenizer(text, text_pair, max_length=self.max_seq_length, padding="longest")

    def trackables(self):
        """Whatever a SavedModel must keep beside the weights."""
        return [self.tokenizer]


def as_array(rows, fill):
    """An array of lists of different lengths, (B, S) or (B, S, ...)."""
    width = max(map(len, rows), default=0)
    empty = np.full(np.shape(next((row[0] for row in rows if row), fill)), fill).tolist()
    return np.array([[*row, *[empty] * (width - len(row))] for row in rows])
