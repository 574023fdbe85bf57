"""Reads lines of text from plain and compressed files, JSON lines and TFDS datasets.

Every source yields lines (bytes, without line end); an empty line ends a document.
"""

import dataclasses
import gzip
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kbert.errors import UserError
from kbert.utils import storage

if TYPE_CHECKING:
    import tensorflow as tf

# The text that comes with kbert; sample/README.md describes it.
_SAMPLE_FOLDER = pathlib.Path(__file__).parent / "sample"
SAMPLES = {f"sample:{name}": _SAMPLE_FOLDER / f"{name}.txt.gz" for name in ("train", "heldout")}

PIECE_BYTES = 64 << 20  # a plain file is read in pieces of about this size, each by one process
LONGEST_LINE_BYTES = 1 << 16  # longer lines are split, at a space if possible
_TFDS_BYTES = 8 << 20  # an estimate


@dataclasses.dataclass(frozen=True)
class TextPiece:
    """A part of the input that one process reads.

    A document belongs to the piece in which it starts, so each document is read exactly once.
    """

    path: str  # a file, or tfds:NAME
    begin: int = 0  # first byte
    end: int | None = None  # byte after the last; None for the end of the file
    size: int = 0  # in bytes; an estimate for TFDS


def find_inputs(patterns: str) -> list[str]:
    """Returns the files and `tfds:` names of comma-separated globs, sorted within each glob.

    Globs may be remote, such as gs://BUCKET/*.txt.

    Raises:
        UserError: a pattern matches no file, or matches a folder.
    """
    result = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        if pattern.startswith("tfds:"):
            paths = [pattern]
        elif pattern in SAMPLES:
            paths = [str(SAMPLES[pattern])]
        else:
            paths = storage.glob(pattern)
        if not paths:
            raise UserError(f"no file matches {pattern!r}. Check the path; quote a glob.")
        # Each check of a remote path costs a request, so only the pattern itself is checked.
        looked_at = [pattern] if storage.is_remote(pattern) else paths
        folders = [path for path in looked_at if storage.is_folder(path)]
        if folders:
            raise UserError(f"{folders[0]} is a folder. Write {folders[0].rstrip('/')}/*.txt.")
        result += paths
    if not result:
        raise UserError("input is empty; give a file, a glob such as 'text/*.txt', or tfds:NAME.")
    return result


def split_into_pieces(paths: Sequence[str], piece_bytes: int = PIECE_BYTES) -> list[TextPiece]:
    """Splits inputs into pieces, in order; compressed files and TFDS are one piece each."""
    files = [path for path in paths if not path.startswith("tfds:")]
    sizes = {path: size for path, (size, _) in zip(files, storage.stat_all(files), strict=True)}
    pieces = []
    for path in paths:
        size = sizes.get(path, _TFDS_BYTES)
        is_whole = path not in sizes or path.endswith(".gz")
        count = 1 if is_whole else max(1, round(size / piece_bytes))
        edges = [size * i // count for i in range(count + 1)]
        for a, b in itertools.pairwise(edges):
            pieces.append(TextPiece(path, a, b if b < size else None, b - a))
    return pieces


def read_lines(piece: TextPiece, leave_out: Callable[[str], None] | None = None) -> Iterator[bytes]:
    """Yields the lines of a piece, and b"" at the end of each document.

    Args:
        piece: the piece to read.
        leave_out: called with the file and line number of each JSON line without text, which is
            skipped; None to raise an error.

    Raises:
        UserError: the file cannot be read, is damaged, or a JSON line has no text.
    """
    if piece.path.startswith("tfds:"):
        yield from _tfds_lines(piece.path)
        return
    is_json = piece.path.removesuffix(".gz").endswith((".jsonl", ".json"))
    try:
        with storage.open_stream(piece.path) as stream:
            file = gzip.open(stream) if piece.path.endswith(".gz") else stream
            if is_json:
                yield from _json_lines(file, piece, leave_out)
            else:
                yield from _text_lines(file, piece)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {piece.path}: {reason}.") from error


class Texts:
    """Iterable over all lines of inputs as str; bytes that are not UTF-8 become U+FFFD.

    Args:
        paths: result of `find_inputs`.
        skip_bad_lines: skip JSON lines without text instead of raising an error.
    """

    def __init__(self, paths: Sequence[str], skip_bad_lines: bool = False) -> None:
        self._paths = paths
        self._leave_out = (lambda where: None) if skip_bad_lines else None

    def __iter__(self) -> Iterator[str]:
        for piece in split_into_pieces(self._paths):
            for line in read_lines(piece, self._leave_out):
                yield line.decode("utf-8", "replace")


def _seek(file, begin):
    """Moves to the first line that starts at `begin` or later."""
    if begin:
        file.seek(begin - 1)
        while (part := file.readline(LONGEST_LINE_BYTES)) and not part.endswith(b"\n"):
            pass


def _text_lines(file, piece):
    end = float("inf") if piece.end is None else piece.end
    _seek(file, piece.begin)
    skipping = piece.begin > 0  # the current document belongs to the previous piece
    for start, line in _stripped_lines(file):
        if not line and start >= end:  # the next document belongs to the next piece
            break
        if skipping:
            skipping = bool(line)
        else:
            yield line
    yield b""


def _stripped_lines(file):
    """Yields the offset and the stripped text of each line; long lines are yielded in parts."""
    start, size = file.tell(), 0  # of the current line
    rest, inside = b"", False  # remainder after a cut; whether text of the line was yielded
    while part := file.readline(LONGEST_LINE_BYTES):
        ended = part.endswith(b"\n")
        line, rest = rest + part, b""
        if not ended and len(part) == LONGEST_LINE_BYTES:
            cut = _cut(line)
            line, rest = line[:cut], line[cut:]
        line = line.strip()
        if line or (ended and not inside):  # an empty part of a line is not an empty line
            yield start, line
        inside = not ended and (inside or bool(line or rest.strip()))
        start, size = (start + size + len(part), 0) if ended else (start, size + len(part))
    if rest.strip():
        yield start, rest.strip()


def _cut(line):
    """Returns where to cut a long line: after its last space, else between two characters."""
    cut = line.rfind(b" ") + 1
    if cut <= 0:
        cut = len(line)
        while cut > len(line) - 4 and line[cut - 1] & 0xC0 == 0x80:
            cut -= 1  # skip continuation bytes back to the first byte of the character
        cut -= 1
    return cut


def _json_lines(file, piece, leave_out):
    _seek(file, piece.begin)
    end = float("inf") if piece.end is None else piece.end
    offset, number = file.tell(), 0
    while offset < end and (line := file.readline()):
        offset += len(line)
        number += 1
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            lines = text.encode("utf-8", "replace").split(b"\n")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            where = f"{piece.path}, line {number}"
            where += f" after byte {piece.begin}" if piece.begin else ""
            if leave_out is None:
                raise UserError(
                    f"{where}: every line must be a JSON object with its document under "
                    f'"text"; got {line[:60].decode("utf-8", "replace").strip()!r}. Fix it, or '
                    f"skip such lines with --skip_bad_lines."
                ) from None
            leave_out(where)
            continue
        yield from filter(None, map(bytes.strip, lines))
        yield b""


def load_tfds(source: str, **options: object) -> "tf.data.Dataset[dict[str, tf.Tensor]]":
    """Loads the dataset `tfds:NAME` (split "train") or `tfds:NAME:SPLIT`.

    Args:
        source: name of the dataset.
        **options: arguments of `tfds.load`.

    Raises:
        UserError: tensorflow-datasets is not installed, or cannot load the dataset.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            "tfds: inputs need tensorflow-datasets: pip install 'kbert[tfds]'"
        ) from None
    name, _, split = source.removeprefix("tfds:").partition(":")
    try:
        return tfds.load(name, split=split or "train", shuffle_files=False, **options)
    except Exception as error:  # tfds raises its own, ValueError, AssertionError, network errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot load {source}: {reason}") from error


def _tfds_lines(source):
    dataset = load_tfds(source)
    if not isinstance(dataset.element_spec, dict) or "text" not in dataset.element_spec:
        raise UserError(f"{source} has no feature 'text'; it has {dataset.element_spec}.")
    for example in dataset.as_numpy_iterator():
        yield from filter(None, map(bytes.strip, example["text"].split(b"\n")))
        yield b""


# A sentence ends at . ! or ? if two letters other than A-Z, or digits, precede it (so not after
# "Mr." or "J.") and a capital, digit or quote follows; and at Chinese and Japanese full stops.
_SENTENCE_END = re.compile(
    r"""[.!?](?<=[^\W_A-Z][^\W_A-Z].)["'”’)\]]*\s+(?=["'“‘(\[]*[^\W_a-z])"""
    r"""|[。！？][」』”’）]*(?=[^」』”’）])"""
)


def split_sentences(line: str) -> list[str]:
    """Splits a line into sentences by punctuation; most lines of prose are paragraphs.

    Wrong and missed splits are harmless: sentences only determine where segment B may start.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    if not ends:
        return [line]
    return [line[a:b] for a, b in zip([0, *ends], [*ends, len(line)], strict=True)]
