"""Settings that the training programs share, and settings of pretraining."""

import dataclasses
import math
import re
from typing import ClassVar, Self

from kbert.errors import UserError
from kbert.fields import check_settings, common, required, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings that pretraining and fine-tuning share: optimizer, devices, checkpoints."""

    weight_decay: float = setting(
        0.01, "decoupled weight decay of adamw, lamb and muon", at_least=0
    )
    clip_norm: float = setting(1.0, "maximum global norm of the gradients", above=0)
    optimizer: str = setting(
        "adamw",
        "optimizer: adamw (BERT's), lamb (for batches of thousands of examples), muon (learns more "
        "per example), sgd",
        choices=("adamw", "lamb", "muon", "sgd"),
    )
    adam_epsilon: float = setting(1e-6, "epsilon of adamw, lamb and muon", above=0)
    bias_correction: bool = setting(
        False,
        "adamw: apply the bias correction of Adam, which allows higher learning rates; "
        "google-research/bert does not apply it",
    )
    precision: str = common(
        "float32",
        "Keras dtype policy of the model; auto: mixed_bfloat16 if the device multiplies bfloat16 "
        "matrices faster, else float32",
        choices=("float32", "mixed_bfloat16", "mixed_float16", "auto"),
    )
    distribution: str = setting(
        "auto",
        "devices: one_device, mirrored (all GPUs, or --cpu_devices), auto (mirrored if there are "
        "several devices), multi_worker (all processes listed in TF_CONFIG), tpu",
        choices=("auto", "one_device", "mirrored", "multi_worker", "tpu"),
    )
    cpu_devices: int = setting(
        1, "number of virtual CPU devices, to try --distribution=mirrored", at_least=1
    )
    accumulation_steps: int = setting(
        1,
        "gradient accumulation: number of slices that each device splits its batch into, to save "
        "memory",
        at_least=1,
    )
    jit: str = setting(
        "auto",
        "compile the training step with XLA; auto: only on GPUs",
        choices=("auto", "on", "off"),
    )
    remat: bool = setting(
        False,
        "recompute the activations inside encoder blocks instead of storing them: saves memory, "
        "costs a third more computation",
    )
    deterministic: bool = setting(
        False, "on GPUs: make runs reproducible bit for bit, but slower; on CPUs they always are"
    )
    nonfinite: str = setting(
        "stop",
        "if a loss or gradient is not finite: stop the run, or skip the step (100 such steps in a "
        "row also stop the run)",
        choices=("stop", "skip"),
    )
    profile: str = setting(
        "", "START,STOP: write a TensorBoard profile of the steps START + 1 to STOP"
    )
    save_every_steps: int = setting(1000, "steps between checkpoints", at_least=1)
    keep_checkpoints: int = setting(2, "number of checkpoints to keep", at_least=1)
    log_every_steps: int = setting(100, "steps between log lines", at_least=1)
    seed: int = common(0, "random seed", at_least=0, at_most=2**31 - 1)
    wandb_project: str = setting(
        "", "Weights & Biases project to log metrics, settings and plots to"
    )

    layer_decay: ClassVar[float] = 1.0  # no layer-wise decay; FinetuneConfig has a setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Settings of distillation: the teacher and the weights of the loss terms."""

    teacher: str | None = common(None, "distillation: folder of the larger model to learn from")
    student_layers: str | None = setting(
        None,
        "encoder blocks of the teacher that initialize the student's blocks (if --init_from is the "
        "teacher) and that they are trained to match (--hidden_weight, --attention_weight): a "
        "count of evenly spaced blocks (3 of 6: blocks 2, 4 and 6), or block numbers from 1, such "
        "as 1,3,6; default: half of the teacher's blocks, rounded up, or as many as the student "
        "has",
    )
    temperature: float = setting(
        2.0, "distillation temperature: both models' logits are divided by it", above=0
    )
    soft_weight: float = setting(
        0.5,
        "loss weight of matching the teacher's probabilities; the loss on the labels has the "
        "weight 1 - soft_weight",
        at_least=0,
        at_most=1,
    )
    hidden_weight: float = setting(
        0.0, "loss weight of matching the teacher's hidden states", at_least=0
    )
    attention_weight: float = setting(
        0.0,
        "loss weight of matching the teacher's attention; a value > 0 disables the student's "
        "attention dropout",
        at_least=0,
    )

    def check_distillation_settings(self) -> None:
        """Checks that the settings of distillation do not contradict each other.

        Raises:
            UserError: a setting of distillation is set without `teacher`, two settings cannot be
                combined, or `student_layers` is invalid.
        """
        self.parse_student_layers()
        if self.teacher is None:
            for field in dataclasses.fields(TeacherConfig):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name} requires --teacher.")
        if self.soft_weight == 0 and self.temperature != TeacherConfig.temperature:
            raise UserError(
                "--temperature has no effect with --soft_weight=0. Remove one of the two flags."
            )
        if self.attention_weight and self.remat:
            raise UserError(
                "--attention_weight needs attention weights, which --remat does not store. Remove "
                "one of the two flags."
            )

    def parse_student_layers(self) -> int | tuple[int, ...] | None:
        """Returns `student_layers` as a count or a tuple of block numbers; None if it is not set.

        Raises:
            UserError: the setting is neither an integer nor comma-separated integers.
        """
        text = self.student_layers
        if text is None:
            return None
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise UserError(
                f"student_layers must be a count of blocks, such as 3, or block numbers, such as "
                f"2,4,6; got {text!r}."
            ) from None
        return numbers if "," in text else numbers[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig, TeacherConfig):
    """Settings of `kbert.pretrain`; each is a flag."""

    input: str = required(
        "",
        "training text: comma-separated globs of text, JSON lines or Parquet files, a folder of "
        "Hugging Face datasets, tfds:NAME, sample:train (the text that comes with kbert), or one "
        "prepared corpus",
    )
    eval_input: str = common("", "held-out text, in the same forms as --input, or sample:heldout")
    vocab_file: str | None = setting(
        None,
        "vocabulary file; default: the vocabulary of the prepared corpus, --init_from or "
        "--teacher, else one learned from the text",
    )
    vocab_size: int = common(
        30522, "maximum number of entries if the vocabulary is learned", at_least=32
    )
    lower_case: bool | None = setting(
        None,
        "lower-case the text and strip accents (uncased BERT); default: the casing of the prepared "
        "corpus, --init_from or --teacher, else true",
    )
    bert_config: str | None = common(
        None,
        "architecture: tiny, mini, small, medium, base, large, or a .yaml or .json file; default: "
        "the architecture of the checkpoint or of --init_from, else base",
    )
    embedding_initializer_range: float | None = setting(
        None,
        "standard deviation of the initial word embeddings, without --init_from; default: "
        "initializer_range of the architecture; models learn faster with 0.05",
        above=0,
    )
    dropout: float | None = setting(
        None,
        "dropout rate of hidden states and attention weights; default: the rates of the "
        "architecture (0.1 in tiny to large)",
        at_least=0,
        below=1,
    )
    init_from: str | None = common(
        None,
        "folder to start from: weights, such as RUN/pretrain/final, with a new optimizer state; or "
        "a checkpoint, such as RUN/pretrain/checkpoint/step_00001000, with its optimizer state",
    )
    max_seq_length: int = common(128, "sequence length of an example in tokens, L", at_least=5)
    max_predictions_per_seq: int | None = setting(
        None,
        "maximum number of masked positions per example, M; default: mask_rate * L, rounded up",
        at_least=1,
    )
    mask_rate: float = setting(0.15, "fraction of the tokens to predict", above=0, below=1)
    whole_word_mask: bool = setting(False, "mask all WordPieces of a word together")
    next_sentence: bool = setting(
        True,
        "predict whether segment B of a pair follows A (NSP); false: masked language modeling "
        "alone, on one segment of consecutive sentences per example",
    )
    packing: bool = setting(
        False,
        "with --next_sentence=false: fill rows with several short documents that do not attend to "
        "each other",
    )
    short_seq_prob: float = setting(
        0.1, "fraction of the examples cut to a random length", at_least=0, at_most=1
    )
    global_batch_size: int = common(256, "examples per step, over all devices", at_least=1)
    train_steps: int | None = common(
        None,
        "total number of training steps; default: 1,000,000, or as many as --time_budget allows",
        at_least=1,
    )
    time_budget: str | None = common(
        None,
        "training time, such as 90s, 30m or 2h30m, instead of --train_steps: a new run times a few "
        "steps and sets train_steps, warmup_steps and eval_every_steps",
    )
    learning_rate: float = common(1e-4, "peak learning rate", above=0)
    warmup_steps: int | None = common(
        None,
        "steps of linear warmup; default: 10,000, or a tenth of the steps of --time_budget",
        at_least=0,
    )
    lr_schedule: str = common(
        "linear",
        "learning rate after the warmup: linear or cosine decay to 0; or warmup_stable_decay: "
        "constant, then a cooldown to 0 as 1 - sqrt(progress)",
        choices=("linear", "cosine", "warmup_stable_decay"),
    )
    decay_steps: int | None = setting(
        None, "step at which the learning rate is 0; default: train_steps", at_least=1
    )
    decay_power: float = setting(
        1.0, "linear: the learning rate decays as (1 - step / decay_steps) to this power", above=0
    )
    cooldown_steps: int | None = setting(
        None,
        "warmup_stable_decay: length of the cooldown, which ends at decay_steps; default: a fifth "
        "of decay_steps",
        at_least=1,
    )
    eval_every_steps: int | None = setting(
        None,
        "steps between evaluations; default: 10,000, or a tenth of the steps of --time_budget",
        at_least=1,
    )
    eval_examples: int = setting(
        2048,
        "held-out examples per evaluation, rounded down to whole batches of 32, at least one; at "
        "most one epoch of --eval_input",
        at_least=1,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        self.check_distillation_settings()
        if self.packing and self.next_sentence:
            raise UserError(
                "--packing requires --next_sentence=false, because pairs cannot be packed."
            )
        if self.teacher and not self.init_from and not self.bert_config:
            object.__setattr__(self, "init_from", self.teacher)
        self._check_schedule()
        if self.time_budget is None:
            defaults = {
                "train_steps": 1_000_000,
                "warmup_steps": 10_000,
                "eval_every_steps": 10_000,
            }
            for name in (name for name in defaults if getattr(self, name) is None):
                object.__setattr__(self, name, defaults[name])
            self._check_steps()
            return
        time_budget_seconds(self.time_budget)
        for name in ("train_steps", "decay_steps"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"--{name} and --time_budget cannot be combined, because the time budget "
                    f"determines the number of steps. Remove one of the two flags, and also look "
                    f"in the flagfile."
                )

    def _check_schedule(self):
        needs = {"decay_power": (1.0, "linear"), "cooldown_steps": (None, "warmup_stable_decay")}
        for name, (default, schedule) in needs.items():
            if getattr(self, name) != default and self.lr_schedule != schedule:
                raise UserError(
                    f"--{name} requires --lr_schedule={schedule}; got {self.lr_schedule}."
                )

    def _check_steps(self):
        if self.warmup_steps >= self.train_steps:
            raise UserError(
                f"warmup_steps must be < train_steps; got {self.warmup_steps} and "
                f"{self.train_steps}."
            )
        if self.decay_steps is not None and self.decay_steps < self.train_steps:
            raise UserError(
                f"decay_steps must be >= train_steps: the learning rate is 0 from decay_steps on; "
                f"got {self.decay_steps} and {self.train_steps}."
            )
        steps = self.decay_steps or self.train_steps
        if self.cooldown_steps and self.warmup_steps + self.cooldown_steps > steps:
            raise UserError(
                f"warmup_steps + cooldown_steps must be <= decay_steps, {steps}; got "
                f"{self.warmup_steps} + {self.cooldown_steps}."
            )

    def with_steps(self, **steps: int) -> Self:
        """Returns the settings without `time_budget` and with these numbers of steps.

        Args:
            **steps: values for `train_steps` and other settings. Settings that are already set keep
                their values.

        Raises:
            UserError: the numbers contradict each other, such as a longer warmup than the run.
        """
        given = {name: getattr(self, name) for name in steps if getattr(self, name) is not None}
        return dataclasses.replace(self, time_budget=None, **steps | given)


_TIME = re.compile(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?")


def time_budget_seconds(text: str) -> float:
    """Converts a time such as "90s", "30m", "2h30m" or "1.5d" to seconds.

    Raises:
        UserError: the text is not such a time, or the time is 0 or infinite.
    """
    match = _TIME.fullmatch(text.replace(" ", "").lower())
    try:
        parts = [float(part or 0) for part in match.groups()] if match else []
    except ValueError:  # such as 1.2.3
        parts = []
    days, hours, minutes, seconds = parts or (0, 0, 0, 0)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not 0 < total < math.inf:
        raise UserError(
            f"time_budget must be a time > 0 with units, such as 90s, 30m, 2h30m or 1.5d; got "
            f"{text!r}."
        )
    return total
