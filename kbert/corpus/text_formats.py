"""Detects the format of training text from its content, and reads its lines.

The start of a file determines its format. Later lines that do not fit the format, such as JSON
documents in plain text, are bad lines. The readers yield lines (bytes, without line endings), and
b"" at the end of each document.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

from kbert.corpus.arrow_files import column_names, is_arrow_file, read_rows
from kbert.corpus.foreign_text import FIRST_LINES, check_prose, is_quoted_table
from kbert.errors import UserError
from kbert.utils import input_files
from kbert.utils.encodings import BOM, is_utf8

if TYPE_CHECKING:
    from kbert.corpus.text_sources import TextPiece

LONGEST_LINE_BYTES = 1 << 16  # longer lines of plain text are split, at a space if possible
TEXT_KEYS = ("text", "content", "raw_content")  # keys of the text in a record, by precedence
_DOC = re.compile(rb'<doc id="[^"]*"( .*)?>')  # of WikiExtractor: <doc id="1" url="" title="">
_ENTITIES = {b"&lt;": b"<", b"&gt;": b">", b"&amp;": b"&"}  # those that WikiExtractor writes
_MARKUP = {  # how a file starts, in lower case: its format, advice
    b"<mediawiki": ("a MediaWiki dump", ", for example with WikiExtractor"),
    b"<?xml": ("XML", ""),
    b"<!doctype": ("HTML", ""),
    b"<html": ("HTML", ""),
    b"warc/1": ("a WARC archive of web pages", ""),
    rb"{\rtf": ("RTF", ""),
    b"webvtt": ("subtitles", ""),
}
_BLANK = re.compile(rb"(?:\xc2\xa0|\xe3\x80\x80|\s)*")  # also no-break and ideographic spaces
_MARK = b"<|endoftext|>"  # GPT-2's end-of-text token; ends a document if it is a line of its own


class BadRecord(Exception):
    """A JSON record without a document; the message is the reason, without the file and line."""


def detect_format(path: str | os.PathLike[str]) -> str:
    """Returns the format of a file: "text", "marked", "json" (JSON lines), "wiki" or "arrow".

    A file is JSON lines if it is named .json, .jsonl or .ndjson, if its first eight lines are JSON
    objects, or if its first line is an object with a document. "marked" is text with documents
    separated by `<|endoftext|>`, "wiki" is the output of WikiExtractor, "arrow" is a Parquet or an
    Arrow file.
    """
    if is_arrow_file(path):
        return "arrow"
    head = input_files.read_head(path)
    whole = len(head) < input_files.HEAD_BYTES
    lines = head.split(b"\n")
    if not whole and len(lines) > 1:
        lines.pop()  # the last line may be incomplete
    lines = [line for line in map(bytes.strip, lines) if line]
    bad = sum(not is_utf8(line, whole or len(lines) > 1) for line in lines)
    if bad * 10 > len(lines):
        raise UserError(f"{path} is not UTF-8{input_files.encoding_note(path)}.")
    _check_line_based(lines, path)
    if input_files.plain_name(path).endswith((".json", ".jsonl", ".ndjson")):
        return "json"
    if input_files.plain_name(path).endswith((".csv", ".tsv")) or is_quoted_table(lines):
        raise UserError(
            f"{path} is a table, not plain text. Write its text column to a file, as plain text or "
            f'as one JSON object per document: {{"text": "..."}}.'
        )
    if lines and _DOC.fullmatch(lines[0]):
        return "wiki"
    check_prose(lines, path)
    objects = [_parse_object(line) for line in lines[:FIRST_LINES]]
    is_json = bool(objects) and (None not in objects or _has_document(objects[0]))
    if is_json:
        return "json"
    return "marked" if _MARK in lines else "text"


def _check_line_based(lines, path):
    """Raises UserError for markup, and for JSON that is not one object per line."""
    first = lines[0] if lines else b""
    for start, (name, advice) in _MARKUP.items():
        if first.lower().startswith(start):
            raise UserError(f"{path} is {name}, not plain text. Extract its text first{advice}.")
    start = b"".join(lines[:2]) if first in (b"[", b"{") else first
    if re.match(rb"\[\s*\{", start):
        command = "jq -c '.[]'"
    elif re.match(rb'\[\s*"', start) and (
        first == b"[" or first.endswith(b'",') or (lines == [first] and first.endswith(b'"]'))
    ):
        command = "jq -c '.[] | {text: .}'"
    elif first == b"{" and start[1:2] == b'"':
        command = "jq -c ."
    else:
        return
    raise UserError(
        f"{path} is JSON, but not one object per line. Convert it "
        f"({input_files.filter_command(path, command, 'NEW.jsonl')})."
    )


def read_text(
    file: BinaryIO,
    piece: "TextPiece",
    on_bad_line: Callable[[int, object], None],
    marked: bool = False,
) -> Iterator[bytes]:
    """Yields the lines of plain text; an empty line or `<|endoftext|>` ends a document.

    Args:
        file: the open file.
        piece: the part to read.
        on_bad_line: called for each bad line (a JSON object with a document, or a <doc> tag of
            WikiExtractor) with its number in the piece, from 1, and the reason. Unless it raises,
            the line is skipped.
        marked: True: only `<|endoftext|>` ends a document, and empty lines separate paragraphs.
    """
    skipping = piece.begin > 0  # the current document belongs to the previous piece
    for start, number, line in _stripped_lines(file, piece.begin):
        if _BLANK.fullmatch(line) or line == _MARK:
            if marked and line != _MARK:
                continue
            line = b""
        if not line and start >= _end_offset(piece):  # the next document belongs to the next piece
            break
        if skipping:
            skipping = bool(line)
        elif line[:1] in (b"{", b"<") and (reason := _reason_not_text(line)):
            on_bad_line(number, reason)
        else:
            yield line
    yield b""


def read_wiki(
    file: BinaryIO, piece: "TextPiece", on_bad_line: Callable[[int, object], None]
) -> Iterator[bytes]:
    """Yields the lines of WikiExtractor's documents without their tags; args as for `read_text`.

    A document begins with its title. Lines of text between documents are bad lines.
    """
    inside = None if piece.begin else False  # None: before the first document of the piece
    for start, number, line in _stripped_lines(file, piece.begin):
        if _DOC.fullmatch(line):
            if inside:
                yield b""
            if start >= _end_offset(piece):
                return
            inside = True
        elif line == b"</doc>":
            if inside:
                yield b""
            inside = None if inside is None else False
        elif inside and line:
            yield re.sub(b"&(?:lt|gt|amp);", lambda match: _ENTITIES[match[0]], line)
        elif line and inside is False:
            on_bad_line(number, "text outside WikiExtractor's <doc ...> and </doc>")
    if inside:
        yield b""


def read_json(
    file: BinaryIO, piece: "TextPiece", on_bad_line: Callable[[int, object], None]
) -> Iterator[bytes]:
    """Yields the lines of the documents of a JSON lines file; args as for `read_text`.

    Lines without a document are bad lines; see `document_text`.
    """
    offset, number = _seek_line(file, piece.begin), 0
    while offset < _end_offset(piece) and (line := file.readline()):
        offset += len(line)
        number += 1
        line = line if piece.begin or number > 1 else line.removeprefix(BOM)
        if not line.strip():
            continue
        try:
            text = document_text(_parse_record(line)).encode("utf-8", "replace")
        except BadRecord as reason:
            on_bad_line(number, reason)
            continue
        yield from document_lines(text)


READERS = {
    "text": read_text,
    "marked": functools.partial(read_text, marked=True),
    "wiki": read_wiki,
    "json": read_json,
}


def read_arrow(path: str, on_bad_line: Callable[[int, object], None]) -> Iterator[bytes]:
    """Yields the lines of the documents of a Parquet or Arrow file; each row is a document.

    Rows without a string are bad lines. `on_bad_line` is called with the row number, from 1.
    """
    names = column_names(path)
    column = next((key for key in TEXT_KEYS if key in names), None)
    if column is None:
        raise UserError(f"{path}: {_no_document_message(names)}.")
    for number, row in enumerate(read_rows(path, column), 1):
        text = row and row[column]
        if isinstance(text, str):
            yield from document_lines(text.encode())
        elif row is None or isinstance(text, bytes):
            on_bad_line(number, "bytes that are not UTF-8")
        else:
            on_bad_line(number, f'"{column}" must be a string; got {str(text)[:60]}')


def document_text(record: Mapping[str, object]) -> str:
    """Returns the text of a record: the value of the first key of `TEXT_KEYS` that it has.

    Raises:
        BadRecord: the record has no such key, or its value is not a string.
    """
    for key in TEXT_KEYS:
        if key in record:
            if isinstance(record[key], str):
                return record[key]
            raise BadRecord(f'"{key}" must be a string; got {str(record[key])[:60]!r}')
    raise BadRecord(_no_document_message(record))


def _no_document_message(names):
    got = ", ".join(map(repr, names)) or "none"
    return f'no key or column is named "text", "content" or "raw_content"; got {got}'


def document_lines(text: bytes) -> Iterator[bytes]:
    """Yields the non-empty lines of a document, stripped, and b"" at its end."""
    yield from filter(None, map(bytes.strip, text.split(b"\n")))
    yield b""


def _parse_record(line):
    """Returns the object in a JSON line; raises BadRecord if the line is not a JSON object."""
    if not is_utf8(line):
        raise BadRecord("bytes that are not UTF-8")
    record = _parse_object(line)
    if record is None:
        raise BadRecord(
            f'every line must be a JSON object with its document under "text"; got '
            f"{line[:60].decode('utf-8', 'replace').strip()!r}"
        )
    return record


def _parse_object(line):
    """Parses a line as a JSON object; returns None if it is not one."""
    try:
        record = json.loads(line) if line.lstrip().startswith(b"{") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _has_document(record):
    try:
        document_text(record or {})
    except BadRecord:
        return False
    return True


def _reason_not_text(line):
    if _DOC.fullmatch(line):
        return "WikiExtractor's <doc> in plain text"
    record = _parse_object(line) if line.endswith(b"}") else None
    if _has_document(record):
        return "a JSON object with a document in plain text"
    return None


def _end_offset(piece):
    return float("inf") if piece.end is None else piece.end


def _seek_line(file, begin):
    """Moves to the first line that starts at offset `begin` or later; returns its offset."""
    if not begin:
        return 0
    file.seek(begin - 1)
    while (part := file.readline(LONGEST_LINE_BYTES)) and not part.endswith(b"\n"):
        pass
    return file.tell()


def _stripped_lines(file, begin):
    """Yields the offset, the number in the piece and the stripped text of each line.

    Lines over `LONGEST_LINE_BYTES` are split; each part has the offset and number of its line.
    """
    start, size, number = _seek_line(file, begin), 0, 1  # line: offset, bytes read of it, number
    rest, inside = b"", False  # remainder of a split line; whether the line has text so far
    while part := file.readline(LONGEST_LINE_BYTES):
        ended = part.endswith(b"\n")
        line, rest = rest + part, b""
        if begin + start + size == 0:
            line = line.removeprefix(BOM)
        if not ended and len(part) == LONGEST_LINE_BYTES:
            cut = _split_point(line)
            line, rest = line[:cut], line[cut:]
        line = line.strip()
        if line or (ended and not inside):  # an empty part of a line is not an empty line
            yield start, number, line
        inside = not ended and (inside or bool(line or rest.strip()))
        start, size = (start + size + len(part), 0) if ended else (start, size + len(part))
        number += ended
    if rest.strip():
        yield start, number, rest.strip()


def _split_point(line):
    """Returns where to split a long line: after its last space, else between two characters."""
    cut = line.rfind(b" ") + 1
    if cut <= 0:
        cut = len(line)
        while cut > len(line) - 4 and line[cut - 1] & 0xC0 == 0x80:
            cut -= 1  # skip continuation bytes back to the first byte of the character
        cut -= 1
    return cut
