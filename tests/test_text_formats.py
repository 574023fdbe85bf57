"""The format of training text is told by its content, whatever the name of the file."""

import bz2
import gzip
import json
import lzma
import pathlib

import pytest

from kbert.corpus.text_formats import detect_format
from kbert.corpus.text_sources import Texts, find_inputs, read_lines, split_into_pieces
from kbert.errors import UserError

CASES = pathlib.Path(__file__).parent.parent.parent / "shared" / "cases"
DOCUMENTS = [
    ["The ship sailed at dawn. It was cold."],
    ["A man walked his dog.", "The dog ran."],
    ["Rain fell all day. Nobody came."],
]
ROWS = [
    {"id": str(i), "url": f"https://x?curid={i}", "title": f"T{i}", "text": "\n\n".join(lines)}
    for i, lines in enumerate(DOCUMENTS)
]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def documents_of(paths, piece_bytes=None):
    """Documents, lists of lines; several pieces must each end with one."""
    options = [piece_bytes] if piece_bytes else []
    documents = [[]]
    for piece in split_into_pieces(paths, *options):
        for line in read_lines(piece):
            if line:
                documents[-1].append(line.decode())
            elif documents[-1]:
                documents.append([])
        assert documents[-1] == []
    return documents[:-1]


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def message_of(path, piece_bytes=64 << 20):
    with pytest.raises(UserError) as error:
        documents_of([path], piece_bytes)
    return str(error.value)


# JSON lines


def test_cases_of_json_lines():
    if not CASES.exists():
        pytest.skip(f"needs the files in {CASES}")
    for name in ("x.ndjson", "AA/wiki_00", "AA/wiki_01"):
        found = documents_of([f"{CASES}/json_without_suffix/{name}"])
        assert found == [
            ["The ship sailed at dawn. It was cold."],
            ["A man walked his dog. The dog ran."],
            ["Rain fell all day. Nobody came."],
        ]


@pytest.mark.parametrize("name", ["x.ndjson", "x.JSONL", "AA/wiki_00", "x", "x.txt", "part.0001"])
def test_json_lines_of_any_name(tmp_path, name):
    for content in (JSON_LINES, f"\ufeff{JSON_LINES}".replace("\n", "\r\n\r\n"), JSON_LINES[:-1]):
        assert documents_of([write(tmp_path / name, content)]) == DOCUMENTS
    path = write(tmp_path / name, bz2.compress(JSON_LINES.encode()))
    assert documents_of([path], 9) == DOCUMENTS


@pytest.mark.parametrize("key", ["text", "content", "raw_content"])
def test_keys_of_documents(tmp_path, key):
    rows = [{"url": "u", key: "\n".join(lines), "meta": {"text": "no"}} for lines in DOCUMENTS]
    path = write(tmp_path / "x", "\n".join(map(json.dumps, rows)))
    assert documents_of([path]) == DOCUMENTS


@pytest.mark.parametrize("name", ["x", "x.jsonl"])
def test_an_unknown_key_is_an_error(tmp_path, name):
    path = write(tmp_path / name, '{"id": 1, "body": "a b"}\n{"id": 2, "body": "c d"}\n')
    assert message_of(path) == (
        f'{path}, line 1: no key or column is named "text", "content" or "raw_content"; got '
        f"'id', 'body'. Fix it, or skip such lines with --skip_bad_lines."
    )


@pytest.mark.parametrize(
    "text",
    [
        "{not json} The ship sailed.\n\nNext.\n",
        "{curly}\n{braces}\n\nNext.\n",
        '{}\nThe ship sailed.\n\n{"a": 1}\n{"b": [2]}\n',
        'The ship sailed.\n{"text": 3}\n{"text":\n\n<doc id=12>\n',
        '["a"]\n\n[1]\n',
        '{"an": "object"} of JSON, and text\n\nNext.\n',
    ],
)
def test_text_with_braces_stays_text(tmp_path, text):
    path = write(tmp_path / "t.txt", text)
    assert detect_format(path) == "text"
    expected = [part.split("\n") for part in text.strip().split("\n\n")]
    assert documents_of([path]) == expected


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (f"{JSON_LINES}The end.\n", 4, "every line must be a JSON object with its document under"),
        (f"{JSON_LINES}\n[1]\n{JSON_LINES}", 5, "every line must be a JSON object with its doc"),
        ('{"text": "a"}\nplain\n{"text": "b"}\n', 2, "every line must be a JSON object with"),
        (f"Title\n\n{JSON_LINES}", 3, "a JSON object with a document in plain text"),
        ('a\nb\n\n\n  {"content": ""} \n', 5, "a JSON object with a document in plain text"),
        ('a\n<doc id="1" url="" title="b">\n', 2, "WikiExtractor's <doc> in plain text"),
        ('<doc id="1" url="" title="b">\nb\n</doc>\nc', 4, "text outside WikiExtractor's <doc"),
        ('{"text": "a"}\n{"text": 3}', 2, "\"text\" must be a string; got '3'"),
        (b'{"text": "a"}\n' * 10 + b'{"text": "\xe9"}', 11, "bytes that are not UTF-8"),
    ],
)
def test_a_mixture_is_an_error(tmp_path, text, line, reason):
    path = write(tmp_path / "x", text)
    message = message_of(path)
    assert message.startswith(f"{path}, line {line}: {reason}")
    assert message.endswith(". Fix it, or skip such lines with --skip_bad_lines.")
    assert sum(map(bool, Texts([path], skip_bad_lines=True))) > 0
    if isinstance(text, str):  # whichever piece the line is in
        pieces = message_of(path, 20)
        assert reason in pieces and (", line " in pieces)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (json.dumps(ROWS), "jq -c '.[]'"),
        (json.dumps(ROWS, indent=1), "jq -c '.[]'"),
        (json.dumps(ROWS[0], indent=2), "jq -c ."),
    ],
)
@pytest.mark.parametrize("name", ["x.json", "x"])
def test_json_that_is_not_by_line(tmp_path, text, command, name):
    path = write(tmp_path / name, text)
    assert message_of(path) == (
        f"{path} is JSON, but not one object per line. Convert it ({command} < {path} > NEW.jsonl)."
    )


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ('<mediawiki xmlns="x" xml:lang="en">', "a MediaWiki dump, not plain text. Extract its te"),
        ('<?xml version="1.0"?>', "XML, not plain text. Extract its text first."),
        ("<!DOCTYPE html>", "HTML, not plain text."),
        ("WARC/1.0", "a WARC archive of web pages, not plain text."),
        (r"{\rtf1\ansi {\fonttbl}", "RTF, not plain text. Extract its text first."),
        ("WEBVTT", "subtitles, not plain text."),
        ('<DOC id="AFP_ENG_19940512.0001" type="story" >', "markup (XML, HTML or SGML), not plain"),
        ("<CHAPTER ID=1>", "markup (XML, HTML or SGML), not plain text. Extract its text first."),
        ("<!-- page -->", "markup (XML, HTML or SGML), not plain text."),
        ("1\n00:00:01,000 --> 00:00:02,500", "subtitles, not plain text. Extract its text first."),
        ("# sent_id = 1\n1\tIt\tit\tPRON\t_\t_\t2\tnsubj\t_\t_", "CoNLL-U, not plain text."),
    ],
)
def test_markup_is_an_error(tmp_path, first, name):
    path = write(tmp_path / "x.bz2", bz2.compress(f"\n {first}\n<a>b</a>\n".encode()))
    assert message_of(path).startswith(f"{path} is {name}")


@pytest.mark.parametrize("name", ["x.csv", "x.TSV"])
def test_tables_are_an_error(tmp_path, name):
    path = write(tmp_path / name, "id,text\n1,a cat\n")
    assert message_of(path).startswith(f"{path} is a table, not plain text. Write its text column")


@pytest.mark.parametrize(
    "text",
    [
        'id,text,label\n0,"The ship, at dawn.",1\n1,"A man",0\n',
        '"The ship";"A\nman"\n"Rain";"Snow"\n"He said ""no""";"x"\n',
        'id\ttext\n1\t"a"\n2\t"b"\n',
    ],
)
def test_quoted_tables_of_any_name_are_an_error(tmp_path, text):
    path = write(tmp_path / "x.txt", text)
    assert message_of(path).startswith(f"{path} is a table, not plain text. Write its text column")


def test_numbered_sentences_are_an_error(tmp_path):
    path = write(tmp_path / "x.txt", "1\tThe ship sailed.\n2\tIt was cold.\n5\tRain fell.\n")
    assert message_of(path) == (
        f"The lines of {path} start with a number and a tab. Remove them: cut -f2- < {path} > "
        f"NEW.txt"
    )
    packed = write(tmp_path / "x.txt.gz", gzip.compress(pathlib.Path(path).read_bytes()))
    assert message_of(packed).endswith(f"Remove them: gzip -dc {packed} | cut -f2- > NEW.txt")


@pytest.mark.parametrize("text", ['["a b",\n"c"]', '[\n "a b",\n "c"\n]', '["a b", "c"]\n'])
def test_lists_of_texts_are_an_error(tmp_path, text):
    path = write(tmp_path / "x.txt", text)
    assert f"(jq -c '.[] | {{text: .}}' < {path} > NEW.jsonl)" in message_of(path)


@pytest.mark.parametrize(
    "text",
    [
        '"Hello," he said.\n"No," she said, "never."\n"Why?"',
        "12\n7\tapples\n3\tpears",
        "<3 you all\nWe do.\nAll of us",
        "<http://example.org>\nA page.\nIt is good",
        "a,b\nc,d\ne,f",
        "1. The ship\n2. A man\n3. Rain",
    ],
)
def test_prose_that_looks_like_markup_stays_text(tmp_path, text):
    assert documents_of([write(tmp_path / "x.txt", text)]) == [text.split("\n")]


@pytest.mark.parametrize("mark", ["<|endoftext|>", "\u00a0", " \u3000\u3000"])
def test_other_ends_of_documents(tmp_path, mark):
    path = write(tmp_path / "x.txt", f"a <|endoftext|> b\nc\n{mark}\nd\n{mark}\n")
    for piece_bytes in (3, 7, 1 << 20):
        assert documents_of([path], piece_bytes) == [["a <|endoftext|> b", "c"], ["d"]]


def test_empty_lines_between_paragraphs_of_marked_documents(tmp_path):
    path = write(tmp_path / "x.txt", "a\n\nb\n<|endoftext|>\n\nc\n\u3000\nd\n<|endoftext|>\n")
    for piece_bytes in (3, 7, 11, 1 << 20):
        assert documents_of([path], piece_bytes) == [["a", "b"], ["c", "d"]]


def test_a_long_first_line(tmp_path):
    """The format is known although the first object is longer than what is looked at."""
    rows = [{"text": "a b " * 50_000}, {"text": "c"}]
    path = write(tmp_path / "x", "\n".join(map(json.dumps, rows)))
    assert documents_of([path], 1 << 16) == [[("a b " * 50_000).strip()], ["c"]]


def test_pieces_of_json_lines_without_a_suffix(tmp_path):
    path = write(tmp_path / "x", JSON_LINES * 3)
    for piece_bytes in (3, 5, 8, 13, *range(20, 150, 11)):
        assert documents_of([path], piece_bytes) == DOCUMENTS * 3, piece_bytes


# WikiExtractor

WIKI = "".join(
    f'<doc id="{i}" url="https://en.wikipedia.org/wiki?curid={i}" title="A &amp; "B" > {i}">\n'
    + "\n\n".join([f"Title {i}", *lines])
    + "\n\n</doc>\n"
    for i, lines in enumerate(DOCUMENTS)
)
WIKI_DOCUMENTS = [[f"Title {i}", *lines] for i, lines in enumerate(DOCUMENTS)]


def test_case_of_wikiextractor():
    if not CASES.exists():
        pytest.skip(f"needs the files in {CASES}")
    twice = [DOCUMENTS[0] * 2, ["A man walked his dog. The dog ran."] * 2, DOCUMENTS[2] * 2]
    expected = [[f"Title {i}", *lines] for i, lines in enumerate(twice)]
    assert documents_of([f"{CASES}/wikiextractor/wiki_00"]) == expected


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["AA/wiki_00", "x.txt"])
def test_wikiextractor(tmp_path, name, line_end):
    path = write(tmp_path / name, WIKI.replace("\n", line_end))
    for piece_bytes in (5, 9, *range(20, 300, 23), 1 << 20):
        assert documents_of([path], piece_bytes) == WIKI_DOCUMENTS, piece_bytes
    path = write(tmp_path / "x.xz", lzma.compress(f"\ufeff\n{WIKI}".encode()))
    assert documents_of([path], 9) == WIKI_DOCUMENTS


def test_wikiextractor_escapes_and_empty_documents(tmp_path):
    text = '<doc id="1" revid="2" url="u" title="t">\nA &lt;b&gt; &amp;amp; &nbsp;\n</doc>\n\n'
    text += '<doc id="3" url="u" title="t">\n</doc>\n<doc id="4" url="u" title="t">\ncut'
    assert documents_of([write(tmp_path / "x", text)]) == [["A <b> &amp; &nbsp;"], ["cut"]]


def test_a_line_between_documents_is_reported_once(tmp_path):
    path = write(tmp_path / "x", WIKI.replace("</doc>\n", "</doc>\nstray\n", 1))
    for piece_bytes in (5, *range(9, 200, 13)):
        skipped, lines = [], []
        for piece in split_into_pieces([path], piece_bytes):
            lines += read_lines(piece, skipped.append)
        assert len(skipped) == 1 and b"stray" not in lines, piece_bytes


# Encodings


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("Le café était\n\nfermé déjà.\n".encode("cp1252"), "CP1252"),
        ("今天天气很好。\n\n船在黎明时分启航。\n".encode("gb18030"), "GB18030"),
        ("The ship.\n\nThe end.\n".encode("utf-16"), "UTF-16"),
        ("今日は雨。\n\n船は夜明け。\n".encode("iso2022_jp"), "ISO-2022-JP"),
        ("오늘은 비가 온다.\n".encode("iso2022_kr"), "ISO-2022-KR"),
        (json.dumps({"text": "thé"}, ensure_ascii=False).encode("latin-1"), "CP1252"),
        (lzma.compress("été\n\nété".encode("cp1252")), "CP1252"),
        ("é et à, ".encode("cp1252") * 40_000, "CP1252"),  # a single long line
    ],
)
def test_other_encodings(tmp_path, content, encoding):
    message = message_of(write(tmp_path / "t.txt", content))
    assert "t.txt is not UTF-8; the file looks like " in message
    assert f"iconv -f {encoding} -t UTF-8" in message


def test_line_ends_of_old_macs_are_an_error(tmp_path):
    assert "old Mac" in message_of(write(tmp_path / "t.txt", b"a b\rc d\r\re f"))


def test_a_mark_at_the_beginning_is_no_text(tmp_path):
    path = write(tmp_path / "t.txt", "\ufeffa\n\nb")
    assert documents_of([path]) == documents_of([path], 2) == [["a"], ["b"]]
    path = write(tmp_path / "t.txt", "\ufeff\r\na\r\n\r\nb")
    assert documents_of([path]) == [["a"], ["b"]]


def test_long_characters_at_the_end_of_the_head(tmp_path):
    """A long line is looked at in part, which may end within a character."""
    for offset in range(3):
        path = write(tmp_path / "t.txt", "a" * offset + "天" * 30_000)
        assert "".join(documents_of([path])[0]) == "a" * offset + "天" * 30_000


def test_names_that_look_like_globs(tmp_path):
    paths = [write(tmp_path / name, JSON_LINES) for name in ("a[1].txt", "b,c.txt", "d e?.txt")]
    (tmp_path / "a1.txt").touch()
    assert find_inputs(",".join(paths)) == paths
    with pytest.raises(
        UserError, match=r"no file matches '.*z\*'\. Check the path; put globs in quotes"
    ):
        find_inputs(f"{paths[1]},{tmp_path}/z*")
