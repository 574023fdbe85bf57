"""Targets: files of text, examples, settings and checkpoints."""

import bz2
import contextlib
import functools
import gzip
import io
import json
import lzma
import pathlib
import tempfile
import types

import numpy as np

from kbert.config import BertConfig
from kbert.corpus import Corpus, prepare
from kbert.corpus.corpus import corpus_fingerprint
from kbert.corpus.text_sources import Texts, read_lines, split_into_pieces, split_sentences
from kbert.data.examples import read_label_names
from kbert.data.pretraining_batches import PretrainingExamples
from kbert.errors import UserError
from kbert.model.weights.native import write_arrays
from kbert.settings import ExampleConfig, PretrainConfig
from kbert.tasks.examples import read_split
from kbert.tasks.labels import label_names
from kbert.tasks.registry import get_task, read_task_settings, task_from_settings
from kbert.tokenizer import BertTokenizer
from kbert.tokenizer.files import read_tokenizer, write_tokenizer
from kbert.tokenizer.vocab import SPECIAL_TOKENS
from kbert.train.callbacks import drop_later_rows
from kbert.train.checkpoint import Checkpoints
from kbert.train.workers import read_cluster
from kbert.utils import program
from kbert.utils.flags import as_flagfile, read

from .flag_values import defined_flags
from .harness import MAX_MESSAGE, Fault, reads, reads_files

VOCAB = [*SPECIAL_TOKENS, "the", "cat", "sat", "##s", "un", "##want", "##ed", ".", "猫", "##é"]
VOCAB_FILE = ("\n".join(VOCAB) + "\n").encode()
TEXT = "The cat sat. The dog, unwanted, ran!\n猫が座った。\n\ncafé \u200b naïve\nthe end\n"


def as_json(value):
    return json.dumps(value).encode()


def every(calls):
    """Calls all, and then raises the longest of the UserErrors."""
    refused = []
    for call in calls:
        try:
            call()
        except UserError as error:
            refused.append(error)
    if refused:
        raise max(refused, key=lambda error: len(str(error)))


def report(line):
    """Takes a line for the screen, which must be one."""
    if not line.isprintable() or len(line) > MAX_MESSAGE:
        raise Fault(f"a line of {len(line)} characters for the screen: {line[:300]!r}")


def files_below(folder):
    """dict of name -> [bytes] of the files below a folder, sorted."""
    paths = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): [path.read_bytes()] for path in paths}


def made(write):
    """What `reads_files` takes: the files that `write(folder)` leaves, made once."""

    @functools.cache
    def files():
        with tempfile.TemporaryDirectory() as folder:
            write(pathlib.Path(folder))
            return files_below(folder)

    return files


@reads_files(lambda: {"vocab.txt": [VOCAB_FILE, VOCAB_FILE.replace(b"\n", b"\r\n")]})
def vocabulary(folder):
    BertTokenizer(folder / "vocab.txt").tokenize(["the unwanted cats sat."])


CONFIG = {
    **{"vocab_size": 15, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"hidden_act": "gelu_new", "layer_norm_eps": 1e-12, "tie_word_embeddings": True},
    **{"num_labels": 2, "label_names": ["no", "yes"], "classifier_dropout": None},
}
CONFIG_YAML = b"""\
# BERT
vocab_size: 30522
hidden_size: &width 24
intermediate_size: *width
layer_norm_eps: 1e-12
label_names: [a, !!str 1]
"""


@reads_files(lambda: {"config.json": [as_json(CONFIG)], "config.yaml": [CONFIG_YAML]})
def config(folder):
    every(lambda name=name: BertConfig.load(str(folder / name), 15) for name in CONFIG_FILES)


CONFIG_FILES = ("config.json", "config.yaml")


def _tokenizer_files():
    files = {}
    settings = {"lower_case": True, "strip_accents": True, "tokenize_chinese_chars": True}
    for format in ("hf", "keras_hub"):
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(folder, format, VOCAB, settings, 512)
            for name, contents in files_below(folder).items():
                files.setdefault(name, []).extend(contents)
    added = json.loads(files["tokenizer.json"][0])
    added["added_tokens"] = [{"id": len(VOCAB), "content": "<new>"}]
    files["tokenizer.json"].append(as_json(added))
    return files


@reads_files(functools.cache(_tokenizer_files))
def tokenizer(folder):
    vocab, settings = read_tokenizer(folder)
    BertTokenizer(vocab, **settings)


def _write_corpus(folder):
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    made = prepare(str(folder / "text.txt"), folder / "corpus", BertTokenizer(VOCAB))
    (folder / "text.txt").unlink()
    for path in made.folder.iterdir():
        path.rename(folder / path.name)
    made.folder.rmdir()


@reads_files(made(_write_corpus))
def corpus(folder):
    every(lambda verify=verify: _use_corpus(folder, verify) for verify in (True, False))


def _use_corpus(folder, verify):
    found = Corpus(folder, verify)
    found.check_tokenizer(BertTokenizer(found.vocab_file))
    assert found.tokens >= 0 and found.documents >= 0 and corpus_fingerprint(found)
    if verify:  # else who opens it has verified it before
        found.unigram_entropy()
        slots = np.zeros(3, np.int64)
        PretrainingExamples(found, max_seq_length=9).batch(np.arange(3), slots, slots)


TEXT_LINES = as_json({"text": TEXT}) + b"\n" + as_json({"id": 2, "text": "the end"}) + b"\n\n"


WIKI = f'<doc id="1" url="u" title="t">\nt\n\n{TEXT}</doc>\n'.encode() * 2


def _text_files():
    texts = {"a.txt": TEXT.encode(), "a.jsonl": TEXT_LINES, "wiki_00": WIKI, "wiki_01": TEXT_LINES}
    zipped = {f"{name}.gz": gzip.compress(text, mtime=0) for name, text in texts.items()}
    zipped["a.txt.gz"] += zipped["a.txt.gz"]  # of two parts
    files = {name: [text] for name, text in (texts | zipped).items()}
    files["a.txt"] += [b"a\r\n\r\nb \xff\n", b"one long line. " * 40, TEXT.encode("utf-16")]
    return files | {"b.xz": [lzma.compress(WIKI)], "b.bz2": [bz2.compress(TEXT_LINES)]}


@reads_files(_text_files)
def text(folder):
    paths = sorted(str(path) for path in folder.iterdir())
    every(lambda path=path: _read_text(path) for path in paths)


def _read_text(path):
    list(Texts([path], skip_bad_lines=True))
    list(Texts([path]))
    for piece in split_into_pieces([path], piece_bytes=60):
        for line in read_lines(piece):
            split_sentences(line.decode("utf-8", "replace"))


TABLES = {
    "a.tsv": b'sentence\tlabel\nthe cat\tyes\na "dog"\tno\nthe end\tyes\n',
    "b.tsv": b"the cat\ta dog\t0.5\nthe end\tend\t3\n",
    "a.csv": b'text,label\r\n"the ""cat"", a\nmat",yes|no\r\ndog,no\r\n',
    "c.csv": b"text,ending0,ending1,label\nthe cat,sat,ran,1\nthe dog,ran,sat,0\n",
    "a.jsonl": as_json({"text": "the cat", "label": 3, "text_pair": "a dog"})
    + b"\n\n"
    + as_json({"text": "caf\u00e9", "label": 0.25, "text_pair": "on"}),
    "b.jsonl": as_json({"text": "the cat", "label": ["a", "b"]}),
    "d.jsonl": as_json({"text": "the cat", "choices": ["sat", "ran"], "label": "sat"}),
    "e.jsonl": as_json({"words": ["the", "cat"], "tags": ["O", "B-X"]}),
    "f.jsonl": as_json(
        {
            "id": 1,
            "question": "who",
            "context": "the cat",
            "answers": {"text": ["cat"], "answer_start": [4]},
        }
    ),
}
TASKS_OF_TABLES = {
    **{"a.tsv": ("classify", "multilabel"), "b.tsv": ("pair", "regress")},
    **{"a.csv": ("classify", "multilabel"), "c.csv": ("choice",)},
    **{"a.jsonl": ("pair", "regress"), "b.jsonl": ("multilabel",)},
    **{"d.jsonl": ("choice",)},
    **{"e.jsonl": ("tag",), "f.jsonl": ("qa",), "a.tsv.gz": ("classify",)},
}


def _table_files():
    files = {name: [content] for name, content in TABLES.items()}
    files["a.tsv"].append(b"\xef\xbb\xbf" + TABLES["a.tsv"].replace(b"\n", b"\r\n"))
    return files | {"a.tsv.gz": [gzip.compress(TABLES["a.tsv"], mtime=0)]}


def _read_examples(path, task, **changes):
    examples = read_split(str(path), ExampleConfig(task=task, **changes), report=report)
    if task in ("classify", "pair", "multilabel", "tag"):
        label_names(examples)


@reads_files(_table_files)
def tables(folder):
    by_number = {"text_column": "0", "label_column": "-1", "header": "no"}
    calls = []
    for name, tasks in TASKS_OF_TABLES.items():
        for task in tasks:
            calls += [(name, task, {}), (name, task, {"skip_bad_lines": True})]
            if name in ("a.tsv", "b.tsv"):
                calls.append((name, task, by_number | {"skip_bad_lines": True}))
    every(
        lambda name=name, task=task, changes=changes: _read_examples(folder / name, task, **changes)
        for name, task, changes in calls
    )


CONLL = b"-DOCSTART- -X- O\n\nthe DT O\ncat NN B-X\n\nEU\tNNP\tB-ORG\n\xe7\x8c\xab NN S-X\n\n"
CONLLU = (
    b"# text\n1-2\tdu\t_\n1\tde\tde\tADP\t_\t_\t0\t_\t_\t_\n2\tle\tle\tDET\t_\t_\t1\t_\t_\t_\n\n"
)


@reads_files(lambda: {"a.conll": [CONLL, b"a M-X\nb E-X\n"], "a.conllu": [CONLLU]})
def conll(folder):
    calls = [(name, {"skip_bad_lines": skip}) for name in CONLL_FILES for skip in (False, True)]
    calls.append(("a.conll", {"text_column": "-1", "label_column": "0", "skip_bad_lines": True}))
    every(
        lambda name=name, changes=changes: _read_examples(folder / name, "tag", **changes)
        for name, changes in calls
    )


CONLL_FILES = ("a.conll", "a.conllu")
ANSWERS = [{"text": "cat", "answer_start": 4}]
QUESTIONS = [
    {"id": "q1", "question": "who", "answers": ANSWERS, "is_impossible": False},
    {"question": "caf\u00e9?", "answers": [], "is_impossible": True},
    {"id": 7, "question": "when", "answers": {"text": ["sat"], "answer_start": [8]}},
]
SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "the cat sat", "qas": QUESTIONS}]}]}


PARAGRAPH = SQUAD["data"][0]["paragraphs"][0]
ROWS = [question | {"context": "the cat sat"} for question in QUESTIONS]
SHAPES = [SQUAD, [PARAGRAPH], {"data": ROWS}, [{"answer": "cat", "context": "a cat", "query": "?"}]]


@reads_files(lambda: {"a.json": [b"\xef\xbb\xbf" + as_json(SQUAD), *map(as_json, SHAPES)]})
def squad(folder):
    every(lambda skip=skip: _read_questions(folder / "a.json", skip) for skip in (False, True))


def _read_questions(path, skip):
    examples = read_split(str(path), ExampleConfig(task="qa", skip_bad_lines=skip), report=report)
    get_task("qa").checked_for_training(examples, skip, report)


@reads_files(lambda: {"labels.txt": [b"no\nyes\n", b"\xef\xbb\xbfA\r\nB\r\n"]})
def labels(folder):
    label_names([types.SimpleNamespace(label=read_label_names(str(folder / "labels.txt")))])


TASK_FILES = [
    {"task": "classify", "max_seq_length": 16, "takes_pairs": False},
    {"task": "qa", "max_seq_length": 16, "takes_pairs": False, "doc_stride": 4}
    | {"max_query_length": 6, "max_answer_length": 5, "null_threshold": 0.5}
    | {"allow_no_answer": True},
]


@reads_files(lambda: {"task.json": [as_json(found) for found in TASK_FILES]})
def task(folder):
    settings = read_task_settings(folder)
    found = task_from_settings(settings, BertTokenizer(VOCAB), BertConfig(vocab_size=len(VOCAB)))
    assert found.max_seq_length >= 5


def _write_checkpoints(folder):
    checkpoints = Checkpoints(folder, 9)
    for step in (1, 2):
        arrays = {"a/b": np.full(7, step, np.float32), "iterations": np.int64(step)}
        checkpoints.save(
            step,
            {"note": step / 3},
            lambda folder, arrays=arrays: write_arrays(folder / "x.h5", arrays),
        )


@reads_files(made(_write_checkpoints))
def checkpoint(folder):
    state = Checkpoints(folder, 9).newest(report)
    assert (state["step"], state["note"]) in ((1, 1 / 3), (2, 2 / 3))


LOG = b'{"step": 1, "mlm_loss": 0.5}\n{"step": 1, "eval_loss": 2}\n{"step": 3, "mlm_loss": null}\n'


@reads_files(lambda: {"metrics.jsonl": [LOG]})
def log(folder):
    drop_later_rows(folder / "metrics.jsonl", 2, True)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    assert not any(json.loads(line)["step"] > 2 for line in lines)


CLUSTER = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}


@reads(lambda: [as_json({"cluster": CLUSTER, "task": {"type": "worker", "index": 1}})])
def cluster(data):
    index, addresses = read_cluster({"TF_CONFIG": data.decode("utf-8", "surrogateescape")})
    assert 0 <= index < len(addresses)


FLAGS = b"# a run\n--input=sample:train\n--train_steps=30\n--warmup_steps=5\n--learning_rate=1e-4\n"
FLAGS += b"--lower_case=false\n--nowhole_word_mask\n--bert_config=tiny\n\n// more\n--seed 7\n"


@reads_files(lambda: {"run.flags": [FLAGS, as_flagfile(PretrainConfig(input="x"), "all").encode()]})
def flags(folder):
    if any(len(word) > 200 for word in (folder / "run.flags").read_bytes().split()):
        return  # for a name it does not know, absl takes memory for the square of its length
    said = io.StringIO()
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),  # where -? is answered
        defined_flags(PretrainConfig),
    ):
        try:
            program.parse(["program", f"--flagfile={folder / 'run.flags'}"])
        except SystemExit as error:
            assert error.code in (1, 2)
            assert "error: " in said.getvalue() or "USAGE: " in said.getvalue()
            return
        found = read(PretrainConfig)
    again = as_flagfile(found, "again")
    assert again.count("--input=") == 1
