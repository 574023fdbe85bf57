"""Settings of the programs that use a model, and what they choose from."""

import dataclasses

from kbert.config import check_settings, setting
from kbert.errors import UserError
from kbert.settings.tasks import ColumnConfig, ExampleConfig, TaskModuleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ExampleConfig):
    """Settings of `kbert.evaluate`, one flag each."""

    model: str | None = setting(
        None, "fine-tuned weights, such as RUN/finetuning/best", group="required"
    )
    eval_file: str | None = setting(
        None, "labelled examples, in the formats of kbert.finetune", group="required"
    )
    results_file: str | None = setting(None, "JSON file to write the scores to", group="common")
    batch_size: int = setting(32, "examples computed at a time", at_least=1, group="common")
    precision: str = setting(
        "float32",
        "dtype policy of the model",
        choices=("float32", "mixed_bfloat16"),
        group="common",
    )

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig(ExampleConfig):
    """Settings of `kbert.prune`, one flag each."""

    model: str | None = setting(
        None, "fine-tuned weights, such as RUN/finetuning/best", group="required"
    )
    data_file: str | None = setting(
        None,
        "labelled examples that show what matters: those of training, or a part of them",
        group="required",
    )
    eval_file: str | None = setting(
        None, "labelled examples to score the model on, before and after", group="common"
    )
    output_dir: str | None = setting(None, "folder to make", group="required")
    prune_fraction: float = setting(
        0.5, "share of the attention heads to remove", above=0, below=1, group="common"
    )
    batch_size: int = setting(32, "examples computed at a time", at_least=1)

    def __post_init__(self):
        check_settings(self)


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
SERVER_BACKENDS = ("auto", "tensorflow", "openvino")
BACKENDS = (*SERVER_BACKENDS, "keras")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(ColumnConfig, TaskModuleConfig):
    """Settings of `kbert.export`, one flag each."""

    model: str | None = setting(
        None,
        "folder of weights in any format, or the name of a model on the Hugging Face hub",
        group="required",
    )
    output_dir: str | None = setting(
        None,
        "folder to make; TensorFlow Serving wants models/NAME/VERSION, such as models/bert/1",
        group="required",
    )
    method: str | None = setting(
        None,
        "what it answers; default: what the model was fine-tuned for, else fill_mask",
        choices=EXPORT_METHODS,
        group="common",
    )
    format: str = setting(
        "serving",
        "serving: a SavedModel that answers; tf_hub: preprocess/ and encoder/ with TF Hub's text "
        "API; openvino: the model without its tokenizer",
        choices=("serving", "tf_hub", "openvino"),
        group="common",
    )
    quantize: str | None = setting(
        None,
        "weights of serving (int8) or openvino (float16); default: float32",
        choices=("int8", "float16"),
        group="common",
    )
    takes_pairs: bool | None = setting(
        None,
        "whether a text comes with a second one, text_pair; default: as in fine-tuning",
        group="common",
    )
    max_seq_length: int | None = setting(
        None,
        "tokens of a sequence; default: as in fine-tuning, or as the model can",
        group="common",
    )
    batch_timeout_ms: float = setting(
        0.0,
        "serving: how long a request waits for others to share a batch in the graph, where the "
        "server makes none; 0: not at all",
        at_least=0,
    )
    eval_file: str | None = setting(
        None,
        "labelled examples, in the formats of kbert.finetune, to score the export on and the model "
        "it came from; compression.json has the figures",
        group="common",
    )

    def __post_init__(self):
        check_settings(self)
        if self.batch_timeout_ms and self.format != "serving":
            raise UserError(f"--batch_timeout_ms is for --format=serving; got {self.format}.")
        if self.format == "tf_hub":
            self._check_tf_hub()
        if not self.eval_file:
            for field in dataclasses.fields(ColumnConfig):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name} is for --eval_file.")

    def _check_tf_hub(self):
        if self.quantize:
            raise UserError(
                "--quantize is not for --format=tf_hub, whose encoder is trained further."
            )
        if self.method or self.takes_pairs is not None or self.eval_file:
            raise UserError(
                "--method, --takes_pairs and --eval_file are not for --format=tf_hub; an encoder "
                "has no head."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(ColumnConfig, TaskModuleConfig):
    """Settings of `kbert.predict`, one flag each."""

    model: str | None = setting(
        None, "weights, such as RUN/finetuning/best or RUN/pretrain/final", group="required"
    )
    method: str | None = setting(
        None,
        "what to predict; default: what the model was fine-tuned for, else fill_mask",
        choices=METHODS,
        group="common",
    )
    input_file: str = setting(
        "-",
        "a text a line (.txt, or - for standard input; two texts are separated by a tab), or "
        "examples in the formats of kbert.finetune",
        group="common",
    )
    output_file: str = setting(
        "-", "JSON lines, one for each text; - for standard output", group="common"
    )
    top_k: int = setting(5, "fill_mask: words for each [MASK]", at_least=1)
    pooling: str = setting("mean", "embed, similarity: of the tokens", choices=("mean", "cls"))
    batch_size: int = setting(32, "texts of a batch", at_least=1, group="common")
    precision: str = setting(
        "float32",
        "dtype policy of the model",
        choices=("float32", "mixed_bfloat16"),
        group="common",
    )
    backend: str = setting(
        "auto",
        "what computes the model; auto: OpenVINO if it is installed and there is no GPU, else "
        "TensorFlow; keras: the Keras model as it is, as evaluation in training does",
        choices=BACKENDS,
        group="common",
    )

    def __post_init__(self):
        check_settings(self)
