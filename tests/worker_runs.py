"""Trains a run as one of several workers; `launch` starts them all.

What this script changes is said by its settings: "devices" of the CPU for each worker, of which
MultiWorkerMirroredStrategy takes one; "stop_at", the step at which the last worker gets SIGTERM;
"kill_at", the step at which it kills itself; "ids", a file for the numbers of the examples.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
from ports import free_port
from warm_python import PYTHON

TIMEOUT_SECONDS = 300


def launch(count, folder, settings, **changes):
    """Runs `count` workers to their end.

    Args:
        folder: of the run. settings: of PretrainConfig, or with a "task" of FinetuneConfig.
        changes: as above; "victim": which worker "stop_at" and "kill_at" mean, the last one unless
            said.

    Returns:
        list of (exit status, output, errors), one for each worker.
    """
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
    found = [None] * count

    def run(index):
        environ = dict(os.environ)
        task = {"type": "worker", "index": index}
        environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        mine = {"victim": count - 1} | changes
        done = subprocess.run(
            [PYTHON, __file__, str(folder), json.dumps(settings), json.dumps(mine)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        found[index] = (done.returncode, done.stdout, done.stderr)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def example_ids(file, first, steps, batch_size):
    """(steps, batch_size) numbers of the examples that the workers of a `launch` made.

    Args:
        file: "ids" of the launch. first: step at which it began. steps: that it took.
    """
    made = []
    for path in sorted(pathlib.Path(file).parent.glob(f"{pathlib.Path(file).name}.*")):
        made.append(np.concatenate([json.loads(line) for line in path.read_text().splitlines()]))
    share = batch_size // len(made)
    rows = [numbers[: steps * share].reshape(steps, share) for numbers in made]
    return np.concatenate(rows, axis=1)


def _act_as(devices):
    """Makes MultiWorkerMirroredStrategy take several devices of a CPU, as it takes GPUs."""
    from tensorflow.python.distribute.collective_all_reduce_strategy import (
        CollectiveAllReduceExtended,
    )

    from kbert.train import distribution

    def initialize(self, resolver, worker_device):
        return tuple(f"{worker_device}/device:CPU:{i}" for i in range(devices)), "CPU"

    CollectiveAllReduceExtended._initialize_local_devices = initialize
    distribution._split_cpu(devices)


def main(folder, settings, changes):
    from kbert.data.pretraining_batches import PretrainingExamples
    from kbert.settings import FinetuneConfig, PretrainConfig
    from kbert.train import finetune, pretrain
    from kbert.train.trainer import Trainer
    from kbert.utils import program

    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    settings = dict(settings, distribution="multi_worker")
    if changes.get("devices", 1) > 1:
        _act_as(changes["devices"])
    if changes.get("ids"):
        batch = PretrainingExamples.batch

        def record(self, index_of, *rest):
            if self._seed == settings.get("seed", 0):  # not the held-out ones
                with open(f"{changes['ids']}.{index}", "a") as file:
                    file.write(f"{index_of.tolist()}\n")
            return batch(self, index_of, *rest)

        PretrainingExamples.batch = record
    take = Trainer.take_steps

    def take_steps(self, batches, count):
        if index == changes["victim"]:
            if self.step == changes.get("stop_at"):
                os.kill(os.getpid(), signal.SIGTERM)
            if self.step == changes.get("kill_at"):
                os.kill(os.getpid(), signal.SIGKILL)
        return take(self, batches, count)

    Trainer.take_steps = take_steps
    if "task" in settings:
        program.run(lambda: finetune(FinetuneConfig(**settings), folder))
    else:
        program.run(lambda: pretrain(PretrainConfig(**settings), folder))


if __name__ == "__main__":
    arguments = sys.argv[1], *map(json.loads, sys.argv[2:])
    del sys.argv[1:]
    main(*arguments)
