"""Examples in tables, JSON lines, CoNLL and questions: every format spelled out."""

import pytest
from example_files import rows

from kbert.data.examples import ChoiceExample, TagExample, TextExample
from kbert.errors import UserError

pytestmark = pytest.mark.smoke


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
    with pytest.raises(UserError, match=r"quote opened on line 2 is not closed. Close it"):
        read("t.csv", 'a,1\n"b,1\nc,1\nd,1\n', "classify", skip_bad_lines=skip)


def test_quotes_of_csv(read):
    """The line of an example is the one it starts in."""
    text = 'label,text\r\n0,"a, ""b""\r\nc"\r\n1,d 5" e\r\n'
    assert read("t.csv", text, "classify") == [
        TextExample("t.csv, line 2", 'a, "b"\nc', None, "0"),
        TextExample("t.csv, line 4", 'd 5" e', None, "1"),
    ]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_of_csv(read, separator):
    rows = ["text,label", '"good, really","pos"', "bad,neg", "a,neg"]
    rows = [row.replace(",", separator).replace(f"{separator} ", ", ") for row in rows]
    notes = []
    found = read("t.csv", "\n".join(rows), "classify", report=notes.append)
    assert [(e.text, e.label) for e in found] == [
        ("good, really", "pos"),
        ("bad", "neg"),
        ("a", "neg"),
    ]
    assert notes == [f"note: t.csv: the columns are separated by {separator!r}"]


def test_tabs_with_the_quotes_of_csv(read):
    """As pandas writes them; a text in quotes alone says nothing."""
    text = 'text\tlabel\n"a ""b""\nc"\t1\nd\t0\n'
    notes = []
    found = read("t.tsv", text, "classify", report=notes.append)
    assert [(e.text, e.label) for e in found] == [('a "b"\nc', "1"), ("d", "0")]
    assert notes == ["note: t.tsv: the cells are quoted as in CSV"]
    found = read("t.tsv", '"text"\t"label"\n"a"\t"1"\n"b"\t"0"\n', "classify")
    assert [(e.text, e.label) for e in found] == [("a", "1"), ("b", "0")]
    found = read("t.tsv", 'text\tlabel\n"a"\t1\n"b"\t0\n', "classify")
    assert [(e.text, e.label) for e in found] == [("a", "1"), ("b", "0")]
    found = read("t.tsv", '1.0\tfilm\n1.0\t"so"\n', "classify")  # no header
    assert [(e.text, e.label) for e in found] == [("film", "1"), ('"so"', "1")]
    for text in ('"well"\t1\nb\t0\n', '"a ""b\t1\n"c""\t0\n', 'a ""b""\t1\nc\t0\n'):
        rows = [line.split("\t") for line in text.splitlines()]
        found = read("t.tsv", "text\tlabel\n" + text, "classify")
        assert [[e.text, e.label] for e in found] == rows


@pytest.mark.parametrize(
    ("header", "row", "task", "expected"),
    [
        ("index\tquestion\tsentence\tlabel", "0\tq\ts\t1", "pair", ("q", "s", "1")),  # QNLI
        ("id\tlabel\ttext\thypothesis", "0\t1\tt\th", "pair", ("t", "h", "1")),
        ("Quality\t#1 ID\t#1 String\t#2 String", "1\t9\ta\tb", "pair", ("a", "b", "1")),
        ("premise\thypothesis\tclass", "p\th\tx", "pair", ("p", "h", "x")),
        ("sentence1\tsentence2\tscore", "a\tb\t2.5", "regress", ("a", "b", 2.5)),
        ("review\tscore", "a\t-3", "regress", ("a", None, -3.0)),
        ("title\tcategory\tid", "a\tb\t1", "classify", ("a", None, "b")),
        ("text\ttitle\tcategory", "a\tb\t1", "classify", ("a", None, "1")),
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
    columns = {"text_column": "0", "label_column": "1"}
    found = read("t.tsv", text, "classify", header="no", **columns)
    assert [(e.text, e.label) for e in found] == [("text", "label"), ("a", "b")]
    found = read(
        "t.tsv", "foo\tbar\na\tb\n", "classify", header="yes", text_column="1", label_column="0"
    )
    assert [(e.text, e.label) for e in found] == [("b", "a")]


def test_pair_without_header(read):
    expected = [TextExample("t.tsv, line 1", "a b", "c d", "1")]
    assert read("t.tsv", "a b\tc d\t1\n", "pair") == expected


def test_cells_that_nobody_asked_for(read):
    """STS-B: licence columns at the end of some rows."""
    text = "g\t5.0\ta\tb\ng\t2\tc\td\tlicence\tmore\n"
    flags = {"text_column": "2", "text_pair_column": "3", "label_column": "1"}
    found = read("t.tsv", text, "regress", **flags)
    assert [(e.text, e.text_pair, e.label) for e in found] == [("a", "b", 5.0), ("c", "d", 2.0)]


def test_several_labels(read):
    text = "text\tlabels\na\tx,y\nb\t\nc\ty|x, z|y\n"
    assert [e.label for e in read("t.tsv", text, "multilabel")] == [
        ("x", "y"),
        (),
        ("y", "x, z"),
    ]


@pytest.mark.parametrize("task", ["classify", "pair", "regress", "multilabel"])
def test_without_labels(read, task):
    flags = {"text_column": "0", "header": "no"}
    flags |= {"text_pair_column": "1"} if task == "pair" else {}
    found = read("t.tsv", "a\tb\nc\td\tmore\n", task, labeled=False, **flags)
    pairs = ("b", "d") if task == "pair" else (None, None)
    assert found == [
        TextExample("t.tsv, line 1", "a", pairs[0]),
        TextExample("t.tsv, line 2", "c", pairs[1]),
    ]


def test_one_column_without_labels(read):
    found = read("t.txt", "text\na b\n", "classify", labeled=False)
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
    flags = {"choice_columns": "2, 3,1", "first_choice": "0"}
    assert read("t.tsv", text, "choice", **flags) == [ChoiceExample("t.tsv, line 1", *expected)]
    text = f"sent\tx\ty\tz\tlabel\na\tb\tc\td\t{label}\n"
    flags |= {"text_column": "sent", "choice_columns": "y,z,x"}
    assert read("t.tsv", text, "choice", **flags) == [ChoiceExample("t.tsv, line 2", *expected)]
    found = read("t.tsv", text, "choice", labeled=False, **flags)
    assert found == [ChoiceExample("t.tsv, line 2", "a", ("c", "d", "b"))]


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
    found = read("t.conll", "a\nb\tX\nc d e\n\nf", "tag", labeled=False)
    assert [(e.words, e.tags) for e in found] == [(("a", "b", "c"), None), (("f",), None)]
    found = read("t.conll", "天\n\u3000\n好\n\t \n", "tag", labeled=False)
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
    assert found == [TagExample("t.conllu, line 1", ("3-4", "# 5"), ("B-X", "O"))]


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
    found = read("t.json", text, "tag", labeled=False, text_column=keys[0].upper())
    assert found[0] == TagExample("t.json, line 1", ("a", "b"))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_commas_of_numbers_do_not_separate(read, error_of, separator):
    rows = ["what a lovely film it is;4,5", "a dull film for a dull day;1,0"]
    text = "\n".join(rows * 4).replace(";", separator) + "\n"
    found = read("t.csv", text, "classify")
    assert [(e.text, e.label) for e in found[:2]] == [tuple(row.split(";")) for row in rows]
    assert "it is not clear which column is the label" in error_of("t.csv", text, "regress")
    text = f"text{separator}score\n{text}"
    message = error_of("t.csv", text, "regress")
    assert "the label must be a number; got '4,5'" in message


def test_spaces_before_quotes(read):
    text = 'text, label\n"a, ""b""", "pos"\n"c", "neg"\n'
    found = read("t.csv", text, "classify")
    assert [(e.text, e.label) for e in found] == [('a, "b"', "pos"), ("c", "neg")]
    found = read("t.csv", 'label,text\n1,a "b"\n0,"a, ""b"""\n', "classify")
    assert [(e.text, e.label) for e in found] == [('a "b"', "1"), ('a, "b"', "0")]
    found = read("t.csv", 'label,text\n1, "b" is a letter\n', "classify")
    assert [(e.text, e.label) for e in found] == [(' "b" is a letter', "1")]


def test_bytes_as_text(error_of):
    for cell in ("b'great'", 'b""it\'s""'):
        message = error_of("t.csv", f'text,label\n"{cell}",1\n', "classify")
        assert "line 2: the text is a bytes object that str() converted in Python: " in message


def test_commas_and_tabs_that_give_the_same_columns(read, error_of):
    text = "Lima, a dull film\tneg\nRome, a fine film\tpos\n" * 2
    message = error_of("t.csv", text, "classify")
    assert (
        "t.csv: it is not clear which of ',', '\\t' separates the columns. Quote cells" in message
    )
    assert read("t.tsv", text, "classify")[0].text == "Lima, a dull film"


def test_a_column_of_decimal_commas(error_of):
    rows = ["2021;a very good film;4,0", "2019;a dull film, at that;2,5"]
    text = "jahr;satz;bewertung\n" + "\n".join(rows * 4)
    message = error_of("t.csv", text, "regress", header="yes")
    assert "it is not clear which column is the label; it has 'jahr', 'satz'" in message
    message = error_of("t.csv", text, "regress", label_column="bewertung")
    assert "the label must be a number; got '4,0'" in message
