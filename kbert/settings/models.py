"""Settings of the programs that use a model, and the methods and backends they offer."""

import dataclasses
import re

from kbert.config import POOLINGS
from kbert.errors import UserError
from kbert.fields import check_settings, common, required, setting
from kbert.settings.tasks import ColumnConfig, ExampleConfig, ScoreConfig, TaskModuleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoreConfig):
    """Settings of `kbert.evaluate`; each is a flag."""

    model: str | None = required(None, "fine-tuned weights, such as RUN/finetuning/best")
    eval_file: str | None = required(
        None, "labeled examples, in a format that kbert.finetune reads"
    )
    results_file: str | None = common(None, "JSON file to write the scores to")
    batch_size: int = common(32, "examples per batch", at_least=1)
    precision: str = common(
        "float32", "Keras dtype policy of the model", choices=("float32", "mixed_bfloat16")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig(ExampleConfig):
    """Settings of `kbert.prune`; each is a flag."""

    model: str | None = required(None, "fine-tuned weights, such as RUN/finetuning/best")
    data_file: str | None = required(
        None,
        "labeled examples to measure the importance of the attention heads on: the training data "
        "or a part of it",
    )
    eval_file: str | None = common(
        None, "labeled examples to score the model on before and after pruning"
    )
    output_dir: str | None = required(None, "folder to create")
    prune_fraction: float = common(
        0.5, "fraction of the attention heads to remove", above=0, below=1
    )
    batch_size: int = setting(32, "examples per batch", at_least=1)


METHODS = (
    "classify",
    "tag",
    "answer",
    "choose",
    "rerank",
    "next_sentence",
    "similarity",
    "embed",
    "fill_mask",
)
EXPORT_METHODS = (*(name for name in METHODS if name != "similarity"), "encode")
SERVER_BACKENDS = ("auto", "tensorflow", "openvino")
BACKENDS = (*SERVER_BACKENDS, "keras")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLimits:
    """Limits on the texts of a request, which are part of an exported graph."""

    max_text_tokens: int = setting(
        1 << 16,
        "serving: maximum tokens of a text in a request; also limits the text to 16 times as many "
        "bytes",
        at_least=1,
    )
    max_windows: int = setting(
        2048,
        "serving: maximum windows of a request; tag and answer split long texts into windows",
        at_least=1,
    )
    max_choices: int = setting(128, "serving: maximum choices for a text in a request", at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(ColumnConfig, TextLimits, TaskModuleConfig):
    """Settings of `kbert.export`; each is a flag."""

    model: str | None = required(
        None, "folder of weights in any format, or the name of a model on the Hugging Face hub"
    )
    output_dir: str | None = required(
        None,
        "folder to create; TensorFlow Serving expects models/NAME/VERSION, such as models/bert/1",
    )
    method: str | None = common(
        None,
        f"prediction method: {', '.join(EXPORT_METHODS)}, or the method of a task of your own; "
        f"default: the method of the model's task or heads, such as fill_mask after pretraining",
    )
    format: str = common(
        "serving",
        "serving: a SavedModel that takes text; tf_hub: two SavedModels with TF Hub's text API, "
        "preprocess/ and encoder/; openvino: an OpenVINO model, without a tokenizer",
        choices=("serving", "tf_hub", "openvino"),
    )
    quantize: str | None = common(
        None,
        "weight type: int8 with --format=serving, float16 with --format=openvino; default: float32",
        choices=("int8", "float16"),
    )
    takes_pairs: bool | None = common(
        None,
        "classify: whether requests have a second text, text_pair; default: whether the model was "
        "fine-tuned on pairs",
    )
    max_seq_length: int | None = common(
        None,
        "maximum sequence length in tokens; default: as in fine-tuning, else the value of a "
        "sentence-transformers folder, else the model's maximum, but at most 512; 128 with "
        "--format=tf_hub",
    )
    batch_timeout_ms: float = setting(
        0.0,
        "with --format=serving: milliseconds that a request waits for others to share its batch, "
        "for servers that do not batch; 0: do not batch in the graph",
        at_least=0,
    )
    eval_file: str | None = common(
        None,
        "labeled examples, in a format that kbert.finetune reads; the scores of the export and of "
        "the original model on them are written to compression.json",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.batch_timeout_ms and self.format != "serving":
            raise UserError(f"--batch_timeout_ms requires --format=serving; got {self.format}.")
        for field in dataclasses.fields(TextLimits):
            if self.format != "serving" and getattr(self, field.name) != field.default:
                raise UserError(f"--{field.name} requires --format=serving; got {self.format}.")
        if self.format == "tf_hub":
            self._check_tf_hub()
        if not self.eval_file:
            for field in dataclasses.fields(ColumnConfig):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name} requires --eval_file.")

    def _check_tf_hub(self) -> None:
        if self.quantize:
            raise UserError(
                "--quantize is not allowed with --format=tf_hub: its encoder must stay trainable."
            )
        if self.method or self.takes_pairs is not None or self.eval_file:
            raise UserError(
                "--method, --takes_pairs and --eval_file are not allowed with --format=tf_hub: an "
                "encoder has no head."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(ColumnConfig, TaskModuleConfig):
    """Settings of `kbert.predict`; each is a flag."""

    model: str | None = required(None, "weights, such as RUN/finetuning/best or RUN/pretrain/final")
    method: str | None = common(
        None,
        f"prediction method: {', '.join(METHODS)}, or the method of a task of your own; default: "
        f"the method of the model's task or heads, such as fill_mask after pretraining",
    )
    input_file: str = common(
        "-",
        "one text per line (.txt, or - for standard input; text pairs separated by a tab), or "
        "examples in a format that kbert.finetune reads",
    )
    output_file: str = common("-", "file to write, a JSON line per text; - for standard output")
    echo: bool = common(False, "add the text to each line of the output, as `input`")
    top_k: int | None = setting(
        None,
        "fill_mask: number of words per [MASK], default: 5; answer: number of candidates, which "
        "may overlap, default: up to 20 that do not overlap",
        at_least=1,
    )
    targets: str | None = setting(
        None, "fill_mask: words to choose from, comma-separated; default: the whole vocabulary"
    )
    max_answer_length: int | None = setting(
        None, "answer: maximum answer length in tokens; default: as in fine-tuning", at_least=1
    )
    allow_no_answer: bool | None = setting(
        None,
        "answer: whether a question may have no answer; default: whether the model was fine-tuned "
        "on such questions",
    )
    pooling: str | None = setting(
        None,
        "embed, similarity: how token vectors are pooled; default: as in the model's training, "
        "else mean",
        choices=POOLINGS,
    )
    prompt_name: str | None = setting(
        None,
        "embed: name of the model's prompt to prepend to each text, such as query; default: the "
        "model's default prompt, if it has one",
    )
    batch_size: int = common(32, "texts per batch", at_least=1)
    precision: str = common(
        "float32", "Keras dtype policy of the model", choices=("float32", "mixed_bfloat16")
    )
    backend: str = common(
        "auto",
        "runtime of the model; auto: OpenVINO if it is installed and there is no GPU, else "
        "TensorFlow; keras: the unconverted Keras model, as in evaluation during training",
        choices=BACKENDS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineConfig(ColumnConfig):
    """Settings of `kbert.mine`; each is a flag."""

    model: str | None = required(
        None, "encoder, such as RUN/finetuning/best or a sentence-transformers folder"
    )
    pairs_file: str | None = required(
        None,
        "pairs of similar texts, a query and its positive, in a format that --task=embed reads",
    )
    output_file: str | None = required(
        None, "file to write, such as hard.jsonl: the pairs with negative_1, negative_2 and so on"
    )
    corpus_file: str | None = common(
        None, "texts to search in, one per line (.txt); default: the positives of --pairs_file"
    )
    num_negatives: int = common(3, "negatives of each pair", at_least=1)
    top_k: int = common(
        100,
        "number of nearest texts to choose negatives from, including --skip_top",
        at_least=1,
    )
    skip_top: int = common(
        0, "number of nearest texts to skip, because they may be relevant", at_least=0
    )
    margin: float | None = common(
        None,
        "the minimum by which a negative must be less similar to the query than the positive is; "
        "default: no minimum",
        at_least=0,
    )
    batch_size: int = setting(32, "texts per batch", at_least=1)
    backend: str = setting("auto", "runtime of the model, as for kbert.predict", choices=BACKENDS)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.skip_top + self.num_negatives > self.top_k:
            raise UserError(
                f"--top_k must be at least --skip_top plus --num_negatives, "
                f"{self.skip_top + self.num_negatives}; got {self.top_k}."
            )
        if not self.output_file.endswith(".jsonl"):
            raise UserError(f"--output_file must end in .jsonl; got {self.output_file}.")
        if self.corpus_file and not re.search(r"\.txt(\.\w+)?$", self.corpus_file.lower()):
            raise UserError(
                f"--corpus_file must be a .txt file with one text per line, compressed or not; got "
                f"{self.corpus_file}."
            )
