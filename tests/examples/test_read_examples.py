"""`kbert.read_examples`, several files in one split, and warnings."""

import pathlib

import pytest
from example_files import CONTEXT, rows, settings, squad_file

import kbert
from kbert.data.input_checks import check_inputs
from kbert.data.records import source_files
from kbert.tasks.example_checks import overlap_warning
from kbert.tasks.examples import SplitReader

FILMS = [f"film number {n} of the season" for n in range(12)]


def write(folder, **files):
    for name, text in files.items():
        pathlib.Path(folder, name.replace("_", ".")).write_text(text, encoding="utf-8")


def test_every_task(tmp_path):
    write(
        tmp_path,
        c_csv="comment,mood\n" + "".join(f"{film},{'ab'[n % 2]}\n" for n, film in enumerate(FILMS)),
        p_tsv="sentence1\tsentence2\tlabel\na b\tc d\t1\n",
        m_csv='said,"a, b",c\nso it is,1,0\n',
        t_conll="Paris\tB-LOC\n",
        h_csv="text,x,y,label\nso it is,no,yes,1\n",
        q_json=squad_file({"id": "1", "question": "who", "answers": []}),
    )
    example = kbert.read_examples(tmp_path / "c.csv", "classify")[0]
    assert (example.text, example.text_pair, example.label) == (FILMS[0], None, "a")
    flags = {"text_column": 1, "label_column": "0", "header": "no"}
    example = kbert.read_examples(str(tmp_path / "c.csv"), "classify", **flags)[0]
    assert (example.text, example.label) == ("mood", "comment")
    (example,) = kbert.read_examples(tmp_path / "p.tsv", "pair", label_names=["no", "yes"])
    assert (example.text, example.text_pair, example.label) == ("a b", "c d", "yes")
    (example,) = kbert.read_examples(tmp_path / "p.tsv", "regress")
    assert (example.text_pair, example.label) == ("c d", 1.0)
    (example,) = kbert.read_examples(tmp_path / "m.csv", "multilabel", label_columns=["a, b", "c"])
    assert (example.text, example.label) == ("so it is", ("a, b",))
    (example,) = kbert.read_examples(tmp_path / "t.conll", "tag")
    assert (example.words, example.tags) == (("Paris",), ("B-LOC",))
    (example,) = kbert.read_examples(
        tmp_path / "h.csv", "choice", choice_columns=["x", "y"], first_choice="0"
    )
    assert (example.choices, example.label) == (("no", "yes"), 1)
    (example,) = kbert.read_examples(tmp_path / "q.json", "qa")
    assert (example.question, example.context, example.answers) == ("who", CONTEXT, ())


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"task": "sort"}, "sort"),
        ({"header": "maybe"}, "header must be one of auto, yes, no; got 'maybe'."),
        ({"label_names": "x,y"}, "the label 'a' is not one of the 2 labels: x, y."),
        ({"task": "regress", "label_names": "x"}, "label_names must be None for the task regress"),
        ({"label_column": "x"}, "has no column 'x' (--label_column)"),
    ],
)
def test_errors(tmp_path, changed, problem):
    write(tmp_path, c_csv="text,label\nso it is,a\n")
    arguments = {"task": "classify"} | changed
    with pytest.raises(kbert.UserError) as error:
        kbert.read_examples(tmp_path / "c.csv", **arguments)
    assert problem in str(error.value)


def test_several_files(tmp_path):
    """Each has its own header; the order of columns may differ."""
    write(
        tmp_path,
        b_tsv="label\ttext\n1\tthird\n",
        a_tsv="text\tlabel\nfirst\t0\nsecond\t1\n",
        c_csv='text,label\n"fourth",0\n',
    )
    for source in (f"{tmp_path}/*.tsv", f"{tmp_path}/a.tsv, {tmp_path}/b.tsv"):
        examples = kbert.read_examples(source, "classify")
        expected = [("first", "0"), ("second", "1"), ("third", "1")]
        assert [(example.text, example.label) for example in examples] == expected
    assert len(kbert.read_examples(f"{tmp_path}/c.csv,{tmp_path}/*.tsv", "classify")) == 4
    (tmp_path / "a,[b].tsv").write_text("text\tlabel\nx\t0\n")
    assert len(kbert.read_examples(tmp_path / "a,[b].tsv", "classify")) == 1
    check_inputs([], [f"{tmp_path}/*.tsv", None, "sample:authors_train"])
    with pytest.raises(kbert.UserError, match=r"cannot read .*no.tsv: No such file"):
        check_inputs([], [f"{tmp_path}/a.tsv,{tmp_path}/no.tsv"])
    with pytest.raises(kbert.UserError, match=r"no file matches .*/\*\.jsonl\."):
        kbert.read_examples(f"{tmp_path}/*.jsonl", "classify")
    assert source_files("tfds:imdb_reviews:train[:10%]") == ["tfds:imdb_reviews:train[:10%]"]


def test_later_files_are_read_as_the_first(tmp_path):
    """The second file alone does not show what its columns are."""
    rows_of = "".join(f"{'ab'[n % 2]},{film}\n" for n, film in enumerate(FILMS))
    write(tmp_path, a_csv="mood,said\n" + rows_of, b_csv="mood,said\na,yes\nb,no\n")
    write(tmp_path, c_csv=rows_of, d_csv="a,no\nb,yes\n", e_csv="said,mood\nyes,a\n")
    with pytest.raises(kbert.UserError, match="it is not clear"):
        kbert.read_examples(tmp_path / "b.csv", "classify")
    reader = SplitReader(settings("classify"), report=lambda line: None)
    assert len(reader.read(f"{tmp_path}/a.csv")) == 12
    assert [(e.text, e.label) for e in reader.read(f"{tmp_path}/b.csv")] == [
        ("yes", "a"),
        ("no", "b"),
    ]
    reader = SplitReader(settings("classify"), report=lambda line: None)
    assert reader.read(f"{tmp_path}/c.csv")[0].text == FILMS[0]
    assert [(e.text, e.label) for e in reader.read(f"{tmp_path}/d.csv")] == [
        ("no", "a"),
        ("yes", "b"),
    ]


def warnings_of(text, task="classify", name="t.csv", folder=None):
    lines = []
    (folder / name).write_text(text)
    SplitReader(settings(task, header="yes"), report=lines.append).read(str(folder / name))
    return [line for line in lines if line.startswith("warning")]


def test_warnings(tmp_path):
    def table(columns):
        return "text,label\n" + "".join(f"{a},{b}\n" for a, b in columns)

    pairs = list(zip(FILMS, "ab" * 6, strict=True))
    assert warnings_of(table(pairs), folder=tmp_path) == []
    names = [f"label{n}" for n in range(8)] + list("aabb")
    assert warnings_of(table(zip(FILMS, names, strict=True)), folder=tmp_path) == [
        "warning: t.csv has 10 labels in 12 examples. Check --label_column."
    ]
    assert warnings_of(table([("headline", "kind"), *pairs]), folder=tmp_path) == [
        "warning: the label of the first example, 'kind', occurs only there. If the first row is "
        "a header, set --header=yes."
    ]
    assert warnings_of(table((f"id{n}", "ab"[n % 2]) for n in range(12)), folder=tmp_path) == [
        "warning: the texts of t.csv look like identifiers, such as 'id0'. Check --text_column."
    ]
    assert warnings_of(table(zip(FILMS, range(12), strict=True)), "regress", folder=tmp_path) == []


def test_texts_in_two_splits(tmp_path):
    write(tmp_path, a_jsonl=rows(*({"text": film, "label": "a"} for film in FILMS)))
    train = kbert.read_examples(tmp_path / "a.jsonl", "classify")
    write(
        tmp_path,
        b_jsonl=rows(*({"text": t, "label": "ab"[t in FILMS[:2]]} for t in [*FILMS[:3], "x y"])),
    )
    others = kbert.read_examples(tmp_path / "b.jsonl", "classify")
    assert overlap_warning(train, others, "b.jsonl") == (
        "warning: 3 of 4 examples of b.jsonl are in the training data, too, 2 of them with another "
        "label."
    )
    assert overlap_warning(train, others[3:], "b.jsonl") is None
