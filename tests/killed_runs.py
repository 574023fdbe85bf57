"""Trains a run that kills itself at a step, as `kill -9` would; `train_and_kill` starts it."""

import json
import os
import signal
import subprocess
import sys

from warm_python import PYTHON

TIMEOUT_SECONDS = 600


def train_and_kill(settings, folder, step):
    """Trains in a process of its own up to a step that is logged, and before its line.

    Args:
        settings: of PretrainConfig, or with a "task" of FinetuneConfig. folder: of the run.
    """
    done = subprocess.run(
        [PYTHON, __file__, json.dumps(settings), str(folder), str(step)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def main(settings, folder, step):
    from kbert.settings import FinetuneConfig, PretrainConfig
    from kbert.train import finetune, pretrain
    from kbert.train.trainer import Trainer

    log = Trainer._log

    def kill_or_log(self):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return log(self)

    Trainer._log = kill_or_log
    if "task" in settings:
        finetune(FinetuneConfig(**settings), folder)
    else:
        pretrain(PretrainConfig(**settings), folder)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
