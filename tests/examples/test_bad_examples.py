"""Examples and files that cannot be read: every message."""

import gzip

import pytest
from example_files import CONTEXT, rows, settings, squad_file

from kbert.data.examples import TagExample, read_label_names
from kbert.errors import UserError
from kbert.tasks.examples import read_split

HINT = "Fix it, or skip such lines with --skip_bad_lines."
FLAGS = {"text_column": "0", "label_column": "1"}
CHOICES = {"choice_columns": "1,2", "text_column": "0", "label_column": "3"}


@pytest.mark.parametrize(
    ("name", "task", "good", "bad", "flags", "problem"),
    [
        ("t.tsv", "classify", "a\t1", "b", {}, "the row has 1 column; the first row has 2"),
        ("t.tsv", "classify", "a\t1", "b\t0\tc", {}, "the row has 3 columns; the first row has 2"),
        ("t.tsv", "classify", "text\tlabel\tx\na\t1\t", "b\t0", {}, "2 columns; the first row has"),
        ("t.tsv", "classify", "a\t1\tx", "b", FLAGS, "1 column; 2 are needed"),
        ("t.tsv", "classify", "a\t1", " \t1", {}, "the text is empty"),
        ("t.tsv", "classify", "a\t1", "\nb\t1", {}, "the line is empty"),
        ("t.csv", "classify", "a,1", "\nb,1", {}, "the line is empty"),
        ("t.tsv", "classify", "a\t1", "b\t ", {}, "the label is empty"),
        ("t.tsv", "classify", "a\t1", b"b\xe5\t1", {}, "bytes that are not UTF-8"),
        ("t.csv", "classify", "a,1", b"b\xe5,1", {}, "bytes that are not UTF-8"),
        ("t.csv", "classify", "a,1", '"b"c,1', {}, "the row is not valid CSV: ',' expected"),
        ("t.tsv", "pair", "a\tb\t1", "a\t\t1", {}, "the second text is empty"),
        ("t.tsv", "regress", "a\t1", "a\t", {}, "the label is empty"),
        ("t.tsv", "regress", "a\t1", "a\t3,5", FLAGS, "the label must be a number; got '3,5'"),
        ("t.tsv", "regress", "a\t1", "a\tnan", FLAGS, "must be a finite number; got nan"),
        ("t.tsv", "regress", "a\t1", "a\t-inf", FLAGS, "must be a finite number; got -inf"),
        ("t.tsv", "multilabel", "text\tlabels\na\tx", "a\tx,,y", {}, "the label is empty"),
        ("t.tsv", "choice", "a\tb\tc\t0", "a\tb\t\t0", CHOICES, "choice 1 (from 0) is empty"),
        (
            "t.tsv",
            "choice",
            "a\tb\tc\t0\na\tb\tc\t0",
            "a\tb\tc\t2",
            CHOICES,
            "the label must be in [0, 1], or a letter; got '2'",
        ),
        ("t.conll", "tag", "a O\n", "a", {}, "the line has 1 column, the first line has 2"),
        ("t.conll", "tag", "a O\n", "a b O", {}, "the line has 3 columns, the first line has 2"),
        (
            "t.conll",
            "tag",
            "a O x\n",
            "a",
            {"label_column": "1"},
            "the line has 1 column; expected the word in column 0 and the tag in column 1",
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
    line = f"note: 1 of {len(found) + 1} examples of {name} is skipped; the first: {left_out}"
    assert [report for report in reports if "skipped" in report] == [line]


@pytest.mark.parametrize(
    ("task", "bad", "problem"),
    [
        ("classify", "{bad", "line 2: every line must be a JSON object; got '{bad'"),
        ("classify", "[1]", "line 2: every line must be a JSON object; got '[1]'"),
        ("classify", b'{"text": "\xe5"}', "line 2: bytes that are not UTF-8"),
        ("classify", {"text": "a"}, "line 2: there is no key 'label'; the keys are 'text'"),
        ("classify", {"text": None, "label": 1}, "line 2: the text must be a string; got None"),
        ("classify", {"text": "\ud800", "label": 1}, "line 2: the text has an unpaired surrogate"),
        ("classify", {"text": "a", "label": None}, "line 2: the label is empty"),
        ("classify", {"text": "a", "label": float("nan")}, "line 2: the label is empty"),
        (
            "classify",
            {"text": "a", "label": [1]},
            "the label must be a string or a number; got [1]",
        ),
        ("regress", {"text": "a", "label": True}, "the label must be a number; got True"),
        ("regress", {"text": "a", "label": float("nan")}, "finite number; got nan"),
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
        (["b", "c"], ["b", "c", "d"], "choice", "got 3 choices; the first example has 2"),
        (["b", "c"], ["b"], "choice", "there must be at least two choices; got 1"),
        (["b", "c"], ["b", 3], "choice", "choice 1 (from 0) must be a string; got 3"),
        (["b", "c"], "b", "choice", "there must be at least two choices; got 1"),
        (["O"], ["O", "O"], "tag", "1 word, but 2 tags"),
        (["O"], [], "tag", "there are no tags"),
        (["O"], [3.5], "tag", "tag 0 (from 0) must be a non-empty string; got 3.5"),
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
        ({"answers": [{"text": " ", "answer_start": 3}]}, "an answer is empty"),
        (
            {"answers": [{"text": "cat", "answer_start": 4.5}]},
            'an answer must have "text", a string, and optionally "answer_start", a whole number; '
            "got {'text': 'cat', 'answer_start': 4.5}",
        ),
        ({"answers": [], "is_impossible": False}, 'no answers, and "is_impossible" is false'),
        ({"answers": 4}, '"answers" must be a list; got 4'),
        ({"is_impossible": "maybe"}, "\"is_impossible\" must be true or false; got 'maybe'"),
        (
            {"answers": {"text": ["cat"], "answer_start": []}},
            '"text" and "answer_start" of "answers" must be lists of equal length',
        ),
        ({"id": "q0"}, "an earlier question has the same id, q0"),
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
    assert "question q1: there is no key 'answers'; the keys" in error_of("s.json", text, "qa")
    text = squad_file(3)
    problem = "s.json, question number 1: a question must be an object; got 3."
    assert problem in error_of("s.json", text, "qa")


def test_a_choice_of_thousands_of_digits(error_of):
    good = {"text": "a", "choices": ["b", "c"], "label": 0}
    text = rows(good, good | {"label": "1" * 5000})
    problem = "the label must be in [0, 1], or a letter; got '1111"
    assert problem in error_of("t.jsonl", text, "choice")


def test_what_is_said_of_bad_lines_is_one_short_line(tmp_path):
    text = rows({"text": "a", "label": 1}, {"long\n" * 9999: 1})
    (tmp_path / "t.jsonl").write_text(text)
    said = []
    read_split(
        str(tmp_path / "t.jsonl"), settings("classify", skip_bad_lines=True), True, said.append
    )
    (line,) = said
    assert line.startswith(
        "note: 1 of 2 examples of t.jsonl is skipped; the first: t.jsonl, line 2: "
    )
    assert line.isprintable() and len(line) <= 1000


def test_bad_lines_are_counted(read, error_of):
    text = "text\tlabel\n" + "a\t1\n" * 1500 + "\t1\nb\t\nc\t0\n"
    reports = []
    found = read("t.tsv", text, "classify", report=reports.append, skip_bad_lines=True)
    assert len(found) == 1501
    assert reports == [
        "note: 2 of 1,503 examples of t.tsv are skipped; the first: t.tsv, line 1502: the text is "
        "empty."
    ]
    message = error_of("t.tsv", "text\tlabel\na\t\n\t1\n", "classify", skip_bad_lines=True)
    assert "none of the 2 examples of " in message
    assert message.endswith("t.tsv is valid; the first: t.tsv, line 2: the label is empty.")


def test_a_bad_word_leaves_its_sentence_out(read):
    text = "a O\nb\nc\n\nd O\n"
    reports = []
    found = read("t.conll", text, "tag", report=reports.append, skip_bad_lines=True)
    assert found == [TagExample("t.conll, line 5", ("d",), ("O",))]
    assert reports[0].startswith("note: 1 of 2 examples of t.conll is skipped; the first: t.conll")
    assert reports[0].endswith("line 2: the line has 1 column, the first line has 2.")


# Bad files and flags


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("name", "text", "task", "problem"),
    [
        ("t.tsv", "", "classify", "t.tsv has no examples: it is empty."),
        ("t.tsv", "text\tlabel\n", "classify", "t.tsv has no examples."),
        ("t.conll", "\n\n", "tag", "t.conll has no examples."),
        (
            "t.jsonl",
            "\n",
            "classify",
            "t.jsonl has no line or item that is a JSON object; it is empty.",
        ),
        (
            "t.jsonl",
            "a b\n",
            "classify",
            "t.jsonl has no line or item that is a JSON object; the first one is invalid: every "
            "line must be a JSON object; got 'a b'.",
        ),
        (
            "t.json",
            '[{"text":',
            "tag",
            "t.json starts as a JSON list, but is not valid JSON: Expecting",
        ),
        (
            "t.json",
            "[1]",
            "tag",
            "the first one is invalid: every item must be a JSON object; got 1.",
        ),
        ("t.tsv", b"\xff\xfea\x00", "classify", "t.tsv is not UTF-8; the file looks like UTF-16."),
        (
            "t.tsv",
            b"a\x81\x8d\t1",
            "classify",
            "line 1: bytes that are not UTF-8. Save it as UTF-8",
        ),
        (
            "t.xlsx",
            "a",
            "classify",
            "must be a file that ends in .tsv, .txt, .csv, .json, .jsonl or .ndjson (optionally",
        ),
        ("t.tsv", "a", "qa", "must be a file that ends in .json, .jsonl or .ndjson (optionally"),
        ("s.json", "{", "qa", "s.json is not JSON: Expecting property name"),
        ("s.json", rows({"question": "?"}) * 2, "qa", "s.json, line 1: there is no key 'context'"),
        ("s.json", b'"\xff"', "qa", "s.json is not UTF-8"),
        ("s.json", "[]", "qa", "s.json has no examples."),
        ("s.json", '{"a": 3}', "qa", "s.json has no question at [0]: {'a': 3}. The file must have"),
        ("s.json", '{"data": [3]}', "qa", "s.json has no question at data[0]: 3."),
        ("s.json", '{"data": [{"qas": 3}]}', "qa", '"qas" of data[0] must be a list; got 3.'),
        ("s.json", '{"data": [{"paragraphs": [{}]}]}', "qa", "question at data[0].paragraphs[0]"),
        ("s.json", '{"data": []}', "qa", "s.json has no examples."),
    ],
)
def test_bad_files(error_of, name, text, task, problem, skip):
    assert problem in error_of(name, text, task, skip_bad_lines=skip)


def test_files_that_cannot_be_opened(tmp_path):
    def message(path):
        with pytest.raises(UserError) as error:
            read_split(path, settings("classify", skip_bad_lines=True))
        return str(error.value)

    assert message(tmp_path / "no.tsv") == (
        f"cannot read {tmp_path}/no.tsv: No such file or directory."
    )
    (tmp_path / "d.tsv").mkdir()
    assert (
        message(tmp_path / "d.tsv")
        == f"{tmp_path}/d.tsv is a folder. Give the path of a file in it."
    )
    packed = gzip.compress(b"text\tlabel\n" + b"".join(b"a%d\t1\n" % i for i in range(9999)))
    (tmp_path / "t.tsv.gz").write_bytes(packed[: len(packed) // 2])
    assert "t.tsv.gz: Compressed file ended before the end-of-stream" in message(
        tmp_path / "t.tsv.gz"
    )
    (tmp_path / "u.tsv.gz").write_bytes(b"a\t1\n")
    assert "u.tsv.gz: it is not a file in gzip format. If it is plain text, remove .gz" in message(
        tmp_path / "u.tsv.gz"
    )


@pytest.mark.parametrize(
    ("text", "task", "flags", "problem"),
    [
        (
            "x\tlabel\n2\t1\n",
            "classify",
            {},
            "t.tsv: it is not clear which column is the text; it has 'x', 'label'. Set "
            "--text_column; to read two texts, use --task=pair or add --text_pair_column.",
        ),
        (
            "text\tid\na\t1\n",
            "classify",
            {},
            "which column is the label; it has 'text', 'id'. Set --label_column.",
        ),
        (
            "text\tx\tlabel\na\t2\t1\n",
            "pair",
            {},
            "which column is the second text; it has 'text', 'x', 'label'. Set --text_pair_column.",
        ),
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
            "t.tsv is read without a header, so --label_column must be a number (0 is the first "
            "column, -1 the last); got 'x'. "
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
            "t.tsv has 1 column in its first row, but 2 are needed. Columns are separated by tabs",
        ),
        ("a\tb\n", "pair", {}, "t.tsv has 2 columns in its first row, but 3 are needed."),
        (
            "a b\tb\n",
            "classify",
            {"text_column": "1", "label_column": "1", "header": "no"},
            "two of text, second text, choices and label are the same column of t.tsv. Name a",
        ),
        (
            "a\tb\tc\t1\n",
            "choice",
            {},
            "t.tsv is read without a header, so the choice columns must be given by number: "
            "--choice_columns=1,2,3.",
        ),
        (
            "text\tx\tlabel\na\tb\t1\n",
            "choice",
            {},
            "t.tsv has no column whose name starts with choice or ending; it has 'text', 'x', "
            "'label'. Name the columns with --choice_columns.",
        ),
        ("a\t1\n", "tag", {"text_column": "x"}, "--text_column must be a number for a file wi"),
        (
            "rating\tstars\na\t1\n",
            "regress",
            {"header": "no", "label_column": "1"},
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
    assert message.startswith("t.jsonl has no column named tags, ner_tags, labels, ner, tag")
    flags = {"label_column": "text", "text_column": "text"}
    message = error_of("t.jsonl", text, "classify", **flags)
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
        ("", "--label_names= has no label names. Add names, separated by commas or line breaks."),
        ("a,,b", "--label_names=a,,b: label 1 (from 0) is empty."),
        ("a,b,a", "--label_names=a,b,a: 'a' appears twice, as labels 0 and 2."),
        ("data/names", "--label_names: there is no file data/names."),
        ("names.txt", "--label_names: there is no file names.txt."),
    ],
)
def test_bad_label_names(text, problem):
    with pytest.raises(UserError) as error:
        read_label_names(text)
    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\n", "names has no label names. Add names"),
        (b"a\n\nb\n", "names: label 1 (from 0) is empty."),
        (b"a\nb\nb\n", "names: 'b' appears twice, as labels 1 and 2."),
        (b"a\nd\xe5\n", "names is not UTF-8; the file looks like Windows-1252"),
    ],
)
def test_bad_files_of_label_names(tmp_path, content, problem):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_label_names(str(tmp_path / "names"))
    assert problem in str(error.value)
