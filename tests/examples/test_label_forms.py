"""Labels as columns of 0 and 1, lists in cells, decimals, and none."""

import pytest
from example_files import rows

from kbert.data.examples import TextExample, read_label_names
from kbert.data.validation import parse_list
from kbert.errors import UserError
from kbert.tasks.labels import (
    check_no_numbers,
    ids_to_names,
    keep_known_labels,
    label_names,
    label_numbers,
)

TOXIC = """"id","comment_text","toxic","severe_toxic","obscene"
"0001","Thanks for the edit",0,0,0
"0002","You are a fool",1,0,0
"0003","Damn you, you fool",1,0,1
"""


def labels(examples):
    return [example.label for example in examples]


@pytest.mark.parametrize("yes", ["1", "1.0", "True", "true"])
def test_columns_of_0_and_1(read, yes):
    no = {"1": "0", "1.0": "0.0"}.get(yes, "False")
    text = TOXIC.replace(",0", f",{no}").replace(",1", f",{yes}")
    notes = []
    examples = read("t.csv", text, "multilabel", report=notes.append)
    assert [example.text for example in examples][1:] == ["You are a fool", "Damn you, you fool"]
    assert labels(examples) == [(), ("toxic",), ("toxic", "obscene")]
    assert notes == [
        "note: t.csv: columns found by their values: labels 'toxic', 'severe_toxic', 'obscene'; "
        "set --label_columns to choose others"
    ]


def test_columns_of_0_and_1_by_name(read, error_of):
    flags = {"label_columns": "obscene,toxic", "text_column": "comment_text"}
    assert labels(read("t.csv", TOXIC, "multilabel", **flags)) == [
        (),
        ("toxic",),
        ("obscene", "toxic"),
    ]
    message = error_of("t.csv", TOXIC.replace("1,0,1", "1,0,2"), "multilabel", **flags)
    problem = "t.csv, line 4: the column 'obscene' must be 0 or 1 (or false or true); got '2'."
    assert problem in message
    message = error_of("t.csv", TOXIC, "multilabel", **flags | {"label_columns": "insult"})
    assert "t.csv has no column 'insult' (--label_columns); it has 'id', 'comment_text'" in message
    message = error_of("t.csv", TOXIC, "classify", label_columns="toxic")
    assert message == (
        "--label_columns requires --task=multilabel and cannot be combined with --label_column."
    )
    flags = {"label_columns": "2,3", "text_column": "1", "header": "no"}
    message = error_of("t.csv", TOXIC.partition("\n")[2], "multilabel", **flags)
    assert "takes the label names from the header, but t.csv is read without one." in message


def test_keys_of_0_and_1(read):
    text = rows(*({"text": "a fool", "rude": n % 2, "long": 0, "n": n} for n in range(4)))
    assert labels(read("t.jsonl", text, "multilabel")) == [(), ("rude",)] * 2


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("['battery', 'positive']", ["battery", "positive"]),
        ('["battery", "it\'s"]', ["battery", "it's"]),
        ("['it\\'s', \"a, b\"]", ["it's", "a, b"]),
        ("['battery' 'positive'\n 'new']", ["battery", "positive", "new"]),  # NumPy
        (r'["a\/b", "\u00e9"]', ["a/b", "é"]),
        ("('a', 'b')", ["a", "b"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("[]", []),
        ("[0, 3]", ["0", "3"]),
        ("[0 3]", ["0", "3"]),
        ("[0. 3.]", ["0.", "3."]),
        ("[New York, Rome]", ["New York", "Rome"]),
        ("[New York]", ["New York"]),
        ("(other)", None),
        ("a, b", None),
        ("", None),
    ],
)
def test_lists_in_cells(cell, expected):
    assert parse_list(cell) == expected


def test_lists_in_a_table(read, error_of):
    cells = ["['battery', 'positive']", "['screen']", "[]"]
    text = "text,labels\n" + "".join(f'great battery,"{cell}"\n' for cell in cells)
    assert labels(read("t.csv", text, "multilabel")) == [("battery", "positive"), ("screen",), ()]
    text = text.replace("'screen'", "'screen', x")
    message = error_of("t.csv", text, "multilabel")
    assert "the labels must be a list such as ['a', 'b']; got \"['screen', x]\"" in message
    message = error_of("t.csv", text.replace("x]", r"'\x']"), "multilabel")
    assert r"""the label "'\\x'" is not quoted as in JSON or Python""" in message
    message = error_of("t.csv", "text,label\na b,['x']\n", "classify")
    assert "line 2: the label \"['x']\" is a list; lists need --task=multilabel." in message


def test_other_separators(read):
    text = "text,labels\na b,x;y z\na b,\na c,x|y;z\n"
    assert labels(read("t.csv", text, "multilabel")) == [("x", "y z"), (), ("x", "y;z")]


def test_whole_numbers_with_and_without_decimals(read):
    train = read("t.csv", "text,label\na b,1.0\nb,2.0\nc,3.0\n", "classify")
    assert labels(train) == ["1", "2", "3"] == list(label_names(train))
    assert labels(read("d.csv", "text,label\na b,1\nb,2.00\n", "classify")) == ["1", "2"]
    assert labels(read("d.jsonl", rows({"text": "a", "label": 2.0}), "classify")) == ["2"]
    assert labels(read("t.csv", "text,labels\na,1.0|2\n", "multilabel")) == [("1", "2")]
    # Other decimals, versions and codes stay.
    cells = ["0.5", "-1.0", "1.10", "007", "v1.0", "1e0"]
    text = "text,label\n" + "".join(f"a b,{cell}\n" for cell in cells)
    examples = read("t.csv", text, "classify")
    assert labels(examples) == ["0.5", "-1", "1.10", "007", "v1.0", "1e0"]
    assert label_names(examples) == ("-1", "0.5", "1.10", "007", "1e0", "v1.0")


def test_names_of_labels_with_decimals():
    assert read_label_names("0.0,1.0,2") == ("0", "1", "2")
    assert read_label_names([0.0, 1, "b"]) == ("0", "1", "b")
    assert label_numbers(("1.0", "2.0")) == {"1": 0, "2": 1, "1.0": 0, "2.0": 1}
    examples = [TextExample("a.csv, line 2", "a", None, "1")]
    assert keep_known_labels(examples, ("1.0", "2.0"), False, print) == examples
    assert [e.label for e in ids_to_names(examples, ("1.0", "2.0"))] == ["1.0"]
    assert [e.label for e in ids_to_names(examples, ("no", "yes"))] == ["yes"]


def test_numbers_of_names_that_have_no_order():
    examples = [TextExample("a.csv, line 2", "a", None, "no"), TextExample("b", "a", None, "1.5")]
    check_no_numbers(examples, ("no", "yes"))
    check_no_numbers([TextExample("b", "a", None, "1")], ("1.0", "no"))
    examples.append(TextExample("d.csv, line 3", "a", None, "1"))
    with pytest.raises(UserError) as error:
        check_no_numbers(examples, ("no", "yes"))
    assert str(error.value) == (
        "d.csv, line 3: the label '1' is a number, but the labels of the training data are names, "
        "no, yes. Give the names in the order of their numbers with --label_names."
    )


def test_examples_without_a_gold_label(read, error_of):
    row = {"sentence1": "a b c", "sentence2": "d e f", "gold_label": "-"}
    text = rows(row, row | {"gold_label": "neutral", "label1": "x"})
    notes = []
    assert labels(read("t.jsonl", text, "pair", report=notes.append)) == ["neutral"]
    assert notes == ["note: t.jsonl: skipped 1 of 2 examples without a gold label (-)"]
    assert labels(read("t.jsonl", rows(row), "pair")) == ["-"]
    text = rows(row, row | {"gold_label": "+"})
    assert labels(read("t.jsonl", text, "pair")) == ["-", "+"]


def test_long_cells(read):
    text = "text,label\n" + "a " * 100_000 + ",x\n"
    (example,) = read("t.csv", text, "classify")
    assert len(example.text) == 200_000 and example.label == "x"


@pytest.mark.parametrize(
    ("path", "task", "expected"),
    [
        ("one_hot/jigsaw.csv", "multilabel", [(), ("toxic", "insult"), ("toxic", "obscene")]),
        ("list_cells/list.csv", "multilabel", [("battery", "positive"), ("screen",), ()]),
        ("float_labels/train.csv", "classify", ["1", "2", "3"]),
        ("float_labels/dev.csv", "classify", ["1", "2"]),
    ],
)
def test_the_cases(shared_cases, read, path, task, expected):
    assert labels(read("t.csv", (shared_cases / path).read_bytes(), task)) == expected


@pytest.mark.parametrize("cells", ['"[0, 1, 1]",x', '"[0. 1. 1.]",x', '"0,1,1",x', "0|1|1,x"])
def test_lists_of_0_and_1_in_cells(read, cells):
    notes, none = [], cells.replace("1", "0")
    text = f"labels,text\n{cells}\n{none}\n"
    assert labels(read("t.csv", text, "multilabel", report=notes.append)) == [("1", "2"), ()]
    assert notes == [
        "note: t.csv: each example has 0 or 1 for each label; the label ids are 0 to 2"
    ]


def test_lists_of_0_and_1_in_json(read, error_of):
    def file(*lists):
        return rows(*({"text": "a b", "labels": labels} for labels in lists))

    for one in (1, 1.0, True, "1"):
        zero = type(one)(0)
        text = file([one, one, zero], [zero, one, zero])
        assert labels(read("t.jsonl", text, "multilabel")) == [("0", "1"), ("1",)]
    assert labels(read("t.jsonl", file([0, 1], [1, 0]), "multilabel")) == [("1",), ("0",)]
    assert labels(read("t.jsonl", file([0, 1], [2, 0]), "multilabel")) == [("0", "1"), ("2", "0")]
    assert labels(read("t.jsonl", file(["a", "b", "a"]), "multilabel")) == [("a", "b")]
    for other in ([0, 1], [0, 1, 2], ["a"], []):
        message = error_of("t.jsonl", file([1, 1, 0], other), "multilabel")
        assert "t.jsonl, line 2: the labels are (" in message
        assert "have 3 values, 0 or 1 for each label." in message
    message = error_of("t.jsonl", file([0.5, 0.5, 0]), "multilabel")
    assert "line 1: the labels have 0.5 twice; a list with a number for each label must" in message


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('{"choices": ["Politics", "Sports"]}', ("Politics", "Sports")),
        ('{"toxic": 1, "insult": 0}', ("toxic",)),
        ("{'toxic': False, 'insult': True}", ("insult",)),
        ("(1, 4)", ("1", "4")),
        ("(1,)", ("1",)),
        ("{4, 1}", ("1", "4")),
        ("<java><android>", ("java", "android")),
        ("<c++>", ("c++",)),
        ("(other)", ("(other)",)),
    ],
)
def test_other_lists_in_cells(read, error_of, cell, expected):
    text = rows({"text": "a b", "labels": cell}, {"text": "c", "labels": "x"})
    assert labels(read("t.jsonl", text, "multilabel"))[0] == expected
    if cell not in ("<c++>", "(other)"):
        assert "is a list; lists need --task=multilabel" in error_of("t.jsonl", text, "classify")


@pytest.mark.parametrize("cell", ["array([1, 4])", "{toxic: 1}", "(a, b)"])
def test_labels_that_are_no_list(error_of, cell):
    text = rows({"text": "a b", "labels": cell}, {"text": "c", "labels": "x"})
    message = error_of("t.jsonl", text, "multilabel")
    assert "line 1: the labels must be a list such as ['a', 'b']; got" in message
    assert "is a list; lists need --task=multilabel" in error_of("t.jsonl", text, "classify")


def test_labels_in_an_object(read, error_of):
    text = rows({"text": "a b", "labels": {"toxic": 1, "insult": 0}})
    assert labels(read("t.jsonl", text, "multilabel")) == [("toxic",)]
    message = error_of("t.jsonl", text.replace("0", "0.2"), "multilabel")
    assert "the column 'insult' must be 0 or 1 (or false or true); got 0.2" in message


def test_answers_of_prodigy(read, error_of):
    row = {"text": "a b", "_input_hash": 7, "label": "x", "answer": "accept"}
    answers = ("accept", "reject", "accept", "ignore")
    text = rows(*(row | {"text": f"{answer} it", "answer": answer} for answer in answers))
    for task, label in (("classify", "x"), ("multilabel", ("x",))):
        notes = []
        examples = read("t.jsonl", text, task, report=notes.append)
        assert [(e.text, e.label) for e in examples] == [("accept it", label)] * 2
        assert "note: t.jsonl: examples whose answer is not 'accept' are skipped" in notes
    answered = read("t.jsonl", text, "classify", label_column="answer")
    assert labels(answered) == list(answers)
    del row["label"]
    options = [{"id": "POS", "text": "good"}, {"id": "NEG", "text": "bad"}]
    row |= {"options": options, "accept": ["POS"]}
    text = rows(row, row | {"answer": "reject"})
    assert labels(read("t.jsonl", text, "multilabel")) == [("POS",)]
    message = error_of("t.jsonl", text, "classify")
    assert "which column is the label; it has 'text', '_input_hash', 'options', 'accept'" in message


@pytest.mark.parametrize("value", ["", "-1", "2"])
def test_columns_of_nearly_0_and_1(error_of, value):
    text = TOXIC + TOXIC.partition("\n")[2] * 4
    message = error_of("t.csv", text.replace("1,0,1", f"1,{value},1", 1), "multilabel")
    expected = "t.csv, line 4: the column 'severe_toxic' must be 0 or 1 (or false or true); got "
    assert message.startswith(f"{expected}{value!r}.")


def test_numbers_of_inference(read):
    text = rows(*({"premise": "a b", "hypothesis": "c", "label": n} for n in (-1, 0, 2, 1)))
    notes = []
    assert labels(read("t.jsonl", text, "pair", report=notes.append)) == ["0", "2", "1"]
    assert notes == ["note: t.jsonl: skipped 1 of 4 examples without a gold label (-1)"]
    assert labels(read("t.jsonl", text.replace("2", "0"), "pair")) == ["-1", "0", "0", "1"]
