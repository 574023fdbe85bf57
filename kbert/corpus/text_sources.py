"""Reading text: files, compressed files, JSON lines and TFDS datasets, as lines and documents.

Every source is a stream of lines (bytes, no line end) in which an empty line ends a document.
"""

import dataclasses
import gzip
import itertools
import json
import pathlib
import re
import zlib

from kbert.errors import UserError
from kbert.utils import storage

# The text that comes with kbert: sample/README.md tells what it is.
_SAMPLE_FOLDER = pathlib.Path(__file__).parent / "sample"
SAMPLES = {f"sample:{name}": _SAMPLE_FOLDER / f"{name}.txt.gz" for name in ("train", "heldout")}

PIECE_BYTES = 64 << 20  # a plain file is read in pieces of about this size, each by one process
LONGEST_LINE_BYTES = 1 << 16  # a longer line is cut, at a space where there is one
_TFDS_BYTES = 8 << 20  # a guess


@dataclasses.dataclass(frozen=True)
class TextPiece:
    """A part of the input that one process reads.

    A document belongs to the piece in which it starts, so pieces read one by one hold each
    document once, whatever their size.
    """

    path: str  # a file, or tfds:NAME
    begin: int = 0  # first byte
    end: int | None = None  # byte after the last; None = to the end
    size: int = 0  # in bytes; for TFDS a guess


def find_inputs(patterns):
    """The files, or `tfds:` names, of a comma-separated list of globs, sorted within each glob.

    Globs may be remote, such as gs://BUCKET/*.txt.

    Raises:
        UserError: a pattern matches nothing, or a folder.
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
        # Each look at a remote path costs a request: only the likely mistake is looked for there.
        looked_at = [pattern] if storage.is_remote(pattern) else paths
        folders = [path for path in looked_at if storage.is_folder(path)]
        if folders:
            raise UserError(f"{folders[0]} is a folder. Write {folders[0].rstrip('/')}/*.txt.")
        result += paths
    if not result:
        raise UserError("input is empty; give a file, a glob such as 'text/*.txt', or tfds:NAME.")
    return result


def split_into_pieces(paths, piece_bytes=PIECE_BYTES):
    """The pieces of the inputs, in order. Compressed files and TFDS are one piece each."""
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


def read_lines(piece, leave_out=None):
    """Lines of a piece, b"" where a document ends.

    Args:
        piece: TextPiece.
        leave_out: called with a str, which file and line, for each JSON line without a text; None:
            such a line is an error.

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
    """All lines of inputs as str; bytes that are not UTF-8 become U+FFFD. Can be read again.

    Args:
        paths: those of `find_inputs`.
        skip_bad_lines: leave JSON lines without a text out, instead of ending with an error.
    """

    def __init__(self, paths, skip_bad_lines=False):
        self._paths = paths
        self._leave_out = (lambda where: None) if skip_bad_lines else None

    def __iter__(self):
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
    skipping = piece.begin > 0  # the document under way belongs to the piece before
    for start, line in _stripped_lines(file):
        if not line and start >= end:  # as does the next one, if it starts behind this piece
            break
        if skipping:
            skipping = bool(line)
        else:
            yield line
    yield b""


def _stripped_lines(file):
    """Where each line starts and the line without white space around it, long ones in parts."""
    start, size = file.tell(), 0  # of the line under way
    rest, inside = b"", False  # what was cut off it; whether text of it was
    while part := file.readline(LONGEST_LINE_BYTES):
        ended = part.endswith(b"\n")
        line, rest = rest + part, b""
        if not ended and len(part) == LONGEST_LINE_BYTES:
            cut = _cut(line)
            line, rest = line[:cut], line[cut:]
        line = line.strip()
        if line or (ended and not inside):  # a part without text is no empty line
            yield start, line
        inside = not ended and (inside or bool(line or rest.strip()))
        start, size = (start + size + len(part), 0) if ended else (start, size + len(part))
    if rest.strip():
        yield start, rest.strip()


def _cut(line):
    """Where a line that is too long is cut: after its last space, else between two characters."""
    cut = line.rfind(b" ") + 1
    if cut <= 0:
        cut = len(line)
        while cut > len(line) - 4 and line[cut - 1] & 0xC0 == 0x80:
            cut -= 1  # back over the bytes inside a character, to its first
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
                    f'"text"; got {line[:60].decode("utf-8", "replace").strip()!r}. Mend it, or '
                    f"leave such lines out with --skip_bad_lines."
                ) from None
            leave_out(where)
            continue
        yield from filter(None, map(bytes.strip, lines))
        yield b""


def load_tfds(source, **options):
    """The dataset of `tfds:NAME` (split "train") or `tfds:NAME:SPLIT`. options: of `tfds.load`.

    Raises:
        UserError: tensorflow-datasets is missing, or cannot load the data set.
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


# A sentence ends at . ! or ? after two letters that are no capitals, or a digit (so not after "Mr."
# or "J."), before a capital, digit or quote; and at the full stops of Chinese and Japanese.
_SENTENCE_END = re.compile(
    r"""[.!?](?<=[^\W_A-Z][^\W_A-Z].)["'”’)\]]*\s+(?=["'“‘(\[]*[^\W_a-z])"""
    r"""|[。！？][」』”’）]*(?=[^」』”’）])"""
)


def split_sentences(line):
    """Cuts a line (str) into sentences by their punctuation; most lines of prose are paragraphs.

    Wrong cuts and missed ones are harmless: a sentence is where segment B may start, no more.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    if not ends:
        return [line]
    return [line[a:b] for a, b in zip([0, *ends], [*ends, len(line)], strict=True)]
