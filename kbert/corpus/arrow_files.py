"""Reads Parquet files, Arrow files, and folders of Hugging Face `datasets`, with pyarrow."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from kbert.errors import UserError
from kbert.utils import storage
from kbert.utils.encodings import is_utf8
from kbert.utils.formats import read_json, require_keys

if TYPE_CHECKING:
    import pyarrow as pa

Row: TypeAlias = Mapping[str, object]
_SUFFIXES = (".parquet", ".arrow", ".feather")
_PARQUET, _ARROW = b"PAR1", b"ARROW1"  # first bytes; Arrow streams have no signature
_ROWS = 1024  # number of rows converted to Python objects at a time
_BUFFER_BYTES = 1 << 20  # buffer per Parquet column; by default pyarrow reads whole row groups


def is_arrow_file(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file is a Parquet or Arrow file, by its name or, if local, its content."""
    if str(path).lower().endswith(_SUFFIXES):
        return True
    if storage.is_remote(path) or not os.path.isfile(path):
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(6).startswith((_PARQUET, _ARROW))
    return False


def dataset_files(source: str) -> list[str] | None:
    """Returns the files of a local folder of Hugging Face `datasets`; None for other sources.

    Args:
        source: FOLDER or FOLDER:SPLIT; the folder was written by `save_to_disk`, or has Parquet or
            Arrow files named like SPLIT-00000-of-00001.parquet, as on the Hugging Face hub. If
            there are several splits, the default is "train".
    """
    folder, split = source, None
    if not os.path.exists(source):
        folder, _, split = source.rpartition(":")
    if not os.path.isdir(folder):
        return None
    path = os.path.join(folder, "dataset_dict.json")
    if os.path.exists(path):
        splits = {str(name): os.path.join(folder, str(name)) for name in _read_list(path, "splits")}
        return _saved_files(_select_split(folder, split, splits))
    if os.path.exists(os.path.join(folder, "state.json")):
        if split is not None:
            raise UserError(f"{folder} has no splits. Omit :{split}.")
        return _saved_files(folder)
    splits = _splits_by_file_name(folder)
    return _select_split(folder, split, splits) if splits else None


def _select_split(folder, split, splits):
    name = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if name not in splits:
        raise UserError(
            f"{folder} has {f'no split {name!r}; it has' if split else 'several splits:'} "
            f"{', '.join(splits)}. Choose one, for example {folder}:{next(iter(splits))}."
        )
    return splits[name]


def _saved_files(folder):
    """Returns the paths of the files of a split that `save_to_disk` wrote."""
    path = os.path.join(folder, "state.json")
    if read_json(path).get("_indices_data_files"):
        raise UserError(
            f"{folder} has an indices mapping. Save the dataset again after flatten_indices()."
        )
    names = [require_keys(file, ["filename"], path)[0] for file in _read_list(path, "_data_files")]
    return [os.path.join(folder, str(name)) for name in names]


def _read_list(path, key):
    """Returns the list under a key of a JSON file; raises UserError if it is empty or no list."""
    (values,) = require_keys(read_json(path), [key], path)
    if not isinstance(values, list) or not values:
        raise UserError(f"{path} must have a non-empty list under {key!r}; got {str(values)[:60]}.")
    return values


def _splits_by_file_name(folder):
    """Returns a dict of split -> paths of the files in a folder and in its subfolder `data`."""
    splits = {}
    for parent in (folder, os.path.join(folder, "data")):
        for name in storage.list_folder(parent):
            if name.lower().endswith(_SUFFIXES):
                stem = re.sub(r"-\d+-of-\d+$", "", os.path.splitext(name)[0])
                splits.setdefault(stem.rpartition("-")[2], []).append(os.path.join(parent, name))
    return splits


def column_names(path: str) -> tuple[str, ...]:
    """Returns the names of the columns of a Parquet or Arrow file."""
    with _open_arrow(path) as (schema, _):
        return tuple(schema.names)


def read_rows(path: str, column: str | None = None) -> Iterator[Row | None]:
    """Yields the rows of a Parquet or Arrow file as dicts; None for rows with invalid UTF-8.

    The numbers of a `datasets.ClassLabel` become names (None for -1), and binary values that are
    UTF-8 become str. Only one record batch of an Arrow file, or 1,024 rows and the buffers of a
    Parquet file, are in memory at a time.
    """
    with _open_arrow(path) as (schema, batches):
        features = _features(schema)
        for batch in batches([column] if column else schema.names):
            for start in range(0, len(batch), _ROWS):
                yield from _python_rows(batch.slice(start, _ROWS), features)


def _features(schema):
    """Returns the features that `datasets` stores in a schema, by column name; {} without them."""
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (TypeError, KeyError, ValueError, RecursionError):
        return {}


def _python_rows(batch, features):
    try:
        columns = {
            name: [
                _label_ids_to_names(value, features.get(name)) for value in _python_values(column)
            ]
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        return [{name: columns[name][i] for name in columns} for i in range(len(batch))]
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
        return [row for i in range(len(batch)) for row in _python_rows(batch.slice(i, 1), features)]


def _python_values(column):
    """Returns the values of a column, or its type in every row if Python cannot hold its times."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):  # nanoseconds, or a year after 9999
        return [column.type] * len(column)


def _label_ids_to_names(value, feature):
    """Replaces label ids with names, and UTF-8 bytes with str; `feature` describes the column."""
    if isinstance(value, bytes):  # text written by Spark, or other data, such as an image
        return value.decode("utf-8") if is_utf8(value) else value
    if isinstance(feature, list):
        feature = {"feature": feature[0]}
    feature = feature or {}
    if not isinstance(value, int | list | dict):
        return value
    names, inner = feature.get("names"), feature.get("feature", feature)
    if isinstance(value, list):
        return [_label_ids_to_names(part, inner) for part in value]
    if isinstance(value, dict):
        return {key: _label_ids_to_names(part, inner.get(key)) for key, part in value.items()}
    if feature.get("_type") == "ClassLabel" and names:
        return names[value] if 0 <= value < len(names) else None  # -1: unlabeled
    return value


@contextlib.contextmanager
def _open_arrow(path) -> "Iterator[tuple[pa.Schema, Any]]":
    """Yields the schema, and a function from column names to an iterator of record batches."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow: pip install 'kbert[parquet]'") from None
    try:
        with storage.open_stream(path) as file:
            first = file.peek(6)[:6]
            if first.startswith(_PARQUET):
                reader = parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
                yield reader.schema_arrow, lambda names: reader.iter_batches(_ROWS, columns=names)
            elif first == _ARROW:
                reader = pa.ipc.open_file(file)
                batches = map(reader.get_batch, range(reader.num_record_batches))
                yield reader.schema, lambda names: _validated_batches(batches, names)
            else:
                reader = pa.ipc.open_stream(file)
                yield reader.schema, lambda names: _validated_batches(reader, names)
    except (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "a size in it is too large"
        raise UserError(f"cannot read {path}: {' '.join(reason.split()).rstrip('.')}.") from error


def _validated_batches(batches, names):
    """Selects columns and validates each batch, because pyarrow crashes on damaged ones."""
    for batch in batches:
        batch = batch.select(names)
        batch.validate(full=True)
        yield batch
