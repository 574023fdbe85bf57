"""Configurations: frozen dataclasses that check themselves, and reading them from files."""

import contextlib
import dataclasses
import difflib
import json
import math
import pathlib
import types
import typing

import yaml

from kbert.errors import UserError


def setting(default, help, *, choices=None, at_least=None, above=None, at_most=None, below=None):
    """A dataclass field with the text of its flag and the range that `check_settings` enforces."""
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {"help": help, "choices": choices, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


def setting_type(field):
    """Type of a field's value without the `| None`, and whether None is allowed."""
    if isinstance(field.type, types.UnionType):
        (kind,) = (t for t in typing.get_args(field.type) if t is not types.NoneType)
        return kind, True
    return field.type, False


def is_text(value):
    """Whether a value is a str that UTF-8 can hold: JSON may give half a character."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _range_text(limits):
    names = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}
    return " and ".join(
        f"{names[key]} {limit}" for key, limit in limits.items() if limit is not None
    )


def check_settings(config):
    """Checks the type and range of every field of a dataclass made of `setting`s.

    Raises:
        UserError: names the first field that is wrong, what came, and what is allowed.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind, optional = setting_type(field)
        if value is None and optional:
            continue
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
            object.__setattr__(config, field.name, value)
        if type(value) is not kind:
            raise UserError(
                f"{field.name} must be {kind.__name__}; got {value!r} ({type(value).__name__})."
            )
        if kind is float and not math.isfinite(value):
            raise UserError(f"{field.name} must be a finite number; got {value}.")
        choices, limits = field.metadata["choices"], field.metadata["limits"]
        if choices and value not in choices:
            raise UserError(f"{field.name} must be one of {', '.join(choices)}; got {value!r}.")
        inside = (
            (limits["at_least"] is None or value >= limits["at_least"])
            and (limits["above"] is None or value > limits["above"])
            and (limits["at_most"] is None or value <= limits["at_most"])
            and (limits["below"] is None or value < limits["below"])
        )
        if not inside:
            hint = " Write 0.15 for 15 %." if kind is float and limits["below"] == 1 else ""
            raise UserError(f"{field.name} must be {_range_text(limits)}; got {value}.{hint}")


# Layers and width of Turc et al. 2019 (arXiv:1908.08962) and Devlin et al. 2019 (arXiv:1810.04805).
PRESETS = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Architecture of a BERT, in the field names of `bert_config.json` and of HF's `config.json`.

    Differs from both in `hidden_act`, whose name says which GELU is meant: "gelu" is the exact erf
    form (as in HF), "gelu_new" is the tanh approximation (HF's name for what google-research/bert
    calls "gelu"), and in `label_names`, which are the values of HF's `id2label`. The fields from
    `tie_word_embeddings` on are HF's; `bert_config.json` has none of them.

    Raises:
        UserError: a value has the wrong type, is out of range, `hidden_size` is not divisible by
            `num_attention_heads`, or `label_names` are not `num_labels` different texts.
    """

    vocab_size: int = setting(30522, "entries of the vocabulary, V", at_least=5)
    hidden_size: int = setting(768, "width, D", at_least=1)
    num_hidden_layers: int = setting(12, "encoder blocks, N", at_least=1)
    num_attention_heads: int = setting(12, "attention heads, H", at_least=1)
    intermediate_size: int = setting(3072, "inner width of the feed-forward part, F", at_least=1)
    hidden_act: str = setting(
        "gelu", "gelu (exact) or gelu_new (tanh approximation)", choices=("gelu", "gelu_new")
    )
    hidden_dropout_prob: float = setting(0.1, "dropout after each part", at_least=0, below=1)
    attention_probs_dropout_prob: float = setting(
        0.1, "dropout on the attention weights", at_least=0, below=1
    )
    max_position_embeddings: int = setting(512, "longest sequence in tokens", at_least=4)
    type_vocab_size: int = setting(2, "segments", at_least=1)
    initializer_range: float = setting(0.02, "standard deviation of fresh weights", above=0)
    layer_norm_eps: float = setting(1e-12, "epsilon of LayerNorm", above=0)
    tie_word_embeddings: bool = setting(
        True, "whether the MLM head scores words with the word embeddings or a table of its own"
    )
    num_labels: int = setting(2, "labels of a classifier, C", at_least=1)
    label_names: tuple | None = setting(None, "names of the labels, in the order of their numbers")
    problem_type: str | None = setting(
        None,
        "what a sequence classifier predicts; default: a number with one label, else one label",
        choices=("regression", "single_label_classification", "multi_label_classification"),
    )
    classifier_dropout: float | None = setting(
        None, "dropout before a classifier; default: hidden_dropout_prob", at_least=0, below=1
    )

    def __post_init__(self):
        if isinstance(self.label_names, list):  # as JSON and YAML have it
            object.__setattr__(self, "label_names", tuple(self.label_names))
        check_settings(self)
        self._check_labels()
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size must be divisible by num_attention_heads; got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )

    @property
    def head_dropout_prob(self):
        """The dropout before a classifier: `classifier_dropout`, else `hidden_dropout_prob`."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate

    def _check_labels(self):
        names = self.label_names
        if names is None:
            return
        if not all(is_text(name) for name in names) or len(set(names)) < len(names):
            raise UserError(f"label_names must be different texts; got {list(names)}.")
        if len(names) != self.num_labels:
            raise UserError(
                f"label_names must name each of the num_labels {self.num_labels}; got "
                f"{len(names)}: {list(names)}."
            )

    @classmethod
    def from_preset(cls, name, **overrides):
        """One of tiny, mini, small, medium, base, large; keyword arguments replace fields."""
        if name not in PRESETS:
            raise UserError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}.")
        layers, width = PRESETS[name]
        values = {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
        }
        return cls(**{**values, **overrides})

    @classmethod
    def from_file(cls, path, **defaults):
        """Reads a `.json` or `.yaml` file.

        Args:
            path: the file; its keys are fields of this class.
            **defaults: values of fields that the file does not state.

        Raises:
            UserError: no such file, not an object, or a key that is no field.
        """
        path = pathlib.Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            values = yaml.safe_load(text) if path.suffix != ".json" else json.loads(text)
        except OSError as error:
            raise UserError(f"cannot read the config {path}: {error.strerror}.") from error
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the config {path} is not valid {path.suffix[1:]}: {reason}"
            ) from error
        if not isinstance(values, dict):
            raise UserError(f"the config {path} must hold named values, one 'name: value' a line.")
        known = {field.name: setting_type(field)[0] for field in dataclasses.fields(cls)}
        for key, value in values.items():
            if known.get(key) is float and isinstance(value, str):
                with contextlib.suppress(ValueError):  # YAML reads 1e-12 as text
                    values[key] = float(value)
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known)}."
                raise UserError(f"unknown key {key!r} in {path}.{hint}")
        try:
            return cls(**{**defaults, **values})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def load(cls, name_or_path, vocab_size):
        """A preset name, a `.yaml` or a `.json` file, for a vocabulary of `vocab_size` entries.

        A preset, or a file without `vocab_size`, takes the size of the vocabulary. A file that
        states a larger one keeps it (a padded embedding table).

        Raises:
            UserError: neither a preset nor a readable file, or too small for the vocabulary.
        """
        if name_or_path in PRESETS:
            return cls.from_preset(name_or_path, vocab_size=vocab_size)
        if not name_or_path.endswith((".json", ".yaml", ".yml")):
            raise UserError(
                f"bert_config must be one of {', '.join(PRESETS)}, or a .yaml or .json file; "
                f"got {name_or_path!r}."
            )
        config = cls.from_file(name_or_path, vocab_size=vocab_size)
        if config.vocab_size < vocab_size:
            raise UserError(
                f"the vocabulary has {vocab_size} entries but {name_or_path} says vocab_size "
                f"{config.vocab_size}. Remove the line, or use the vocabulary it was written for."
            )
        return config

    def to_dict(self):
        """The fields as a dict that `BertConfig(**d)` takes back."""
        return dataclasses.asdict(self)

    def save(self, path):
        """Writes the fields as JSON."""
        pathlib.Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class LearnVocabConfig:
    """Settings of `kbert.learn_vocab`, one flag each."""

    input: str = setting("", "text: comma-separated globs, tfds:NAME or sample:train")
    vocab_file: str = setting("vocab.txt", "file to write")
    vocab_size: int = setting(30522, "entries, special tokens included", at_least=32)
    lower_case: bool = setting(True, "lower-case and strip accents (an uncased BERT)")

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Settings of `kbert.prepare`, one flag each."""

    input: str = setting("", "text: comma-separated globs, tfds:NAME or sample:train")
    output_dir: str = setting("corpora/prepared", "folder to make")
    vocab_file: str | None = setting(None, "vocabulary, such as kbert.learn_vocab writes")
    lower_case: bool = setting(True, "lower-case and strip accents (an uncased BERT)")
    processes: int | None = setting(None, "worker processes; default: one per core", at_least=1)

    def __post_init__(self):
        check_settings(self)
        if self.vocab_file is None:
            raise UserError("vocab_file is missing. Make one with: python -m kbert.learn_vocab")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run, one flag each.

    Raises:
        UserError: a value has the wrong type, is out of range, or contradicts another.
    """

    input: str = setting(
        "",
        "what to learn from: comma-separated globs of .txt, .gz or .jsonl files, tfds:NAME, "
        "sample:train (the text that comes with kbert), or one prepared corpus",
    )
    eval_input: str = setting("", "held-out text, in the forms of --input; sample:heldout")
    vocab_file: str | None = setting(
        None, "vocabulary; default: that of the prepared corpus or of --init_from, else learnt"
    )
    vocab_size: int = setting(30522, "entries, when the vocabulary is learnt", at_least=32)
    lower_case: bool | None = setting(
        None,
        "lower-case and strip accents (an uncased BERT); default: as the prepared corpus or "
        "--init_from does, else true",
    )
    bert_config: str | None = setting(
        None,
        "architecture: tiny, mini, small, medium, base, large, or a .yaml or .json file; default: "
        "that of the checkpoint or of --init_from, else base",
    )
    init_from: str | None = setting(
        None,
        "folder to start from: weights, such as RUN/pretrain/final, with a fresh optimizer, or a "
        "checkpoint, such as RUN/pretrain/checkpoint/step_00001000, with its optimizer",
    )
    max_seq_length: int = setting(128, "length of an example in tokens, L", at_least=5)
    max_predictions_per_seq: int | None = setting(
        None, "masked slots of an example, M; default: mask_rate * L, rounded up", at_least=1
    )
    mask_rate: float = setting(0.15, "share of the tokens to predict", above=0, below=1)
    whole_word_mask: bool = setting(False, "mask all pieces of a word together")
    short_seq_prob: float = setting(
        0.1, "share of the examples cut to a random length", at_least=0, at_most=1
    )
    global_batch_size: int = setting(256, "examples in a step", at_least=1)
    train_steps: int = setting(1_000_000, "steps of the whole run", at_least=1)
    learning_rate: float = setting(1e-4, "peak learning rate", above=0)
    warmup_steps: int = setting(10_000, "steps of linear warm-up", at_least=0)
    decay_steps: int | None = setting(
        None, "step at which the learning rate is 0; default: train_steps", at_least=1
    )
    decay_power: float = setting(
        1.0, "learning rate falls as (1 - step / decay_steps) to this power", above=0
    )
    weight_decay: float = setting(0.01, "decoupled weight decay", at_least=0)
    clip_norm: float = setting(1.0, "global norm to which gradients are clipped", above=0)
    optimizer: str = setting("adamw", "the optimizer", choices=("adamw", "lamb", "sgd"))
    adam_epsilon: float = setting(1e-6, "epsilon of adamw and lamb", above=0)
    precision: str = setting(
        "float32",
        "dtype policy of the model",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    distribution: str = setting(
        "auto",
        "devices: one_device, mirrored (all GPUs, or --cpu_devices), auto (mirrored if several)",
        choices=("auto", "one_device", "mirrored"),
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
    eval_every_steps: int = setting(10_000, "steps between evaluations", at_least=1)
    eval_examples: int = setting(
        2048, "held-out examples of an evaluation, in whole batches of 32", at_least=1
    )
    save_every_steps: int = setting(1000, "steps between checkpoints", at_least=1)
    keep_checkpoints: int = setting(2, "checkpoints to keep", at_least=1)
    log_every_steps: int = setting(100, "steps between lines of the log", at_least=1)
    seed: int = setting(0, "seed of everything random", at_least=0, at_most=2**31 - 1)

    def __post_init__(self):
        check_settings(self)
        if not self.input:
            raise UserError(
                "input is empty: say what to learn from, for example --input='text/*.txt', or "
                "--input=sample:train for the text that comes with kbert."
            )
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
