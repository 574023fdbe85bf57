"""Opens input files: local or remote, plain or compressed, in UTF-8.

The compression is detected from the content of a file, not from its name. If a file is not UTF-8
text, the error names the detected format and a command that converts it.
"""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from kbert.errors import UserError
from kbert.utils import storage
from kbert.utils.encodings import (
    BOM,
    detect_iso_2022_encoding,
    detect_wide_encoding,
    guess_encoding,
    is_utf8,
    readable_name,
)

HEAD_BYTES = 1 << 16  # number of bytes from which the format of a file is detected
_SEARCHED_BYTES = 1 << 23  # number of bytes to search for lines that are not UTF-8
# Suffix: name, first bytes, command that decompresses.
_COMPRESSED = {
    ".gz": ("gzip", rb"\x1f\x8b\x08", "gzip -dc"),
    ".bz2": ("bzip2", rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzip2 -dc"),
    ".xz": ("xz", rb"\xfd7zXZ\x00", "xz -dc"),
    ".zst": ("zstd", rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd -dc"),
}
_SUPPORTED = "files are supported as example files and as training text, without conversion"
_NOT_TEXT = {  # first bytes: format, advice
    rb"PK\x03\x04": ("a zip archive or an Office file", "Unpack it, or save the table as .csv"),
    rb".{257}ustar": ("a tar archive", "Unpack it: tar -xf"),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", "Unpack it"),
    rb"Rar!\x1a\x07": ("a RAR archive", "Unpack it"),
    rb"\x04\x22\x4d\x18": ("an lz4-compressed file", "Decompress it: lz4 -d"),
    rb"%PDF-": ("a PDF document", "Extract its text, for example with pdftotext"),
    rb"PAR1": ("a Parquet file", f"Parquet {_SUPPORTED}"),
    rb"ARROW1": ("an Arrow file", f"Arrow {_SUPPORTED}"),
    rb"version https://git-lfs": ("a Git LFS pointer, not the file", "Run: git lfs pull"),
}


def plain_name(path: str | os.PathLike[str]) -> str:
    """Returns a path in lower case, without a compression suffix: "A.CSV.gz" -> "a.csv"."""
    name = str(path).lower()
    root, suffix = os.path.splitext(name)
    return root if suffix in _COMPRESSED else name


@contextlib.contextmanager
def open_decompressed(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file to read its decompressed bytes.

    Any OSError in the block is reported as a failure to read the file.
    """
    if not storage.is_remote(path) and os.path.exists(path) and not os.path.isfile(path):
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder. Give the path of a file in it.")
        raise UserError(f"{path} is a pipe or a device. Write its content to a file.")
    try:
        with storage.open_stream(path) as stream, _decompress(stream, path) as file:
            yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {reason.rstrip('.')}.") from error


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Returns whether the content of a file is compressed."""
    with storage.open_stream(path) as stream:
        return _compression(stream.peek(16)) is not None


def read_head(path: str | os.PathLike[str]) -> bytes:
    """Returns the first 64 KiB of the decompressed text of a file, without the byte order mark.

    If the text starts with a brace, as JSON does, the result also contains the rest of its last
    line.
    """
    with open_decompressed(path) as file:
        head = file.read(HEAD_BYTES)
        if head.removeprefix(BOM).lstrip().startswith(b"{"):
            head += file.readline()
    _check_text(head, path)
    return head.removeprefix(BOM)


def read_byte_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields the lines of a text as bytes, with their "\\n", without the byte order mark."""
    read_head(path)
    with open_decompressed(path) as file:
        if first := file.readline().removeprefix(BOM):
            yield first
        yield from file


def read_text(path: str | os.PathLike[str]) -> str:
    """Returns the content of a text file, without the byte order mark."""
    data = b"".join(read_byte_lines(path))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8{encoding_note(path)}.") from None


def encoding_note(path: str | os.PathLike[str]) -> str:
    """Returns the end of the message "... is not UTF-8": the likely encoding and how to convert it.

    The encoding is guessed from lines that are not UTF-8. If the file has many other lines that are
    UTF-8 and not ASCII, the result states this instead, because converting would damage them.
    """
    return _encoding_note(str(path), *storage.stat(path))


@functools.lru_cache(maxsize=16)  # called for every bad line
def _encoding_note(path, size, mtime):
    bad, good = _bad_lines(path)
    if good * 5 > len(bad):  # converting the file would damage the good lines
        return " (other lines of the file are)"
    encoding = guess_encoding(b"".join(bad)[:HEAD_BYTES])
    return _conversion_hint(path, encoding) if encoding else ". Save it as UTF-8"


def has_non_utf8_lines(path: str | os.PathLike[str]) -> bool:
    """Returns whether a line in the first 8 MiB of a file is not UTF-8."""
    return bool(_bad_lines(path)[0])


def _bad_lines(path):
    """Returns up to 1,000 lines that are not UTF-8, and the number of non-ASCII UTF-8 lines."""
    bad, good, room = [], 0, _SEARCHED_BYTES
    with open_decompressed(path) as file:
        while room > 0 and len(bad) < 1000 and (line := file.readline(room)):
            room -= len(line)
            if not is_utf8(line):
                bad.append(line[:HEAD_BYTES])
            elif not line.isascii():
                good += 1
    return bad, good


def _conversion_hint(path, encoding):
    command = filter_command(path, f"iconv -f {encoding} -t UTF-8")
    return f"; the file looks like {readable_name(encoding)}. Convert it ({command})"


def filter_command(path: str | os.PathLike[str], command: str, output: str | None = None) -> str:
    """Returns the command line that decompresses a file, if needed, and filters it.

    The default `output` is NAME.utf8.SUFFIX beside the file.
    """
    with storage.open_stream(path) as stream:
        suffix = _compression(stream.peek(16))
    root, extension = os.path.splitext(re.sub(rf"(?i){re.escape(suffix or ' ')}$", "", str(path)))
    old, new = shlex.quote(str(path)), shlex.quote(output or f"{root}.utf8{extension}")
    if suffix:
        return f"{_COMPRESSED[suffix][2]} {old} | {command} > {new}"
    return f"{command} < {old} > {new}"


def _check_text(head, path):
    for first, (form, advice) in _NOT_TEXT.items():
        if re.match(first, head, re.DOTALL):
            raise UserError(f"{path} is {form}, not text. {advice}.")
    encoding = detect_wide_encoding(head) or detect_iso_2022_encoding(head)
    if encoding:
        raise UserError(f"{path} is not UTF-8{_conversion_hint(path, encoding)}.")
    controls = len(re.findall(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", head))
    if controls * 20 > len(head) and not is_utf8(head, complete=False):
        raise UserError(f"{path} is a binary file, not text: it has many control characters.")
    if len(re.findall(rb"\r[^\n]", head)) > 10 * head.count(b"\n"):
        command = filter_command(path, r"tr '\r' '\n'")
        raise UserError(f"{path} has old Mac line endings (CR alone). Convert it ({command}).")


def _compression(first):
    """Returns the suffix of the compression detected from a file's first bytes, or None."""
    return next((s for s, (_, magic, _) in _COMPRESSED.items() if re.match(magic, first)), None)


def _decompress(stream, path):
    suffix = _compression(stream.peek(16))
    named = os.path.splitext(str(path).lower())[1]
    if suffix is None and named in _COMPRESSED and stream.peek(1):
        raise UserError(
            f"cannot read {path}: it is not a file in {_COMPRESSED[named][0]} format. If it is "
            f"plain text, remove {named} from its name."
        )
    if suffix == ".zst":
        return io.BufferedReader(_ZstdFile(stream, path))
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers[suffix](stream) if suffix else stream


class _ZstdFile(io.RawIOBase):
    """Reads a zstd file of one or more frames; an incomplete frame raises EOFError."""

    def __init__(self, stream, path):
        try:
            import zstandard
        except ImportError:
            raise UserError(
                f"{path} is compressed with zstd, which needs zstandard: pip install zstandard"
            ) from None
        super().__init__()
        self._stream, self._error, self._rest = stream, zstandard.ZstdError, memoryview(b"")
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame = None

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self._rest:
            data = (self._frame and self._frame.unused_data) or self._stream.read(HEAD_BYTES)
            if not data and self._frame and not self._frame.eof:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if not data:
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            try:
                self._rest = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise OSError(str(error)) from error
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
