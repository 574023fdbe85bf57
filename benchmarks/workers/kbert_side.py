"""kbert: what its programs run."""

import pathlib
import sys
import tempfile
import types

import numpy as np
import tensorflow as tf

from benchmarks import data
from benchmarks.worker import Work, serve
from benchmarks.workers.in_a_graph import tokenizing
from kbert.config import BertConfig
from kbert.data import BertTokenizer, Corpus, prepare, pretraining_dataset
from kbert.data.finetuning import Item, ItemBatches
from kbert.features import PRETRAINING_FEATURES
from kbert.model.models import BertForSequenceClassification
from kbert.settings import FinetuneConfig, PretrainConfig
from kbert.tasks.folders import make_task
from kbert.tasks.predictor import Predictor
from kbert.train.checkpoint import BackgroundWriter
from kbert.train.distribution import find_devices
from kbert.train.finetuning import Finetuning
from kbert.train.losses import PretrainingObjective, TaskObjective
from kbert.train.optimizer import make_schedule
from kbert.train.pretraining import Pretraining
from kbert.train.schedule import WarmupPolynomialDecay

STEPS = 10**6  # of a run that never ends here


class FixedPretraining(Pretraining):
    """A run of kbert.pretrain on given batches, without a corpus."""

    batches = model_sizes = None  # given to `make_run`

    def find(self, state):
        self.bert_config = BertConfig(**self.model_sizes)
        self.tokenizer = None
        self.inputs = types.SimpleNamespace(eval_corpus=None)
        self.train_steps = self.eval_every_steps = STEPS
        self.objective = PretrainingObjective(self.config.global_batch_size)
        self.schedule = make_schedule(self.config)

    def dataset(self, batch_size, first, count):
        features = {name: np.stack([b[name] for b in self.batches]) for name in self.batches[0]}
        assert set(features) == set(PRETRAINING_FEATURES)
        return tf.data.Dataset.from_tensor_slices(features).repeat().prefetch(4)

    def describe(self):
        pass


class FixedFinetuning(Finetuning):
    """A run of kbert.finetune on given items, from fresh weights."""

    items = model_sizes = None  # given to `make_run`

    def find(self, state):
        config = self.config
        self.tokenizer = types.SimpleNamespace(pad_id=data.PAD)
        self.task = make_task(config, self.tokenizer, ("negative", "positive"))
        self.bert_config = BertConfig(**self.model_sizes, **self.task.config_fields())
        self.batches = ItemBatches(
            self.items, config.batch_size, config.max_seq_length, data.PAD, config.seed
        )
        self.train_steps = self.eval_every_steps = STEPS
        self.schedule = WarmupPolynomialDecay(config.learning_rate, STEPS, STEPS // 10)
        self.objective = TaskObjective(self.task)

    def initialize_from(self, folder):
        return "fresh weights"

    def describe(self):
        pass


def train(settings):
    """Pretraining steps. Units: sequences."""
    config = PretrainConfig(
        input="given",
        precision=settings["precision"],
        max_seq_length=settings["length"],
        max_predictions_per_seq=settings["predictions"],
        global_batch_size=settings["batch_size"],
        train_steps=STEPS,
        init_from=settings.get("folder"),
    )
    run = make_run(
        FixedPretraining,
        config,
        batches=data.pretraining_batches(settings),
        model_sizes=settings["model"],
    )
    return Work(lambda steps: take(run, steps, steps * config.global_batch_size), notes(run))


def finetune(settings):
    """Fine-tuning. A step is an epoch; units: examples."""
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
    run = make_run(FixedFinetuning, config, items=items, model_sizes=settings["model"])
    epoch = run.batches.steps_per_epoch
    return Work(lambda steps: take(run, steps * epoch, steps * len(examples)), notes(run))


def make_run(kind, config, **given):
    """A run as its program makes it, with attributes given to it; it writes nothing."""
    kind = type(kind.__name__, (kind,), given)
    run = kind(config, pathlib.Path("not written"), find_devices(config), BackgroundWriter())
    run.iterator = run._batches(STEPS)
    return run


def take(run, steps, units):
    """Takes steps in calls of as many as the program takes at once."""
    while steps:
        count = min(steps, run._steps_of_a_call())
        run._take_steps(run.iterator, count)
        steps -= count
    state = run.window.state
    metrics = run.objective.metrics(state)
    run.window = type(run.window)()
    return {"units": units, "loss": metrics["loss"]}


def notes(run):
    """How the run computes."""
    return f"XLA for the whole step {'on' if run.devices.jit else 'off'}"


def item_of(ids, label=None):
    """Item of token ids, with a label if there is one."""
    ids = np.array(ids, np.int32)
    item = Item(ids, np.zeros_like(ids))
    if label is None:
        return item
    return Item(ids, item.token_type_ids, np.array(label, np.int32), np.array(1, np.float32))


def infer(settings):
    """Classification of all texts, from their ids. Units: texts."""
    engine = sys.argv[1] if len(sys.argv) > 1 else "tensorflow"
    predictor = Predictor.from_pretrained(
        f"{settings['folder']}/kbert",
        settings["precision"],
        batch_size=settings["batch_size"],
        engine=engine,
    )
    model, task = predictor.load(BertForSequenceClassification), predictor.task("classify")
    forward = predictor._forward_of(type(task).__name__, model, task.pick)
    items = [item_of(ids) for ids, _ in data.read_examples(settings["examples"])]

    def logits():
        return np.stack([output["logits"] for output in forward(items)])

    def run(steps):
        for _ in range(steps):
            logits()
        return {"units": steps * len(items)}

    return Work(run, "sorted by length", lambda path: np.save(path, logits()))


def tokenizer(settings):
    """Ids of lines, in batches, by a graph. Units: bytes."""
    lines = data.read_lines(settings["text"], settings["size"])
    return tokenizing(BertTokenizer(settings["vocab_file"]).tokenize, lines, settings)


def preparing(settings):
    """All of kbert.prepare. Units: bytes."""
    size = pathlib.Path(settings["text"]).stat().st_size

    def run(steps):
        for _ in range(steps):
            with tempfile.TemporaryDirectory() as folder:
                prepare(settings["text"], f"{folder}/corpus", settings["vocab_file"], processes=1)
        return {"units": steps * size}

    return Work(run, "reading, cutting into sentences, tokenizing, writing", lambda path: None)


def pipeline(settings):
    """Batches of pretraining, MLM and NSP. A step is 50 batches; units: real tokens."""
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

    return Work(run, "prepared text; NSP pairs, too")


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
