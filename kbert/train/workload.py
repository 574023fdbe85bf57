"""Workloads: the model, data and objective of a run, without the training loop."""

from kbert.model.weights import Tensors, write_weights


class Workload:
    """Model, data and objective of a run; `kbert.train.trainer.Trainer` trains it.

    A subclass implements all methods up to `soft_loss`, except for checks that it does not need.

    Args:
        config: TrainingConfig.

    Attributes:
        part: str, folder within the run's folder. program: str, module that resumes the run.
        fixed: names of the settings that affect results and must not change when a run resumes.
        patience: int, evaluations without improvement before early stopping, or None.
        layers: encoder blocks of `init_from` to use, from 1; None for all.
        teacher: `kbert.compression.teacher.Teacher`, or None. teacher_labels: names of its labels.
        teacher_class: model class of the teacher. taught_sums: names of two of the objective's
            sums, a loss and its count, which the teacher's soft loss partly replaces.
        bert_config, tokenizer, train_steps, eval_every_steps, schedule, objective: set by `load`.
        data: set by `load`; its `dataset(batch_size, first, count, input_context)` returns a
            tf.data.Dataset of `count` batches for the replicas of a worker, starting at batch
            `first`.
        model: set by `make_model`.
    """

    part = program = patience = layers = None
    teacher = teacher_labels = teacher_class = None
    fixed = taught_sums = ()

    def __init__(self, config):
        self.config = config

    def check(self):
        """Raises UserError for invalid settings, before anything is written."""

    def load(self, state, saved, run_dir, workers, check=lambda bert_config, tokenizer: None):
        """Loads or creates the inputs of the run.

        Args:
            state: dict of the checkpoint that the run resumes from, or None.
            saved: folder of that checkpoint, or None.
            run_dir: `kbert.train.remote_sync.RemoteRunDir`.
            workers: `kbert.train.workers.Workers`.
            check: called with the BertConfig and the tokenizer before anything slow; it may raise
                UserError.
        """

    def make_model(self, bert_config):
        """Creates the model with random weights; frozen weights are not trained."""

    def initialize_from(self, folder, restore):
        """Loads the weights of `init_from`; returns a description of their origin.

        Args:
            folder: str. restore: function of the folder of a checkpoint that loads its weights and
                its optimizer state.
        """

    def identity(self):
        """JSON that identifies training and held-out data: {"corpus": ..., "held_out": ...}."""

    def describe(self, devices):
        """Lines that describe model and data. devices: `kbert.train.distribution.Devices`."""

    def check_metric(self):
        """Raises UserError if the configured metric cannot select the best weights."""

    def evaluation(self):
        """Returns metrics on held-out data and the value to maximize; or None."""

    def train_text(self, step, metrics):
        """Returns the metrics of a window of steps as text for the progress line."""

    def evaluation_text(self, step, metrics):
        """Returns the log line of an evaluation."""

    def check_teacher(self, teacher_config, bert_config):
        """Raises UserError if the teacher does not fit the student. Both are BertConfig."""

    def soft_loss(self, outputs, teacher_outputs, features):
        """The soft loss between student and teacher, summed over all labels, scalar.

        Args:
            outputs, teacher_outputs: dicts of the models' outputs. features: of a batch.
        """

    def finish(self, results, run_dir):
        """Performs the work after the last step; returns the results of the run."""
        return results

    def write_pretrained(self, folder, weights):
        """Writes a folder for `from_pretrained`. weights: dict of name -> array."""
        shapes = {name: array.shape for name, array in weights.items()}
        weights = Tensors(shapes, weights.__getitem__)
        write_weights(folder, "kbert", self.bert_config, weights)
        self.tokenizer.save_pretrained(folder)
