"""The Beam runner writes the files of the local runner; skipped where Beam is not installed."""

import json
import pathlib
import random
import re
import subprocess
import sys
import time

import pytest
from faulty import FaultyFiles, unavailable

from kbert.corpus import beam_runner, deduplication, preparation, prepare, shard_builder
from kbert.corpus.shard_builder import ShardBuilder
from kbert.corpus.text_sources import split_into_pieces
from kbert.errors import UserError
from kbert.tokenizer.tokenizer import BertTokenizer
from kbert.utils import remote_storage, storage

pytest.importorskip("apache_beam")

OPTIONS = [{}, {"deduplicate": True}]
IN_MEMORY = "--runner=FnApiRunner"  # DirectRunner first tries to download another runner
JOB_SERVER = "apache_beam.runners.portability.local_job_service_main"


@pytest.fixture
def text(tmp_path):
    """Globs of 90 documents in three files, with all that is counted."""
    generator = random.Random(5)
    words = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "\u200b"]
    documents = []
    for _ in range(90):
        sizes = generator.choices([1, 1, 1, 2, 3], k=generator.choice([1, 1, 2, 5]))
        documents.append("\n".join(" ".join(generator.choices(words, k=k)) for k in sizes))
    for name, part in (("b", documents[:40]), ("a", documents[40:70])):
        (tmp_path / f"{name}.text").write_text("\n\n".join(part) + "\n", encoding="utf-8")
    with open(tmp_path / "c_00", "wb") as file:
        for document in documents[70:]:
            file.write(json.dumps({"text": document}).encode() + b"\n")
        file.write(b"{}\n\n[1]\n" + b'{"text": "c\xff"}\n')
    (tmp_path / "d.text").write_bytes(b"the cat\n" * 10 + b"the c\xffat")
    return f"{tmp_path}/*.text, {tmp_path}/c_00"


@pytest.fixture
def small_parts(monkeypatch):
    """Several pieces for each file, and several shards for each piece."""
    monkeypatch.setattr(
        preparation, "split_into_pieces", lambda paths: split_into_pieces(paths, 200)
    )
    monkeypatch.setattr(shard_builder, "BATCH_BYTES", 40)
    monkeypatch.setattr(deduplication, "SHARD_TOKENS", 50)


def assert_same_files(folder, expected):
    names = sorted(path.name for path in pathlib.Path(expected).iterdir())
    assert sorted(path.name for path in pathlib.Path(folder).iterdir()) == names
    for name in names:
        found = pathlib.Path(folder, name).read_bytes()
        assert found == pathlib.Path(expected, name).read_bytes(), name


@pytest.mark.parametrize("options", OPTIONS)
def test_both_runners_write_the_same(tmp_path, vocab_file, text, small_parts, options):
    options = {**options, "skip_bad_lines": True}
    local = prepare(text, tmp_path / "local", vocab_file, **options)
    for threads in (1, 3):
        flags = f"{IN_MEMORY} --direct_num_workers={threads} --direct_running_mode=multi_threading"
        prepare(
            text,
            tmp_path / f"beam{threads}",
            vocab_file,
            runner="beam",
            beam_options=flags,
            **options,
        )
        assert_same_files(tmp_path / f"beam{threads}", local.folder)
    counts = local.manifest
    assert len(local.shards) > 6 and counts["skipped_lines"] == 3
    assert counts["lines_with_bad_utf8"] == 1 and counts["documents_without_tokens"] > 0
    assert (counts["removed_duplicates"] > 0) == ("deduplicate" in options)


def test_the_default_runner(tmp_path, vocab_file, text):
    prepare("sample:heldout", tmp_path / "local", vocab_file)
    report = []
    prepare("sample:heldout", tmp_path / "beam", vocab_file, runner="beam", report=report.append)
    assert_same_files(tmp_path / "beam", tmp_path / "local")
    assert report == ["preparing 1 pieces with Beam"]


def test_remote_folders(tmp_path, vocab_file, text, monkeypatch, small_parts):
    """The manifest comes last, and nothing of the pipeline's own is left."""
    monkeypatch.setenv("KBERT_CACHE", str(tmp_path / "cache"))
    options = {**OPTIONS[-1], "skip_bad_lines": True}
    local = prepare(text, tmp_path / "local", vocab_file, **options)
    copies, copy = [], storage.copy
    monkeypatch.setattr(storage, "copy", lambda a, b: (copies.append(str(b)), copy(a, b)))
    found = prepare(
        text, "ram://beam/out", vocab_file, runner="beam", beam_options=IN_MEMORY, **options
    )
    assert_same_files(found.folder, local.folder)
    assert storage.list_folder("ram://beam/out") == sorted(p.name for p in local.folder.iterdir())
    uploads = [path for path in copies if path.startswith("ram://")]
    assert uploads[-1] == "ram://beam/out/corpus.json" and len(uploads) > 20


def test_a_call_that_a_runner_makes_again(tmp_path, vocab_file, text):
    """Files are replaced by the same ones, at any moment whole."""
    worker = ShardBuilder.from_tokenizer(BertTokenizer(vocab_file), skip_bad_lines=True)
    (piece,) = split_into_pieces([f"{tmp_path}/c_00"])
    first = beam_runner._write_piece((7, piece), worker, str(tmp_path))
    names = {path.name: path.read_bytes() for path in tmp_path.glob("00007.*")}
    second = beam_runner._write_piece((7, piece), worker, str(tmp_path))
    assert first.shards == second.shards and len(names) == 3
    assert names == {path.name: path.read_bytes() for path in tmp_path.glob("00007.*")}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("options", OPTIONS)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, vocab_file, text, options, capfd):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=r"c_00, line 21: no key or column is named"):
        prepare(
            text,
            tmp_path / "corpus",
            vocab_file,
            runner="beam",
            beam_options=IN_MEMORY,
            **options,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert "Traceback" not in capfd.readouterr().err


def test_a_storage_that_is_out_of_order(tmp_path, vocab_file, text, monkeypatch):
    """Is the runner's to try again, so it is an exception for it."""
    files = FaultyFiles()
    files.faults["copy"] = [unavailable()] * remote_storage.TRIES
    monkeypatch.setattr(remote_storage, "gfile", files)
    monkeypatch.setattr(remote_storage, "FIRST_WAIT_S", 0)
    worker = ShardBuilder.from_tokenizer(BertTokenizer(vocab_file))
    (piece,) = split_into_pieces([f"{tmp_path}/d.text"])
    with pytest.raises(
        storage.RetryError, match=r"gave up after 6 attempts; the last error: the service"
    ):
        beam_runner._write_piece((0, piece), worker, "ram://beam/away")
    assert storage.list_folder("ram://beam/away") == []


def test_machines_that_do_not_see_the_folder(tmp_path, vocab_file, text, monkeypatch):
    """The counts say that there is a shard; its files are on a disk elsewhere."""
    run_folder = {}
    write = shard_builder.write_shard

    def write_elsewhere(folder, *args):
        run_folder["elsewhere"] = tmp_path / "elsewhere"
        run_folder["elsewhere"].mkdir(exist_ok=True)
        write(str(run_folder["elsewhere"]), *args)

    monkeypatch.setattr(shard_builder, "write_shard", write_elsewhere)
    message = (
        r"the pipeline ended, but its files are not in .*Set --output_dir to a folder.*No such"
    )
    options = {"runner": "beam", "beam_options": IN_MEMORY, "skip_bad_lines": True}
    with pytest.raises(UserError, match=message):
        prepare(text, tmp_path / "corpus", vocab_file, **options)
    assert run_folder and not (tmp_path / "corpus").exists()
    monkeypatch.setattr(beam_runner, "_write_result", lambda tally, folder: None)
    with pytest.raises(UserError, match=message):
        prepare(text, tmp_path / "corpus", vocab_file, **options)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--runner=Foo", r"takes? .*'--runner=Foo': Unexpected pipeline runner: Foo\. Valid"),
        ("--direct_num_workers=x", r"argument --direct_num_workers: invalid int value: 'x'\. Give"),
        ("--runner='Foo", r"No closing quotation\. Give its flags in one string"),
    ],
)
def test_flags_that_beam_does_not_take(tmp_path, vocab_file, text, flags, message, capfd):
    with pytest.raises(UserError, match=message):
        prepare(text, tmp_path / "corpus", vocab_file, runner="beam", beam_options=flags)
    assert "usage" not in capfd.readouterr().err


@pytest.fixture
def job_server(tmp_path):
    """Address of a job server in a process of its own, as clusters have one."""
    command = [sys.executable, "-m", JOB_SERVER, f"--staging_dir={tmp_path}/staging"]
    log = tmp_path / "job_server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*command, f"--port_file={tmp_path}/port"], stdout=file, stderr=file
        )
        try:
            for _ in range(300):
                if (tmp_path / "port").exists() and (tmp_path / "port").read_text():
                    break
                time.sleep(0.1)
            port = re.search(r"\d+", (tmp_path / "port").read_text())[0]
            yield f"localhost:{port}"
        finally:
            process.terminate()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "flags",
    [
        "--direct_num_workers=2 --direct_running_mode=multi_processing",
        "--runner=PortableRunner --job_endpoint={} --environment_type=LOOPBACK",
    ],
)
def test_workers_in_processes_and_a_job_server(tmp_path, vocab_file, job_server, options, flags):
    """By the program; the text is the sample, in several files."""
    (tmp_path / "text").mkdir()
    for i in range(2):
        source = pathlib.Path(shard_builder.__file__).parent / "sample/heldout.txt.gz"
        (tmp_path / f"text/{i}.txt.gz").write_bytes(source.read_bytes())
    local = prepare(f"{tmp_path}/text/*", tmp_path / "local", vocab_file, **options)
    command = [sys.executable, "-m", "kbert.prepare", f"--input={tmp_path}/text/*"]
    command += [f"--vocab_file={vocab_file}", f"--output_dir={tmp_path}/beam", "--runner=beam"]
    command += [f"--beam_options={flags.format(job_server)}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    subprocess.run(command, check=True)
    assert_same_files(tmp_path / "beam", local.folder)
