"""Finds training text in files and TFDS, splits files into pieces and reads their lines.

Every source yields lines (bytes, without line endings); an empty line ends a document. The readers
of the file formats are in `kbert.corpus.text_formats`.
"""

import concurrent.futures
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kbert.corpus.arrow_files import dataset_files
from kbert.corpus.text_formats import READERS, detect_format, document_lines, read_arrow
from kbert.errors import UserError
from kbert.utils import input_files, storage

if TYPE_CHECKING:
    import tensorflow as tf

# Text that is part of the package; sample/README.md describes it.
_SAMPLE_FOLDER = pathlib.Path(__file__).parent / "sample"
SAMPLES = {f"sample:{name}": _SAMPLE_FOLDER / f"{name}.txt.gz" for name in ("train", "heldout")}

PIECE_BYTES = 64 << 20  # approximate size of the pieces of uncompressed files
_TFDS_BYTES = 8 << 20  # assumed size of a TFDS dataset
_FILES_AT_ONCE = 16  # checking a remote file takes tens of milliseconds


@dataclasses.dataclass(frozen=True)
class TextPiece:
    """A part of the input that one process reads.

    A document belongs to the piece in which it starts, so each document is read exactly once.
    """

    path: str  # a file, or tfds:NAME
    begin: int = 0  # offset of the first byte
    end: int | None = None  # offset of the first byte after the piece; None at the end of the file
    size: int = 0  # in bytes; an estimate for TFDS
    format: str | None = None  # result of `detect_format`; None: detected when the piece is read


def find_inputs(patterns: str) -> list[str]:
    """Returns the files and `tfds:` names that comma-separated patterns match.

    A pattern is a glob, local or remote (such as gs://BUCKET/*.txt), a folder of Hugging Face
    `datasets` (see `dataset_files`), "sample:train", "sample:heldout" or "tfds:NAME". The files of
    each glob are sorted.
    """
    result = []
    for pattern in storage.split_patterns(patterns):
        if pattern.startswith("tfds:"):
            paths = [pattern]
        elif pattern in SAMPLES:
            paths = [str(SAMPLES[pattern])]
        else:
            paths = dataset_files(pattern) or storage.glob(pattern)
        if not paths:
            raise UserError(f"no file matches {pattern!r}. Check the path; put globs in quotes.")
        # Checking a remote path costs a request, so only the pattern itself is checked.
        checked = [pattern] if storage.is_remote(pattern) else paths
        folders = [path for path in checked if storage.is_folder(path)]
        if folders:
            raise UserError(
                f"{folders[0]} is a folder. Give its files: {folders[0].rstrip('/')}/*.txt."
            )
        result += paths
    if not result:
        raise UserError("input is empty; give a file, a glob such as 'text/*.txt', or tfds:NAME.")
    return result


def split_into_pieces(paths: Sequence[str], piece_bytes: int = PIECE_BYTES) -> list[TextPiece]:
    """Splits inputs into pieces, in order.

    Compressed files, Parquet files, Arrow files and TFDS datasets are not split.
    """
    files = [path for path in paths if not path.startswith("tfds:")]
    with concurrent.futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        formats = dict(zip(files, pool.map(detect_format, files), strict=True))
    sizes = {path: size for path, (size, _) in zip(files, storage.stat_all(files), strict=True)}
    pieces = []
    for path in paths:
        size = sizes.get(path, _TFDS_BYTES)
        count = max(1, round(size / piece_bytes))
        if count > 1 and (formats.get(path) in (None, "arrow") or input_files.is_compressed(path)):
            count = 1
        edges = [size * i // count for i in range(count + 1)]
        for a, b in itertools.pairwise(edges):
            end = b if b < size else None
            pieces.append(TextPiece(path, a, end, b - a, formats.get(path)))
    return pieces


def read_lines(piece: TextPiece, skip_line: Callable[[str], None] | None = None) -> Iterator[bytes]:
    """Yields the lines of a piece, and b"" at the end of each document.

    Args:
        piece: the piece to read.
        skip_line: called with the location of each bad line, such as "a.jsonl, line 3"; the line is
            then skipped. A JSON line without text, for example, is bad. None: bad lines are errors.
    """
    if piece.path.startswith("tfds:"):
        yield from _tfds_lines(piece.path)
        return

    file_format = piece.format or detect_format(piece.path)

    def on_bad_line(number, reason):
        where = f"{piece.path}, {'row' if file_format == 'arrow' else 'line'} {number}"
        where += f" after byte {piece.begin}" if piece.begin else ""
        if skip_line is None:
            raise UserError(
                f"{where}: {reason}. Fix it, or skip such lines with --skip_bad_lines."
            ) from None
        skip_line(where)

    if file_format == "arrow":
        yield from read_arrow(piece.path, on_bad_line)
        return
    with input_files.open_decompressed(piece.path) as file:
        yield from READERS[file_format](file, piece, on_bad_line)


class Texts:
    """An iterable over all lines of the inputs as str, with "" at the end of each document.

    Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, paths: Sequence[str], skip_bad_lines: bool = False) -> None:
        self._paths = paths
        self._skip_line = (lambda where: None) if skip_bad_lines else None

    def __iter__(self) -> Iterator[str]:
        for piece in split_into_pieces(self._paths):
            for line in read_lines(piece, self._skip_line):
                yield line.decode("utf-8", "replace")


def load_tfds(source: str, **options: object) -> "tf.data.Dataset[dict[str, tf.Tensor]]":
    """Loads `tfds:NAME` (split "train") or `tfds:NAME:SPLIT`; `options` are as for `tfds.load`."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            "tfds: inputs need tensorflow-datasets: pip install 'kbert[tfds]'"
        ) from None
    name, _, split = source.removeprefix("tfds:").partition(":")
    try:
        return tfds.load(name, split=split or "train", shuffle_files=False, **options)
    except Exception as error:  # tfds raises its own errors, AssertionError, network errors, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot load {source}: {reason}") from error


def _tfds_lines(source):
    dataset = load_tfds(source)
    if not isinstance(dataset.element_spec, dict) or "text" not in dataset.element_spec:
        raise UserError(f"{source} has no feature 'text'; it has {dataset.element_spec}.")
    for example in dataset.as_numpy_iterator():
        yield from document_lines(example["text"])


# A sentence ends at . ! or ? if the two characters before it are digits or letters other than A-Z
# (so not after "Mr." or "J."), and if white space and then a digit or a letter other than a-z
# follow. It also ends at the full-width marks of Chinese and Japanese. Closing quotes and brackets
# may follow the mark, and opening ones may precede the next sentence.
_SENTENCE_END = re.compile(
    r"""[.!?](?<=[^\W_A-Z][^\W_A-Z].)["'”’)\]]*\s+(?=["'“‘(\[]*[^\W_a-z])"""
    r"""|[。！？][」』”’）]*(?=[^」』”’）])"""
)


def split_sentences(line: str) -> list[str]:
    """Splits a line into sentences by punctuation, because most lines of prose are paragraphs.

    The concatenated sentences equal the line. Wrong and missed splits are harmless, because
    sentences only determine where segments may start.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    if not ends:
        return [line]
    return [line[a:b] for a, b in zip([0, *ends], [*ends, len(line)], strict=True)]
