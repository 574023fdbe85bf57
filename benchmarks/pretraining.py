"""Which recipe learns most in the same time? Pretraining runs of equal training seconds.

    python -m benchmarks.pretraining --text=train.txt --heldout=heldout.txt --time_budget=1h \\
        --recipe='mini: --bert_config=mini --learning_rate=1e-3' \\
        --recipe='small: --flagfile=small.flags' --json=recipes.json --image=recipes.png

A recipe is a name and flags of `kbert.pretrain`, without its text, length or seed. Each run is a
process of its own, bound to as many CPUs as it has threads, and trains for `--time_budget`, without
compilation and evaluations. The seeds take turns: every recipe runs with the first seed, then with
the second, so that drift of the machine's speed favors none. With `--screen`, all recipes first
train for that time with the first seed; the better half trains for twice the time, and so on, until
`--finalists` are left (successive halving, Jamieson and Talwalkar 2016). A recipe that begins with
"hf" trains HF's model in torch on the same batches, from the same weights, in float32; it must
train MLM and NSP with AdamW.

All models are scored on the same held-out segments (`benchmarks.workers.recipe.MaskedText`), with
15 % of the tokens masked whatever a recipe trains with:

    loss            mean cross-entropy of the masked tokens, in nats per token
    bits per byte   loss * tokens / bytes / ln 2: the loss if every token counted, divided by the
                    UTF-8 bytes of the held-out lines. Unlike the loss, it compares models with
                    different vocabularies (of the same casing).
    NSP accuracy    on the held-out pairs of `kbert.pretrain`, of recipes that train it
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
QUICK = ["tiny: --bert_config=tiny --max_seq_length=16 --global_batch_size=2"]
QUICK_STEPS = ["--train_steps=4", "--warmup_steps=1", "--eval_every_steps=2"]

if __name__ == "__main__":
    flags.DEFINE_string("text", None, "training text or a prepared corpus", required=True)
    flags.DEFINE_string("heldout", None, "held-out text, not prepared", required=True)
    flags.DEFINE_multi_string("recipe", [], "NAME: flags of kbert.pretrain; several times")
    flags.DEFINE_string("time_budget", "10m", "training time of a run, such as 90s or 1h")
    flags.DEFINE_string("screen", None, "training time of the first round of screening")
    flags.DEFINE_integer("finalists", 2, "recipes left after the screening")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the final runs")
    flags.DEFINE_integer("length", 64, "length of the held-out segments in tokens")
    flags.DEFINE_integer("segments", 1024, "number of held-out segments")
    flags.DEFINE_integer("threads", len(os.sched_getaffinity(0)), "threads and CPUs of a run")
    flags.DEFINE_string("folder", None, "folder for the runs; default: a temporary one")
    flags.DEFINE_string("json", None, "file to write all results to, after every run")
    flags.DEFINE_string("image", None, "file to draw the learning curves to")
    flags.DEFINE_bool("quick", False, "a tiny recipe and four steps: does everything work?")
    flags.DEFINE_string("python_kbert", sys.executable, "Python that has what kbert needs")


def parse(recipes):
    """Returns a dict of name -> list of flags."""
    found = {}
    for recipe in recipes:
        name, colon, text = recipe.partition(":")
        if not colon or name.strip() in found:
            raise app.UsageError(f"--recipe must be NAME: FLAGS, each name once; got {recipe!r}")
        found[name.strip()] = shlex.split(text)
    return found


def text_bytes(inputs):
    """Returns the UTF-8 bytes of the lines of text, without line breaks."""
    pieces = split_into_pieces(find_inputs(inputs))
    return sum(len(line) for piece in pieces for line in read_lines(piece))


def run(name, recipe, seconds, seed, folder):
    """Trains a recipe in a process of its own; returns its result, a dict."""
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
    """Adds the final scores, and bits per byte to every point of the curve."""
    factor = result["heldout_tokens"] / heldout_bytes / math.log(2)
    points = [[*point, point[2] * factor] for point in result["points"]]
    _, _, loss, accuracy, bits = points[-1]
    return result | {"points": points, "loss": loss, "accuracy": accuracy, "bits_per_byte": bits}


def better_half(results, finalists):
    """Returns the names of the better half of the results, at least `finalists`."""
    ranked = sorted(results, key=lambda result: result["bits_per_byte"])
    return [result["recipe"] for result in ranked[: max(finalists, math.ceil(len(ranked) / 2))]]


def screen(recipes, keep, act):
    """Successive halving; returns the recipes that are left.

    Args:
        recipes: dict of name -> flags. keep: how many to leave.
        act: function of (name, seconds) that returns a result.
    """
    seconds = time_budget_seconds(FLAGS.screen)
    while len(recipes) > keep:
        results = [act(name, seconds) for name in recipes]
        recipes = {name: recipes[name] for name in better_half(results, keep)}
        seconds *= 2
    return recipes


def table(results):
    """Formats final results as a Markdown table, the best recipe first: means and ranges."""
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
    """Draws bits per byte over the minutes of training, one line per run."""
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
