"""Time and memory of loading BERT-base with kbert, HF transformers and KerasHub.

    python benchmarks/load.py --rounds=5

Writes random weights in all formats, then loads each in a separate process; the libraries take
turns. Measures the seconds of a load after the imports, and the growth of the process's peak memory
as a multiple of the size of the weights. KerasHub's model has no NSP head.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from absl import app, flags

flags.DEFINE_integer(
    "rounds", 5, "number of rounds; each library and format is loaded once per round"
)
flags.DEFINE_string("size", "base", "preset of BertConfig")
flags.DEFINE_list("libraries", ["kbert", "HF", "KerasHub"], "libraries to compare")
flags.DEFINE_string("python", sys.executable, "Python with all libraries")

MAKE = """
import sys, warnings, kbert
warnings.simplefilter("ignore")
config = kbert.BertConfig.from_preset(sys.argv[2], hidden_act="gelu_new")
model = kbert.BertForPreTraining(config)
for format in ("kbert", "google", "hf", "keras_hub"):
    allow_missing = ["nsp"] if format == "keras_hub" else []
    model.save_pretrained(f"{sys.argv[1]}/{format}", format, allow_missing)
"""
LOAD = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
def peak():
    return int([line for line in open("/proc/self/status") if "VmHWM" in line][0].split()[1]) * 1024
{start}
before, begin = peak(), time.perf_counter()
{load}
seconds, grown = time.perf_counter() - begin, peak() - before
print("RESULT", json.dumps([seconds, grown]))
"""
KBERT = (
    "import tensorflow, h5py, safetensors, kbert.model.models\ntensorflow.constant(1.0)",
    "kbert.model.models.BertForPreTraining.from_pretrained(f'{{sys.argv[1]}}/{format}')",
)
PEERS = {
    **{
        f"kbert, from {format}": (KBERT[0], KBERT[1].format(format=format).replace("{{", "{"))
        for format in ("kbert", "google", "hf", "keras_hub")
    },
    "HF transformers (torch), from hf": (
        "import torch, transformers\nfrom transformers import BertForPreTraining",
        "BertForPreTraining.from_pretrained(f'{sys.argv[1]}/hf')",
    ),
    "KerasHub, from keras_hub": (
        "import tensorflow, keras_hub\ntensorflow.constant(1.0)",
        "keras_hub.models.MaskedLM.from_preset(f'{sys.argv[1]}/keras_hub', preprocessor=None)",
    ),
}


def run(script, *arguments):
    command = [flags.FLAGS.python, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def main(_):
    """Runs the comparison and prints a table."""
    size, libraries = flags.FLAGS.size, tuple(flags.FLAGS.libraries)
    peers = {name: scripts for name, scripts in PEERS.items() if name.startswith(libraries)}
    results = {name: [] for name in peers}
    with tempfile.TemporaryDirectory() as folder:
        run(MAKE, folder, size)
        weights = pathlib.Path(folder, "hf/model.safetensors").stat().st_size
        for _ in range(flags.FLAGS.rounds):
            for name, (start, load) in peers.items():
                script = LOAD.replace("{start}", start).replace("{load}", load)
                printed = run(script, folder)
                (line,) = [line for line in printed.splitlines() if line.startswith("RESULT")]
                results[name].append(json.loads(line.removeprefix("RESULT")))
    print(f"BERT-{size}, {weights / 1e6:,.0f} MB of float32")
    print("| | seconds, median (lowest to highest) | peak memory / weights |\n| --- | --- | --- |")
    for name, rows in results.items():
        seconds, grown = zip(*rows, strict=True)
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        print(f"| {name} | {spread} | {statistics.median(grown) / weights:.2f} |")


if __name__ == "__main__":
    app.run(main)
