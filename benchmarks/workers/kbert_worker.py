"""kbert, with the same functions as its programs."""

import functools
import pathlib
import sys
import tempfile
import types

import keras
import numpy as np
import tensorflow as tf

from benchmarks import data
from benchmarks.worker import Work, serve
from benchmarks.workers.tf_tokenizer import tokenizer_work
from kbert.config import BertConfig
from kbert.corpus import Corpus, prepare
from kbert.data import pretraining_dataset
from kbert.data.bucketed_batches import BucketedBatches, EncodedExample
from kbert.features import PRETRAINING_FEATURES
from kbert.inference.backends import frozen_backend
from kbert.inference.batch_runner import BatchRunner
from kbert.inference.predictor import Predictor
from kbert.model.models import BertForPreTraining, BertForSequenceClassification
from kbert.settings import FinetuneConfig, PretrainConfig
from kbert.tasks.registry import make_task
from kbert.tokenizer import BertTokenizer
from kbert.train.distribution import find_devices
from kbert.train.losses import PretrainingObjective, TaskObjective
from kbert.train.optimizer import make_optimizer
from kbert.train.schedule import WarmupPolynomialDecay, make_schedule
from kbert.train.step import TrainStep

STEPS = 10**6  # of the learning rate schedule; more than any benchmark takes


class Training:
    """Takes training steps as kbert's programs do, with `TrainStep`.

    Args:
        config: PretrainConfig or FinetuneConfig.
        model_class: a class in `kbert.model.models`.
        bert_config: BertConfig.
        objective: an objective in `kbert.train.losses`.
        schedule: learning rate schedule.
        dataset: function from a batch size to an infinite tf.data.Dataset.
        folder: folder of the initial weights, or None for random ones.
    """

    def __init__(self, config, model_class, bert_config, objective, schedule, dataset, folder=None):
        devices = find_devices(config)
        keras.utils.set_random_seed(config.seed)
        with devices.strategy.scope():
            model = model_class(bert_config, dtype=config.precision)
            optimizer = make_optimizer(config, schedule)
            optimizer.build(model.trainable_variables)
        if folder:
            model.load_pretrained(folder)
        self._train_step = TrainStep(model, optimizer, schedule, devices, config, objective)
        batches = dataset(config.global_batch_size // devices.replicas)
        distributed = devices.strategy.distribute_datasets_from_function(lambda _: batches)
        self._batches, self._objective, self._step = iter(distributed), objective, 0
        self.notes = f"XLA for the whole step {'on' if devices.jit else 'off'}"

    def take(self, steps):
        """Takes steps in one call; returns the loss of the last."""
        rows, _ = self._train_step.take(
            self._batches, tf.constant(self._step, tf.int64), tf.constant(steps, tf.int32)
        )
        self._step += steps
        sums = dict(zip(self._train_step.value_names, rows.numpy()[-1].tolist(), strict=True))
        return self._objective.metrics(sums)["loss"]


def train(settings):
    """Returns the Work of pretraining steps. Units: sequences."""
    config = PretrainConfig(
        input="given",
        precision=settings["precision"],
        max_seq_length=settings["length"],
        max_predictions_per_seq=settings["predictions"],
        global_batch_size=settings["batch_size"],
        train_steps=STEPS,
    )
    batches = data.pretraining_batches(settings)
    features = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    assert set(features) == set(PRETRAINING_FEATURES)
    training = Training(
        config,
        BertForPreTraining,
        BertConfig(**settings["model"]),
        PretrainingObjective(config.global_batch_size),
        make_schedule(config),
        lambda batch_size: tf.data.Dataset.from_tensor_slices(features).repeat().prefetch(4),
        settings.get("folder"),
    )

    def run(steps):
        return {"units": steps * config.global_batch_size, "loss": training.take(steps)}

    return Work(run, training.notes)


def finetune(settings):
    """Returns the Work of fine-tuning from random weights. A step is an epoch. Units: examples."""
    examples = data.read_examples(settings["examples"])
    config = FinetuneConfig(
        task="classify",
        init_from="given",
        train_file="given",
        precision=settings["precision"],
        batch_size=settings["batch_size"],
        max_seq_length=settings["length"],
    )
    items = [item_of(ids, label) for ids, label in examples]
    batches = BucketedBatches(
        items, config.batch_size, config.max_seq_length, data.PAD, config.seed
    )
    tokenizer = types.SimpleNamespace(pad_id=data.PAD)
    task = make_task(config, tokenizer, ("negative", "positive"))
    training = Training(
        config,
        task.model_class,
        BertConfig(**settings["model"], **task.config_fields()),
        TaskObjective(task),
        WarmupPolynomialDecay(config.learning_rate, STEPS, STEPS // 10),
        batches.dataset,
    )

    def run(steps):
        loss = training.take(steps * batches.steps_per_epoch)
        return {"units": steps * len(examples), "loss": loss}

    return Work(run, training.notes)


def item_of(ids, label=None):
    """Returns an EncodedExample of token ids, with a label if one is given."""
    ids = np.array(ids, np.int32)
    item = EncodedExample(ids, np.zeros_like(ids))
    if label is None:
        return item
    return EncodedExample(
        ids, item.token_type_ids, np.array(label, np.int32), np.array(1, np.float32)
    )


def infer(settings):
    """Returns the Work of classifying all texts, given their ids. Units: texts."""
    backend = sys.argv[1] if len(sys.argv) > 1 else "tensorflow"
    predictor = Predictor.from_pretrained(
        f"{settings['folder']}/kbert",
        settings["precision"],
        batch_size=settings["batch_size"],
        backend=backend,
    )
    model, task = predictor.load(BertForSequenceClassification), predictor.task("classify")
    forward = BatchRunner(
        functools.partial(task.forward, model),
        data.PAD,
        settings["length"],
        settings["batch_size"],
        frozen_backend(predictor.backend, model, "benchmark"),
    )
    items = [item_of(ids) for ids, _ in data.read_examples(settings["examples"])]

    def logits():
        return np.stack([output["logits"] for output in forward(items)])

    def run(steps):
        for _ in range(steps):
            logits()
        return {"units": steps * len(items)}

    return Work(run, "sorted by length", lambda path: np.save(path, logits()))


def tokenizer(settings):
    """Returns the Work of tokenizing lines in batches, in a graph. Units: bytes."""
    lines = data.read_lines(settings["text"], settings["size"])
    return tokenizer_work(BertTokenizer(settings["vocab_file"]).tokenize, lines, settings)


def preparing(settings):
    """Returns the Work of kbert.prepare. Units: bytes."""
    size = pathlib.Path(settings["text"]).stat().st_size

    def run(steps):
        for _ in range(steps):
            with tempfile.TemporaryDirectory() as folder:
                prepare(settings["text"], f"{folder}/corpus", settings["vocab_file"], processes=1)
        return {"units": steps * size}

    return Work(run, "reading, sentence splitting, tokenizing, writing", lambda path: None)


def pipeline(settings):
    """Returns the Work of making MLM and NSP batches from a prepared corpus.

    A step is 50 batches. Units: tokens without padding.
    """
    dataset = pretraining_dataset(
        Corpus(settings["corpus"]),
        settings["batch_size"],
        settings["length"],
        whole_word_mask=settings["whole_word_mask"],
    )
    batches = iter(dataset)

    def run(steps):
        tokens = 0
        for _ in range(50 * steps):
            tokens += int(next(batches)["attention_mask"].numpy().sum())
        return {"units": tokens}

    return Work(run, "prepared text; with NSP pairs")


AREAS = {
    "train": train,
    "finetune": finetune,
    "infer": infer,
    "tokenizer": tokenizer,
    "prepare": preparing,
    "pipeline": pipeline,
}

if __name__ == "__main__":
    serve(AREAS, ["kbert", "tensorflow", "keras", "tensorflow-text"])
