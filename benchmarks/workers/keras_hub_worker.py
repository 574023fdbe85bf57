"""KerasHub on TensorFlow, with `compile` and `fit`, which by default use no XLA on a CPU."""

import time

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from benchmarks import data
from benchmarks.worker import Work, serve
from benchmarks.workers.tf_tokenizer import tokenizer_work


class Clock(keras.callbacks.Callback):
    """Measures the time from the first to the last step, without the overhead of `fit`."""

    def on_train_begin(self, logs=None):
        self.begin = None

    def on_train_batch_begin(self, batch, logs=None):
        self.begin = self.begin or time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.end = time.perf_counter()


def fitting(model, loss, dataset, units_per_step, fit_steps_per_step=1, notes=""):
    """Returns the Work of fitting a model to an infinite dataset.

    Args:
        model: a model that is not compiled yet.
        loss: for `compile`.
        dataset: for `fit`.
        units_per_step, fit_steps_per_step: number of units and of steps of `fit` in a step of the
            comparison.
    """
    optimizer = keras.optimizers.AdamW(1e-6, weight_decay=0.01, epsilon=1e-6, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, loss=loss)
    clock = Clock()

    def run(steps):
        history = model.fit(
            dataset, steps_per_epoch=steps * fit_steps_per_step, callbacks=[clock], verbose=0
        )
        return {
            "units": steps * units_per_step,
            "seconds": clock.end - clock.begin,
            "loss": history.history["loss"][-1],
        }

    return Work(run, f"fit, jit_compile={model.jit_compile}{notes}")


def backbone_of(settings):
    """Returns a backbone with random weights."""
    sizes = settings["model"]
    return keras_hub.models.BertBackbone(
        vocabulary_size=sizes["vocab_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        hidden_dim=sizes["hidden_size"],
        intermediate_dim=sizes["intermediate_size"],
        dtype=settings["precision"],
    )


def features_of(batch):
    """Returns the features of an encoder under KerasHub's names."""
    return {
        "token_ids": batch["input_ids"],
        "segment_ids": batch["token_type_ids"],
        "padding_mask": batch["attention_mask"],
    }


def entropy():
    """Returns the cross-entropy loss for logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train(settings):
    """Returns the Work of pretraining steps: BertMaskedLM with an NSP head. Units: sequences."""
    backbone = backbone_of(settings)
    masked_lm = keras_hub.models.BertMaskedLM(backbone)
    outputs = backbone(backbone.input)
    positions = masked_lm.input["mask_positions"]
    model = keras.Model(
        {**backbone.input, "mask_positions": positions},
        {
            "mlm": masked_lm.masked_lm_head(outputs["sequence_output"], positions),
            "nsp": keras.layers.Dense(2, dtype=settings["precision"])(outputs["pooled_output"]),
        },
    )
    batches = [
        (
            features_of(batch) | {"mask_positions": batch["masked_positions"]},
            {"mlm": batch["masked_ids"], "nsp": batch["next_sentence_labels"]},
            {"mlm": batch["masked_weights"], "nsp": np.ones(settings["batch_size"], np.float32)},
        )
        for batch in data.pretraining_batches(settings)
    ]
    stacked = tf.nest.map_structure(lambda *arrays: np.stack(arrays), *batches)
    dataset = tf.data.Dataset.from_tensor_slices(stacked).repeat().prefetch(4)
    return fitting(model, {"mlm": entropy(), "nsp": entropy()}, dataset, settings["batch_size"])


def finetune(settings):
    """Returns the Work of fine-tuning, padded to a fixed length as the preprocessor pads.

    A step is an epoch. Units: examples.
    """
    examples = data.read_examples(settings["examples"])
    model = keras_hub.models.BertTextClassifier(backbone_of(settings), num_classes=2)
    features = features_of(data.padded(examples, settings["length"]))
    labels = np.array([label for _, label in examples], np.int32)
    B = settings["batch_size"]
    dataset = tf.data.Dataset.from_tensor_slices((features, labels)).shuffle(len(examples))
    dataset = dataset.batch(B).repeat().prefetch(4)
    epoch = -(-len(examples) // B)
    notes = f"; padded to {settings['length']}"
    return fitting(model, entropy(), dataset, len(examples), epoch, notes)


def infer(settings):
    """Returns the Work of classifying all texts, padded to a fixed length. Units: texts."""
    dtype = "bfloat16" if settings["precision"] == "mixed_bfloat16" else "float32"
    model = keras_hub.models.TextClassifier.from_preset(
        f"{settings['folder']}/keras_hub", preprocessor=None, dtype=dtype
    )
    examples = data.read_examples(settings["examples"])
    features = features_of(data.padded(examples, settings["length"]))

    def logits():
        if len(examples) == 1:
            return model.predict_on_batch(features)
        return model.predict(features, batch_size=settings["batch_size"], verbose=0)

    def run(steps):
        for _ in range(steps):
            logits()
        return {"units": steps * len(examples)}

    method = "predict_on_batch" if len(examples) == 1 else "predict"
    notes = f"{method}, {dtype} weights; padded to {settings['length']}"
    return Work(run, notes, lambda path: np.save(path, np.float32(logits())))


def tokenizer(settings):
    """Returns the Work of tokenizing lines in batches, in a graph. Units: bytes."""
    tokenize = keras_hub.tokenizers.BertTokenizer(settings["vocab_file"], lowercase=True)
    return tokenizer_work(tokenize, data.read_lines(settings["text"], settings["size"]), settings)


def pipeline(settings):
    """Returns the Work of making MLM batches from lines, tokenized on the fly and padded to L.

    A step is 50 batches. Units: tokens without padding.
    """
    L = settings["length"]
    preprocessor = keras_hub.models.BertMaskedLMPreprocessor(
        keras_hub.tokenizers.BertTokenizer(settings["vocab_file"], lowercase=True),
        sequence_length=L,
        mask_selection_length=-(-L * 15 // 100),
    )
    lines = data.read_lines(settings["text"], settings["size"])
    dataset = tf.data.Dataset.from_tensor_slices(lines).shuffle(10_000).repeat()
    dataset = dataset.batch(settings["batch_size"]).map(preprocessor, tf.data.AUTOTUNE)
    batches = iter(dataset.prefetch(tf.data.AUTOTUNE))

    def run(steps):
        tokens = 0
        for _ in range(50 * steps):
            tokens += int(next(batches)[0]["padding_mask"].numpy().sum())
        return {"units": tokens}

    return Work(run, "lines tokenized on the fly, not joined; no NSP")


AREAS = {
    "train": train,
    "finetune": finetune,
    "infer": infer,
    "tokenizer": tokenizer,
    "pipeline": pipeline,
}

if __name__ == "__main__":
    serve(AREAS, ["tensorflow", "keras", "keras-hub"])
