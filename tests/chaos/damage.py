"""Faults of files: each that kbert reads is cut, changed by a bit, or removed."""

import functools
import random
import shutil

from tests.chaos.forks import result_of
from tests.chaos.programs import check, clear, files_of


def harms(data, flips, generator):
    """Pairs of what is done to a file, in words, and its bytes then; None: it is gone."""
    yield "gone", None
    yield "empty", b""
    yield "cut in half", data[: len(data) // 2]
    yield "without its last byte", data[:-1]
    for _ in range(flips):
        place, bit, flipped = (
            generator.randrange(len(data)),
            generator.randrange(8),
            bytearray(data),
        )
        flipped[place] ^= 1 << bit
        yield f"with bit {bit} of byte {place} changed", bytes(flipped)


def damaged(bench, source, names, read, flips):
    """Harms files of a copy of a folder one after the other and reads it in a fork.

    Args:
        bench: Bench. source: folder. names: of its files, all that must be noticed or do no harm.
        read: function of the folder that returns what is read; its UserErrors are what must come.
        flips: how many bits are changed in each file, one at a time.

    Returns:
        what was found, in words.
    """
    folder = bench.work / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    wanted = result_of(read, folder)
    found = result_of(_read_all, folder, names, read, flips, wanted, seconds=300)
    noticed = sum(outcome == "noticed" for _, outcome in found)
    wrong = [f"{what}: {outcome}" for what, outcome in found if outcome not in ("noticed", "same")]
    check(not wrong, f"{len(wrong)} of {len(found)}: {'; '.join(wrong[:20])}")
    return f"{len(names)} files, {len(found)} harms: {noticed} named, the others changed nothing"


def _read_all(folder, names, read, flips, wanted):
    from kbert.errors import UserError

    generator, found = random.Random(0), []
    for name in names:
        path = folder / name
        data = path.read_bytes()
        for harm, harmed in harms(data, flips, generator):
            path.unlink()
            if harmed is not None:
                path.write_bytes(harmed)
            try:
                outcome = "same" if read(folder) == wanted else "ANOTHER RESULT"
            except UserError:
                outcome = "noticed"
            except Exception as error:
                outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            found.append((f"{name} {harm}", outcome))
            path.write_bytes(data)
    return found


def checkpoint(bench):
    """Files of a checkpoint."""
    from kbert.train.checkpoint import verified_state

    run = bench.references["pretrain"] / "run" / "pretrain" / "checkpoint"
    newest = max(run.iterdir())
    return damaged(bench, newest, list(files_of(newest)), verified_state, flips=40)


def corpus(bench):
    """Files of a prepared corpus."""
    folder = bench.references["prepare"] / "corpus"
    return damaged(bench, folder, list(files_of(folder)), _read_corpus, flips=20)


def _read_corpus(folder):
    from kbert.corpus import Corpus
    from kbert.tokenizer import BertTokenizer

    corpus = Corpus(folder)
    tokenizer = BertTokenizer.from_pretrained(folder, lower_case=corpus.manifest["lower_case"])
    corpus.check_tokenizer(tokenizer)
    ids = corpus.read_all(_spans(corpus)).tobytes()
    return ids, corpus.document_starts.tobytes(), corpus.unigram_entropy(), tokenizer.fingerprint


def _spans(corpus):
    import numpy as np

    return np.stack([corpus.shard_starts[:-1], corpus.shard_starts[1:]], 1)


def inputs(bench):
    """Vocabulary and corpora that a run has made of its text, when it goes on."""
    run = bench.references["pretrain"] / "run"
    names = [name for name in files_of(run) if name.startswith("data/")]
    config = bench.cases["pretrain"].config()
    return damaged(bench, run, names, functools.partial(_find_again, config), flips=10)


def _find_again(config, folder):
    import tensorflow as tf

    from kbert.corpus.corpus import corpus_fingerprint
    from kbert.train.checkpoint import Checkpoints
    from kbert.train.pretraining import Pretraining
    from kbert.train.remote_sync import RemoteRunDir
    from kbert.train.workers import Workers

    checkpoints, workload = Checkpoints(folder / "pretrain" / "checkpoint", 2), Pretraining(config)
    state = checkpoints.newest(print)
    saved = checkpoints.path(state["step"])
    workers = Workers(tf.distribute.get_strategy())
    workload.load(state, saved, RemoteRunDir(None, folder), workers)
    corpora = workload.corpus, workload.held_out_corpus
    entropies = [corpus.unigram_entropy() for corpus in corpora]
    return workload.tokenizer.fingerprint, *map(corpus_fingerprint, corpora), *entropies


def log(bench):
    """The log of a run: a line that is cut or is no text costs that line."""
    run = bench.references["pretrain"] / "run" / "pretrain"
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    folder = clear(bench.work / "log")
    for name, harmed in (("last", lines[-1][:40]), ("fifth", b"\xff" + lines[4][1:])):
        place = {"last": len(lines) - 1, "fifth": 4}[name]
        (folder / "metrics.jsonl").write_bytes(
            b"".join([*lines[:place], harmed, *lines[place + 1 :]])
        )
        kept = result_of(_go_on, folder)
        wanted = lines[:place] + lines[place + 1 :]
        check(kept == wanted, f"{name} line harmed: {len(kept)} of {len(wanted)} lines are left")
    return "a harmed line is dropped, the others stay"


def _go_on(folder):
    from kbert.train.callbacks import drop_later_rows

    drop_later_rows(folder / "metrics.jsonl", 10**6)
    return (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)


def export(bench):
    """Files of an export, as weights."""
    folder = bench.references["export"] / "bert" / "1"
    names = [name for name in files_of(folder) if "warmup" not in name]
    return damaged(bench, folder, names, _predict, flips=3)


def _predict(folder):
    import kbert
    from tests.chaos.programs import SAMPLES

    predictor = kbert.Predictor.from_pretrained(folder, backend="keras")
    return [str(predictor.fill_mask([text])) for text in SAMPLES]


def served(bench):
    """Files of an export, as a server loads it."""
    folder = bench.references["export"] / "bert" / "1"
    return damaged(bench, folder, list(files_of(folder)), _serve, flips=3)


def _serve(folder):
    import numpy as np

    from kbert.server.servable import Servable
    from tests.chaos.programs import SAMPLES

    servable = Servable(folder, backend="tensorflow")
    texts = {"text": np.array([text.encode() for text in SAMPLES], object)}
    found = servable.compute(servable.signature(""), texts)
    return {name: value.tolist() for name, value in found.items()}


DAMAGE_FAULTS = {
    "damaged checkpoint": checkpoint,
    "damaged corpus": corpus,
    "damaged text and vocabulary of a run": inputs,
    "damaged log of a run": log,
    "damaged export, read as weights": export,
    "damaged export, served": served,
}
