"""What a run tells: lines on the screen, `metrics.jsonl` and TensorBoard events."""

import json
import pathlib

import tensorflow as tf


def say(line):
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def time_text(seconds):
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class MetricsWriter:
    """Writes metrics to `metrics.jsonl` and as TensorBoard events.

    Args:
        folder: the run's folder. step: where the run goes on; what an earlier process wrote of
            later steps is dropped, since they are made again.
    """

    def __init__(self, folder, step):
        folder = pathlib.Path(folder)
        path = folder / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    break  # the last line of a killed process
        scratch = path.with_suffix(".partial")
        scratch.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        scratch.replace(path)
        self._file = open(path, "a", encoding="utf-8")
        self._events = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def write(self, step, metrics):
        """Writes one object. metrics: dict of name -> number."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        with self._events.as_default(step):
            for name, value in metrics.items():
                prefix, plain = ("eval", name[5:]) if name.startswith("eval_") else ("train", name)
                tf.summary.scalar(f"{prefix}/{plain}", value)
        self._events.flush()

    def close(self):
        """Closes both files."""
        self._file.close()
        self._events.close()
