"""What a model says of texts: one class for every task, a method for each."""

import functools
import threading
import warnings

import numpy as np
import tensorflow as tf

from kbert.errors import UserError
from kbert.inference.backends import choose_backend, frozen_backend
from kbert.inference.batch_runner import BatchRunner
from kbert.model.folder import ModelFolder
from kbert.model.models import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from kbert.tasks.outputs import MOST_MASKS, embeddings, masked_logits
from kbert.tasks.registry import BUILT_IN, get_task, read_task, task_of
from kbert.tasks.task import same_length, softmax, text_items
from kbert.tokenizer.tokenizer import BertTokenizer

POOLINGS = ("mean", "cls")


class Predictor:
    """A BERT with its tokenizer, asked for predictions about texts.

    Texts may be many and of any length: they are sorted by length, computed in batches, and given
    back in their order. What does not fit into `max_seq_length` is cut, but `tag` and `answer` read
    long texts in windows. The weights are taken as they are at the first prediction of a kind.

    Args:
        model: one of kbert's models. tokenizer: BertTokenizer.
        settings: dict of the task that it was fine-tuned for, as `finetune` writes it to
            `task.json`; None for a model without one.
        batch_size: texts of a batch; two batches are computed at a time.
        advance: called with the number of texts done since the last call, to show progress.
        backend: what computes the model: "tensorflow", "openvino" (on the CPU; `kbert[openvino]`),
            "auto", which is OpenVINO if it is installed and there is no GPU, or "keras", the Keras
            model as it is, which gives what evaluation in training gives. All compute in the dtype
            of the model; float32 results differ by about 1e-6, bfloat16 ones by a few 1e-2.
        max_seq_length: tokens of a sequence; None: as in fine-tuning, or as many as the model can.

    Attributes:
        folder: ModelFolder of the weights, or None: the model was given.

    Raises:
        UserError: no such backend, or OpenVINO is asked for and not installed.
    """

    def __init__(
        self,
        model,
        tokenizer,
        settings=None,
        batch_size=32,
        advance=None,
        backend="auto",
        max_seq_length=None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.advance = advance
        self.backend = choose_backend(backend)
        self._batch_size = batch_size
        self._max_seq_length = max_seq_length
        self.folder = None
        self._read = None
        self._runners = {}
        self._lock = threading.Lock()  # threads may ask at once, all the same method

    @classmethod
    def from_pretrained(cls, folder, dtype=None, **options):
        """The Predictor of a folder of weights in any format that `BertModel` reads.

        The weights are read when the first prediction is asked for, with the head that it needs.
        What OpenVINO makes of them is kept in the folder, in `openvino`, if it can be written to,
        and made anew when the weights change.

        Args:
            folder: such as `RUN/finetuning/best`, the name of a model on the Hugging Face hub, or
                a ModelFolder.
            dtype: of the model, such as "mixed_bfloat16".
            options: batch_size, advance, backend and max_seq_length of the class.

        Raises:
            UserError: no such folder or backend; files that are missing or damaged.
        """
        folder = ModelFolder.of(folder)
        settings = read_task(folder)
        predictor = cls(None, folder.tokenizer, settings, **options)
        predictor.folder, parts = folder, folder.parts

        def read(model_class):
            missing = set(model_class.task_heads) - parts
            if missing:
                raise UserError(
                    f"{folder} has no {', '.join(sorted(missing))}, which this needs; it has "
                    f"{', '.join(sorted(parts))}. Fine-tune it for the task with kbert.finetune."
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a pooler that nothing here asks
                kwargs = {"dtype": dtype} if dtype else {}
                if model_class is BertModel:
                    kwargs["add_pooling_layer"] = False
                return model_class.from_pretrained(folder, **kwargs)

        predictor._read = read
        return predictor

    def classify(self, texts, text_pairs=None):
        """The label of each text, or pair of texts.

        Args:
            texts, text_pairs: lists of str.

        Returns:
            list of dicts: `label`, its probability `score`, and `scores` of all labels by name; of
            a model of several labels `labels` and `scores`; of a regression `score`.
        """
        return self.ask(self.classifier(), texts, text_pairs)

    def classifier(self):
        """What a model that classifies is made for: "classify", "regress" or "multilabel"."""
        config = self.load(BertForSequenceClassification).config
        if config.problem_type is None:
            return "regress" if config.num_labels == 1 else "classify"
        return next(kind.name for kind in BUILT_IN if kind.problem_type == config.problem_type)

    def ask(self, name, *texts):
        """Predicts with a model of any task. name: of the task. texts: as for its own method."""
        self.load(get_task(name).model_class)
        return self.task(name).answers(self, *texts)

    def tag(self, texts):
        """What is found in each text, as it is: entities, or the tag of every word.

        Args:
            texts: list of str.

        Returns:
            list of lists of dicts: `label`, `text`, its offsets `start` and `end` in bytes of the
            UTF-8 text, end exclusive, and `score`, the mean probability of its words' labels.
        """
        return self.ask("tag", texts)

    def tag_words(self, sentences):
        """The tag of each word of sentences that are cut into words: lists of lists of str."""
        self.load(BertForTokenClassification)
        task = self.task("tag")
        predictions = self.predictions(task, task.examples(sentences))
        return [prediction["tags"] for prediction in predictions]

    def answer(self, questions, contexts):
        """Where each context answers its question.

        Args:
            questions, contexts: lists of str.

        Returns:
            list of dicts: see `kbert.tasks.answers.best_answers`; "" where there is no answer, if
            the model was fine-tuned with such questions.
        """
        return self.ask("qa", questions, contexts)

    def choose(self, texts, choices):
        """The choice that goes best with each text.

        Args:
            texts: list of str. choices: list of lists of str, all of one length.

        Returns:
            list of dicts: `choice`, its number from 0, its `text` and its probability `score`.
        """
        return self.ask("choice", texts, choices)

    def next_sentence(self, texts, text_pairs):
        """The probability that each text_pair follows its text: list of dicts with `is_next`."""
        model = self.load(BertForNextSentencePrediction)
        text_pairs = same_length(texts, text_pairs, "text_pairs")
        items = text_items(self.tokenizer, texts, text_pairs, self.max_seq_length)
        runner = self._runner("nsp", model, lambda outputs, _: {"logits": outputs["logits"]})
        return [{"is_next": float(softmax(o["logits"])[0])} for o in runner(items, self.advance)]

    def embed(self, texts, pooling="mean", normalize=True):
        """A vector for each text.

        Args:
            texts: list of str. pooling: "mean" over the tokens, [CLS] and [SEP] included, as
                sentence-transformers has it, or "cls", the last hidden state of [CLS].
            normalize: whether to scale each vector to length 1.

        Returns:
            (N, D) float32 array.
        """
        if pooling not in POOLINGS:
            raise UserError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}.")
        model = self.load(BertModel)
        items = text_items(self.tokenizer, texts, None, self.max_seq_length)
        outputs = self._runner("embed", model, embeddings)(items, self.advance)
        if not outputs:
            return np.zeros((0, model.config.hidden_size), np.float32)
        vectors = np.stack([output[pooling] for output in outputs])
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        return vectors

    def similarity(self, texts, text_pairs, pooling="mean"):
        """The cosine of the vectors of each text and its pair: list of dicts with `similarity`."""
        text_pairs = same_length(texts, text_pairs, "text_pairs")
        vectors = self.embed([*texts, *text_pairs], pooling)
        cosines = (vectors[: len(texts)] * vectors[len(texts) :]).sum(axis=-1)
        return [{"similarity": float(cosine)} for cosine in cosines]

    def fill_mask(self, texts, top_k=5):
        """The top_k best words for each [MASK] in each text.

        Args:
            texts: list of str; [MASK] is read as such, other special tokens are not.

        Returns:
            list of dicts: `masks`, a list with, for each [MASK], the list of the best words as
            dicts of `token` and `score`, its probability; and `text` with the best words put in.

        Raises:
            UserError: a text without [MASK], or with more than 16; or the mask is cut off.
        """
        model, tokenizer = self.load(BertForMaskedLM), self._mask_tokenizer
        if not 1 <= top_k <= tokenizer.vocab_size:
            raise UserError(
                f"top_k must be 1 to {tokenizer.vocab_size}, the words there are; got {top_k}."
            )
        most = min(max(16, 1 << (top_k - 1).bit_length()), tokenizer.vocab_size)  # few graphs
        items = text_items(tokenizer, texts, None, self.max_seq_length)
        places = [np.flatnonzero(item.input_ids == tokenizer.mask_id) for item in items]
        for text, mine in zip(texts, places, strict=True):
            if not 0 < len(mine) <= MOST_MASKS:
                raise UserError(
                    f"a text to fill must have 1 to {MOST_MASKS} [MASK] within its first "
                    f"{self.max_seq_length} tokens; got {len(mine)} in {text[:60]!r}."
                )

        def compute(features, training):
            return masked_logits(model, features, tokenizer)

        def pick(outputs, features):
            best = tf.math.top_k(tf.nn.softmax(outputs["logits"]), most)  # (B, 16, most)
            return {"scores": best.values, "ids": best.indices}

        results = []
        runner = self._runner(f"fill_mask_{most}_{tokenizer.mask_id}", model, pick, compute)
        outputs = runner(items, self.advance)
        for text, mine, output in zip(texts, places, outputs, strict=True):
            best = output["ids"][: len(mine), :top_k], output["scores"][: len(mine), :top_k]
            masks = [
                [
                    {"token": tokenizer.vocab[i], "score": float(score)}
                    for i, score in zip(*row, strict=True)
                ]
                for row in zip(*best, strict=True)
            ]
            for mask in masks:
                text = text.replace("[MASK]", mask[0]["token"], 1)
            results.append({"text": text, "masks": masks})
        return results

    def load(self, model_class):
        """The model, as one of a class: read from the folder, if it is not one of it yet.

        Raises:
            UserError: the folder lacks the head; the model given is of another class.
        """
        with self._lock:
            if self._read is not None and not isinstance(self.model, model_class):
                self.model, self._runners = self._read(model_class), {}
        if not isinstance(self.model, model_class):
            raise UserError(
                f"this needs a {model_class.__name__}; the model is a {type(self.model).__name__}."
            )
        if self._max_seq_length is not None:
            check_length(self._max_seq_length, self.model.config)
        return self.model

    @property
    def max_seq_length(self):
        """Tokens of a sequence, special ones included; longer texts are cut, or read in windows."""
        usual = min(self.model.config.max_position_embeddings, 512)
        return self._max_seq_length or (self.settings or {}).get("max_seq_length", usual)

    def task(self, name):
        """The Task that this model was fine-tuned for, or one of that name with usual settings."""
        if self.model is None:
            self.load(get_task(name).model_class)
        settings = self.settings if self.settings and self.settings["task"] == name else {}
        settings = {**settings, "task": name, "max_seq_length": self.max_seq_length}
        return task_of(settings, self.tokenizer, self.model.config)

    def predictions(self, task, examples):
        """Predictions of a task for its examples; see the methods that are named for the tasks."""
        if not examples:
            return []
        encoded = task.encode(examples)
        outputs = self.outputs(task, encoded.items, len(examples))
        return task.predictions(examples, encoded, outputs)

    def outputs(self, task, items, texts):
        """The model's outputs for items of a task. Progress is told in texts, not in items."""
        advance, done = self.advance, 0.0

        def share(count):
            nonlocal done
            before, done = int(done), done + count * texts / len(items)
            advance(int(round(done, 6)) - before)

        runner = self._runner(type(task).__name__, self.model, task.pick)
        return runner(items, advance and share)

    def _runner(self, kind, model, pick, function=None):
        """The BatchRunner of a kind, which is kept: what was compiled once serves again."""
        with self._lock:
            if kind not in self._runners:
                self._runners[kind] = BatchRunner(
                    function or model,
                    pick,
                    self.tokenizer.pad_id,
                    self.max_seq_length,
                    self._batch_size,
                    frozen_backend(self.backend, model, kind, self.folder and self.folder.path),
                )
            return self._runners[kind]

    @functools.cached_property
    def _mask_tokenizer(self):
        return BertTokenizer(
            self.tokenizer.vocab, special_tokens_in_text=("[MASK]",), **self.tokenizer.settings
        )


def check_length(max_seq_length, config):
    """Refuses lengths of sequences that a model cannot have."""
    if not 5 <= max_seq_length <= config.max_position_embeddings:
        raise UserError(
            f"max_seq_length must be 5 to {config.max_position_embeddings}, the positions that the "
            f"model has; got {max_seq_length}."
        )
