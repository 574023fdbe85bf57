"""Loss curves of kbert and of HF transformers (torch) on the same batches.

    python benchmarks/hf_curve.py --corpus=FOLDER

Prints two comparisons. All runs have --steps steps; both libraries start from the same weights.

1. Without dropout: the largest difference between their losses at the same step.
2. With dropout 0.1 and --seeds seeds: mean and spread of the loss over the last 50 steps.

Both libraries use float32, AdamW as in BERT, clipping at 1.0 and the same schedule; `hf_bert`
implements the update for torch from the same formulas. Requires the extra [test].
"""

import statistics

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from kbert import BertConfig, BertForPreTraining
from kbert.corpus import Corpus
from kbert.data import pretraining_dataset
from kbert.train.losses import PretrainingObjective
from kbert.train.optimizer import AdamW
from kbert.train.schedule import WarmupPolynomialDecay

flags.DEFINE_string("corpus", None, "a prepared corpus", required=True)
flags.DEFINE_integer("steps", 200, "steps of each run")
flags.DEFINE_bool("peer", True, "also run HF transformers")
flags.DEFINE_string("size", "mini", "size of the model, a preset of BertConfig")
flags.DEFINE_integer("seeds", 3, "runs of each library in the second comparison")
flags.DEFINE_integer("batch_size", 32, "examples per step")
flags.DEFINE_integer("max_seq_length", 64, "length of an example in tokens")
flags.DEFINE_float("learning_rate", 3e-4, "peak learning rate")
FLAGS = flags.FLAGS
WARMUP_STEPS = 20


def batches(corpus):
    dataset = pretraining_dataset(
        corpus, FLAGS.batch_size, FLAGS.max_seq_length, seed=0, steps=FLAGS.steps
    )
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset]


def config_of(corpus, dropout):
    return BertConfig.from_preset(
        FLAGS.size,
        vocab_size=corpus.manifest["vocab_size"],
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def kbert_losses(data, config, seed):
    """Returns the losses of a kbert run, and its initial weights by name."""
    keras.utils.set_random_seed(seed)
    model = BertForPreTraining(config)
    start = {name: weight.numpy() for name, weight in model.named_weights().items()}
    optimizer = AdamW(WarmupPolynomialDecay(FLAGS.learning_rate, FLAGS.steps, WARMUP_STEPS))
    variables = model.trainable_variables
    optimizer.build(variables)
    objective = PretrainingObjective(FLAGS.batch_size)

    @tf.function
    def step(features):
        with tf.GradientTape() as tape:
            sums = objective.sums(model(features, training=True), features)
            loss = objective.loss(sums, sums["mlm_count"])
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], variables)
        return loss

    return [float(step(features)) for features in data], start


def hf_losses(data, config, start, seed):
    """Returns the losses of an HF run from the initial weights `start`."""
    import torch
    from hf_bert import HfTraining

    torch.manual_seed(seed)
    schedule = WarmupPolynomialDecay(FLAGS.learning_rate, FLAGS.steps, WARMUP_STEPS)
    training = HfTraining(start, config, schedule)
    return [training.step(batch, number) for number, batch in enumerate(data)]


def main(_):
    """Prints both comparisons."""
    corpus = Corpus(FLAGS.corpus)
    data = batches(corpus)
    if FLAGS.peer:
        compare_without_dropout(corpus, data)
    config = config_of(corpus, dropout=0.1)
    last = {"kbert": [], "HF": []}
    for seed in range(FLAGS.seeds):
        losses, start = kbert_losses(data, config, seed)
        last["kbert"].append(statistics.mean(losses[-50:]))
        if FLAGS.peer:
            last["HF"].append(statistics.mean(hf_losses(data, config, start, seed)[-50:]))
        print(f"seed {seed}: " + ", ".join(f"{n} {v[-1]:.4f}" for n, v in last.items() if v))
    for name, values in last.items():
        if values:
            print(
                f"{name:5} dropout 0.1, mean loss of the last 50 steps: "
                f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
            )


def compare_without_dropout(corpus, data):
    """Prints the largest difference between the losses of both libraries without dropout."""
    config = config_of(corpus, dropout=0.0)
    kbert, start = kbert_losses(data, config, 0)
    hf = hf_losses(data, config, start, 0)
    difference = np.abs(np.subtract(kbert, hf))
    print(
        f"no dropout, same start: largest |kbert - HF| {difference[:20].max():.1e} in 20 steps, "
        f"{difference.max():.1e} in {len(data)}; final losses {kbert[-1]:.4f}, {hf[-1]:.4f}",
        flush=True,
    )


if __name__ == "__main__":
    app.run(main)
