"""The programs that are killed: how each is called, what must be there after, and at the end."""

import fcntl
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np

from tests.chaos.forks import result_of
from tests.run_files import metrics_of, weights_of

ROOT = pathlib.Path(__file__).parent.parent.parent
ARCHITECTURE = {
    **{"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 32},
}
WORDS = ("the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "over", "mat")
FOR_FORKS = ("OPENBLAS_NUM_THREADS", "TF_XLA_FLAGS")  # variables of the environment
SAMPLES = ("the cat sat on the [MASK] .", "a big green [MASK] flew", "[MASK]")


class Wrong(Exception):
    """Something that must not be."""


def check(right, what):
    """Raises Wrong unless it is right."""
    if not right:
        raise Wrong(what)


def write_text(path, documents, seed):
    """Documents that go through some words in a circle."""
    generator, lines = random.Random(seed), []
    for _ in range(documents):
        place = generator.randrange(len(WORDS))
        for _ in range(generator.randrange(3, 7)):
            words = [WORDS[(place + i) % len(WORDS)] for i in range(generator.randrange(4, 9))]
            place += len(words)
            lines.append(" ".join(words) + " .")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def alone(name, arguments, seconds=300):
    """Runs `python -m NAME ARGUMENTS` as a user does; returns what it printed.

    Raises:
        Wrong: it did not end well.
    """
    command = [sys.executable, "-m", name, *map(str, arguments)]
    environment = {n: value for n, value in os.environ.items() if n not in FOR_FORKS}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=seconds, env=environment
    )
    check(done.returncode == 0, f"{name} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def files_of(folder):
    """Paths of the files below a folder: relative path -> Path.

    But for events of TensorBoard, and for lock files that nobody holds, which a process leaves that
    is killed after it has named its result and before it has removed its lock.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {str(path.relative_to(folder)): path for path in paths if not _is_left_lock(path)}
    return {name: path for name, path in found.items() if "events.out" not in name}


def _is_left_lock(path):
    if path.name != "lock" and not path.name.endswith(".lock"):
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def check_same_arrays(found, wanted, what):
    """Raises Wrong unless two dicts of arrays are the same to the last bit."""
    check(found.keys() == wanted.keys(), f"{what}: other arrays")
    for name in wanted:
        same = np.array_equal(found[name], wanted[name], equal_nan=found[name].dtype.kind == "f")
        check(same, f"{what}: {name} differs")


class Pretrain:
    """A run of `kbert.pretrain` of some seconds. flags: more of it, name -> value."""

    name, goes_on = "kbert.pretrain", True

    def __init__(self, work, title, **flags):
        self.title, self._work = title, work
        text = work / "text"
        if not text.exists():
            text.mkdir()
            write_text(text / "train.txt", 12, seed=0)
            write_text(text / "heldout.txt", 4, seed=1)
            lines = [f"{name}: {value}\n" for name, value in ARCHITECTURE.items()]
            (text / "tiny.yaml").write_text("".join(lines))
        self.flags = {
            **{"input": text / "train.txt", "eval_input": text / "heldout.txt"},
            **{"bert_config": text / "tiny.yaml", "vocab_size": 60, "max_seq_length": 20},
            **{"global_batch_size": 6, "learning_rate": 1e-2, "warmup_steps": 2},
            **{"train_steps": 40, "log_every_steps": 1, "save_every_steps": 5},
            **{"eval_every_steps": 8, "eval_examples": 32, **flags},
        }

    def config(self):
        """PretrainConfig of it."""
        from kbert.settings import PretrainConfig

        paths = ("input", "eval_input", "bert_config")
        return PretrainConfig(**self.flags | {name: str(self.flags[name]) for name in paths})

    def arguments(self, folder):
        """Flags of the program, to write to a folder."""
        return [f"--{n}={v}" for n, v in self.flags.items()] + [f"--output_dir={folder / 'run'}"]

    @staticmethod
    def phase_of(event, path):
        """See `Watch`."""
        if path.startswith("run/data"):
            return "text and vocabulary"
        match = re.match(r"run/pretrain/\.?(checkpoint|best|final)\b", path)
        if not match:
            return "start"
        doing = "naming" if event == "os.rename" else "clearing away"
        return f"{match[1]}: {'writing' if event != 'os.rename' and 'partial' in path else doing}"

    def found(self, folder, before):
        """What is left after a kill, in words, and the newest step; before: that of the last kill.

        Raises:
            Wrong: nothing that can be gone on from, or more than a checkpoint was lost.
        """
        from kbert.train.checkpoint import Checkpoints, DamagedCheckpoint, verified_state

        run = folder / "run" / "pretrain"
        checkpoints = Checkpoints(run / "checkpoint", 2)
        steps, reached = checkpoints.steps(), 0
        if (run / "metrics.jsonl").exists() and (rows := metrics_of(folder / "run")):
            reached = rows[-1]["step"]
        newest = max(steps, default=0)
        check(newest >= before, f"the newest checkpoint was step {before} and is step {newest}")
        every = self.flags["save_every_steps"]
        # One may still be being written; the next save, after the line of its step, waits for it.
        due = (reached - 1) // every * every - every
        check(newest >= due, f"step {reached} was taken, and the newest checkpoint is {newest}")
        if steps:
            try:
                verified_state(checkpoints.path(newest))
            except DamagedCheckpoint as error:
                raise Wrong(str(error)) from None
        there = []
        for name in ("best", "final"):  # killed between two renames, the old one is whole
            names = (name, f".{name}.old")
            there += [name for name in names if (run / name).exists()][:1]
        if there:
            result_of(_read_models, [run / name for name in there])
        text = f"step {newest} whole" if steps else "no checkpoint yet"
        return f"{text}{''.join(f', {name} reads' for name in there)}, {reached} steps seen", newest

    def compare(self, folder, reference):
        """Raises Wrong unless a finished run equals the one that was never killed."""
        run, wanted = folder / "run", reference / "run"
        check(metrics_of(run) == metrics_of(wanted), "metrics.jsonl differs")
        newest = f"checkpoint/step_{self.flags['train_steps']:08d}"
        for part in ("final", "best", newest):
            a, b = run / "pretrain" / part, wanted / "pretrain" / part
            check_same_arrays(weights_of(a), weights_of(b), f"the weights of {part}")
        optimizers = [
            _arrays(path / "pretrain" / newest / "optimizer.h5") for path in (run, wanted)
        ]
        check_same_arrays(*optimizers, "the optimizer")
        names = [set(files_of(path)) for path in (run, wanted)]
        check(
            names[0] == names[1], f"other files than in an undisturbed run: {names[0] ^ names[1]}"
        )


def _arrays(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda n, x: found.update({n: x[()]} if hasattr(x, "shape") else {}))
    return found


def _read_models(folders):
    from kbert.model import BertForPreTraining

    for folder in folders:
        BertForPreTraining.from_pretrained(folder)


class Prepare:
    """`kbert.prepare` of files of several kinds. files: how many. processes: workers."""

    name, title, goes_on = "kbert.prepare", "prepare", False

    def __init__(self, work, documents=2000, processes=1):
        from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

        self._text, self._processes = work / f"prepare_text_{documents}", processes
        self._vocab = work / "prepare_vocab.txt"
        write_vocab([*SPECIAL_TOKENS, ".", *WORDS], self._vocab)
        if not self._text.exists():
            self._text.mkdir()
            for seed in range(4):
                write_text(self._text / f"{seed}.txt", documents, seed)

    def arguments(self, folder):
        """Flags of the program, to write to a folder."""
        return [
            *(f"--input={self._text}/*.txt", f"--vocab_file={self._vocab}"),
            *(f"--output_dir={folder}/corpus", f"--processes={self._processes}"),
        ]

    @staticmethod
    def phase_of(event, path):
        """See `Watch`."""
        if event == "os.rename":
            return "naming"
        name = path.split("/")[-1]
        shard = name.split(".")[0].isdigit()
        return "shards" if shard else "manifest" if ".partial" in path and "/" in path else "start"

    def found(self, folder, before):
        """What is left after a kill, in words.

        Raises:
            Wrong: a corpus that is not whole.
        """
        from kbert.corpus import Corpus

        if not (folder / "corpus").exists():
            return f"no corpus, {len(list(folder.iterdir()))} leftovers", 0
        Corpus(folder / "corpus")
        return "the corpus is whole", 1

    def compare(self, folder, reference):
        """Raises Wrong unless the corpus equals the other one and nothing else is there."""
        found, wanted = files_of(folder), files_of(reference)
        check(found.keys() == wanted.keys(), f"other files: {found.keys() ^ wanted.keys()}")
        for name in wanted:
            check(found[name].read_bytes() == wanted[name].read_bytes(), f"{name} differs")


class Export:
    """`kbert.export` of a masked language model. source: folder of its weights."""

    name, title, goes_on = "kbert.export", "export", False

    def __init__(self, source):
        self._source = source

    def arguments(self, folder):
        """Flags of the program, to write to a folder."""
        return [f"--model={self._source}", f"--output_dir={folder}/bert/1"]

    @staticmethod
    def phase_of(event, path):
        """See `Watch`."""
        if event == "subprocess.Popen":
            return "answers of a process of its own"
        return "naming" if event == "os.rename" else "writing"

    def found(self, folder, before):
        """What is left after a kill, in words.

        Raises:
            Wrong: an export that does not answer.
        """
        if not (folder / "bert" / "1").exists():
            return f"no export, {len(list(folder.glob('bert/.*')))} leftovers", 0
        result_of(answers, folder / "bert" / "1")
        return "the export answers", 1

    def compare(self, folder, reference):
        """Raises Wrong unless the export answers as the other one and nothing else is there."""
        found, wanted = files_of(folder), files_of(reference)
        check(found.keys() == wanted.keys(), f"other files: {found.keys() ^ wanted.keys()}")
        pair = [result_of(answers, path / "bert" / "1") for path in (folder, reference)]
        check_same_arrays(*pair, "the answers")


def answers(folder):
    """What an export answers to some texts: dict of arrays."""
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))
    found = model.signatures["serving_default"](text=tf.constant(SAMPLES))
    return {name: value.numpy() for name, value in found.items()}


def clear(folder):
    """Makes an empty folder, whatever is there; returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder
