"""Reading examples: every format spelled out, every message, and counts of the real files."""

import collections
import gzip
import json
import sys
import types

import pytest
import tensorflow as tf

from kbert.data.conll import to_iob2
from kbert.data.examples import (
    Answer,
    ChoiceExample,
    QuestionExample,
    TagExample,
    TextExample,
    read_examples,
    read_label_names,
)
from kbert.errors import UserError


def settings(task, **changed):
    names = ("text_column", "text_pair_column", "label_column", "choice_columns", "labels")
    fields = dict.fromkeys(names) | {"header": "auto", "skip_bad_lines": False}
    return types.SimpleNamespace(task=task, **fields | changed)


@pytest.fixture
def read(tmp_path):
    """Writes a file, reads it as a task, and gives the examples."""

    def read(name, content, task, labelled=True, report=print, **changed):
        content = content if isinstance(content, bytes) else content.encode()
        content = gzip.compress(content) if name.endswith(".gz") else content
        (tmp_path / name).write_bytes(content)
        return read_examples(tmp_path / name, settings(task, **changed), labelled, report)

    return read


@pytest.fixture
def error_of(read):
    """As `read`, of what cannot be read: the message."""

    def error_of(*args, **kwargs):
        with pytest.raises(UserError) as error:
            read(*args, **kwargs)
        return str(error.value)

    return error_of


def rows(*objects):
    return "".join(json.dumps(o) + "\n" for o in objects)


# Tables


def test_tab_separated_without_header(read):
    """Quotes are text, other line ends are no line ends, U+0085 and the like neither."""
    text = 'a "good\t1\r\nit\'s\x85 \u2028bad"\t 0 \n\n\t\n'
    assert read("t.tsv", text, "classify") == [
        TextExample("t.tsv, line 1", 'a "good', None, "1"),
        TextExample("t.tsv, line 2", "it's\x85 \u2028bad\"", None, "0"),
    ]


def test_header_in_another_order_byte_order_mark_and_gz(read):
    text = b"\xef\xbb\xbfLabel\tid\tSentence \npos\t7\tso good\n"
    expected = [TextExample("t.tsv.gz, line 2", "so good", None, "pos")]
    assert read("t.tsv.gz", text, "classify") == expected


@pytest.mark.parametrize("skip", [True, False])
def test_quotes_that_are_not_closed_are_no_line_to_skip(read, skip):
    with pytest.raises(UserError, match=r"quotes that open in line 2 are not closed. Mend them"):
        read("t.csv", 'a,1\n"b,1\nc,1\nd,1\n', "classify", skip_bad_lines=skip)


def test_quotes_of_csv(read):
    """The line of an example is the one it starts in."""
    text = 'label,text\r\n0,"a, ""b""\r\nc"\r\n1,d 5" e\r\n'
    assert read("t.csv", text, "classify") == [
        TextExample("t.csv, line 2", 'a, "b"\nc', None, "0"),
        TextExample("t.csv, line 4", 'd 5" e', None, "1"),
    ]


@pytest.mark.parametrize(
    ("header", "row", "task", "expected"),
    [
        ("index\tquestion\tsentence\tlabel", "0\tq\ts\t1", "pair", ("q", "s", "1")),  # QNLI
        ("id\tlabel\ttext\thypothesis", "0\t1\tt\th", "pair", ("t", "h", "1")),
        ("Quality\t#1 ID\t#1 String\t#2 String", "1\t9\ta\tb", "pair", ("a", "b", "1")),
        ("premise\thypothesis\tclass", "p\th\tx", "pair", ("p", "h", "x")),
        ("sentence1\tsentence2\tscore", "a\tb\t2.5", "regress", ("a", "b", 2.5)),
        ("review\tscore", "a\t-3", "regress", ("a", None, -3.0)),
        ("sentence1\tsentence2\tlabel", "a\tb\t1", "classify", ("a", None, "1")),
        ("title\tcontent\tcategory", "a\tb\t1", "classify", ("a", None, "1")),
        ("question\tsentence\tlabel", "q\ts\t1", "classify", ("s", None, "1")),
    ],
)
def test_known_names_of_columns(read, header, row, task, expected):
    assert read("t.txt", f"{header}\n{row}\n", task) == [TextExample("t.txt, line 2", *expected)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"text_column": "body"}, ("b", None, "1")),
        ({"text_column": "BODY", "label_column": "0"}, ("b", None, "a")),
        ({"text_column": "-2", "header": "yes"}, ("b", None, "1")),
        ({"text_column": "0", "text_pair_column": "body"}, ("a", "b", "1")),
    ],
)
def test_columns_of_flags(read, changed, expected):
    found = read("t.tsv", "x\tbody\tlabel\na\tb\t1\n", "classify", **changed)
    assert found == [TextExample("t.tsv, line 2", *expected)]


def test_header_as_told(read):
    text = "text\tlabel\na\tb\n"
    found = read("t.tsv", text, "classify", header="no")
    assert [(e.text, e.label) for e in found] == [("text", "label"), ("a", "b")]
    found = read("t.tsv", "foo\tbar\na\tb\n", "classify", header="auto")
    assert [(e.text, e.label) for e in found] == [("foo", "bar"), ("a", "b")]
    found = read(
        "t.tsv", "foo\tbar\na\tb\n", "classify", header="yes", text_column="1", label_column="0"
    )
    assert [(e.text, e.label) for e in found] == [("b", "a")]


def test_pair_without_header(read):
    expected = [TextExample("t.tsv, line 1", "a", "b", "x")]
    assert read("t.tsv", "a\tb\tmore\tx\n", "pair") == expected


def test_cells_that_nobody_asked_for(read):
    """STS-B: licence columns at the end of some rows."""
    text = "g\t5.0\ta\tb\ng\t2\tc\td\tlicence\tmore\n"
    flags = {"text_column": "2", "text_pair_column": "3", "label_column": "1"}
    found = read("t.tsv", text, "regress", **flags)
    assert [(e.text, e.text_pair, e.label) for e in found] == [("a", "b", 5.0), ("c", "d", 2.0)]


def test_several_labels(read):
    text = "a\tx,y\nb\t\nc\ty|x, z|y\n"
    assert [e.label for e in read("t.tsv", text, "multilabel")] == [
        ("x", "y"),
        (),
        ("y", "x, z"),
    ]


@pytest.mark.parametrize("task", ["classify", "pair", "regress", "multilabel"])
def test_without_labels(read, task):
    found = read("t.tsv", "a\tb\nc\td\tmore\n", task, labelled=False)
    pairs = ("b", "d") if task == "pair" else (None, None)
    assert found == [
        TextExample("t.tsv, line 1", "a", pairs[0]),
        TextExample("t.tsv, line 2", "c", pairs[1]),
    ]


def test_one_column_without_labels(read):
    found = read("t.txt", "text\na b\n", "classify", labelled=False)
    assert found == [TextExample("t.txt, line 2", "a b")]


# JSON lines


@pytest.mark.parametrize(
    ("label", "task", "expected"),
    [
        (3, "classify", "3"),
        (" pos ", "classify", "pos"),
        (True, "classify", "true"),
        (2, "regress", 2.0),
        ("2.5", "regress", 2.5),
        (["b", 1], "multilabel", ("b", "1")),
        ([], "multilabel", ()),
        ("a,b", "multilabel", ("a", "b")),
    ],
)
def test_json_labels(read, label, task, expected):
    text = "\n" + rows({"Label": label, "id": 0, "text": "t", "x": None})
    expected = [TextExample("t.jsonl, line 2", "t", None, expected)]
    assert read("t.jsonl", text, task) == expected
    assert read("t.json", text, task)[0].label == expected[0].label


def test_json_keys_of_flags(read):
    text = rows({"a": "x", "7": "y", "c": "z"}, {"c": "u", "a": "v", "7": "w", "d": 0})
    flags = {"text_column": "C", "text_pair_column": "7", "label_column": "a"}
    assert read("t.jsonl", text, "pair", **flags) == [
        TextExample("t.jsonl, line 1", "z", "y", "x"),
        TextExample("t.jsonl, line 2", "u", "w", "v"),
    ]


# Choice


@pytest.mark.parametrize("label", ["1", "d"])
def test_choices_of_tables(read, label):
    expected = ("a", ("c", "d", "b"), 1)
    text = f"text,label,choice0,ending1,Choice2\na,{label},c,d,b\n"
    assert read("t.csv", text, "choice") == [ChoiceExample("t.csv, line 2", *expected)]
    text = f"a\tb\tc\td\t{label}\n"
    found = read("t.tsv", text, "choice", choice_columns="2, 3,1")
    assert found == [ChoiceExample("t.tsv, line 1", *expected)]
    text = f"sent\tx\ty\tz\tlabel\na\tb\tc\td\t{label}\n"
    flags = {"text_column": "sent", "choice_columns": "y,z,x"}
    assert read("t.tsv", text, "choice", **flags) == [ChoiceExample("t.tsv, line 2", *expected)]
    found = read("t.tsv", text, "choice", labelled=False, **flags)
    assert found == [ChoiceExample("t.tsv, line 2", "a", ("c", "d", "b"))]


@pytest.mark.parametrize(
    "record",
    [
        {"text": "a", "choices": ["c", "d"], "label": 1},
        {"text": "a", "endings": ["c", "d"], "label": "d"},
        {"premise": "a", "choice1": "c", "choice2": "d", "label": "choice2"},
    ],
)
def test_choices_of_json(read, record):
    expected = [ChoiceExample("t.jsonl, line 1", "a", ("c", "d"), 1)]
    assert read("t.jsonl", rows(record), "choice") == expected


def test_choices_that_are_numbers(read, error_of):
    """The label 2 is the number of 9 here, and the text of the first choice."""
    assert read("t.tsv", "a\t5\t7\t9\t9\n", "choice", choice_columns="1,2,3")[0].label == 2
    message = error_of("t.tsv", "a\t2\t7\t9\t2\n", "choice", choice_columns="1,2,3")
    assert "the label '2' stands for choices [0, 2] (from 0)." in message


# Tags


def test_conll_of_blanks(read):
    text = "-DOCSTART- -X- O O\n\nEU NNP  I-NP B-ORG\n# NN O O\n\n \t\nrejects VBZ O O\r\n\n"
    assert read("t.txt", text, "tag") == [
        TagExample("t.txt, line 3", ("EU", "#"), ("B-ORG", "O")),
        TagExample("t.txt, line 7", ("rejects",), ("O",)),
    ]
    found = read("t.conll", text, "tag", label_column="1")
    assert [e.tags for e in found] == [("NNP", "NN"), ("VBZ",)]
    found = read("t.conll", text, "tag", text_column="-3", label_column="0")
    assert [(e.words, e.tags) for e in found] == [
        (("NNP", "NN"), ("EU", "#")),
        (("VBZ",), ("rejects",)),
    ]


def test_conll_of_tabs(read):
    """A word may hold a blank or be U+3000; a blank line may hold a tab."""
    text = "New York\tB-LOC\n\u3000\tO\n\t\nso\tI-X\n"
    assert read("t.tsv", text, "tag") == [
        TagExample("t.tsv, line 1", ("New York", "\u3000"), ("B-LOC", "O")),
        TagExample("t.tsv, line 4", ("so",), ("I-X",)),
    ]


def test_conll_without_tags(read):
    found = read("t.conll", "a\nb\tX\nc d e\n\nf", "tag", labelled=False)
    assert [(e.words, e.tags) for e in found] == [(("a", "b", "c"), None), (("f",), None)]
    found = read("t.conll", "天\n\u3000\n好\n\t \n", "tag", labelled=False)
    assert [e.words for e in found] == [("天", "\u3000", "好")]


def test_conllu(read):
    lines = [
        "# text = #1 can't",
        "1\t#1\t1\tNUM\tCD\t_\t0\troot\t_\t_",
        "2-3\tcan't\t_\t_\t_\t_\t_\t_\t_\t_",
        "2\tca\tcan\tAUX\tMD\t_\t1\taux\t_\t_",
        "3\tn't\tnot\tPART\tRB\t_\t1\tadvmod\t_\t_",
        "3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_",
        "",
    ]
    expected = TagExample("t.conllu, line 2", ("#1", "ca", "n't"), ("NUM", "AUX", "PART"))
    assert read("t.conllu", "\n".join(lines), "tag") == [expected]
    found = read("t.conllu.gz", "\n".join(lines), "tag", label_column="4")
    assert found[0].tags == ("CD", "MD", "RB")
    found = read("t.conllu", "0\tHer\tO\n1\t# 3-4\tB-X\n", "tag")
    assert found == [TagExample("t.conllu, line 1", ("Her", "# 3-4"), ("O", "B-X"))]
    found = read("t.conllu", "3-4\tB-X\n# 5\tO\n", "tag", text_column="0")
    assert found == [TagExample("t.conllu, line 1", ("3-4",), ("B-X",))]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("S-A O B-A M-A E-A B-A E-A", "B-A O B-A I-A I-A B-A I-A"),  # BMES
        ("S-A B-A I-A E-A I-A", "B-A B-A I-A I-A I-A"),  # BIOES
        ("U-A B-A I-A L-A", "B-A B-A I-A I-A"),  # BILOU
        ("I-A I-A B-A O", "I-A I-A B-A O"),  # IOB1 stays
        ("S-A E-A NOUN", "S-A E-A NOUN"),  # no scheme
        ("B M E S O", "B M E S O"),  # nor that
        ("O O", "O O"),
    ],
)
def test_tag_schemes(tags, expected):
    """The scheme is that of all sentences, whatever is in one of them."""
    sentences = [tags.split(), ["O"], tags.split()[:1]]
    expected = expected.split()
    assert to_iob2(sentences) == [tuple(expected), ("O",), tuple(expected[:1])]


def test_bmes_file_becomes_iob2(read):
    text = "吴 B-NAME\n阳 E-NAME\n\n， O\n汉 S-RACE\n"
    found = read("t.bmes", text, "tag")
    assert [e.tags for e in found] == [("B-NAME", "I-NAME"), ("O", "B-RACE")]


@pytest.mark.parametrize("keys", [("words", "tags"), ("tokens", "ner_tags"), ("tokens", "labels")])
def test_tags_of_json(read, keys):
    text = rows({keys[0]: ["a", "b"], keys[1]: ["O", "S-X"]}, {keys[0]: ["c"], keys[1]: ["O"]})
    assert read("t.json", text, "tag") == [
        TagExample("t.json, line 1", ("a", "b"), ("O", "B-X")),
        TagExample("t.json, line 2", ("c",), ("O",)),
    ]
    found = read("t.json", text, "tag", labelled=False, text_column=keys[0].upper())
    assert found[0] == TagExample("t.json, line 1", ("a", "b"))


# Questions

CONTEXT = "the cat sat on the mat"


def squad_file(*questions, context=CONTEXT):
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [*questions]}]}]})


def test_squad(read):
    answers = [{"text": "the", "answer_start": 15}, {"text": "cat", "answer_start": 4}]
    text = squad_file(
        {"id": "q1", "question": "who ?", "answers": answers},
        {"id": "q2", "question": "no ?", "answers": [], "is_impossible": True},
        {"id": "q3", "question": "un ?", "answers": answers, "is_impossible": True},
    )
    assert read("s.json", text, "qa") == [
        QuestionExample(
            "s.json, question q1", "q1", "who ?", CONTEXT, (Answer("the", 15), Answer("cat", 4))
        ),
        QuestionExample("s.json, question q2", "q2", "no ?", CONTEXT, (), True),
        QuestionExample("s.json, question q3", "q3", "un ?", CONTEXT, (), True),
    ]
    text = squad_file({"question": "who ?"}, {"id": 9, "question": "?"})
    assert read("s.json.gz", text, "qa", labelled=False) == [
        QuestionExample("s.json.gz, question 1", "1", "who ?", CONTEXT),
        QuestionExample("s.json.gz, question 9", "9", "?", CONTEXT),
    ]


def test_questions_of_json_lines(read):
    text = rows(
        {"question": "a ?", "context": CONTEXT, "answers": [{"text": "cat", "answer_start": 4}]},
        {
            "id": "x",
            "question": "b ?",
            "context": CONTEXT,
            "answers": {"text": ["sat", "mat"], "answer_start": [8, 19]},
        },
        {"question": "c ?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    )
    assert read("s.jsonl", text, "qa") == [
        QuestionExample("s.jsonl, line 1", "1", "a ?", CONTEXT, (Answer("cat", 4),)),
        QuestionExample(
            "s.jsonl, line 2 (question x)",
            "x",
            "b ?",
            CONTEXT,
            (Answer("sat", 8), Answer("mat", 19)),
        ),
        QuestionExample("s.jsonl, line 3", "3", "c ?", CONTEXT, (), True),
    ]


# TFDS


@pytest.fixture
def load(monkeypatch):
    """Makes `tfds.load` give a data set of features; returns what it was called with."""
    tfds = pytest.importorskip("tensorflow_datasets")
    calls = []

    def load(make_features, make_examples):
        def of_memory(name, split, shuffle_files, with_info):
            calls.append((name, split, shuffle_files, with_info))
            info = types.SimpleNamespace(features=make_features(tfds.features))
            signature = {
                key: tf.TensorSpec(None, dtype) if not isinstance(dtype, dict) else dtype
                for key, dtype in make_examples()[0].items()
            }
            dataset = tf.data.Dataset.from_generator(
                lambda: iter(make_examples()[1]), output_signature=signature
            )
            return dataset, info

        monkeypatch.setattr(tfds, "load", of_memory)
        return calls

    return load


def test_tfds_texts(load):
    calls = load(
        lambda f: f.FeaturesDict({"sentence": f.Text(), "label": f.ClassLabel(names=["no", "ja"])}),
        lambda: (
            {"sentence": tf.string, "label": tf.int64},
            [{"sentence": "天 a", "label": 1}, {"sentence": "b", "label": 0}],
        ),
    )
    name = "tfds:glue/sst2:validation"
    assert read_examples(name, settings("classify")) == [
        TextExample(f"{name}, example 1", "天 a", None, "ja"),
        TextExample(f"{name}, example 2", "b", None, "no"),
    ]
    read_examples("tfds:glue/sst2", settings("classify"))
    assert calls == [("glue/sst2", s, False, True) for s in ("validation", "train")]


def test_tfds_split_without_labels(load):
    load(
        lambda f: f.FeaturesDict({"text": f.Text(), "label": f.ClassLabel(names=["no", "ja"])}),
        lambda: ({"text": tf.string, "label": tf.int64}, [{"text": "a", "label": -1}]),
    )
    assert read_examples("tfds:x", settings("classify"), labelled=False)[0].label is None
    with pytest.raises(UserError, match=r"^tfds:x, example 1: the label is empty\."):
        read_examples("tfds:x", settings("classify"))


def test_tfds_target_and_bytes(load):
    reports = []
    load(
        lambda f: f.FeaturesDict({"text": f.Text(), "score": f.Scalar(tf.float32)}),
        lambda: (
            {"text": tf.string, "score": tf.float32},
            [{"text": b"\xff", "score": 1}, {"text": "b", "score": 2.5}],
        ),
    )
    found = read_examples("tfds:x", settings("regress", skip_bad_lines=True), True, reports.append)
    assert found == [TextExample("tfds:x, example 2", "b", None, 2.5)]
    assert reports == [
        "note: 1 of 2 examples of tfds:x is left out; the first: tfds:x, example 1: bytes that are "
        "not UTF-8."
    ]


def test_tfds_tags(load):
    load(
        lambda f: f.FeaturesDict(
            {
                "tokens": f.Sequence(f.Text()),
                "ner": f.Sequence(f.ClassLabel(names=["O", "B-PER"])),
            }
        ),
        lambda: ({"tokens": tf.string, "ner": tf.int64}, [{"tokens": ["a", "b"], "ner": [1, 0]}]),
    )
    expected = [TagExample("tfds:conll2003:train, example 1", ("a", "b"), ("B-PER", "O"))]
    assert read_examples("tfds:conll2003:train", settings("tag")) == expected


def test_tfds_questions(load):
    load(
        lambda f: f.FeaturesDict(
            {
                "id": f.Text(),
                "question": f.Text(),
                "context": f.Text(),
                "answers": f.Sequence({"text": f.Text(), "answer_start": f.Scalar(tf.int32)}),
            }
        ),
        lambda: (
            {
                "id": tf.string,
                "question": tf.string,
                "context": tf.string,
                "answers": {
                    "text": tf.TensorSpec([None], tf.string),
                    "answer_start": tf.TensorSpec([None], tf.int32),
                },
            },
            [
                {
                    "id": "q",
                    "question": "?",
                    "context": "天 cat",
                    "answers": {"text": ["cat", "天"], "answer_start": [2, 0]},
                }
            ],
        ),
    )
    answers = (Answer("cat", 2), Answer("天", 0))
    assert read_examples("tfds:squad", settings("qa")) == [
        QuestionExample("tfds:squad, example 1 (question q)", "q", "?", "天 cat", answers)
    ]


def test_tfds_errors(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def fail(*args, **kwargs):
        raise ValueError("Unknown split 'dev'.\nmore")

    monkeypatch.setattr(tfds, "load", fail)
    with pytest.raises(UserError, match=r"^cannot load tfds:x:dev: Unknown split 'dev'\.$"):
        read_examples("tfds:x:dev", settings("classify"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"tfds: inputs need tensorflow-datasets: pip install"):
        read_examples("tfds:x", settings("classify"))


# Bad examples

HINT = "Mend it, or leave such lines out with --skip_bad_lines."
CHOICES = {"choice_columns": "1,2", "text_column": "0", "label_column": "3"}


@pytest.mark.parametrize(
    ("name", "task", "good", "bad", "flags", "problem"),
    [
        ("t.tsv", "classify", "a\t1", "b", {}, "the row has 1 column; the first row has 2"),
        ("t.tsv", "classify", "a\t1", "b\t0\tc", {}, "the row has 3 columns; the first row has 2"),
        ("t.tsv", "classify", "text\tlabel\tx\na\t1\t", "b\t0", {}, "2 columns; the first row has"),
        ("t.tsv", "classify", "a\t1\tx", "b", {"label_column": "1"}, "1 column; 2 are needed"),
        ("t.tsv", "classify", "a\t1", " \t1", {}, "the text is empty"),
        ("t.tsv", "classify", "a\t1", "\nb\t1", {}, "the line is empty"),
        ("t.csv", "classify", "a,1", "\nb,1", {}, "the line is empty"),
        ("t.tsv", "classify", "a\t1", "b\t ", {}, "the label is empty"),
        ("t.tsv", "classify", "a\t1", b"b\xe5\t1", {}, "bytes that are not UTF-8"),
        ("t.csv", "classify", "a,1", b"b\xe5,1", {}, "bytes that are not UTF-8"),
        ("t.csv", "classify", "a,1", '"b"c,1', {}, "the quotes are not those of CSV: ',' expected"),
        ("t.tsv", "pair", "a\tb\t1", "a\t\t1", {}, "the second text is empty"),
        ("t.tsv", "regress", "a\t1", "a\t", {}, "the label is empty"),
        ("t.tsv", "regress", "a\t1", "a\t3,5", {}, "the label must be a number; got '3,5'"),
        ("t.tsv", "regress", "a\t1", "a\tnan", {}, "must be a finite number; got the target nan"),
        ("t.tsv", "regress", "a\t1", "a\t-inf", {}, "must be a finite number; got the target -inf"),
        ("t.tsv", "multilabel", "a\tx", "a\tx,,y", {}, "the label is empty"),
        ("t.tsv", "choice", "a\tb\tc\t0", "a\tb\t\t0", CHOICES, "choice 1 (from 0) is empty"),
        (
            "t.tsv",
            "choice",
            "a\tb\tc\t0",
            "a\tb\tc\t2",
            CHOICES,
            "the label must be in [0, 1], or the text of a choice; got '2'",
        ),
        ("t.conll", "tag", "a O\n", "a", {}, "the line has 1 column, the first line has 2"),
        ("t.conll", "tag", "a O\n", "a b O", {}, "the line has 3 columns, the first line has 2"),
        (
            "t.conll",
            "tag",
            "a O x\n",
            "a",
            {"label_column": "1"},
            "the line has 1 column; wanted are the word in column 0 and the tag in column 1",
        ),
        ("t.tsv", "tag", "a\tO\n", "\tO", {}, "the word is empty"),
        ("t.tsv", "tag", "a\tO\n", "a\t", {}, "the tag is empty"),
        ("t.tsv", "tag", "a\tO\n", b"\xe5\tO", {}, "bytes that are not UTF-8"),
    ],
)
def test_bad_lines(read, tmp_path, name, task, good, bad, flags, problem):
    """The bad one comes second. Without it the file is fine, and with --skip_bad_lines too."""
    bad = bad if isinstance(bad, bytes) else bad.encode()
    text = good.encode() + b"\n" + bad + b"\n"
    line = good.count("\n") + 2
    with pytest.raises(UserError) as error:
        read(name, text, task, **flags)
    message = str(error.value)
    assert message.startswith(f"{name}, line {line}: ") and message.endswith(f". {HINT}")
    assert problem in message
    reports = []
    found = read(name, text, task, report=reports.append, skip_bad_lines=True, **flags)
    expected = read(name, good, task, **flags)
    assert found[: len(expected)] == expected
    left_out = message.removesuffix(f" {HINT}")
    assert reports == [
        f"note: 1 of {len(found) + 1} examples of {name} is left out; the first: {left_out}"
    ]


@pytest.mark.parametrize(
    ("task", "bad", "problem"),
    [
        ("classify", "{bad", "line 2: every line must be a JSON object; got '{bad'"),
        ("classify", "[1]", "line 2: every line must be a JSON object; got '[1]'"),
        ("classify", b'{"text": "\xe5"}', "line 2: bytes that are not UTF-8"),
        ("classify", {"text": "a"}, "line 2: there is no 'label'; the keys are 'text'"),
        ("classify", {"text": None, "label": 1}, "line 2: the text must be a string; got None"),
        ("classify", {"text": "\ud800", "label": 1}, "line 2: the text has half a surrogate pair"),
        ("classify", {"text": "a", "label": None}, "line 2: the label is empty"),
        ("classify", {"text": "a", "label": float("nan")}, "line 2: the label is empty"),
        ("classify", {"text": "a", "label": [1]}, "the label must be a text or a number; got [1]"),
        ("regress", {"text": "a", "label": True}, "the label must be a number; got True"),
        ("regress", {"text": "a", "label": float("nan")}, "finite number; got the target nan"),
        ("regress", {"text": "a", "label": 10**400}, "the label must be a number; got 1000"),
    ],
)
def test_bad_json_lines(error_of, task, bad, problem):
    good = rows({"text": "a", "label": 1}).encode()
    bad = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else rows(bad)).encode()
    message = error_of("t.jsonl", good + bad, task)
    assert message.startswith("t.jsonl, line 2: ") and problem in message
    assert message.endswith(HINT)


@pytest.mark.parametrize(
    ("good", "bad", "task", "problem"),
    [
        (["b", "c"], ["b", "c", "d"], "choice", "3 choices came; the first example has 2"),
        (["b", "c"], ["b"], "choice", "there must be two choices or more; got 1"),
        (["b", "c"], ["b", 3], "choice", "choice 1 (from 0) must be a string; got 3"),
        (["b", "c"], "b", "choice", "there must be two choices or more; got 1"),
        (["O"], ["O", "O"], "tag", "1 word, but 2 tags"),
        (["O"], [], "tag", "there are no tags"),
        (["O"], [3], "tag", "tag 0 (from 0) must be a text; got 3"),
        (["O"], "O", "tag", "'labels' must be a list of tags; got 'O'"),
    ],
)
def test_bad_lists(error_of, good, bad, task, problem):
    def record(values):
        if task == "tag":
            return {"words": ["a"], "labels": values}
        return {"text": "a", "choices": values, "label": 0}

    message = error_of("t.jsonl", rows(record(good), record(bad)), task)
    assert message == f"t.jsonl, line 2: {problem}. {HINT}"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"answers": [{"text": "cat", "answer_start": 5}]},
            "answer not in context: 'cat' is not at character 5, but at 4",
        ),
        (
            {"answers": [{"text": "the", "answer_start": -7}]},
            "answer not in context: 'the' is not at character -7, but at 0, 15",
        ),
        (
            {"answers": [{"text": "the", "answer_start": 15}, {"text": "dog", "answer_start": 0}]},
            "answer not in context: 'dog' is not at character 0, nor anywhere else",
        ),
        ({"answers": [{"text": " ", "answer_start": 3}]}, "an answer is empty"),
        (
            {"answers": [{"text": "cat"}]},
            'an answer must have "text", a string, and "answer_start", a whole number; got '
            "{'text': 'cat'}",
        ),
        ({"answers": [], "is_impossible": False}, 'no answers, and "is_impossible" is false'),
        ({"answers": "cat"}, "\"answers\" must be a list; got 'cat'"),
        (
            {"answers": {"text": ["cat"], "answer_start": []}},
            '"text" and "answer_start" of "answers" must be lists of one length',
        ),
        ({"id": "q0"}, "the id q0 is that of an earlier question"),
        ({"question": " "}, "the question is empty"),
        ({"question": None}, "the question must be a string; got None"),
    ],
)
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_bad_questions(error_of, changed, problem, form):
    good = {"id": "q0", "question": "?", "answers": [{"text": "cat", "answer_start": 4}]}
    bad = good | {"id": "q1"} | changed
    if form == "jsonl":
        text = rows(good | {"context": CONTEXT}, bad | {"context": CONTEXT})
        where = f"s.jsonl, line 2 (question {bad['id']})"
    else:
        text = squad_file(good, bad)
        where = f"s.json, question {bad['id']}"
    message = error_of(f"s.{form}", text, "qa")
    assert message.startswith(f"{where}: ") and f"{problem}. {HINT}" in message


def test_other_bad_questions(error_of):
    text = squad_file({"id": "q1", "question": "?"}, context=" ")
    assert "s.json, question q1: the context is empty." in error_of("s.json", text, "qa")
    text = rows({"question": "?", "context": "", "answers": []})
    assert "s.jsonl, line 1: the context is empty." in error_of("s.jsonl", text, "qa")
    text = squad_file({"id": "q1", "question": "?"})
    assert "question q1: there is no 'answers'; the keys" in error_of("s.json", text, "qa")
    text = squad_file(3)
    problem = "s.json, question number 1: a question must be an object; got 3."
    assert problem in error_of("s.json", text, "qa")


def test_a_choice_of_thousands_of_digits(error_of):
    good = {"text": "a", "choices": ["b", "c"], "label": 1}
    text = rows(good, good | {"label": "1" * 5000})
    problem = "the label must be in [0, 1], or the text of a choice; got '1111"
    assert problem in error_of("t.jsonl", text, "choice")


def test_what_is_said_of_bad_lines_is_one_short_line(tmp_path):
    text = rows({"text": "a", "label": 1}, {"long\n" * 9999: 1})
    (tmp_path / "t.jsonl").write_text(text)
    said = []
    read_examples(
        str(tmp_path / "t.jsonl"), settings("classify", skip_bad_lines=True), True, said.append
    )
    (line,) = said
    assert line.startswith(
        "note: 1 of 2 examples of t.jsonl is left out; the first: t.jsonl, line 2: "
    )
    assert line.isprintable() and len(line) <= 1000


def test_bad_lines_are_counted(read, error_of):
    text = "text\tlabel\n" + "a\t1\n" * 1500 + "\t1\nb\t\nc\t0\n"
    reports = []
    found = read("t.tsv", text, "classify", report=reports.append, skip_bad_lines=True)
    assert len(found) == 1501
    assert reports == [
        "note: 2 of 1,503 examples of t.tsv are left out; the first: t.tsv, line 1502: the text is "
        "empty."
    ]
    message = error_of("t.tsv", "a\t\n\t1\n", "classify", skip_bad_lines=True)
    assert "none of the 2 examples of " in message
    assert message.endswith("t.tsv can be used; the first: t.tsv, line 1: the label is empty.")


def test_a_bad_word_leaves_its_sentence_out(read):
    text = "a O\nb\nc\n\nd O\n"
    reports = []
    found = read("t.conll", text, "tag", report=reports.append, skip_bad_lines=True)
    assert found == [TagExample("t.conll, line 5", ("d",), ("O",))]
    assert reports[0].startswith("note: 1 of 2 examples of t.conll is left out; the first: t.conll")
    assert reports[0].endswith("line 2: the line has 1 column, the first line has 2.")


# Bad files and flags


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("name", "text", "task", "problem"),
    [
        ("t.tsv", "", "classify", "t.tsv has no examples: it is empty."),
        ("t.tsv", "text\tlabel\n", "classify", "t.tsv has no examples."),
        ("t.conll", "\n\n", "tag", "t.conll has no examples."),
        ("t.jsonl", "\n", "classify", "t.jsonl has no line that is a JSON object; it is empty."),
        (
            "t.jsonl",
            "a b\n",
            "classify",
            "t.jsonl has no line that is a JSON object; the first line: every line must be a JSON "
            "object; got 'a b'.",
        ),
        ("t.json", '[{"text":', "tag", "t.json is a JSON list. Write one JSON object a line"),
        ("t.tsv", b"\xff\xfea\x00", "classify", "line 1: bytes that are not UTF-8. Mend it: the"),
        ("t.xlsx", "a", "classify", "must be a file that ends in .tsv, .txt, .csv, .json or"),
        ("t.tsv", "a", "qa", "must be a file that ends in .json or .jsonl"),
        ("s.json", "{", "qa", "s.json is not JSON: Expecting property name"),
        ("s.json", rows({"question": "?"}) * 2, "qa", "If it has one question a line, name it"),
        ("s.json", b'"\xff"', "qa", "s.json is not UTF-8: byte 1. Save it as UTF-8."),
        ("s.json", "[]", "qa", 'data[].paragraphs[].qas[]: the file has no list "data"'),
        ("s.json", '{"data": [3]}', "qa", 'data[0] has no list "paragraphs"'),
        ("s.json", '{"data": [{"paragraphs": [{}]}]}', "qa", "data[0].paragraphs[0] has no list"),
        ("s.json", '{"data": []}', "qa", "s.json has no examples."),
    ],
)
def test_bad_files(error_of, name, text, task, problem, skip):
    assert problem in error_of(name, text, task, skip_bad_lines=skip)


def test_files_that_cannot_be_opened(tmp_path):
    def message(path):
        with pytest.raises(UserError) as error:
            read_examples(path, settings("classify", skip_bad_lines=True))
        return str(error.value)

    assert message(tmp_path / "no.tsv") == (
        f"cannot read {tmp_path}/no.tsv: No such file or directory."
    )
    (tmp_path / "d.tsv").mkdir()
    assert message(tmp_path / "d.tsv") == f"{tmp_path}/d.tsv is a folder. Give one file of it."
    packed = gzip.compress(b"text\tlabel\n" + b"".join(b"a%d\t1\n" % i for i in range(9999)))
    (tmp_path / "t.tsv.gz").write_bytes(packed[: len(packed) // 2])
    assert "t.tsv.gz: Compressed file ended before the end-of-stream" in message(
        tmp_path / "t.tsv.gz"
    )
    (tmp_path / "u.tsv.gz").write_bytes(b"a\t1\n")
    assert "u.tsv.gz: Not a gzipped file" in message(tmp_path / "u.tsv.gz")


@pytest.mark.parametrize(
    ("text", "task", "flags", "problem"),
    [
        (
            "x\tlabel\na\t1\n",
            "classify",
            {},
            "t.tsv has no column named text, sentence, sentence1, text_a, question, premise, "
            "question1, review, title, content, #1 string; it has 'x', 'label'. Name the one to "
            "read with --text_column.",
        ),
        ("text\tx\na\t1\n", "classify", {}, "it has 'text', 'x'. Name the one to read with --lab"),
        ("text\tlabel\na\t1\n", "pair", {}, "Name the one to read with --text_pair_column."),
        (
            "text\tlabel\na\t1\n",
            "classify",
            {"text_column": "body"},
            "t.tsv has no column 'body' (--text_column); it has 'text', 'label'.",
        ),
        (
            "a\t1\n",
            "classify",
            {"label_column": "x", "header": "no"},
            "t.tsv is read without a header, so --label_column must be a number from 0; got 'x'. "
            "If its first row is a header, add --header=yes.",
        ),
        (
            "a\t1\tb\n",
            "classify",
            {"label_column": "3"},
            "t.tsv has 3 columns in its first row, so --label_column must be in [-3, 2]; got 3.",
        ),
        ("a\t1\tb\n", "classify", {"label_column": "-4"}, "must be in [-3, 2]; got -4."),
        (
            "text\tText\tlabel\na\tb\t1\n",
            "classify",
            {"text_column": "TEXT"},
            "t.tsv has 2 columns named 'TEXT'. Give --text_column as a number: one of 0, 1.",
        ),
        (
            "a b\n",
            "classify",
            {},
            "t.tsv has 1 column in its first row, and 2 are needed. Columns are separated by tabs",
        ),
        ("a\tb\n", "pair", {}, "t.tsv has 2 columns in its first row, and 3 are needed."),
        (
            "a\tb\n",
            "classify",
            {"text_column": "1"},
            "two of text, second text, choices and label are the same column of t.tsv. Give each",
        ),
        (
            "a\tb\tc\t1\n",
            "choice",
            {},
            "t.tsv is read without a header, so the columns of the choices must be named: "
            "--choice_columns=1,2,3.",
        ),
        (
            "text\tx\tlabel\na\tb\t1\n",
            "choice",
            {},
            "t.tsv has no column that starts with choice or ending; it has 'text', 'x', 'label'. "
            "Name the columns with --choice_columns.",
        ),
        ("a\t1\n", "tag", {"text_column": "x"}, "--text_column must be a number for this file, wh"),
        (
            "rating\tstars\na\t1\n",
            "regress",
            {},
            "got 'stars'; if this is a header, add --header=y",
        ),
    ],
)
def test_bad_columns(error_of, text, task, flags, problem):
    assert problem in error_of("t.tsv", text, task, **flags)


def test_bad_keys(error_of):
    text = rows({"text": "a", "y": 1})
    message = error_of("t.jsonl", text, "classify", label_column="1")
    assert message == (
        "t.jsonl has keys, not columns, so --label_column must be one of 'text', 'y'; got 1."
    )
    message = error_of("t.jsonl", text, "tag")
    assert message.startswith("t.jsonl has no column named words, tokens; it has 'text', 'y'.")
    message = error_of("t.jsonl", text, "classify", label_column="text")
    assert message.startswith("two of text, second text, choices and label are the same column")


# Names of labels


def test_label_names(tmp_path):
    assert read_label_names("no, ja,vielleicht") == ("no", "ja", "vielleicht")
    assert read_label_names("one") == ("one",)
    (tmp_path / "names").write_text("a, b\nc\r\n\n")
    assert read_label_names(str(tmp_path / "names")) == ("a, b", "c")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "--labels= names no label. Write them comma-separated, or one a line."),
        ("a,,b", "--labels=a,,b: label 1 (from 0) is empty."),
        ("a,b,a", "--labels=a,b,a: 'a' is there twice, at 0, 2."),
        ("data/names", "--labels: there is no file data/names."),
        ("names.txt", "--labels: there is no file names.txt."),
    ],
)
def test_bad_label_names(text, problem):
    with pytest.raises(UserError) as error:
        read_label_names(text)
    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\n", "names names no label. Write them"),
        (b"a\n\nb\n", "names: label 1 (from 0) is empty."),
        (b"a\nb\nb\n", "names: 'b' is there twice, at 1, 2."),
        (b"a\n\xe5\n", "names: bytes that are not UTF-8. Save it as UTF-8."),
    ],
)
def test_bad_files_of_label_names(tmp_path, content, problem):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_label_names(str(tmp_path / "names"))
    assert problem in str(error.value)


# Real files: counts of the README beside them


@pytest.mark.parametrize(
    ("path", "task", "flags", "counts"),
    [
        ("sst2/dev.tsv", "classify", {}, {"0": 428, "1": 444}),
        ("sst2/train.tsv.gz", "classify", {}, {"0": 29780, "1": 37569}),
        ("thucnews/dev.txt", "classify", {}, {str(i): 1000 for i in range(10)}),
        ("chnsenticorp/dev.tsv", "classify", {}, {"0": 607, "1": 593}),
        ("mrpc/train.tsv", "pair", {}, {"0": 1169, "1": 2407}),
        ("rte/test.tsv", "pair", {}, {"0": 390, "1": 410}),
        (
            "cola/in_domain_dev.tsv",
            "classify",
            {"text_column": "3", "label_column": "1"},
            {"0": 162, "1": 365},
        ),
        (
            "ocnli/dev.json",
            "pair",
            {},
            {"-": 50, "contradiction": 900, "entailment": 947, "neutral": 1103},
        ),
    ],
)
def test_real_labels(shared_data, path, task, flags, counts):
    found = read_examples(shared_data / path, settings(task, **flags))
    assert collections.Counter(e.label for e in found) == counts


def test_real_texts(shared_data):
    first = read_examples(shared_data / "mrpc/train.tsv", settings("pair"))[0]
    assert first.text.startswith('Amrozi accused his brother, whom he called "the witness", of')
    assert first.text_pair.startswith('Referring to him as only "the witness", Amrozi')
    flags = {"text_column": "5", "text_pair_column": "6", "label_column": "4"}
    found = read_examples(shared_data / "stsb/sts-train.tsv.gz", settings("regress", **flags))
    assert len(found) == 5749 and all(0 <= e.label <= 5 for e in found)
    assert found[1] == TextExample(
        "sts-train.tsv.gz, line 2",
        "A man is playing a large flute.",
        "A man is playing a flute.",
        3.8,
    )


def entities(examples):
    return collections.Counter(t[2:] for e in examples for t in e.tags if t.startswith("B-"))


@pytest.mark.parametrize(
    ("path", "flags", "sentences", "counts"),
    [
        (
            "wnut17/emerging.dev.conll",
            {},
            1009,
            {
                "corporation": 34,
                "creative-work": 105,
                "group": 39,
                "location": 74,
                "person": 470,
                "product": 114,
            },
        ),
        (
            "wikineural_en/val.conllu.gz",
            {"text_column": "1"},
            11590,
            {"LOC": 5904, "MISC": 4173, "ORG": 3512, "PER": 5593},
        ),
        (
            "resume_ner_zh/dev.char.bmes",
            {},
            463,
            {
                "CONT": 33,
                "EDU": 106,
                "LOC": 2,
                "NAME": 110,
                "ORG": 523,
                "PRO": 18,
                "RACE": 15,
                "TITLE": 690,
            },
        ),
    ],
)
def test_real_entities(shared_data, path, flags, sentences, counts):
    found = read_examples(shared_data / path, settings("tag", **flags))
    assert len(found) == sentences and entities(found) == counts
    assert {tag[:2] for e in found for tag in e.tags} == {"O", "B-", "I-"}


def test_real_parts_of_speech(shared_data):
    path = shared_data / "ud_english_ewt/en_ewt-ud-dev.conllu.gz"
    found = read_examples(path, settings("tag"))
    assert len(found) == 2001 and len({tag for e in found for tag in e.tags}) == 17
    assert found[0].words == ("From", "the", "AP", "comes", "this", "story", ":")
    assert found[0].tags == ("ADP", "DET", "PROPN", "VERB", "DET", "NOUN", "PUNCT")


@pytest.mark.parametrize(
    ("path", "questions", "impossible", "answers"),
    [
        ("squad/dev-v1.1.json.gz", 10570, 0, 34726),
        ("squad/dev-v2.0.json.gz", 11873, 5945, None),
        ("squad/xquad.en.json.gz", 1190, 0, 1190),
    ],
)
def test_real_questions(shared_data, path, questions, impossible, answers):
    found = read_examples(shared_data / path, settings("qa"))
    assert len(found) == questions and sum(e.is_impossible for e in found) == impossible
    assert all(bool(e.answers) != e.is_impossible for e in found)
    assert answers in (None, sum(len(e.answers) for e in found))
    for e in found[:999]:
        assert all(e.context[a.start : a.start + len(a.text)] == a.text for a in e.answers)


def test_real_answers_that_are_not_there(shared_data):
    """Five answers of the file are not where they should be, and two questions are empty."""
    reports = []
    path = shared_data / "cmrc2018/cmrc2018_trial.json.gz"
    found = read_examples(path, settings("qa", skip_bad_lines=True), report=reports.append)
    assert len(found) == 1002 - 5 - 2
    assert reports == [
        "note: 7 of 1,002 examples of cmrc2018_trial.json.gz are left out; the first: "
        "cmrc2018_trial.json.gz, question TRIAL_210_QUERY_0: answer not in context: '俗名龙尖' is "
        "not at character 14, but at 13."
    ]
    with pytest.raises(UserError, match=r"question TRIAL_210_QUERY_0: answer not in context"):
        read_examples(path, settings("qa"))
