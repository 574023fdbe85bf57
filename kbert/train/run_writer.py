"""What a run writes into its folder."""

import shlex

import numpy as np
import tensorflow as tf

from kbert.model.weights.native import write_arrays
from kbert.train.checkpoint import OPTIMIZER_FILE
from kbert.train.report import MetricsWriter
from kbert.train.wandb_logger import WandbLogger
from kbert.utils import atomic, flags
from kbert.visualization.curves import Curves


class RunWriter:
    """The folder of a run that has been made; in workers other than the chief it writes nothing.

    Weights and checkpoints are copied to the host at once and written in the background.

    Args:
        run: `kbert.train.loop.Run`.
    """

    def __init__(self, run):
        self._run = run
        self._writes = run.devices.workers.is_chief
        self._metrics = self._curves = self._wandb = self._results = None

    def start(self):
        """Makes the folder, mends what a killed process left of it, and opens the metrics."""
        if not self._writes:
            return
        run = self._run
        run.folder.mkdir(parents=True, exist_ok=True)
        header = f"replays this run: {self.resume_command()}"
        text = flags.as_flagfile(run.config, header)
        text += flags.as_line("output_dir", run.run_dir.shown())
        atomic.write_text(run.folder / "run.flags", text)
        for name in ("best", "final"):
            atomic.recover_folder(run.folder / name)
        run.checkpoints.clear_away(run.step)
        self._metrics = MetricsWriter(run.folder, run.step, run.evaluation_due)
        self._curves = Curves(run.folder)
        directory = None if run.run_dir.is_remote else run.output_dir
        metadata = {"architecture": run.bert_config.to_dict()}
        self._wandb = WandbLogger(run.folder, run.config, metadata, directory)

    def resume_command(self):
        """The command that goes on with the run."""
        flagfile = self._run.folder / "run.flags"
        if self._run.run_dir.is_remote:  # programs read local ones
            shown = shlex.quote(self._run.run_dir.shown(flagfile))
            return f"python -m {self._run.program} --flagfile=run.flags    (a copy of {shown})"
        return f"python -m {self._run.program} --flagfile={shlex.quote(str(flagfile))}"

    def metrics(self, step, metrics):
        """Writes metrics of a step. metrics: dict of name -> float."""
        if self._writes:
            self._metrics.write(step, metrics)
            self._wandb.log(step, metrics)
            if any(name.startswith("eval_") for name in metrics):
                self._curves.draw()

    def best(self):
        """Writes the weights as `best`, in the background."""
        if self._writes:
            self._run.background.wait()  # before the copies: there is memory for one of them
            weights = self._plain_weights()
            self._run.background.start(lambda: self._replace("best", weights))

    def checkpoint(self, state):
        """Writes a checkpoint in the background. state: dict that JSON can hold."""
        if not self._writes:
            return
        run, step = self._run, self._run.step
        run.background.wait()
        weights = self._plain_weights()
        optimizer = self._on_host(run.train_step.named_variables())

        def write(folder):
            run.write_pretrained(folder, weights)
            write_arrays(folder / OPTIMIZER_FILE, optimizer)

        def save():
            run.checkpoints.save(step, state, write)
            run.run_dir.send(run.part)

        run.background.start(save)

    def close(self):
        """Waits for what is being written, and closes the metrics; a run may have a `final`."""
        self._run.background.wait()
        self._results = {}
        if self._writes:
            self._metrics.close()
            self._curves.draw(last=True)

    def final(self, results):
        """Lets the run finish, and writes the weights as `final`. Returns what the run returns."""
        if not self._writes:
            return results
        weights = self._plain_weights()
        results = self._results = self._run.finish(results)
        self._replace("final", weights)
        self._run.run_dir.send(self._run.part)  # before W&B may take its time
        return results

    def end(self):
        """Closes what tells others of the run, whatever has become of it."""
        if self._wandb:
            self._wandb.close(self._results)

    def _plain_weights(self):
        """Copies of the weights, adapters merged into the matrices they belong to."""
        weights = self._on_host(self._run.model.named_weights())
        for name, (a, b, scale) in self._run.model.adapters().items():
            weights[name] += scale * (self._on_host(a) @ self._on_host(b))
        return weights

    def _on_host(self, variables):
        """Copies of Keras variables as numpy arrays: of one, or of a dict of them."""
        strategy = self._run.devices.strategy
        return tf.nest.map_structure(
            lambda variable: np.array(
                strategy.experimental_local_results(variable.value)[0].numpy()
            ),
            variables,
        )

    def _replace(self, name, weights):
        with atomic.folder(self._run.folder / name) as folder:
            self._run.write_pretrained(folder, weights)
