"""Weights & Biases: logs a run's metrics, settings and plots.

A separate thread makes all calls of W&B, because `wandb.login` and `wandb.init` block while W&B is
unavailable. Errors are logged and do not stop the run.
"""

import dataclasses
import importlib.util
import pathlib
import queue
import secrets
import threading
from typing import TYPE_CHECKING, Any

from kbert.errors import UserError, one_line
from kbert.train.callbacks import Callback
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.settings import TrainingConfig

ID_FILE = "wandb_id"  # in the run's folder, so that a resumed run continues the same W&B run
MAX_WAIT_SECONDS = 60  # for pending uploads, at the end of a run


def check_wandb(config: "TrainingConfig") -> None:
    """Raises UserError if `--wandb_project` is set, but W&B is not installed."""
    spec = importlib.util.find_spec("wandb") if config.wandb_project else None
    if config.wandb_project and (spec is None or spec.origin is None):  # None: a folder wandb/
        raise UserError("--wandb_project needs wandb: pip install 'kbert[wandb]'")


class WandbLogger(Callback):
    """Sends metrics, results and plots of a run to the W&B project `wandb_project`."""

    _thread = None
    _results = None  # results of the run; {} if it was stopped, None if it failed

    def on_train_begin(self) -> None:
        trainer = self.trainer
        self._rows = queue.SimpleQueue()
        settings = {
            "architecture": trainer.workload.bert_config.to_dict(),
            **dataclasses.asdict(trainer.config),
        }
        directory = None if trainer.run_dir.is_remote else trainer.run_dir.folder
        arguments = (trainer.folder, trainer.config.wandb_project, settings, directory)
        self._thread = threading.Thread(target=self._send, args=arguments, daemon=True)
        self._thread.start()

    def on_log(self, metrics: dict[str, float]) -> None:
        self._rows.put((self.trainer.step, metrics))

    def on_evaluate(self, metrics: dict[str, float], better: bool) -> None:
        self.on_log(metrics)

    def on_train_end(self) -> None:
        self._results = {}

    def on_finish(self, results: dict[str, Any]) -> None:
        self._results = results

    def on_exit(self) -> None:
        """Sends the results and the plots in the folder, and waits until they are uploaded.

        After `MAX_WAIT_SECONDS`, it logs a note and returns without waiting any longer.
        """
        if not self._thread:
            return
        self._rows.put(None)
        self._thread.join(MAX_WAIT_SECONDS)
        if self._thread.is_alive():
            log(f"note: the run ends without W&B, which takes longer than {MAX_WAIT_SECONDS} s")
        self._thread = None

    def _send(self, folder, project, settings, directory):
        try:
            import wandb

            run = _start_run(wandb, folder, project, settings, directory)
            step = 0
            while row := self._rows.get():
                step, metrics = row
                run.log(metrics, step=step)
            plots = sorted(folder.glob("*.png"))
            run.log({path.stem: wandb.Image(str(path)) for path in plots}, step=step)
            run.summary.update(_flatten_numbers(self._results or {}))
            run.finish(exit_code=int(self._results is None))
        except Exception as error:  # a missing key or no network, for example: never stop the run
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = one_line(f"{kind}{error}", 300)
            log(f"note: logging to W&B stopped: {reason}")


def _flatten_numbers(results):
    """Flattens nested dicts of numbers to a dict with keys such as "test/accuracy"."""
    numbers = {}
    for name, value in results.items():
        if isinstance(value, dict):
            numbers |= {f"{name}/{inner}": x for inner, x in _flatten_numbers(value).items()}
        elif isinstance(value, int | float):
            numbers[name] = value
    return numbers


def _start_run(wandb, folder, project, settings, directory):
    """Starts a W&B run, or resumes the one whose ID is in the folder `folder`."""
    online = wandb.setup().settings.mode == "online"
    if online and not wandb.login(prompt=False):  # never prompts on the terminal
        raise UserError("no API key found. Run `wandb login`, or set WANDB_MODE=offline")
    path = folder / ID_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    run = wandb.init(
        project=project,
        id=path.read_text(encoding="utf-8").strip(),
        resume="allow",
        reinit="create_new",  # instead of reusing an earlier run of this process
        name=f"{folder.parent.name}/{folder.name}",
        dir=directory,
        config=settings,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=MAX_WAIT_SECONDS,
            finish_timeout=MAX_WAIT_SECONDS,
        ),
    )
    log(f"W&B: {run.url if online else pathlib.Path(run.dir).parent}")
    return run
