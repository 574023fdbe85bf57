"""Settings of fine-tuning and distillation, and of the example files that programs read."""

import dataclasses

from kbert.config import POOLINGS
from kbert.errors import UserError
from kbert.fields import check_settings, common, required, setting
from kbert.settings.training import TeacherConfig, TrainingConfig

_TASKS = (
    "classify (one label for a text), pair (one label for two texts), regress (a number), "
    "multilabel (any number of labels), tag (a label for each word), qa (an answer in a text), "
    "choice (one of several texts), embed (a vector for a text), rerank (how relevant a text is to "
    "a query), or a task of your own"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskModuleConfig:
    """The module that registers tasks defined outside kbert."""

    task_module: str | None = setting(
        None, "importable Python module that registers your own tasks, such as my_task"
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnConfig:
    """How the columns and lines of example files are read, by all programs that read such files."""

    text_column: str | None = common(
        None, "column of the text (tag: of the words): its name or key, or its number from 0"
    )
    text_pair_column: str | None = common(None, "column of the second text")
    label_column: str | None = common(None, "column of the label; -1 is the last")
    label_columns: str | None = setting(
        None, "multilabel: columns of 0 and 1, each named after its label, comma-separated"
    )
    choice_columns: str | None = setting(None, "columns of the choices, comma-separated")
    first_choice: str = setting(
        "auto",
        "choice: the label of the first choice if labels are numbers; auto: inferred from all "
        "labels",
        choices=("auto", "0", "1"),
    )
    header: str = setting(
        "auto",
        "whether tables have a header row; auto: inferred from the first rows",
        choices=("auto", "yes", "no"),
    )
    skip_bad_lines: bool = setting(
        False, "skip and count bad lines instead of stopping with an error"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleConfig(ColumnConfig, TaskModuleConfig):
    """The task of labeled examples, and how their files are read."""

    task: str | None = common(None, f"{_TASKS}; default: the model's task")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(ExampleConfig):
    """How labeled examples are scored; shared by `finetune`, `distill` and `evaluate`."""

    unknown_labels: str = setting(
        "error",
        "treatment of evaluation and test examples with labels that the model does not have; "
        "error: stop; wrong: count these examples as wrong",
        choices=("error", "wrong"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig, ScoreConfig):
    """Settings of `kbert.finetune`; each is a flag."""

    task: str | None = required(None, _TASKS)
    init_from: str | None = required(
        None,
        "weights to start from: RUN/pretrain/final, a folder in the format of "
        "google-research/bert, HF or KerasHub, or a model name on the Hugging Face hub",
    )
    train_file: str | None = required(
        None,
        "training examples: .tsv, .csv, .jsonl, .parquet, CoNLL, SQuAD .json, compressed or not, a "
        "folder of Hugging Face datasets, or tfds:NAME",
    )
    eval_file: str | None = common(
        None,
        "examples to select the best checkpoint on; default: those held out by --eval_fraction; "
        "without any, the last weights are used",
    )
    test_file: str | None = common(
        None, "examples to score the selected weights on, once, at the end"
    )
    eval_fraction: float = common(
        0.0,
        "without --eval_file: fraction of the training examples to hold out for selecting the best "
        "checkpoint, stratified by class",
        at_least=0,
        below=1,
    )
    folds: int | None = setting(
        None,
        "cross-validation: split the training examples into this many parts; for each part, train "
        "a model on the others, in OUTPUT_DIR/fold_1 and so on, and score it on the part",
        at_least=2,
    )
    fold: int | None = setting(
        None,
        "with --folds: train only the model that is scored on this part, counted from 1",
        at_least=1,
    )
    label_names: str | None = setting(
        None,
        "label names in the order of their ids, comma-separated, or a file with one name per line; "
        "default: the labels of the teacher, else the sorted labels of the training data",
    )
    epochs: float = common(3.0, "passes over the training data", above=0)
    batch_size: int = common(32, "examples per step", at_least=1)
    learning_rate: float = common(5e-5, "peak learning rate", above=0)
    warmup_ratio: float = setting(
        0.1,
        "fraction of the steps with linear warmup; then the learning rate decays linearly to 0",
        at_least=0,
        below=1,
    )
    max_seq_length: int | None = common(
        None,
        "maximum sequence length in tokens; longer texts are truncated, or split into windows "
        "(qa); default: 384 for qa, the value of a sentence-transformers folder for embed, else "
        "128; with a teacher: as in its training",
        at_least=5,
    )
    bias_correction: bool = setting(
        True, "adamw: apply the bias correction of Adam; google-research/bert does not apply it"
    )
    layer_decay: float = setting(
        1.0,
        "learning rate of each layer, as a fraction of the learning rate of the layer above it",
        above=0,
        at_most=1,
    )
    freeze_embeddings: bool = setting(False, "do not train the embeddings")
    freeze_layers: int = setting(
        0,
        "do not train the embeddings and this many of the first encoder blocks; 0: off",
        at_least=0,
    )
    lora_rank: int = setting(
        0, "train only the head and LoRA adapters of this rank in the encoder; 0: off", at_least=0
    )
    lora_alpha: float | None = setting(
        None, "alpha of LoRA, whose updates are scaled by alpha / rank; default: 2 * rank", above=0
    )
    classifier_dropout: float | None = setting(
        None,
        "dropout rate before the head; default: the rate in --init_from, or else the encoder's "
        "hidden dropout",
        at_least=0,
        below=1,
    )
    class_weights: str | None = setting(
        None,
        "loss weight of each class: balanced (inversely proportional to its frequency), or "
        "comma-separated numbers in the order of the labels",
    )
    doc_stride: int = setting(
        128, "qa: tokens between the starts of consecutive windows", at_least=1
    )
    max_query_length: int = setting(
        64, "qa: maximum question length in tokens; longer questions are truncated", at_least=1
    )
    max_answer_length: int = setting(30, "qa: maximum answer length in tokens", at_least=1)
    null_threshold: float | None = setting(
        None,
        "qa with unanswerable questions: predict no answer if its score exceeds the score of the "
        "best answer by more than this; default: the value with the best F1 on the evaluation "
        "examples, 0 without any",
    )
    loss: str | None = setting(
        None,
        "embed: the loss; cosent and cosine_similarity are for pairs with a score; default: cosent "
        "for these, else multiple_negatives_ranking",
        choices=("multiple_negatives_ranking", "cosent", "cosine_similarity", "triplet"),
    )
    similarity_scale: float = setting(
        20.0,
        "embed: factor of the cosine in the losses multiple_negatives_ranking and cosent; the "
        "inverse of the temperature",
        above=0,
    )
    symmetric: bool = setting(
        False,
        "embed: with the loss multiple_negatives_ranking, also rank all anchors for each positive",
    )
    margin: float = setting(5.0, "embed: margin of the loss triplet, a Euclidean distance", above=0)
    matryoshka_dims: str | None = setting(
        None,
        "embed: sizes to which the embeddings can later be truncated, such as 256,128,64; the loss "
        "is the sum of the losses at these sizes",
    )
    pooling: str | None = setting(
        None,
        "embed: how token vectors are pooled; default: as in --init_from, else mean",
        choices=POOLINGS,
    )
    eval_every_steps: int | None = setting(
        None, "steps between evaluations; default: one epoch", at_least=1
    )
    best_metric: str | None = setting(
        None,
        "metric on the evaluation examples that selects the best checkpoint; default: the task's "
        "metric",
    )
    early_stopping_patience: int | None = setting(
        None, "stop after this many evaluations without improvement of best_metric", at_least=1
    )

    save_every_steps: int = setting(200, "steps between checkpoints", at_least=1)

    @property
    def global_batch_size(self) -> int:
        """Examples per step, the same as `batch_size`; a setting of PretrainConfig."""
        return self.batch_size

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_files()
        if self.lora_rank and (self.freeze_layers or self.freeze_embeddings):
            raise UserError(
                "--lora_rank already freezes the encoder. Remove --freeze_layers and "
                "--freeze_embeddings."
            )

    def _check_files(self):
        """Checks the settings that define the evaluation and test examples."""
        if self.eval_fraction and self.eval_file:
            raise UserError("--eval_fraction and --eval_file cannot be combined; set only one.")
        if self.early_stopping_patience and not (self.eval_file or self.eval_fraction):
            raise UserError("--early_stopping_patience requires --eval_file or --eval_fraction.")
        if self.fold and self.fold > (self.folds or 0):
            raise UserError(
                f"--fold must be at most --folds; got {self.fold} and {self.folds or 'no --folds'}."
            )
        if self.folds and self.test_file:
            raise UserError(
                "--folds scores each model on a part of --train_file. Remove --test_file, and use "
                "kbert.evaluate to score the model of a fold on it."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(FinetuneConfig, TeacherConfig):
    """Settings of `kbert.distill`; each is a flag."""

    task: str | None = common(None, f"{_TASKS}; default: the teacher's task")
    teacher: str | None = required(
        None, "fine-tuned model to learn from, such as RUN/finetuning/best"
    )
    init_from: str | None = common(
        None,
        "weights that the student starts from, as for kbert.finetune; default: blocks of the "
        "teacher (--student_layers)",
    )

    def __post_init__(self) -> None:
        if not self.init_from:
            object.__setattr__(self, "init_from", self.teacher)
        super().__post_init__()
        self.check_distillation_settings()
