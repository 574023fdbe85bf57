"""Helpers for tests of exports: a model of each kind, texts, the ops of a SavedModel."""

import pathlib
import types

import keras
import numpy as np
from marks import slow
from tensorflow.core.protobuf import saved_model_pb2

import kbert
from kbert.tasks.registry import make_task, write_task_settings
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

# Ops known to both TensorFlow 2.19 and 2.20; checked by test_export_versions.py.
OPS_FILE = pathlib.Path(__file__).parent / "serving_ops.txt"


def ops_of(folder):
    """Returns the names of the ops of all SavedModels below a folder."""
    found = set()
    for path in folder.rglob("saved_model.pb"):
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
        for graph in (meta.graph_def for meta in saved.meta_graphs):
            nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
            functions = {function.signature.name for function in graph.library.function}
            found |= {node.op for node in nodes} - functions
    return found


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "un", "##want", "##ed", "run"]
WORDS += ["##ning", ",", ".", "!", "[", "]", "sep", "mask"]
BERT = {
    **{"vocab_size": 26, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.5},
}
NAMES = {"num_labels": 3, "label_names": ("no", "yes", "perhaps")}
TAGS = {"num_labels": 5, "label_names": ("O", "B-X", "I-X", "B-Y", "I-Y")}
CLASSIFIER, TAGGER = "BertForSequenceClassification", "BertForTokenClassification"
QA = "BertForQuestionAnswering"
# name: (class, fields of the config, task in task.json, --method)
KINDS = {
    "classify": (CLASSIFIER, NAMES, "classify", None),
    "pair": (CLASSIFIER, NAMES, "pair", None),
    "multilabel": (
        CLASSIFIER,
        {**NAMES, "problem_type": "multi_label_classification"},
        "multilabel",
        None,
    ),
    "regress": (CLASSIFIER, {"num_labels": 1, "problem_type": "regression"}, "regress", None),
    "entities": (TAGGER, TAGS, "tag", None),
    "tags": (TAGGER, NAMES, "tag", None),
    "answer": (QA, {}, "qa", None),
    "answer_or_none": (QA, {}, "qa", None),
    "choose": ("BertForMultipleChoice", {}, "choice", None),
    "fill_mask": ("BertForPreTraining", {}, None, None),
    "next_sentence": ("BertForPreTraining", {}, None, "next_sentence"),
    "embed": ("BertForPreTraining", {}, None, "embed"),
    "encode": ("BertForPreTraining", {}, None, "encode"),
}

# Their graphs are almost the same as those of other kinds, so their tests are marked slow.
ALIKE = {"pair", "multilabel", "regress", "tags", "answer_or_none", "next_sentence", "encode"}


def kinds(*others):
    """Returns the kinds except the given ones, for pytest.mark.parametrize."""
    asked = [kind for kind in KINDS if kind not in others]
    usual = [kind for kind in asked if kind not in ALIKE]
    return usual + slow(*(kind for kind in asked if kind in ALIKE))


def write_folders(root, kinds=KINDS):
    """Writes a folder of weights for each kind, as `finetune` or `pretrain` write it."""
    found, rng = {}, np.random.default_rng(0)
    write_vocab([*SPECIAL_TOKENS, *WORDS], root / "vocab.txt")
    tokenizer = kbert.BertTokenizer(root / "vocab.txt")
    keras.utils.set_random_seed(0)
    for kind in kinds:
        name, fields, task, _ = KINDS[kind]
        found[kind] = root / kind
        model = getattr(kbert, name)(kbert.BertConfig(**BERT, **fields))
        for weight in model.weights:  # errors in biases would not show if they were 0
            if len(weight.shape) == 1 and weight.name == "bias":
                weight.assign(rng.normal(size=weight.shape))
        model.save_pretrained(found[kind])
        tokenizer.save_pretrained(found[kind])
        if task:
            settings = {"max_seq_length": 16, "doc_stride": 4, "max_query_length": 6}
            settings |= {"max_answer_length": 5, "null_threshold": 0.2}
            config = types.SimpleNamespace(task=task, **settings)
            made = make_task(config, tokenizer, fields.get("label_names"), "none" in kind)
            write_task_settings(found[kind], made, kind in ("pair", "regress"))
    return found


def some_words(rng, low, high):
    """Returns a text of `low` to `high - 1` words."""
    return " ".join(
        rng.choice([*WORDS[:9], "unwanted", "running", ",", "."], rng.integers(low, high))
    )


def texts_of(method, count):
    """Returns fixed texts for a method, including unusual ones, as a dict of lists."""
    rng = np.random.default_rng(count)
    mask = " [MASK]" if method.name == "fill_mask" else ""
    hard = [
        "",
        "   ",
        "Cat [SEP] dog [CLS]",
        "un" * 300,
        "the cât\u00ad sat\U0001f408 on",
        "猫 cat",
    ]
    rows = [some_words(rng, 1, 40) for _ in range(max(count - len(hard) - 1, 1))]
    rows += [*hard, (some_words(rng, 2, 3) + " ") * 2000][: max(count - len(rows), 0)]
    others = [some_words(rng, 1, 12) for _ in rows[:-1]] + ["a " * 30]
    named = {"context": rows, "question": others, "text_pair": others}
    named["text"] = [f"the{mask} {row}" if mask else row for row in rows]
    named["choices"] = [
        [some_words(rng, 1, 9), other, row[:500]] for other, row in zip(others, rows, strict=True)
    ]
    return {name: named[name] for name in method.texts}
