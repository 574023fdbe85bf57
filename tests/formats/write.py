"""Writes the stored folders that `tests/test_stored_formats.py` reads.

Run `PYTHONPATH=. python tests/formats/write.py KIND` only for a new format, with a new name of the
folder: a folder that an earlier version wrote shows that this version still reads it. The kinds
`tasks` and `exports` need the folder that `pretraining` writes.
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile

FOLDER = pathlib.Path(__file__).parent
WORDS = ["a", "cat", "sat", "dog", "ran", "##s", "."]
TEXT = "a cat sat .\na dog ran .\n\ncats ran .\n"
EVAL_TEXT = "a dog sat .\ncats sat .\n\na cat ran .\n"
BERT = """\
num_hidden_layers: 1
hidden_size: 8
num_attention_heads: 2
intermediate_size: 12
max_position_embeddings: 16
initializer_range: 0.5
"""
RUN = {"max_seq_length": 16, "precision": "float32", "learning_rate": 0.01, "save_every_steps": 3}
# Each task with the lines of its training file and the arguments of a prediction.
TASKS = {
    "classify": (
        [{"text": "a cat sat .", "label": "yes"}, {"text": "a dog ran .", "label": "no"}],
        [["a cat ran ."]],
    ),
    "pair": (
        [
            {"text": "a cat", "text_pair": "cats", "label": "yes"},
            {"text": "a dog", "text_pair": "cats", "label": "no"},
        ],
        [["a dog"], ["a cat sat"]],
    ),
    "regress": (
        [{"text": "a cat sat .", "label": 1.5}, {"text": "a dog ran .", "label": -1}],
        [["a cat ran ."]],
    ),
    "multilabel": (
        [{"text": "a cat sat .", "label": ["cat", "sat"]}, {"text": "a dog .", "label": []}],
        [["a cat ran ."]],
    ),
    "tag": (
        [
            {"words": ["a", "cat", "sat"], "tags": ["O", "B-PET", "O"]},
            {"words": ["dogs", "ran"], "tags": ["B-PET", "O"]},
        ],
        [["a cat ran ."]],
    ),
    "qa": (
        [
            {"question": "cat .", "context": "a cat sat", "answer": "sat"},
            {"question": "dog .", "context": "a dog ran", "answer": "ran"},
        ],
        [["cat ."], ["a cat ran"]],
    ),
    "choice": (
        [
            {"text": "a cat", "choices": ["sat", "ran"], "label": 0},
            {"text": "a dog", "choices": ["sat", "ran"], "label": 1},
        ],
        [["a cat"], [["ran", "sat"]]],
    ),
    "embed": (
        [{"anchor": "a cat", "positive": "cats"}, {"anchor": "a dog", "positive": "dogs"}],
        [["a cat ran ."]],
    ),
    "rerank": (
        [
            {"query": "a cat", "text": "cats", "label": 1},
            {"query": "a dog", "text": "cats", "label": 0},
        ],
        [["a cat"], ["dogs ran"]],
    ),
}


def corpus() -> None:
    """Writes the folder `corpus_1`."""
    _prepare(TEXT, FOLDER / "corpus_1")


def _prepare(text, folder):
    from kbert.corpus import prepare
    from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        pathlib.Path("text.txt").write_text(text, encoding="utf-8")
        write_vocab([*SPECIAL_TOKENS, *WORDS], "vocab.txt")
        prepare("text.txt", folder, "vocab.txt", processes=1)


def tokenizer() -> None:
    """Writes the folder `tokenizer_1`."""
    import kbert
    from kbert.tokenizer.added_tokens import AddedToken
    from kbert.tokenizer.vocab import SPECIAL_TOKENS

    vocab = [*SPECIAL_TOKENS, "Cat", "##s", "é", "猫", "##猫", "[E1]"]
    settings = {"lower_case": False, "tokenize_chinese_chars": False}
    pathlib.Path("tokenizer_1").mkdir()
    tokenizer = kbert.BertTokenizer(vocab, **settings, added_tokens=[AddedToken("[E1]")])
    tokenizer.save_pretrained("tokenizer_1")


def pretraining() -> None:
    """Writes the folder `pretraining_1`: a run of six steps, with the checkpoint of step 3."""
    from kbert.settings import PretrainConfig
    from kbert.train import pretrain

    folder = pathlib.Path("pretraining_1")
    folder.mkdir()
    (folder / "bert.yaml").write_text(BERT)
    _prepare(EVAL_TEXT, FOLDER / folder / "eval_corpus")
    data = {"input": "corpus_1", "eval_input": str(folder / "eval_corpus")}
    data["bert_config"] = str(folder / "bert.yaml")
    steps = {"train_steps": 6, "warmup_steps": 1, "eval_every_steps": 3, "eval_examples": 4}
    pretrain(PretrainConfig(**RUN, **data, **steps, global_batch_size=4), folder)
    _strip(folder / "pretrain", "step_00000006")


def tasks() -> None:
    """Writes the folder `tasks_1`: a run of each task, the first with the checkpoint of step 3."""
    from kbert.settings import FinetuneConfig
    from kbert.train import finetune

    for task, (examples, _) in TASKS.items():
        folder = pathlib.Path("tasks_1", task)
        folder.mkdir(parents=True)
        file = folder / "train.jsonl"
        file.write_text("".join(json.dumps(example) + "\n" for example in examples))
        settings = {"task": task, "train_file": str(file), "epochs": 6.0, "batch_size": 2}
        if task == "classify":
            settings["eval_file"] = str(file)
        settings["init_from"] = "pretraining_1/pretrain/final"
        finetune(FinetuneConfig(**RUN, **settings), folder)
        _strip(folder / "finetuning", "step_00000006")
        if task != "classify":  # its final weights alone
            file.unlink()
            (folder / "finetuning/final").rename(folder / "final")
            shutil.rmtree(folder / "finetuning")


def exports() -> None:
    """Writes `exports_1.tar.xz`: a classifier and a pair of models for TF Hub."""
    from kbert.serving.export import export, export_tf_hub

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        export("tasks_1/classify/finetuning/final", folder / "classify")
        export_tf_hub("pretraining_1/pretrain/final", folder / "tf_hub", 16)
        with tarfile.open("exports_1.tar.xz", "w:xz") as archive:
            for part in ("classify", "tf_hub"):
                archive.add(folder / part, part)


def expected() -> None:
    """Writes `expected_1.json`: the sum of each pretrained weight, and predictions."""
    import kbert

    model = kbert.BertForPreTraining.from_pretrained("pretraining_1/pretrain/final")
    sums = {name: float(weight.numpy().sum()) for name, weight in model.named_weights().items()}
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            "weights": sums,
            "fill_mask": fill_mask(),
            "tf_hub": tf_hub(unpack(pathlib.Path(scratch))),
        }
    found |= {task: predictions(task) for task in TASKS}
    text = json.dumps(found, indent=1) + "\n"
    pathlib.Path("expected_1.json").write_text(text, encoding="utf-8")


def fill_mask() -> list:
    """Returns the words that the pretrained model predicts."""
    from kbert import Predictor

    return Predictor.from_pretrained(FOLDER / "pretraining_1/pretrain/final", backend="keras")(
        "a [MASK] sat ."
    )


def predictions(task: str) -> list:
    """Returns the predictions of a fine-tuned model."""
    from kbert import Predictor

    folder = FOLDER / "tasks_1" / task
    folder = folder / "final" if task != "classify" else folder / "finetuning/final"
    found = Predictor.from_pretrained(folder, backend="keras")(*TASKS[task][1])
    return [vector.tolist() for vector in found] if task == "embed" else found


def tf_hub(folder: pathlib.Path) -> list:
    """Returns the pooled output of the models for TF Hub in a folder of exports."""
    import tensorflow as tf

    import kbert.hub

    features = kbert.hub.PreprocessLayer(folder / "tf_hub/preprocess")(tf.constant(["a cat sat"]))
    return (
        kbert.hub.BertLayer(folder / "tf_hub/encoder")(features)["pooled_output"].numpy().tolist()
    )


def unpack(folder: pathlib.Path) -> pathlib.Path:
    """Extracts the exports into a folder, which is returned."""
    with tarfile.open(FOLDER / "exports_1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def _strip(folder, checkpoint):
    """Removes a checkpoint, and what no program reads."""
    shutil.rmtree(folder / "checkpoint" / checkpoint)
    for path in (*folder.parent.glob(".*"), *folder.iterdir()):
        if path.is_dir() and path.name not in ("checkpoint", "best", "final"):
            shutil.rmtree(path)
        elif path.is_file() and path.name not in ("run.flags", "metrics.jsonl"):
            path.unlink()


if __name__ == "__main__":
    os.chdir(FOLDER)
    for kind in sys.argv[1:]:
        {f.__name__: f for f in (corpus, tokenizer, pretraining, tasks, exports, expected)}[kind]()
