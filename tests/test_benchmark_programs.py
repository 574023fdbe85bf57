"""Every program of benchmarks/ runs: one quick row with kbert alone.

What the figures are does not matter here, only that there are some.
"""

import pathlib
import re
import subprocess

import keras
import pytest
from warm_python import PYTHON

import kbert
from kbert.tokenizer import BertTokenizer

ROOT = pathlib.Path(__file__).parent.parent
NUMBER = r"\d[\d,.]*"
# Arguments -> what it prints, a pattern; {names} are those of `places`.
COMPARISONS = {
    "train": ("--rows=small-128", rf"small-128: .*kbert \| {NUMBER} sequences/s"),
    "train --scaling": (
        "--rows=finetune-minilm",
        rf"from a folder: .*kbert \| {NUMBER} sequences/s",
    ),
    "infer": ("--rows=minilm-mixed,base-1x16", rf"minilm-mixed: .*kbert \| {NUMBER} texts/s"),
    "tokenizer": ("--vocab_file={model}/vocab.txt", rf"tokenizer.*kbert \| {NUMBER} MB/s"),
    "pipeline": (
        "--rows=64x128,16x512-words --threads=1 --vocab_file={model}/vocab.txt",
        rf"prepare: .*64x128: .*kbert \| {NUMBER} M tokens/s",
    ),
}
PROGRAMS = {
    "-m benchmarks.serve --quick --backends=tensorflow": rf"64 clients \(REST\) \| {NUMBER}",
    "-m benchmarks.load_test --quick": rf"(?s){NUMBER} answered, 0 failures, 0 wrong; .*, 0 got"
    rf".*\(none\) \| {NUMBER} ms .*\| {NUMBER} ms \| {NUMBER} ms \| {NUMBER} \| 0 \|",
    "-m benchmarks.prepare --quick --vocab_file={model}/vocab.txt --folder={folder}": (
        rf"\| 1 MB \| processes=1 \| .* \| {NUMBER} s"
    ),
    "-m benchmarks.pretraining --quick --text={corpus} --heldout={text}": rf"tiny \| {NUMBER}",
    "-m benchmarks.traffic --corpus={corpus} --batches=20": rf"L=128: {NUMBER} sequences/s",
    "-m benchmarks.smaller --models={model},{model} --backends=tensorflow --batches=1 --rounds=1 "
    "--length=8 --round_seconds=0.1": rf"\| tensorflow \| 1 x 8 \| .* \| {NUMBER}",
    "benchmarks/load.py --rounds=1 --size=tiny --libraries=kbert": rf"kbert, from hf \| {NUMBER}",
    "benchmarks/finetune.py --peer=false --task=classify --init_from={model} --epochs=1 "
    "--jit=off --max_seq_length=8 --train_file={examples} "
    "--eval_file={examples}": rf"seed 0 kbert +{NUMBER}",
    "benchmarks/hf_curve.py --corpus={corpus} --steps=2 --batch_size=2 --max_seq_length=16 "
    "--size=tiny --seeds=1 --peer=false": rf"kbert dropout 0.1, mean loss .*: {NUMBER}",
}


@pytest.fixture
def places(tmp_path, corpus):
    """Small files for the programs."""
    keras.utils.set_random_seed(0)
    tokenizer = BertTokenizer.from_pretrained(corpus.folder)
    config = kbert.BertConfig(tokenizer.vocab_size, 16, 1, 2, 24, max_position_embeddings=16)
    kbert.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "x.tsv").write_text("text\tlabel\nw1 w2\ta\nw3\tb\nw4 w5 w6\ta\n")
    (tmp_path / "heldout.txt").write_text("w1 w2 w3 w4 w5\n\nw6 w7 w8 w9\n\n" * 9)
    names = {"model": "model", "examples": "x.tsv", "folder": "folder", "text": "heldout.txt"}
    return {name: tmp_path / path for name, path in names.items()} | {"corpus": corpus.folder}


def printed(command):
    """What a benchmark prints."""
    done = subprocess.run(
        [PYTHON, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "failed" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n.startswith("train "))) for n in COMPARISONS],
)
def test_comparisons(name, places):
    arguments, pattern = COMPARISONS[name]
    command = f"-m benchmarks.{name} --quick --libraries=kbert --python_kbert={PYTHON} {arguments}"
    assert re.search(pattern, printed(command.format(**places)), re.DOTALL)


@pytest.mark.parametrize("command", PROGRAMS, ids=lambda c: re.search(r"benchmarks[./](\w+)", c)[1])
def test_programs(command, places):
    if re.search("serve|prepare|pretraining|load_test", command):
        command += f" --python_kbert={PYTHON}"
    if "load.py" in command:
        command += f" --python={PYTHON}"
    assert re.search(PROGRAMS[command.partition(" --python")[0]], printed(command.format(**places)))


def test_held_out_documents(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(f"document {i}" for i in range(1, 101)))
    printed(f"benchmarks/hold_out.py {tmp_path} {tmp_path}/text.txt")
    held_out = (tmp_path / "heldout.txt").read_text()
    assert held_out == "document 50\n\ndocument 100\n\n"
    assert (tmp_path / "train.txt").read_text().count("document") == 98


def test_each_module_is_run_here():
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    parts = {"__init__", "data", "report", "flops", "harness", "hf_bert", "measurement", "worker"}
    parts |= {"attackers"}  # load_test runs it
    run = {name.split()[0] for name in COMPARISONS} | {"hold_out"}
    run |= {re.search(r"benchmarks[./](\w+)", command)[1] for command in PROGRAMS}
    assert run == modules - parts
