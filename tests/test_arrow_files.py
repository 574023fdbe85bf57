"""Parquet and Arrow files and folders of Hugging Face datasets: as examples and as text."""

import contextlib
import gzip
import json
import random
import sys
import types

import pytest

from kbert.corpus.arrow_files import column_names, dataset_files, read_rows
from kbert.corpus.text_sources import Texts, find_inputs, split_into_pieces
from kbert.data.examples import Answer, QuestionExample, TagExample
from kbert.data.input_checks import check_inputs
from kbert.errors import UserError
from kbert.tasks.examples import read_split

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

ROWS = [{"text": "天 a", "label": 1}, {"text": "b", "label": 0}, {"text": "c\n\nd", "label": 1}]
FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["no", "ja"], "_type": "ClassLabel"},
}


def settings(task, **changed):
    names = (
        "text_column",
        "text_pair_column",
        "label_column",
        "label_columns",
        "choice_columns",
        "labels",
    )
    fields = dict.fromkeys(names) | {"header": "auto", "skip_bad_lines": False}
    return types.SimpleNamespace(task=task, **fields | changed)


def table_of(rows, features=None):
    """As the library `datasets` makes it: the names of labels are in the schema."""
    table = pa.Table.from_pylist(rows)
    if features:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    return table


def save_to_disk(folder, rows, features=FEATURES, shards=2):
    """Writes a folder as `Dataset.save_to_disk` does: Arrow streams, and JSON beside them."""
    folder.mkdir(parents=True)
    table, names = table_of(rows, features), []
    size = -(-len(rows) // shards)
    for i in range(shards):
        names.append(f"data-{i:05d}-of-{shards:05d}.arrow")
        with pa.ipc.new_stream(folder / names[-1], table.schema) as writer:
            writer.write_table(table.slice(i * size, size), max_chunksize=1)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state | {"_fingerprint": "0", "_format": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def save_dict(folder, **splits):
    for name, rows in splits.items():
        save_to_disk(folder / name, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def error_of(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def texts_of(source):
    return list(Texts(find_inputs(str(source))))


def labels_of(source, task="classify", **changed):
    return [(e.text, e.label) for e in read_split(str(source), settings(task, **changed))]


EXPECTED = [("天 a", "ja"), ("b", "no"), ("c\n\nd", "ja")]
LINES = ["天 a", "", "b", "", "c", "d", ""]


def test_a_parquet_file_equals_json_lines(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(table_of(ROWS), path, row_group_size=2)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = labels_of(path)
    assert found == labels_of(tmp_path / "t.jsonl") == [(r["text"], str(r["label"])) for r in ROWS]
    assert texts_of(path) == texts_of(tmp_path / "t.jsonl") == LINES
    assert read_split(str(path), settings("classify"))[1].where == "t.parquet, row 2"
    found = split_into_pieces([str(path)], 10)
    assert [(piece.begin, piece.end, piece.format) for piece in found] == [(0, None, "arrow")]


def test_names_of_labels(tmp_path):
    parquet.write_table(table_of(ROWS, FEATURES), tmp_path / "t.parquet")
    assert labels_of(tmp_path / "t.parquet") == EXPECTED
    damaged = table_of(ROWS).replace_schema_metadata({"huggingface": '{"info": [}'})
    parquet.write_table(damaged, tmp_path / "t.parquet")
    assert labels_of(tmp_path / "t.parquet")[1] == ("b", "0")
    rows = [{"text": "a", "label": -1}, {"text": "b", "label": None}]
    parquet.write_table(table_of(rows, FEATURES), tmp_path / "t.parquet")
    assert [row["label"] for row in read_rows(str(tmp_path / "t.parquet"))] == [None, None]
    assert "t.parquet, row 1: the label is empty" in error_of(labels_of, tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["t", "t.csv", "t.feather", "t.parquet"])
def test_the_content_decides_on_the_kind(tmp_path, name):
    table = table_of(ROWS, FEATURES)
    with pa.ipc.new_file(tmp_path / name, table.schema) as writer:
        writer.write_table(table)
    assert labels_of(tmp_path / name) == EXPECTED and texts_of(tmp_path / name) == LINES
    parquet.write_table(table, tmp_path / name)
    assert labels_of(tmp_path / name) == EXPECTED and texts_of(tmp_path / name) == LINES


def test_saved_datasets(tmp_path):
    folder = save_to_disk(tmp_path / "d", ROWS)
    assert labels_of(folder) == EXPECTED and texts_of(folder) == LINES
    assert labels_of(f"{folder}/") == EXPECTED
    assert error_of(labels_of, f"{folder}:test") == f"{folder} has no splits. Omit :test."
    both = save_dict(tmp_path / "both", train=ROWS, validation=ROWS[:1])
    assert labels_of(both) == labels_of(f"{both}:train") == EXPECTED
    assert labels_of(f"{both}:validation") == EXPECTED[:1]
    assert read_split(f"{both}:train", settings("classify"))[2].where == "both:train, row 3"
    assert texts_of(f"{both}:validation, {folder}") == LINES[:2] + LINES
    check_inputs([], [str(both), f"{both}:validation", str(folder)])
    assert error_of(labels_of, f"{both}:test") == (
        f"{both} has no split 'test'; it has train, validation. Choose one, for example "
        f"{both}:train."
    )
    alone = save_dict(tmp_path / "alone", test=ROWS)
    assert labels_of(alone) == EXPECTED
    several = save_dict(tmp_path / "several", dev=ROWS, test=ROWS)
    assert "has several splits: dev, test. Choose one" in error_of(labels_of, several)


def test_damaged_datasets(tmp_path):
    folder = save_to_disk(tmp_path / "d", ROWS)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{}]}))
    assert "has an indices mapping. Save the dataset again after flatten_indices()" in error_of(
        labels_of, folder
    )
    (folder / "state.json").write_text("{}")
    assert error_of(labels_of, folder) == f"{folder}/state.json lacks '_data_files'."
    (folder / "state.json").write_text('{"_data_files": []}')
    assert "must have a non-empty list under '_data_files'; got []." in error_of(labels_of, folder)
    (folder / "dataset_dict.json").write_text('{"splits": 3}')
    assert "must have a non-empty list under 'splits'; got 3." in error_of(labels_of, folder)
    (folder / "dataset_dict.json").unlink()
    (folder / "state.json").write_text(json.dumps(state))
    path = folder / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:-80])
    assert error_of(labels_of, folder).startswith(f"cannot read {path}: ")
    path.unlink()
    assert error_of(labels_of, folder) == f"cannot read {path}: No such file or directory."


def test_folders_of_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    for name, rows in (("train-00000-of-00002", ROWS[:2]), ("train-00001-of-00002", ROWS[2:])):
        parquet.write_table(table_of(rows, FEATURES), tmp_path / "data" / f"{name}.parquet")
    parquet.write_table(table_of(ROWS[:1]), tmp_path / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "README.md").touch()
    assert labels_of(tmp_path) == EXPECTED
    assert labels_of(f"{tmp_path}:test") == [("天 a", "1")]
    assert [path[-28:] for path in dataset_files(str(tmp_path))] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert dataset_files(f"{tmp_path}/data:test")[0].endswith("data/test-00000-of-00001.parquet")
    cache = tmp_path / "cache"  # as the library keeps downloaded datasets
    cache.mkdir()
    for name, rows in (("imdb-train", ROWS), ("imdb-test-00000-of-00001", ROWS[1:])):
        parquet.write_table(table_of(rows, FEATURES), cache / f"{name}.arrow")
    assert labels_of(cache) == EXPECTED and labels_of(f"{cache}:test") == EXPECTED[1:]
    (tmp_path / "none").mkdir()
    assert dataset_files(f"{tmp_path}/none") is None and dataset_files("t:x") is None
    assert "is a folder. Give its files" in error_of(find_inputs, f"{tmp_path}/none")


def test_tags_and_questions(tmp_path):
    ner = {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "Sequence"}
    for feature in (ner, ner | {"_type": "List"}, [ner["feature"]]):
        table = table_of([{"tokens": ["a", "b"], "ner_tags": [1, 0]}], {"ner_tags": feature})
        parquet.write_table(table, tmp_path / "t.parquet")
        found = read_split(str(tmp_path / "t.parquet"), settings("tag"))
        assert found == [TagExample("t.parquet, row 1", ("a", "b"), ("B-X", "O"))]
    answers = {"text": ["cat"], "answer_start": [4]}
    row = {"id": "q", "question": "?", "context": "the cat", "answers": answers}
    folder = save_to_disk(tmp_path / "q", [row], {"id": {"_type": "Value"}}, shards=1)
    assert read_split(str(folder), settings("qa")) == [
        QuestionExample(
            "q, row 1 (question q)",
            "q",
            "?",
            "the cat",
            (Answer("cat", 4),),
        )
    ]


def test_other_types_of_columns(tmp_path):
    """Categories of pandas, bytes of Spark, strings with large offsets."""
    columns = {
        "text": pa.array(["a", "b"], pa.large_string()),
        "label": pa.array(["x", "y"]).dictionary_encode(),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert labels_of(tmp_path / "t.parquet") == [("a", "x"), ("b", "y")]
    binary = {"text": pa.array(["é\n\nb".encode(), b"\xff"], pa.binary()), "label": [1, 2]}
    parquet.write_table(pa.table(binary), tmp_path / "b.parquet")
    assert labels_of(tmp_path / "b.parquet", skip_bad_lines=True) == [("é\n\nb", "1")]
    assert "b.parquet, row 2: bytes that are not UTF-8" in error_of(
        texts_of, tmp_path / "b.parquet"
    )


def test_unused_columns_of_other_types(tmp_path):
    """Times with nanoseconds, far dates, and images do not matter beside text and label."""
    nanoseconds = pa.array([1, None], pa.timestamp("ns"))
    columns = {
        "text": ["It rained.", "It snowed."],
        "label": ["x", "y"],
        "time": nanoseconds,
        "far": pa.array([1 << 60, 0], pa.timestamp("ms")),
        "duration": pa.array([10**18, 1], pa.duration("s")),
        "parts": pa.StructArray.from_arrays([nanoseconds], ["time"]),
        "image": pa.array([b"\xff\xd8", b"\x89PNG"], pa.binary()),
        "picture": [{"bytes": b"\xff\xd8", "path": None}, {"bytes": None, "path": "x"}],
    }
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table(columns), path)
    assert labels_of(path) == [("It rained.", "x"), ("It snowed.", "y")]
    assert texts_of(path) == ["It rained.", "", "It snowed.", ""]
    message = error_of(lambda: labels_of(path, text_column="image"))
    assert "row 1: the text must be a string; got b'\\xff\\xd8'" in message
    message = error_of(lambda: labels_of(path, label_column="time"))
    assert "the label must be a string or a number; got TimestampType(timestamp[ns])" in message


def test_rows_that_cannot_be_used(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")],
    )
    path = str(tmp_path / "t.parquet")
    parquet.write_table(pa.table({"text": bad, "label": ["x", "y", "z"]}), path)
    assert labels_of(path, skip_bad_lines=True) == [("a", "x"), ("c", "z")]
    assert "t.parquet, row 2: bytes that are not UTF-8. Fix it" in error_of(labels_of, path)
    assert list(Texts([path], skip_bad_lines=True)) == ["a", "", "c", ""]
    assert f"{path}, row 2: bytes that are not UTF-8. Fix it" in error_of(texts_of, path)
    parquet.write_table(pa.table({"text": ["a", None]}), path)
    assert f'{path}, row 2: "text" must be a string; got None. Fix' in error_of(texts_of, path)
    parquet.write_table(pa.table({"body": ["a"], "id": ["b"]}), path)
    assert error_of(texts_of, path) == (
        f'{path}: no key or column is named "text", "content" or "raw_content"; got '
        f"'body', 'id'."
    )


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_changed_bytes(tmp_path, kind):
    """A damaged file is read or an error; pyarrow alone would crash on some."""
    table, path = table_of(ROWS * 9, FEATURES), tmp_path / "t.arrow"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(path, table.schema) as w:
            w.write_table(table)
    whole, generator = path.read_bytes(), random.Random(0)
    for _ in range(50):
        data = bytearray(whole)
        for _ in range(generator.randrange(1, 5)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            list(read_rows(str(path)))


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    parquet.write_table(table_of(ROWS), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert error_of(column_names, str(path)).startswith(f"cannot read {path}: ")
    path.write_bytes(b"text\nno parquet\n")
    assert error_of(labels_of, path).startswith(f"cannot read {path}: ")
    assert "cannot read no.parquet: No such file" in error_of(check_inputs, [], ["no.parquet"])
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(whole))
    assert "t.csv.gz is a Parquet file, not text." in error_of(labels_of, packed)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert error_of(labels_of, path) == f"{path} needs pyarrow: pip install 'kbert[parquet]'"
