"""Pretrains with one recipe and writes its scores; `benchmarks.pretraining` runs it.

    python -m benchmarks.workers.recipe SETTINGS.json

Writes the JSON file `output` of the settings.
"""

import itertools
import json
import math
import pathlib
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from kbert.data import pretraining_dataset
from kbert.data.masking import choose_tokens, mask_tokens, prediction_counts
from kbert.model.models import BertForPreTraining
from kbert.settings import PretrainConfig
from kbert.settings.training import time_budget_seconds
from kbert.train import Callback, pretrain
from kbert.train.inputs import load_or_create_inputs
from kbert.train.schedule import make_schedule
from kbert.utils.flags import define, read
from kbert.utils.stateless_random import uniform

MASK_RATE, SEED, BATCH_SIZE = 0.15, 1, 32


class MaskedText:
    """The masked tokens of held-out text, the same for all models with the same vocabulary.

    Every document is cut into segments of at most `length` tokens, [CLS] text [SEP], and `segments`
    of these are taken at equal distances. BERT's rule masks 15 % of their tokens.

    Args:
        corpus: Corpus of the held-out text.
        tokenizer: its BertTokenizer.
        length: maximum length of a segment in tokens.
        segments: maximum number of segments.
    """

    def __init__(self, corpus, tokenizer, length, segments):
        starts = corpus.document_starts.tolist()
        spans = [
            (first, min(first + length - 2, stop))
            for start, stop in itertools.pairwise(starts)
            for first in range(start, stop, length - 2)
        ]
        chosen = np.arange(min(segments, len(spans))) * len(spans) // min(segments, len(spans))
        ids = np.full((len(chosen), length), tokenizer.pad_id, np.int32)
        for row, index in enumerate(chosen):
            text = corpus.read(*spans[index])
            ids[row, : len(text) + 2] = [tokenizer.cls_id, *text, tokenizer.sep_id]
        real = ids != tokenizer.pad_id
        maskable = real & (ids != tokenizer.cls_id) & (ids != tokenizer.sep_id)
        index, M = np.arange(len(chosen)), math.ceil(MASK_RATE * length)
        counts = prediction_counts(real.sum(1), MASK_RATE, M)
        hidden = choose_tokens(maskable, counts, uniform(SEED, 0, index, length))
        draws = uniform(SEED, 1, index, 2 * M)
        names = ("input_ids", "masked_positions", "masked_ids", "masked_weights")
        values = mask_tokens(ids, hidden, M, draws, tokenizer.mask_id, tokenizer.vocab_size)
        self._arrays = dict(zip(names, values, strict=True))
        self._arrays["attention_mask"] = real.astype(np.int32)
        self._arrays["token_type_ids"] = np.zeros_like(ids)
        self._model = None

    def score(self, model):
        """Returns the mean loss of the masked tokens in nats, and the accuracy."""
        if model is not self._model:
            self._model = model
            self._forward = tf.function(lambda features: model(features, training=False))
        totals = np.zeros(3)
        for first in range(0, len(self._arrays["input_ids"]), BATCH_SIZE):
            batch = {n: tf.constant(x[first : first + BATCH_SIZE]) for n, x in self._arrays.items()}
            labels, weights = batch.pop("masked_ids"), batch.pop("masked_weights")
            outputs = self._forward(batch)
            logits = outputs["mlm_logits" if "mlm_logits" in outputs else "logits"]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            right = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)
            sums = [tf.reduce_sum(x * weights) for x in (losses, right, tf.ones_like(weights))]
            totals += [float(x) for x in sums]
        return (totals[:2] / totals[2]).tolist()


class Progress(Callback):
    """Scores the model at every evaluation, and measures the seconds spent on training steps.

    The first call, which compiles, does not count.

    Attributes:
        points: list of [seconds, step, loss, accuracy].
    """

    def __init__(self, length, segments):
        self.points, self._seconds, self._sizes = [], 0.0, (length, segments)
        self._begin = None

    def on_train_begin(self):
        workload = self.trainer.workload
        self._text = MaskedText(workload.held_out_corpus, workload.tokenizer, *self._sizes)

    def on_step_end(self):
        if self._begin is not None:
            self._seconds += time.perf_counter() - self._begin
        self._begin = time.perf_counter()

    def on_log(self, metrics):
        self._begin = time.perf_counter()

    def on_evaluate(self, metrics, better):
        score = self._text.score(self.trainer.model)
        self.points.append([self._seconds, self.trainer.step, *score])
        self._begin = time.perf_counter()

    def on_save(self):
        self._begin = time.perf_counter()

    def on_finish(self, results):
        corpus = self.trainer.workload.held_out_corpus
        self.summary = summary(self.trainer.model, corpus, self.trainer.step)


def summary(model, corpus, steps):
    """Returns a dict of the numbers of steps, of parameters and of held-out tokens."""
    return {"steps": steps, "parameters": model.count_params(), "heldout_tokens": corpus.tokens}


def kbert_run(config, settings):
    """Pretrains with kbert; returns the result, a dict."""
    progress = Progress(settings["length"], settings["segments"])
    results = pretrain(config, settings["folder"], callbacks=[progress])
    nsp = results.get("eval_nsp_accuracy")
    return progress.summary | {"points": progress.points, "nsp_accuracy": nsp}


def hf_run(config, settings):
    """Pretrains HF's model with the same batches, initial weights and optimizer, in float32.

    Returns:
        dict with the keys of `kbert_run`'s result; `nsp_accuracy` is None.
    """
    import torch

    from benchmarks.hf_bert import HfTraining

    if config.optimizer != "adamw" or not config.next_sentence:
        sys.exit("a recipe for HF's model must train MLM and NSP with --optimizer=adamw")
    keras.utils.set_random_seed(config.seed)
    torch.manual_seed(config.seed)
    bert_config, tokenizer, corpus, held_out = load_or_create_inputs(
        config, f"{settings['folder']}/data", None, None, lambda *_: None, print
    )
    text = MaskedText(held_out, tokenizer, settings["length"], settings["segments"])
    model = BertForPreTraining(bert_config)
    weights = {name: weight.numpy() for name, weight in model.named_weights().items()}
    names = ("max_predictions_per_seq", "mask_rate", "whole_word_mask", "short_seq_prob", "seed")
    batches = pretraining_dataset(
        corpus,
        config.global_batch_size,
        config.max_seq_length,
        **{name: getattr(config, name) for name in names},
    )
    trial = HfTraining(weights, bert_config, lambda step: 0.0)
    seconds = [_timed(trial, batch, 0) for batch in batches.take(8)][2:]
    steps = max(10, int(time_budget_seconds(config.time_budget) / (sum(seconds) / len(seconds))))
    tenth = steps // 10
    config = config.with_steps(train_steps=steps, warmup_steps=tenth, eval_every_steps=tenth)
    training = HfTraining(weights, bert_config, make_schedule(config), config.bias_correction)
    points, spent = [], 0.0
    for step, batch in enumerate(batches.take(steps)):
        spent += _timed(training, batch, step)
        if (step + 1) % tenth == 0 or step + 1 == steps:
            with tempfile.TemporaryDirectory() as folder:
                training.model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                model = BertForPreTraining.from_pretrained(folder)
            points.append([spent, step + 1, *text.score(model)])
    return summary(model, held_out, steps) | {"points": points, "nsp_accuracy": None}


def _timed(training, batch, step):
    begin = time.perf_counter()
    training.step({name: value.numpy() for name, value in batch.items()}, step)
    return time.perf_counter() - begin


def main(path):
    """Runs the recipe in a JSON file of settings, the argument."""
    settings = json.loads(pathlib.Path(path).read_text())
    define(PretrainConfig)
    flags.FLAGS(["recipe", *settings["flags"]])
    run = hf_run if settings["library"] == "hf" else kbert_run
    result = run(read(PretrainConfig), settings)
    pathlib.Path(settings["output"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
