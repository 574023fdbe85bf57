"""Random tables: what is read is what was written, or the file is rejected."""

import csv
import io
import pathlib
import tempfile

from example_files import settings
from hypothesis import assume, given
from hypothesis import strategies as st
from profiles import fewer

from kbert.errors import UserError
from kbert.tasks.examples import read_split

WORDS = [
    "film",
    "great",
    "the",
    "Acting",
    "was",
    "so-so",
    "naïve",
    "天气",
    "很好",
    "100%",
    '"so"',
    "ok",
]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
HEADERS = {
    "text": ["text", "Review", "tweet", "utterance_raw", "what they said", "评论"],
    "label": ["label", "Sentiment", "stars", "mood", "my label", "类别"],
    "id": ["id", "", "no", "Unnamed: 0"],
    "other": ["user", "day", "source"],
}
LABELS = {
    "words": ["good", "bad", "so"],
    "numbers": ["1", "2", "5"],
    "decimals": ["1.0", "2.0"],
    "rare": ["good", "bad", "film", "so"],
}
OTHERS = [["al", "bo", "cy"], ["2024-01-02", "2024-01-03"], ["web", "app"]]


@st.composite
def tables(draw):
    """Returns a table's cells, whether it has a header, and its texts and labels."""
    size = draw(st.sampled_from([1, 2, 3, 5, 9, 20, 40]))
    texts = draw(st.lists(SENTENCES, min_size=size, max_size=size))
    names = LABELS[draw(st.sampled_from(sorted(LABELS)))]
    labels = draw(st.lists(st.sampled_from(names), min_size=size, max_size=size))
    columns = {"text": texts, "label": labels}
    if draw(st.booleans()):
        columns["id"] = [str(n) for n in range(size)]
    if draw(st.booleans()):
        other = draw(st.sampled_from(OTHERS))
        columns["other"] = draw(st.lists(st.sampled_from(other), min_size=size, max_size=size))
    order = draw(st.permutations(sorted(columns)))
    rows = [list(row) for row in zip(*(columns[name] for name in order), strict=True)]
    header = draw(st.booleans())
    if header:
        rows.insert(0, [draw(st.sampled_from(HEADERS[name])) for name in order])
    return rows, header, texts, labels


def written(rows, kind, quoting, line_end, mark):
    if kind == "tsv":
        text = "".join("\t".join(row) + line_end for row in rows)
    else:
        file = io.StringIO()
        csv.writer(file, quoting=quoting, lineterminator=line_end).writerows(rows)
        text = file.getvalue()
    return mark + text.encode()


@fewer(1)
@given(
    tables(),
    st.sampled_from(["tsv", "csv"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_tables_are_read_as_written_or_rejected(table, kind, quoting, line_end, mark):
    rows, _, texts, labels = table
    # A column of a tab-separated file in which all cells are in quotes is read as quoted.
    assume(kind == "csv" or any(text[0] != '"' or text[-1] != '"' for text in texts))
    labels = [label.removesuffix(".0") for label in labels]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"a.{kind}")
        path.write_bytes(written(rows, kind, quoting, line_end, mark))
        try:
            found = read_split(str(path), settings("classify"), report=lambda line: None)
        except UserError as error:
            assert "not clear" in str(error) or "repeats the header" in str(error), str(error)
            return
    assert [(e.text, e.label) for e in found] == list(zip(texts, labels, strict=True))
