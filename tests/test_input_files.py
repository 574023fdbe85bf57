"""Opening files: compression and encoding are told by the content, whatever the name."""

import bz2
import gzip
import json
import lzma
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from kbert.corpus.text_sources import split_into_pieces
from kbert.data.examples import read_label_names
from kbert.errors import UserError
from kbert.settings import ExampleConfig
from kbert.tasks.examples import read_split
from kbert.tokenizer.vocab import SPECIAL_TOKENS, read_vocab
from kbert.utils import encodings, storage
from kbert.utils.input_files import is_compressed, plain_name, read_byte_lines, read_text

CASES = pathlib.Path(__file__).parent.parent.parent / "shared" / "cases"
ANSWER = {"text": "fermé", "answer_start": 8}
QUESTION = {"id": "é", "question": "Où ?", "answers": [ANSWER]}
PARAGRAPH = {"context": "Le café fermé à Orléans", "qas": [QUESTION]}
SQUAD = json.dumps({"data": [{"paragraphs": [PARAGRAPH]}]}, ensure_ascii=False)
COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
FRENCH = "Le café était fermé, et très tôt déjà.\nÀ Noël, l’été “indien” dure.\n"
GERMAN = "Die Größe der Tür überraschte Müller.\nSchöne Grüße aus Köln, außer für Ärzte.\n"
RUSSIAN = "Корабль отплыл на рассвете.\nБыло холодно, и никто не пришёл.\n"
CHINESE = "今天天气很好，我们去公园散步。\n船在黎明时分启航，没有人来。\n"
TAIWANESE = "今天天氣很好，我們去公園散步。\n船在黎明時分啟航，沒有人來。\n"
JAPANESE = "今日は天気がいいので、公園を散歩します。\n船は夜明けに出港した。\n"
KATAKANA = "テスト\nコーヒー\nインターネット\n"
KOREAN = "오늘은 날씨가 좋아서 공원에 갔다.\n배는 새벽에 떠났고 아무도 오지 않았다.\n"


def write(path, content):
    path.write_bytes(content)
    return str(path)


def message_of(path):
    with pytest.raises(UserError) as error:
        read_text(path)
    return str(error.value)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["t.txt{}", "t", "t.txt", "T.TXT{}"])
def test_compression_is_told_by_the_content(tmp_path, suffix, name):
    path = write(tmp_path / name.format(suffix), COMPRESS[suffix](b"a\nb\r\nc"))
    assert list(read_byte_lines(path)) == [b"a\n", b"b\r\n", b"c"] and is_compressed(path)


def test_members_of_archives_are_joined(tmp_path):
    for suffix, compress in COMPRESS.items():
        path = write(tmp_path / f"t{suffix}", compress(b"a\n") + compress(b"b\n"))
        assert read_text(path) == "a\nb\n"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damaged_archives(tmp_path, suffix):
    whole = COMPRESS[suffix](b"".join(b"line %d\n" % i for i in range(9999)))
    path = write(tmp_path / f"t{suffix}", whole[: len(whole) // 2])
    assert "t" + suffix + ": Compressed file ended before the end-of-stream" in message_of(path)
    path = write(tmp_path / f"t{suffix}", whole[:90] + b"\x00\x01" * 9 + whole[108:])
    assert message_of(path).startswith(f"cannot read {path}: ")
    path = write(tmp_path / f"t.txt{suffix}", b"plain")
    assert message_of(path).endswith(f"If it is plain text, remove {suffix} from its name.")
    assert read_text(write(tmp_path / f"empty{suffix}", b"")) == ""


def test_zstd(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    frames = [zstandard.compress(b"a\nb"), zstandard.compress(b"c\n" * 300_000)]
    skipped = b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab"
    path = write(tmp_path / "t", skipped + frames[0] + frames[1])
    assert read_text(path) == "a\nb" + "c\n" * 300_000
    path = write(tmp_path / "t.zst", frames[0] + frames[1][:-3])
    assert "t.zst: Compressed file ended before the end-of-stream" in message_of(path)
    path = write(tmp_path / "t.zst", frames[0] + b"no frame")
    assert message_of(path).startswith(f"cannot read {path}: ")


def test_zstd_without_zstandard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = write(tmp_path / "t.jsonl", b"\x28\xb5\x2f\xfd\x04\x00")
    expected = f"{path} is compressed with zstd, which needs zstandard: pip install zstandard"
    assert message_of(path) == expected


@pytest.mark.parametrize(
    ("name", "plain"),
    [("A.CSV.GZ", "a.csv"), ("a.jsonl.zst", "a.jsonl"), ("a.gz.txt", "a.gz.txt"), ("xz", "xz")],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


def test_marks_and_line_ends(tmp_path):
    path = write(tmp_path / "t", b"\xef\xbb\xbfa\r\n\xef\xbb\xbfb")
    assert list(read_byte_lines(path)) == [b"a\r\n", b"\xef\xbb\xbfb"]
    assert list(read_byte_lines(write(tmp_path / "t", b"\xef\xbb\xbf"))) == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04...", "a zip archive or an Office file"),
        (b"a.txt".ljust(257, b"\0") + b"ustar", "a tar archive"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"PAR1....", "a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes(range(256)) * 4, "a binary file"),
    ],
)
def test_files_that_are_not_text(tmp_path, content, what):
    path = write(tmp_path / "t.csv", gzip.compress(content))
    assert message_of(path).startswith(f"{path} is {what}")


def test_folders_and_pipes(tmp_path):
    assert message_of(tmp_path) == f"{tmp_path} is a folder. Give the path of a file in it."
    assert "/dev/null is a pipe or a device." in message_of("/dev/null")
    assert message_of("no.txt") == "cannot read no.txt: No such file or directory."


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("text", "codec", "encoding"),
    [
        (FRENCH, "utf-16", "UTF-16"),
        (CHINESE, "utf-16", "UTF-16"),
        (FRENCH, "utf-16-le", "UTF-16LE"),
        (FRENCH, "utf-16-be", "UTF-16BE"),
        (CHINESE, "utf-16-le", "UTF-16LE"),
        (CHINESE, "utf-16-be", "UTF-16BE"),
        ("plain\nASCII\n", "utf-16-be", "UTF-16BE"),
        (FRENCH, "utf-32", "UTF-32"),
        (CHINESE, "utf-32-le", "UTF-32LE"),
        (RUSSIAN, "utf-32-be", "UTF-32BE"),
        (FRENCH, "cp1252", "CP1252"),
        (GERMAN, "latin-1", "CP1252"),
        (FRENCH, "mac_roman", "MACINTOSH"),
        ("Don’t go, “she” said.\nIt’s cold …\n", "mac_roman", "MACINTOSH"),
        ("Don’t go, “she” said.\nIt’s cold …\n", "cp1252", "CP1252"),
        (RUSSIAN, "cp1251", "CP1251"),
        (CHINESE, "gbk", "GB18030"),
        (CHINESE, "gb18030", "GB18030"),
        (TAIWANESE, "big5", "BIG5"),
        (JAPANESE, "shift_jis", "CP932"),
        (KATAKANA, "shift_jis", "CP932"),
        (JAPANESE, "euc_jp", "EUC-JP"),
        (KOREAN, "euc_kr", "CP949"),
    ],
)
def test_other_encodings_are_named(tmp_path, text, codec, encoding, line_end):
    """And the command that the message gives makes the right file."""
    text = f"text\tlabel\n{text}".replace("\n", line_end)
    path = write(tmp_path / "my file.tsv", text.encode(codec))
    message = message_of(path)
    assert message.startswith(f"{path} is not UTF-8; the file looks like ")
    assert f"Convert it (iconv -f {encoding} -t UTF-8 < {shlex.quote(path)} > " in message
    if shutil.which("iconv"):
        command = message.partition("Convert it (")[2].removesuffix(").")
        subprocess.run(command, shell=True, check=True)
        assert (tmp_path / "my file.utf8.tsv").read_bytes().decode("utf-8") == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "cp1252.csv",
            "text,label\r\nLe café était fermé,neg\r\nTrès bon séjour,pos\r\n".encode("cp1252"),
            "cp1252.csv, line 2: bytes that are not UTF-8; the file looks like Windows-1252 "
            "(cp1252, much like Latin-1). Convert it (iconv -f CP1252 -t UTF-8 < ",
        ),
        (
            "utf16.txt",
            "text\tlabel\r\nLe café était fermé\tneg\r\n".encode("utf-16"),
            "utf16.txt is not UTF-8; the file looks like UTF-16. Convert it (iconv -f UTF-16 -t U",
        ),
    ],
)
def test_cases_of_encodings(tmp_path, name, content, message):
    paths = [write(tmp_path / name, content), str(CASES / "encodings" / name)]
    for path in filter(os.path.exists, paths):
        with pytest.raises(UserError) as error:
            read_split(path, ExampleConfig(task="classify"))
        assert message in str(error.value)
        with pytest.raises(UserError, match="is not UTF-8; the file looks like"):
            split_into_pieces([path])


@pytest.mark.parametrize("compress", [bytes, bz2.compress, lzma.compress])
@pytest.mark.parametrize(
    ("name", "task", "content"),
    [
        ("t.tsv", "classify", "Le café était fermé.\tnon\nTrès bon séjour.\toui\n"),
        ("t.csv", "classify", 'text,label\n"Le café\nétait fermé.",non\nLà,oui\n'),
        ("t.jsonl", "classify", '{"text": "Été à Orléans", "label": 0}\n'),
        ("t.conll", "tag", "à O\nOrléans B-LOC\n\nété O\n"),
        ("s.json", "qa", SQUAD),
    ],
)
def test_every_reader_opens_files_alike(tmp_path, name, task, content, compress):
    """Any compression, marks and line ends; UTF-16 and Windows-1252 are named."""
    config = ExampleConfig(task=task)
    expected = read_split(write(tmp_path / name, content.encode()), config)
    changed = f"\ufeff{content}".replace("\n", "\r\n" if name != "t.csv" else "\n")
    path = write(tmp_path / name, compress(changed.encode()))
    assert read_split(path, config) == expected
    for codec, encoding in (("utf-16", "UTF-16"), ("cp1252", "CP1252")):
        path = write(tmp_path / name, compress(content.encode(codec)))
        with pytest.raises(UserError, match=f"not UTF-8; .*iconv -f {encoding} -t UTF-8"):
            read_split(path, config)


def test_files_of_names(tmp_path):
    """Vocabularies and names of labels, with marks and Windows line ends, or as UTF-16."""
    words = [*SPECIAL_TOKENS, "été"]
    for read in (read_vocab, lambda path: list(read_label_names(path))):
        path = write(tmp_path / "t", ("\ufeff" + "\r\n".join(words) + "\r\n\r\n").encode())
        assert read(path) == words
        assert read(write(tmp_path / "t", gzip.compress("\n".join(words).encode()))) == words
        for codec, encoding in (("utf-16", "UTF-16"), ("cp1252", "CP1252")):
            path = write(tmp_path / "t", "\n".join(words).encode(codec))
            with pytest.raises(UserError, match=f"t is not UTF-8; .*iconv -f {encoding} -t UTF-8"):
                read(path)
        with pytest.raises(UserError, match="has old Mac line endings"):
            read(write(tmp_path / "t", "\r".join(words).encode()))


def test_the_command_for_a_compressed_file(tmp_path):
    path = write(tmp_path / "t.csv.GZ", gzip.compress(FRENCH.encode("cp1252")))
    new = f"{tmp_path}/t.utf8.csv"
    assert f"(gzip -dc {path} | iconv -f CP1252 -t UTF-8 > {new})." in message_of(path)


def test_line_ends_of_old_macs(tmp_path):
    assert read_text(write(tmp_path / "t.txt", b"a\r")) == "a\r"
    assert read_text(write(tmp_path / "t.txt", b"a\rb\n")) == "a\rb\n"
    assert "old Mac" in message_of(write(tmp_path / "t.txt", b"a\r" * 20 + b"\n"))
    path = write(tmp_path / "t.txt", b"a\rb\r")
    expected = rf"(CR alone). Convert it (tr '\r' '\n' < {path} > {tmp_path}/t.utf8.txt)."
    assert message_of(path).endswith(expected)


def test_a_bad_line_among_others(tmp_path):
    """No conversion is advised, which would damage the lines that are UTF-8."""
    bad = "Là,oui\n".encode("cp1252")
    path = write(tmp_path / "t.csv", "text,label\nété,non\nnoël,oui\n".encode() + bad)
    problem = "not UTF-8 (other lines of the file are)"
    assert message_of(path) == f"{path} is {problem}."
    with pytest.raises(UserError, match=re.escape(f"line 4: bytes that are {problem}. Fix it")):
        read_split(path, ExampleConfig(task="classify"))


def test_bytes_of_no_known_encoding(tmp_path):
    path = write(tmp_path / "t.txt", b"a\x81\x8d\xff\xfe\x90 b\n")
    assert message_of(path) == f"{path} is not UTF-8. Save it as UTF-8."


@pytest.mark.parametrize("text", [FRENCH, CHINESE, "ASCII\n" * 99])
def test_some_zeros_in_a_text(text):
    data = text.encode()
    assert encodings.detect_wide_encoding(data[:7] + b"\0" + data[7:]) is None


# Names of files


def names(folder, pattern):
    return [path.removeprefix(f"{folder}/") for path in storage.glob(f"{folder}/{pattern}")]


def test_existing_paths_are_taken_literally(tmp_path):
    for name in ("a[1].txt", "a1.txt", "what?.txt", "whats.txt", "*.txt", "d[1]/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = str(tmp_path)
    assert names(folder, "a[1].txt") == ["a[1].txt"]
    assert names(folder, "what?.txt") == ["what?.txt"]
    assert names(folder, "*.txt") == ["*.txt"]
    assert names(folder, "a*.txt") == ["a1.txt", "a[1].txt"]
    assert names(folder, "d[1]/*.txt") == ["d[1]/x.txt"]
    assert names(folder, "**/*.txt")[-1] == "whats.txt" and "d[1]/x.txt" in names(folder, "**")
    assert "d[1]" in names(folder, "*") and "d[1]" not in names(folder, "**")
    assert names(folder, "b*") == []


def test_commas_in_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c.txt", "d, e", "f"):
        (tmp_path / name).touch()
    split = storage.split_patterns
    assert split("a,b.txt") == ["a,b.txt"]
    assert split("c.txt, a,b.txt,*.x,,d, e") == ["c.txt", "a,b.txt", "*.x", "d, e"]
    assert split(" , ") == split("") == []
    assert split("gs://b/x,f,none") == ["gs://b/x", "f", "none"]
