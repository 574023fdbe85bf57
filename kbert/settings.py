"""Settings of the programs: dataclasses with one flag for each field."""

import dataclasses

from kbert.config import check_settings, setting
from kbert.errors import UserError


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What pretraining and fine-tuning share: optimizer, devices, checkpoints."""

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
    profile: str = setting("", "START,STOP: write a TensorBoard profile of these steps")
    save_every_steps: int = setting(1000, "steps between checkpoints", at_least=1)
    keep_checkpoints: int = setting(2, "checkpoints to keep", at_least=1)
    log_every_steps: int = setting(100, "steps between lines of the log", at_least=1)
    seed: int = setting(0, "seed of everything random", at_least=0, at_most=2**31 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
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
    eval_every_steps: int = setting(10_000, "steps between evaluations", at_least=1)
    eval_examples: int = setting(
        2048, "held-out examples of an evaluation, in whole batches of 32", at_least=1
    )

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


TASKS = ("classify", "pair", "regress", "multilabel", "tag", "qa", "choice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnConfig:
    """Where the examples of a file are; what `finetune`, `evaluate` and `predict` share."""

    text_column: str | None = setting(
        None, "column of the text (tag: of the words): a name of the header, or a number from 0"
    )
    text_pair_column: str | None = setting(None, "column of the second text")
    label_column: str | None = setting(None, "column of the label; -1 is the last")
    choice_columns: str | None = setting(None, "columns of the choices, comma-separated")
    header: str = setting(
        "auto",
        "whether tables have a header; auto: if the first row holds names of columns",
        choices=("auto", "yes", "no"),
    )
    skip_bad_lines: bool = setting(False, "leave bad lines out, and count them, instead of ending")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleConfig(ColumnConfig):
    """What labelled examples are for; what `kbert.data.examples.read_examples` takes."""

    task: str | None = setting(
        None,
        "classify (one label for a text), pair (for two texts), regress (a number), multilabel, "
        "tag (a label for each word), qa (an answer in a text), choice (one of several texts)",
        choices=TASKS,
    )

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig, ExampleConfig):
    """Settings of a fine-tuning run, one flag each.

    Raises:
        UserError: a value has the wrong type, is out of range, or contradicts another.
    """

    init_from: str | None = setting(
        None,
        "weights to start from: RUN/pretrain/final, a folder of google-research/bert, HF or "
        "KerasHub, or a name on the Hugging Face hub",
    )
    train_file: str | None = setting(
        None, "what to learn from: .tsv, .csv, .jsonl, CoNLL, SQuAD .json, .gz of them, tfds:NAME"
    )
    eval_file: str | None = setting(
        None, "what to choose the best weights by; default: those of the last step are taken"
    )
    test_file: str | None = setting(None, "what to score the chosen weights on, once, at the end")
    labels: str | None = setting(
        None,
        "names of the labels in the order of their numbers, comma-separated, or a file with one a "
        "line; default: those of the training data, sorted",
    )
    epochs: float = setting(3.0, "passes over the training data", above=0)
    batch_size: int = setting(32, "examples in a step", at_least=1)
    learning_rate: float = setting(5e-5, "peak learning rate", above=0)
    warmup_ratio: float = setting(
        0.1, "share of the steps with rising learning rate; then it falls to 0", at_least=0, below=1
    )
    max_seq_length: int | None = setting(
        None,
        "longest example in tokens; more are cut, or read in windows (qa); default: 384 for qa, "
        "else 128",
        at_least=5,
    )
    bias_correction: bool = setting(
        True, "adamw corrects its means in the first steps; --nobias_correction is BERT's own way"
    )
    layer_decay: float = setting(
        1.0, "learning rate of a layer as a share of that of the layer above", above=0, at_most=1
    )
    freeze_embeddings: bool = setting(False, "leave the embeddings as they are")
    freeze_layers: int = setting(
        0, "leave the embeddings and so many of the first encoder blocks as they are", at_least=0
    )
    lora_rank: int = setting(
        0, "train adapters of this rank (LoRA) and the head, not the encoder; 0: off", at_least=0
    )
    lora_alpha: float | None = setting(
        None, "adapters count alpha / rank times; default: twice the rank", above=0
    )
    classifier_dropout: float | None = setting(
        None, "dropout before the head; default: that of the encoder", at_least=0, below=1
    )
    class_weights: str | None = setting(
        None,
        "what an example of each class counts: balanced (all classes the same in sum), or "
        "comma-separated numbers in the order of the labels",
    )
    doc_stride: int = setting(128, "qa: tokens between the starts of two windows", at_least=1)
    max_query_length: int = setting(64, "qa: longest question in tokens; more are cut", at_least=1)
    max_answer_length: int = setting(30, "qa: longest answer in tokens", at_least=1)
    null_threshold: float | None = setting(
        None,
        "qa with questions that have no answer: how much better none must score than the best "
        "answer; default: what is best on --eval_file",
    )
    eval_every_steps: int | None = setting(
        None, "steps between evaluations; default: an epoch", at_least=1
    )
    best_metric: str | None = setting(
        None, "figure of --eval_file that the best weights have; default: the usual one of the task"
    )
    early_stopping: int | None = setting(
        None, "stop after so many evaluations without a better best_metric", at_least=1
    )

    save_every_steps: int = setting(200, "steps between checkpoints", at_least=1)

    @property
    def global_batch_size(self):
        """Examples in a step, as training calls it."""
        return self.batch_size

    def __post_init__(self):
        check_settings(self)
        needed = {
            "task": f"one of {', '.join(TASKS)}",
            "init_from": "a folder of weights, or a name on the Hugging Face hub",
            "train_file": "what to learn from",
        }
        for name, what in needed.items():
            if not getattr(self, name):
                raise UserError(f"--{name} is missing: {what}.")
        if self.max_seq_length is None:
            object.__setattr__(self, "max_seq_length", 384 if self.task == "qa" else 128)
        if self.early_stopping and not self.eval_file:
            raise UserError("--early_stopping needs --eval_file to see what is better.")
        if self.lora_rank and (self.freeze_layers or self.freeze_embeddings):
            raise UserError(
                "--lora_rank already leaves the encoder as it is. Leave out --freeze_layers and "
                "--freeze_embeddings."
            )
        if self.class_weights and self.task not in ("classify", "pair"):
            raise UserError(f"--class_weights is for classify and pair; the task is {self.task}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ExampleConfig):
    """Settings of `kbert.evaluate`, one flag each."""

    model: str | None = setting(None, "fine-tuned weights, such as RUN/finetuning/best")
    eval_file: str | None = setting(None, "labelled examples, in the formats of kbert.finetune")
    results_file: str | None = setting(None, "JSON file to write the scores to")
    batch_size: int = setting(32, "examples computed at a time", at_least=1)
    precision: str = setting(
        "float32", "dtype policy of the model", choices=("float32", "mixed_bfloat16")
    )

    def __post_init__(self):
        check_settings(self)
        for name in ("model", "eval_file"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing. See python -m kbert.evaluate --help.")


METHODS = (
    "classify",
    "tag",
    "answer",
    "choose",
    "next_sentence",
    "similarity",
    "embed",
    "fill_mask",
)
EXPORT_METHODS = (*(name for name in METHODS if name != "similarity"), "encode")
ENGINES = ("auto", "tensorflow", "openvino")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(ColumnConfig):
    """Settings of `kbert.predict`, one flag each."""

    model: str | None = setting(None, "weights, such as RUN/finetuning/best or RUN/pretrain/final")
    method: str | None = setting(
        None,
        "what to predict; default: what the model was fine-tuned for, else fill_mask",
        choices=METHODS,
    )
    input_file: str = setting(
        "-",
        "a text a line (.txt, or - for standard input; two texts are separated by a tab), or "
        "examples in the formats of kbert.finetune",
    )
    output_file: str = setting("-", "JSON lines, one for each text; - for standard output")
    k: int = setting(5, "fill_mask: words for each [MASK]", at_least=1)
    pooling: str = setting("mean", "embed, similarity: of the tokens", choices=("mean", "cls"))
    batch_size: int = setting(32, "texts of a batch", at_least=1)
    precision: str = setting(
        "float32", "dtype policy of the model", choices=("float32", "mixed_bfloat16")
    )
    engine: str = setting(
        "auto",
        "what computes the model; auto: OpenVINO if it is installed and there is no GPU, else "
        "TensorFlow",
        choices=ENGINES,
    )

    def __post_init__(self):
        check_settings(self)
        if not self.model:
            raise UserError("--model is missing: a folder of weights, such as RUN/finetuning/best.")
