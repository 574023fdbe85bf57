"""`kbert.mine`: which texts become negatives, with vectors written out, and the program."""

import functools
import json
import pathlib
import subprocess

import keras
import numpy as np
import pytest
from warm_python import PYTHON

import kbert
from kbert import mine as program
from kbert.errors import UserError
from kbert.inference import mining
from kbert.inference.search import nearest_texts
from kbert.settings import MineConfig
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

# Angles in degrees; the similarity is the cosine of their difference.
ANGLES = {"q": 0, "p1": 20, "p2": 5, "n1": 10, "N1 ": 11, "n2": 30, "n3": 50, "r": 90, "s": 80}


class FakePredictor:
    """Embeds the texts of ANGLES."""

    advance = None

    @classmethod
    def from_pretrained(cls, folder, **options):
        return cls()

    def embed(self, texts):
        angles = np.radians([ANGLES[text] for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def similarity(self, texts, others):
        pairs = zip(texts, others, strict=True)
        return [{"similarity": np.cos(np.radians(ANGLES[a] - ANGLES[b]))} for a, b in pairs]

    def search(self, queries, corpus, top_k):
        return nearest_texts(self.embed(queries), corpus, self.embed, top_k, "cosine", 2)


PAIRS = "query\tpositive\nq\tp1\nr\ts\nq\tp2\nq\tp1\n"
CORPUS = "n1\nq\n\nN1 \np2\nP1\nn2\nn3\ns\nn1\n"


@pytest.fixture
def mined(tmp_path, monkeypatch):
    """Returns a function that mines a file; it returns the rows and the output."""
    monkeypatch.setattr(mining, "Predictor", FakePredictor)
    monkeypatch.setitem(ANGLES, "P1", 20)
    monkeypatch.setitem(ANGLES, "N1", 11)

    def mine(pairs=PAIRS, corpus=CORPUS, **settings):
        (tmp_path / "pairs.tsv").write_text(pairs)
        output, lines = tmp_path / "hard.jsonl", []
        if corpus is not None:
            (tmp_path / "corpus.txt").write_text(corpus)
            settings["corpus_file"] = str(tmp_path / "corpus.txt")
        files = {"pairs_file": str(tmp_path / "pairs.tsv"), "output_file": str(output)}
        mining.mine(MineConfig(model="x", **files, **settings), lines.append)
        rows = [tuple(json.loads(line).values()) for line in output.read_text().splitlines()]
        return rows, lines

    return mine


@pytest.mark.parametrize("queries", [1, 1 << 14])
def test_the_nearest_texts_that_are_no_positives(queries, mined, monkeypatch):
    """Equal texts count once, whatever their case and spaces; the query is no candidate."""
    monkeypatch.setattr(mining, "_QUERIES_PER_PASS", queries)
    rows, lines = mined(num_negatives=2)
    assert rows == [
        ("q", "p1", "n1", "n2"),
        ("q", "p2", "n1", "n2"),
        ("r", "s", "n3", "n2"),
    ]
    assert lines[-1].startswith("wrote 3 pairs with negatives to ")


def test_positives_of_other_queries_are_the_corpus(mined):
    rows, lines = mined(corpus=None, num_negatives=1)
    assert rows == [("q", "p1", "s"), ("q", "p2", "s"), ("r", "s", "p1")]
    rows, lines = mined(corpus=None, num_negatives=2, top_k=2)
    assert rows == [("r", "s", "p1", "p2")]
    assert lines[-2] == "note: 2 of 3 pairs omitted, with fewer than 2 negatives"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_negatives": 1, "skip_top": 1}, {"p1": ("n2",), "p2": ("n2",), "s": ("n2",)}),
        ({"num_negatives": 1, "top_k": 1}, {"p1": ("n1",), "p2": ("n1",), "s": ("n3",)}),
        # cos 20 - 0.01 < cos 10, and cos 5 - 0.01 > cos 10; cos 10 > cos 40.
        ({"num_negatives": 1, "margin": 0.01}, {"p1": ("n2",), "p2": ("n1",), "s": ("n3",)}),
        # Lower than cos 20 - 0.5 and cos 5 - 0.5: only cos 80. Lower than cos 10 - 0.5: cos 70.
        ({"num_negatives": 1, "margin": 0.5}, {"p1": ("s",), "p2": ("s",), "s": ("P1",)}),
        # The texts that equal n1 take the places of others among the nearest.
        ({"num_negatives": 2, "top_k": 2}, {"s": ("n3", "n2")}),
        ({"num_negatives": 2, "top_k": 4, "margin": 0.01}, {"p2": ("n1", "n2"), "s": ("n3", "n2")}),
    ],
)
def test_ranks_and_margins(settings, expected, mined):
    rows, _ = mined(**settings)
    assert {positive: tuple(negatives) for _, positive, *negatives in rows} == expected


def test_negatives_of_the_file_are_replaced(mined):
    pairs = "query\tpositive\tnegative\nq\tp1\tr\n"
    rows, lines = mined(pairs, num_negatives=1)
    assert rows == [("q", "p1", "p2")] and any("are ignored" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": "query\ttext\tlabel\nq\tp1\t0\n"}, r"has pairs with a score, but kbert.mine"),
        ({"pairs": "query\tpositive\nq\tq\n"}, r"pairs\.tsv has single texts, but kbert.mine nee"),
        (
            {"num_negatives": 9},
            r"no pair of .* has at least 9 negatives\. Use a larger --corpus_file",
        ),
        ({"num_negatives": 3, "top_k": 4, "skip_top": 2}, r"--top_k must be at least .*, 5; got 4"),
        ({"margin": -1.0}, r"margin must be >= 0; got -1\.0"),
        ({"corpus_file": "a.tsv", "corpus": None}, r"--corpus_file must be a \.txt file with one"),
    ],
)
def test_settings_that_are_rejected(changes, message, mined, tmp_path):
    with pytest.raises(UserError, match=message):
        mined(**changes)
    assert not (tmp_path / "hard.jsonl").exists()


def test_files_that_are_rejected(mined, tmp_path):
    files = {"model": "x", "pairs_file": "y"}
    with pytest.raises(UserError, match=r"--output_file must end in \.jsonl; got z\.tsv"):
        MineConfig(**files, output_file="z.tsv")
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"n1\n\xe4\n")
    with pytest.raises(UserError, match=r"corpus\.txt, line 2 is not UTF-8"):
        list(mining._lines(path))
    (tmp_path / "model").mkdir()
    for name in ("config.json", "weights.h5", "pairs.tsv"):
        (tmp_path / "model" / name).write_text("{}")
    pairs = str(tmp_path / "model/pairs.tsv")
    config = functools.partial(MineConfig, model=str(tmp_path / "model"), pairs_file=pairs)
    with pytest.raises(UserError, match=r"there is no folder .*absent"):
        program.check(config(output_file=str(tmp_path / "absent/a.jsonl")))


@pytest.mark.slow
def test_the_program_writes_what_rerank_reads(tmp_path):
    words = [*SPECIAL_TOKENS, *"abcdefgh"]
    write_vocab(words, tmp_path / "vocab.txt")
    keras.utils.set_random_seed(0)
    bert = kbert.BertConfig(len(words), 12, 1, 3, 16, max_position_embeddings=16)
    kbert.BertModel(bert).save_pretrained(tmp_path / "bert")
    kbert.BertTokenizer(tmp_path / "vocab.txt").save_pretrained(tmp_path / "bert")
    rows = "".join(f"{a}\t{a} {b}\n" for a, b in zip("abcdefgh", "bcdefgha", strict=True))
    (tmp_path / "pairs.tsv").write_text(f"query\tpositive\n{rows}")
    output = pathlib.Path(tmp_path / "hard.jsonl")
    flags = [f"--model={tmp_path}/bert", f"--pairs_file={tmp_path}/pairs.tsv"]
    command = [PYTHON, "-m", "kbert.mine", *flags, f"--output_file={output}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    examples = kbert.read_examples(output, "rerank")
    assert len(examples) == 8 and {len(example.choices) for example in examples} == {4}
