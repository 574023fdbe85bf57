"""Settings of fine-tuning and distillation, and where examples are."""

import dataclasses

from kbert.config import check_settings, setting
from kbert.errors import UserError
from kbert.settings.training import TeacherConfig, TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskModuleConfig:
    """Where tasks are that do not come with kbert."""

    task_module: str | None = setting(
        None, "module of tasks of your own, such as my_task; kbert imports it"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnConfig:
    """Where the examples of a file are; what `finetune`, `evaluate` and `predict` share."""

    text_column: str | None = setting(
        None,
        "column of the text (tag: of the words): a name of the header, or a number from 0",
        group="common",
    )
    text_pair_column: str | None = setting(None, "column of the second text", group="common")
    label_column: str | None = setting(None, "column of the label; -1 is the last", group="common")
    choice_columns: str | None = setting(None, "columns of the choices, comma-separated")
    header: str = setting(
        "auto",
        "whether tables have a header; auto: if the first row holds names of columns",
        choices=("auto", "yes", "no"),
    )
    skip_bad_lines: bool = setting(False, "leave bad lines out, and count them, instead of ending")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleConfig(ColumnConfig, TaskModuleConfig):
    """What labelled examples are for; what `kbert.tasks.examples.read_examples` takes."""

    task: str | None = setting(
        None,
        "classify (one label for a text), pair (for two texts), regress (a number), multilabel, "
        "tag (a label for each word), qa (an answer in a text), choice (one of several texts), "
        "or a task of your own",
        group="common",
    )

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig, ExampleConfig):
    """Settings of a fine-tuning run, one flag each."""

    init_from: str | None = setting(
        None,
        "weights to start from: RUN/pretrain/final, a folder of google-research/bert, HF or "
        "KerasHub, or a name on the Hugging Face hub",
        group="required",
    )
    train_file: str | None = setting(
        None,
        "what to learn from: .tsv, .csv, .jsonl, CoNLL, SQuAD .json, .gz of them, tfds:NAME",
        group="required",
    )
    eval_file: str | None = setting(
        None,
        "what to choose the best weights by; default: those of the last step are taken",
        group="common",
    )
    test_file: str | None = setting(
        None, "what to score the chosen weights on, once, at the end", group="common"
    )
    label_names: str | None = setting(
        None,
        "names of the labels in the order of their numbers, comma-separated, or a file with one a "
        "line; default: those of the training data, sorted",
    )
    epochs: float = setting(3.0, "passes over the training data", above=0, group="common")
    batch_size: int = setting(32, "examples in a step", at_least=1, group="common")
    learning_rate: float = setting(5e-5, "peak learning rate", above=0, group="common")
    warmup_ratio: float = setting(
        0.1, "share of the steps with rising learning rate; then it falls to 0", at_least=0, below=1
    )
    max_seq_length: int | None = setting(
        None,
        "longest example in tokens; more are cut, or read in windows (qa); default: 384 for qa, "
        "else 128",
        at_least=5,
        group="common",
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
    early_stopping_patience: int | None = setting(
        None, "stop after so many evaluations without a better best_metric", at_least=1
    )

    save_every_steps: int = setting(200, "steps between checkpoints", at_least=1)

    @property
    def global_batch_size(self):
        """Examples in a step, as training calls it."""
        return self.batch_size

    def __post_init__(self):
        check_settings(self)
        if self.early_stopping_patience and not self.eval_file:
            raise UserError("--early_stopping_patience needs --eval_file to see what is better.")
        if self.lora_rank and (self.freeze_layers or self.freeze_embeddings):
            raise UserError(
                "--lora_rank already leaves the encoder as it is. Leave out --freeze_layers and "
                "--freeze_embeddings."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(FinetuneConfig, TeacherConfig):
    """Settings of a student's fine-tuning with a teacher, one flag each."""

    def __post_init__(self):
        if not self.teacher:
            raise UserError(
                "--teacher is missing: a fine-tuned model, such as RUN/finetuning/best."
            )
        if not self.init_from:
            object.__setattr__(self, "init_from", self.teacher)
        super().__post_init__()
        self.check_teacher()
