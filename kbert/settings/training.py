"""Settings of training: what its programs share, and pretraining."""

import dataclasses

from kbert.config import check_settings, setting
from kbert.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What pretraining and fine-tuning share: optimizer, devices, checkpoints."""

    layer_decay, bias_correction = 1.0, False  # which are settings of fine-tuning alone

    weight_decay: float = setting(0.01, "decoupled weight decay", at_least=0)
    clip_norm: float = setting(1.0, "global norm to which gradients are clipped", above=0)
    optimizer: str = setting("adamw", "the optimizer", choices=("adamw", "lamb", "sgd"))
    adam_epsilon: float = setting(1e-6, "epsilon of adamw and lamb", above=0)
    precision: str = setting(
        "float32",
        "dtype policy of the model",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        group="common",
    )
    distribution: str = setting(
        "auto",
        "devices: one_device, mirrored (all GPUs, or --cpu_devices), auto (mirrored if several), "
        "multi_worker (those of all processes in the variable TF_CONFIG), tpu",
        choices=("auto", "one_device", "mirrored", "multi_worker", "tpu"),
    )
    cpu_devices: int = setting(
        1, "parts of the CPU that act as devices, to try --distribution=mirrored", at_least=1
    )
    accumulation_steps: int = setting(
        1, "slices of a device's examples, computed one after the other to save memory", at_least=1
    )
    jit: str = setting(
        "auto",
        "compile the step with XLA; auto: on GPUs, not on the CPU",
        choices=("auto", "on", "off"),
    )
    remat: bool = setting(
        False, "keep no activations inside encoder blocks: less memory, a third more to compute"
    )
    deterministic: bool = setting(
        False, "on GPUs: repeat to the last bit, at some cost; the CPU does anyway"
    )
    nonfinite: str = setting(
        "stop",
        "what to do at a loss or gradient that is not finite: stop the run, or skip the step",
        choices=("stop", "skip"),
    )
    profile: str = setting("", "START,STOP: write a TensorBoard profile of these steps")
    save_every_steps: int = setting(1000, "steps between checkpoints", at_least=1)
    keep_checkpoints: int = setting(2, "checkpoints to keep", at_least=1)
    log_every_steps: int = setting(100, "steps between lines of the log", at_least=1)
    seed: int = setting(
        0, "seed of everything random", at_least=0, at_most=2**31 - 1, group="common"
    )
    wandb_project: str = setting(
        "", "Weights & Biases: the project that gets the metrics, settings and pictures, too"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What a student learns from a teacher, and how much (distillation)."""

    teacher: str | None = setting(None, "folder of a larger model to learn from", group="common")
    student_layers: str | None = setting(
        None,
        "encoder blocks of the teacher that those of the student start as and learn from: how "
        "many, evenly spread (3 of 6 are 2, 4 and 6), or their numbers from 1, such as 1,3,6; "
        "default: half of them, or as many as --init_from has",
    )
    temperature: float = setting(2.0, "what logits are divided by to soften them", above=0)
    soft_weight: float = setting(
        0.5, "share of the teacher's probabilities; labels have the rest", at_least=0, at_most=1
    )
    hidden_weight: float = setting(0.0, "weight of the hidden states of the blocks", at_least=0)
    attention_weight: float = setting(
        0.0, "weight of the attention of the blocks; attention has no dropout then", at_least=0
    )

    def check_teacher(self):
        """Refuses settings that contradict each other, and fills in where the student starts."""
        self.layers_taken()
        if self.teacher is None:
            for field in dataclasses.fields(TeacherConfig):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name} is for learning from a --teacher.")
        if self.soft_weight == 0 and self.temperature != TeacherConfig.temperature:
            raise UserError(
                "--temperature softens probabilities of which --soft_weight=0 takes nothing. Leave "
                "one of them out."
            )
        if self.attention_weight and self.remat:
            raise UserError("--remat keeps no attention to compare. Leave out --attention_weight.")

    def layers_taken(self):
        """`student_layers` as an int, a tuple of them, or None."""
        text = self.student_layers
        if text is None:
            return None
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise UserError(
                f"student_layers must be how many blocks, such as 3, or their numbers, such as "
                f"2,4,6; got {text!r}."
            ) from None
        return numbers if "," in text else numbers[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig, TeacherConfig):
    """Settings of a pretraining run, one flag each."""

    input: str = setting(
        "",
        "what to learn from: comma-separated globs of .txt, .gz or .jsonl files, tfds:NAME, "
        "sample:train (the text that comes with kbert), or one prepared corpus",
        group="required",
    )
    eval_input: str = setting(
        "", "held-out text, in the forms of --input; sample:heldout", group="common"
    )
    vocab_file: str | None = setting(
        None, "vocabulary; default: that of the prepared corpus or of --init_from, else learnt"
    )
    vocab_size: int = setting(
        30522, "entries, when the vocabulary is learnt", at_least=32, group="common"
    )
    lower_case: bool | None = setting(
        None,
        "lower-case and strip accents (an uncased BERT); default: as the prepared corpus or "
        "--init_from does, else true",
    )
    bert_config: str | None = setting(
        None,
        "architecture: tiny, mini, small, medium, base, large, or a .yaml or .json file; default: "
        "that of the checkpoint or of --init_from, else base",
        group="common",
    )
    init_from: str | None = setting(
        None,
        "folder to start from: weights, such as RUN/pretrain/final, with a fresh optimizer, or a "
        "checkpoint, such as RUN/pretrain/checkpoint/step_00001000, with its optimizer",
        group="common",
    )
    max_seq_length: int = setting(
        128, "length of an example in tokens, L", at_least=5, group="common"
    )
    max_predictions_per_seq: int | None = setting(
        None, "masked slots of an example, M; default: mask_rate * L, rounded up", at_least=1
    )
    mask_rate: float = setting(0.15, "share of the tokens to predict", above=0, below=1)
    whole_word_mask: bool = setting(False, "mask all pieces of a word together")
    short_seq_prob: float = setting(
        0.1, "share of the examples cut to a random length", at_least=0, at_most=1
    )
    global_batch_size: int = setting(256, "examples in a step", at_least=1, group="common")
    train_steps: int = setting(1_000_000, "steps of the whole run", at_least=1, group="common")
    learning_rate: float = setting(1e-4, "peak learning rate", above=0, group="common")
    warmup_steps: int = setting(10_000, "steps of linear warm-up", at_least=0, group="common")
    decay_steps: int | None = setting(
        None, "step at which the learning rate is 0; default: train_steps", at_least=1
    )
    decay_power: float = setting(
        1.0, "learning rate falls as (1 - step / decay_steps) to this power", above=0
    )
    eval_every_steps: int = setting(10_000, "steps between evaluations", at_least=1)
    eval_examples: int = setting(
        2048, "held-out examples of an evaluation, in whole batches of 32", at_least=1
    )

    def __post_init__(self):
        check_settings(self)
        self.check_teacher()
        if self.teacher and not self.init_from and not self.bert_config:
            object.__setattr__(self, "init_from", self.teacher)
        if self.warmup_steps >= self.train_steps:
            raise UserError(
                f"warmup_steps must be < train_steps; got {self.warmup_steps} and "
                f"{self.train_steps}."
            )
        if self.decay_steps is not None and self.decay_steps < self.train_steps:
            raise UserError(
                f"decay_steps must be >= train_steps, or nothing is learnt in the rest; got "
                f"{self.decay_steps} and {self.train_steps}."
            )
