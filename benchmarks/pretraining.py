"""Compares recipes of pretraining in runs with equal training time.

    python -m benchmarks.pretraining --text=train.txt --heldout=heldout.txt --time_budget=1h \\
        --recipe='mini: --bert_config=mini --learning_rate=1e-3' \\
        --recipe='small: --flagfile=small.flags' --json=recipes.json --image=recipes.png

A recipe is a name and flags of `kbert.pretrain`, except for the text, the duration and the seed.
Each run is a separate process, bound to as many CPUs as it has threads. It trains for
`--time_budget`; compilation and evaluations do not count. The seeds take turns: every recipe runs
with the first seed, then with the second, so that drift of the machine's speed does not favor any
recipe. With `--screen`, all recipes first train for that time with the seed 0; the better half
trains for twice the time, and so on, until `--finalists` are left (successive halving, Jamieson and
Talwalkar 2016). A recipe whose name begins with "hf" trains HF's model in torch on the same
batches, from the same weights, in float32; it must train MLM and NSP with AdamW.

All models are scored on the same held-out segments (`benchmarks.workers.recipe.MaskedText`), with
15 % of the tokens masked, regardless of the recipe:

    loss            mean cross-entropy of the masked tokens, in nats per token
    bits per byte   loss * tokens / (bytes * ln 2), with the number of tokens and of UTF-8 bytes of
                    the held-out text, without line breaks. Unlike the loss, it is comparable
                    between models with different vocabularies of the same casing.
    NSP accuracy    on the held-out pairs of `kbert.pretrain`, for recipes that train NSP
"""

import json
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile

from absl import app, flags

from benchmarks.measurement import ROOT, environment
from benchmarks.report import machine
from kbert.corpus.text_sources import find_inputs, read_lines, split_into_pieces
from kbert.settings.training import time_budget_seconds

FLAGS = flags.FLAGS
COLUMNS = ("recipe", "bits per byte", "MLM loss", "accuracy", "NSP accuracy", "parameters", "steps")
QUICK = ["tiny: --bert_config=tiny --max_seq_length=16 --global_batch_size=2 --jit=off"]
QUICK_STEPS = ["--train_steps=4", "--warmup_steps=1", "--eval_every_steps=2"]

if __name__ == "__main__":
    flags.DEFINE_string("text", None, "training text or a prepared corpus", required=True)
    flags.DEFINE_string("heldout", None, "held-out text, not prepared", required=True)
    flags.DEFINE_multi_string("recipe", [], "NAME: flags of kbert.pretrain; repeat for more")
    flags.DEFINE_string("time_budget", "10m", "training time of a run, such as 90s or 1h")
    flags.DEFINE_string(
        "screen", None, "training time in the first round of screening; default: no screening"
    )
    flags.DEFINE_integer("finalists", 2, "number of recipes after the screening")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the final runs")
    flags.DEFINE_integer("length", 64, "length of the held-out segments in tokens")
    flags.DEFINE_integer("segments", 1024, "number of held-out segments")
    flags.DEFINE_integer("threads", len(os.sched_getaffinity(0)), "threads, and CPUs, of a run")
    flags.DEFINE_string("folder", None, "folder for the runs; default: a temporary one")
    flags.DEFINE_string("json", None, "file for all results, rewritten after every run")
    flags.DEFINE_string("image", None, "file for a plot of the learning curves")
    flags.DEFINE_bool("quick", False, "test run: a tiny recipe and four steps")
    flags.DEFINE_string("python_kbert", sys.executable, "Python with kbert's dependencies")


def parse(recipes):
    """Returns a dict of name -> list of flags, from the values of --recipe."""
    found = {}
    for recipe in recipes:
        name, colon, text = recipe.partition(":")
        if not colon or name.strip() in found:
            raise app.UsageError(f"--recipe must be NAME: FLAGS, each name once; got {recipe!r}")
        found[name.strip()] = shlex.split(text)
    return found


def text_bytes(inputs):
    """Returns the number of UTF-8 bytes of a text, without line breaks."""
    pieces = split_into_pieces(find_inputs(inputs))
    return sum(len(line) for piece in pieces for line in read_lines(piece))


def run(name, recipe, seconds, seed, folder):
    """Trains a recipe for some seconds in a separate process; returns its result, a dict."""
    place = pathlib.Path(folder) / f"{name}_{seconds:g}s_{seed}"
    place.mkdir(parents=True)
    settings = {
        "flags": [
            *(f"--input={FLAGS.text}", f"--eval_input={FLAGS.heldout}", *recipe),
            *(QUICK_STEPS if FLAGS.quick else [f"--time_budget={seconds:f}s"]),
            f"--seed={seed}",
        ],
        "library": "hf" if name.startswith("hf") else "kbert",
        "folder": str(place / "run"),
        "output": str(place / "result.json"),
        "length": FLAGS.length,
        "segments": FLAGS.segments,
    }
    (place / "settings.json").write_text(json.dumps(settings))
    command = [FLAGS.python_kbert, "-m", "benchmarks.workers.recipe", str(place / "settings.json")]
    cpus = sorted(os.sched_getaffinity(0))[: FLAGS.threads]
    with open(place / "log.txt", "w") as log:
        done = subprocess.run(
            command,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=os.environ | environment(FLAGS.threads),
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
    if done.returncode:
        sys.exit(f"{name}, seed {seed}, failed:\n{(place / 'log.txt').read_text()[-3000:]}")
    result = json.loads((place / "result.json").read_text())
    result |= {"recipe": name, "seed": seed, "time_budget_s": seconds}
    return with_bits_per_byte(result, text_bytes(FLAGS.heldout))


def with_bits_per_byte(result, heldout_bytes):
    """Returns a result with the final scores added, and bits per byte in every point of the curve.

    Args:
        heldout_bytes: number of UTF-8 bytes of the held-out text.
    """
    factor = result["heldout_tokens"] / heldout_bytes / math.log(2)
    points = [[*point, point[2] * factor] for point in result["points"]]
    _, _, loss, accuracy, bits = points[-1]
    return result | {"points": points, "loss": loss, "accuracy": accuracy, "bits_per_byte": bits}


def better_half(results, finalists):
    """Returns the names of the better half of the recipes, but at least `finalists` of them."""
    ranked = sorted(results, key=lambda result: result["bits_per_byte"])
    return [result["recipe"] for result in ranked[: max(finalists, math.ceil(len(ranked) / 2))]]


def screen(recipes, keep, act):
    """Selects the best recipes by successive halving; returns a dict of name -> flags.

    Args:
        recipes: dict of name -> flags.
        keep: number of recipes to select.
        act: function of (name, seconds) that trains a recipe and returns its result.
    """
    seconds = time_budget_seconds(FLAGS.screen)
    while len(recipes) > keep:
        results = [act(name, seconds) for name in recipes]
        recipes = {name: recipes[name] for name in better_half(results, keep)}
        seconds *= 2
    return recipes


def table(results):
    """Returns a Markdown table with the mean and range of each score, the best recipe first."""
    by_recipe = {}
    for result in results:
        by_recipe.setdefault(result["recipe"], []).append(result)
    rows = sorted(by_recipe.values(), key=lambda runs: _mean(runs, "bits_per_byte"))
    cells = [
        [
            runs[0]["recipe"],
            *(_spread(runs, name) for name in ("bits_per_byte", "loss", "accuracy")),
            "" if runs[0]["nsp_accuracy"] is None else _spread(runs, "nsp_accuracy"),
            f"{runs[0]['parameters'] / 1e6:.1f} M",
            f"{_mean(runs, 'steps'):,.0f}",
        ]
        for runs in rows
    ]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(runs, name):
    return statistics.mean(run[name] for run in runs)


def _spread(runs, name):
    values = [run[name] for run in runs]
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def draw(results, path):
    """Plots bits per byte over the minutes of training, one line per run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(result["recipe"] for result in results))
    for result in results:
        number = names.index(result["recipe"])
        label = result["recipe"] if result["seed"] == results[0]["seed"] else None
        minutes, bits = [p[0] / 60 for p in result["points"]], [p[4] for p in result["points"]]
        axes.plot(minutes, bits, color=f"C{number % 10}", linewidth=1.2, label=label)
    axes.set(xlabel="minutes of training", ylabel="held-out bits per byte")
    axes.legend()
    figure.savefig(path)


def main(_):
    """Runs the comparison and prints a table."""
    recipes = parse(FLAGS.recipe or (QUICK if FLAGS.quick else []))
    if not recipes:
        raise app.UsageError("--recipe is missing")
    seeds = ["0"] if FLAGS.quick else FLAGS.seeds
    everything = []

    def act(name, seconds, seed="0"):
        print(f"{name}: {seconds:g} s, seed {seed}", file=sys.stderr, flush=True)
        everything.append(run(name, recipes[name], seconds, seed, folder))
        print(f"{name}: {everything[-1]['bits_per_byte']:.4f} bits per byte", file=sys.stderr)
        if FLAGS.json:
            values = {"machine": machine(), "flags": sys.argv[1:], "results": everything}
            pathlib.Path(FLAGS.json).write_text(json.dumps(values, indent=1) + "\n")
        return everything[-1]

    with tempfile.TemporaryDirectory() as temporary:
        folder = FLAGS.folder or temporary
        left = screen(recipes, FLAGS.finalists, act) if FLAGS.screen else recipes
        seconds = time_budget_seconds(FLAGS.time_budget)
        finals = [act(name, seconds, seed) for seed in seeds for name in left]
    cpu = machine()["cpu"]
    print(f"{FLAGS.text}: {seconds:g} s of training on {FLAGS.threads} threads of {cpu}\n")
    print(table(finals))
    if FLAGS.image:
        draw(finals, FLAGS.image)


if __name__ == "__main__":
    app.run(main)
