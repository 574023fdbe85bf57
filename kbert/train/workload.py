"""What a run learns from what, without how it is trained."""

from kbert.model.weights import Tensors, write_weights
from kbert.train.optimizer import make_optimizer


class Workload:
    """What is learnt from what; `kbert.train.trainer.Trainer` trains it.

    A subclass has all methods up to `soft_loss`, but for checks that it does not need.

    Args:
        config: TrainingConfig.

    Attributes:
        part: str, folder inside the run's. program: str, module to resume the run with.
        fixed: names of the settings that make the run what it is; with another value of one it
            would be another run.
        patience: int, evaluations without a better one after which the run ends, or None.
        layers: encoder blocks of `init_from` that are taken, from 1; None for all.
        teacher: `kbert.compression.teacher.Teacher`, or None. teacher_labels: names of its labels.
        teacher_class: of the models that can teach it. taught_sums: names of the objective's sums,
            a loss and its count, of which a teacher's soft loss takes a share.
        bert_config, tokenizer, train_steps, eval_every_steps, schedule, objective: set by `load`.
        data: set by `load`; its `dataset(batch_size, first, count, input_context)` is a
            tf.data.Dataset of `count` batches for the replicas of a worker, from its batch `first`
            on.
        model: set by `make_model`.
    """

    part = program = patience = layers = None
    teacher = teacher_labels = teacher_class = None
    fixed = taught_sums = ()

    def __init__(self, config):
        self.config = config

    def check(self):
        """Raises UserError for settings that cannot work, before anything is written."""

    def load(self, state, saved, run_dir, workers, check=lambda bert_config, tokenizer: None):
        """Finds or makes what the run needs.

        Args:
            state: dict of the checkpoint that the run resumes from, and saved: its folder; or None.
            run_dir: `kbert.train.remote_sync.RemoteRunDir`.
            workers: `kbert.train.workers.Workers`.
            check: called with the BertConfig and the tokenizer before anything slow; it may raise
                UserError.
        """

    def make_model(self, bert_config):
        """The model with fresh weights; those that are not trained are frozen."""

    def make_optimizer(self):
        """The optimizer, not built yet."""
        return make_optimizer(self.config, self.schedule)

    def initialize_from(self, folder, restore):
        """Loads the weights of `init_from`; returns where they are from, in words.

        Args:
            folder: str. restore: function of the folder of a checkpoint that loads its weights and
                its optimizer.
        """

    def identity(self):
        """What the run learns from and is judged by, as JSON: {"corpus": ..., "held_out": ...}."""

    def describe(self, devices):
        """Lines on what is trained on what. devices: `kbert.train.distribution.Devices`."""

    def check_metric(self):
        """Raises UserError if weights cannot be judged by the metric that the settings name."""

    def evaluation(self):
        """Metrics on held-out data, and the value to judge by, greater is better; or None."""

    def train_text(self, step, metrics):
        """What the line on a window of steps says of the metrics, up to this step."""

    def evaluation_text(self, step, metrics):
        """The line on an evaluation."""

    def check_teacher(self, teacher_config, bert_config):
        """Raises UserError if the teacher cannot teach the student. Both are BertConfig."""

    def soft_loss(self, outputs, teacher_outputs, features):
        """The sum over all that is labelled of how far the student's probabilities are, scalar.

        Args:
            outputs, teacher_outputs: dicts of the models' outputs. features: of a batch.
        """

    def finish(self, results, run_dir):
        """Does what remains after the last step; returns the results of the run."""
        return results

    def write_pretrained(self, folder, weights):
        """Writes a folder for `from_pretrained`. weights: dict of name -> array."""
        shapes = {name: array.shape for name, array in weights.items()}
        weights = Tensors(shapes, weights.__getitem__)
        write_weights(folder, "kbert", self.bert_config, weights)
        self.tokenizer.save_pretrained(folder)
