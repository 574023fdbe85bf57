"""`BertConfig`, the architecture of a model, and `EmbeddingConfig`, how it embeds texts."""

import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import typing
from collections.abc import Mapping

import yaml

from kbert.errors import UserError
from kbert.fields import check_settings, is_text, setting, setting_type, short_repr

# name: (layers, width). Sources: Turc et al. 2019 (arXiv:1908.08962) and Devlin et al. 2019
# (arXiv:1810.04805).
PRESETS = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


POOLINGS = ("mean", "cls", "max")


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Settings of text embeddings, computed from the encoder's outputs as in sentence-transformers.

    The steps are: pooling of the token vectors, a dense layer if `dense_size` is set, and scaling
    to length 1 if `normalize` is true.

    Raises:
        UserError: a value has the wrong type or is not allowed.
    """

    pooling: str = setting(
        "mean", "pooling of the token vectors; cls: the vector of [CLS]", choices=POOLINGS
    )
    dense_size: int | None = setting(
        None, "width of a dense layer after the pooling; default: no layer", at_least=1
    )
    dense_activation: str = setting(
        "tanh", "activation of the dense layer", choices=("tanh", "linear")
    )
    normalize: bool = setting(True, "whether to scale embeddings to length 1")
    similarity: str = setting(
        "cosine",
        "how two embeddings are compared; euclidean and manhattan: the negative distance",
        choices=("cosine", "dot", "euclidean", "manhattan"),
    )
    max_seq_length: int | None = setting(
        None,
        "maximum number of tokens per text; default: max_position_embeddings, at most 512",
        at_least=3,
    )
    prompt: str = setting("", "text that is prepended to each text by default")
    prompts: dict[str, str] | None = setting(  # noqa: RUF009 - a field
        None, "other texts to prepend on request, by name; names are often query and document"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for name, text in (self.prompts or {}).items():
            if not is_text(name) or not is_text(text):
                raise UserError(
                    f"prompts must be a dict of name -> text; got {short_repr(self.prompts)}."
                )

    def prompt_named(self, name: str | None) -> str:
        """Returns the text of a prompt.

        Args:
            name: key of `prompts`; None for the default, `prompt`.

        Raises:
            UserError: there is no prompt of this name.
        """
        if name is None:
            return self.prompt
        if name not in (self.prompts or {}):
            known = ", ".join(self.prompts or {}) or "none"
            raise UserError(f"the model has no prompt named {name!r}; its prompts: {known}.")
        return self.prompts[name]


_DEFAULT_EMBEDDING = EmbeddingConfig()


def _parse_embedding_config(values):
    unknown = values.keys() - {field.name for field in dataclasses.fields(EmbeddingConfig)}
    if unknown:
        raise UserError(f"embedding has the unknown keys {short_repr(sorted(map(str, unknown)))}.")
    try:
        return EmbeddingConfig(**values)
    except UserError as error:
        raise UserError(f"embedding: {error}") from None


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Architecture of a BERT, with the field names of `bert_config.json` and HF's `config.json`.

    Two fields differ from these files. `hidden_act` names the GELU variant as HF does: "gelu" is
    the exact form, and "gelu_new" the tanh approximation, which google-research/bert calls "gelu".
    `label_names` holds the values of HF's `id2label`. The fields from `layer_norm_eps` to
    `classifier_dropout` are not in `bert_config.json`. Two fields are kbert's own:
    `attention_heads_per_layer`, None if no head was removed, and `embedding`, None unless the model
    was trained to embed texts.

    Raises:
        UserError: a value has the wrong type or is out of range, `hidden_size` is not divisible by
            `num_attention_heads`, `label_names` does not have `num_labels` distinct strings, or
            `attention_heads_per_layer` does not have a number from 1 to `num_attention_heads` for
            each block.
    """

    vocab_size: int = setting(30522, "number of vocabulary entries, V", at_least=5)
    hidden_size: int = setting(768, "width, D", at_least=1)
    num_hidden_layers: int = setting(12, "number of encoder blocks, N", at_least=1)
    num_attention_heads: int = setting(12, "number of attention heads, H", at_least=1)
    intermediate_size: int = setting(3072, "inner width of the feed-forward layer, F", at_least=1)
    hidden_act: str = setting(
        "gelu", "gelu (exact) or gelu_new (tanh approximation)", choices=("gelu", "gelu_new")
    )
    hidden_dropout_prob: float = setting(
        0.1, "dropout after the embeddings and each sublayer", at_least=0, below=1
    )
    attention_probs_dropout_prob: float = setting(
        0.1, "dropout on the attention weights", at_least=0, below=1
    )
    max_position_embeddings: int = setting(512, "maximum sequence length in tokens", at_least=4)
    type_vocab_size: int = setting(2, "number of segment types", at_least=1)
    initializer_range: float = setting(0.02, "standard deviation of initial weights", above=0)
    layer_norm_eps: float = setting(1e-12, "epsilon of LayerNorm", above=0)
    tie_word_embeddings: bool = setting(
        True, "whether the MLM head shares its output matrix with the word embeddings"
    )
    num_labels: int = setting(2, "number of labels of a classifier, C", at_least=1)
    label_names: tuple[str, ...] | None = setting(
        None, "names of the labels, in the order of their ids"
    )
    problem_type: str | None = setting(
        None,
        "what a sequence classifier predicts; default: regression with one label, else "
        "single_label_classification",
        choices=("regression", "single_label_classification", "multi_label_classification"),
    )
    classifier_dropout: float | None = setting(
        None, "dropout before a classifier; default: hidden_dropout_prob", at_least=0, below=1
    )
    attention_heads_per_layer: tuple[int, ...] | None = setting(
        None, "number of heads of each block after pruning; default: all heads"
    )
    embedding: EmbeddingConfig | None = setting(  # noqa: RUF009 - a field
        None, "how texts are embedded; default: the settings of EmbeddingConfig"
    )

    def __post_init__(self) -> None:
        for name in ("label_names", "attention_heads_per_layer"):
            if isinstance(getattr(self, name), list):  # JSON and YAML have no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.embedding, Mapping):
            object.__setattr__(self, "embedding", _parse_embedding_config(self.embedding))
        check_settings(self)
        self._check_labels()
        D, H = self.hidden_size, self.num_attention_heads
        if D % H:
            raise UserError(
                f"hidden_size must be divisible by num_attention_heads; got {D} and {H}."
            )
        self._check_heads()

    @property
    def embedding_settings(self) -> EmbeddingConfig:
        """The settings of text embeddings (`embedding`), or the defaults if it is None."""
        return self.embedding or _DEFAULT_EMBEDDING

    @property
    def head_size(self) -> int:
        """Width of an attention head, K; pruning does not change it."""
        return self.hidden_size // self.num_attention_heads

    def block_heads(self, i: int) -> int:
        """Returns the number of attention heads of block `i`, counted from 0."""
        per_layer = self.attention_heads_per_layer
        return per_layer[i] if per_layer else self.num_attention_heads

    @property
    def head_dropout_prob(self) -> float:
        """Dropout rate before a classifier, `classifier_dropout` or else `hidden_dropout_prob`."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate

    def _check_heads(self):
        left = self.attention_heads_per_layer
        N, H = self.num_hidden_layers, self.num_attention_heads
        if left is None:
            return
        if len(left) != N or not all(type(heads) is int and 1 <= heads <= H for heads in left):
            raise UserError(
                f"attention_heads_per_layer must have a number from 1 to {H} "
                f"(num_attention_heads) for each of the {N} blocks; got {short_repr(list(left))}."
            )
        if all(heads == H for heads in left):
            object.__setattr__(self, "attention_heads_per_layer", None)

    def _check_labels(self):
        names = self.label_names
        if names is None:
            return
        if not all(is_text(name) for name in names) or len(set(names)) < len(names):
            raise UserError(f"label_names must be distinct strings; got {short_repr(list(names))}.")
        if len(names) != self.num_labels:
            raise UserError(
                f"label_names must have num_labels = {self.num_labels} names; got "
                f"{len(names)}: {short_repr(list(names))}."
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: object) -> typing.Self:
        """Returns the config of a preset.

        Args:
            name: "tiny", "mini", "small", "medium", "base" or "large".
            **overrides: values of fields, instead of the preset's or the defaults.

        Raises:
            UserError: there is no such preset, or a value is not allowed.
        """
        if name not in PRESETS:
            raise UserError(f"unknown preset {name!r}; it must be one of {', '.join(PRESETS)}.")
        layers, width = PRESETS[name]
        values = {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
        }
        return cls(**{**values, **overrides})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **defaults: object) -> typing.Self:
        """Reads a JSON file or, if its name does not end in `.json`, a YAML file.

        Args:
            path: the file; its keys are fields of this class.
            **defaults: values of fields that the file does not set.

        Raises:
            UserError: the file cannot be read or is not a mapping, a key is unknown, or a value is
                not allowed.
        """
        path = pathlib.Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            values = yaml.safe_load(text) if path.suffix != ".json" else json.loads(text)
        except OSError as error:
            raise UserError(f"cannot read the config {path}: {error.strerror}.") from error
        except Exception as error:  # PyYAML raises IndexError for !!int '', for example
            reason = " ".join(str(error).split())
            raise UserError(
                f"the config {path} is not valid {'JSON' if path.suffix == '.json' else 'YAML'}: "
                f"{reason}"
            ) from error
        if not isinstance(values, dict):
            raise UserError(
                f"the config {path} must be a mapping of names to values, one 'name: value' per "
                f"line; it is a {type(values).__name__}."
            )
        known = {field.name: setting_type(field)[0] for field in dataclasses.fields(cls)}
        for key, value in values.items():
            if known.get(key) is float and isinstance(value, str):
                with contextlib.suppress(ValueError):  # YAML reads 1e-12 as a string
                    values[key] = float(value)
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1) if isinstance(key, str) else []
                hint = f" Did you mean {near[0]}?" if near else f" Known keys: {', '.join(known)}."
                raise UserError(f"unknown key {short_repr(key)} in {path}.{hint}")
        try:
            return cls(**{**defaults, **values})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def load(cls, name_or_path: str, vocab_size: int) -> typing.Self:
        """Returns the config of a preset or of a file, for a given vocabulary size.

        A larger `vocab_size` in a file is kept, because embedding tables may be padded.

        Args:
            name_or_path: name of a preset, or path of a `.json`, `.yaml` or `.yml` file.
            vocab_size: `vocab_size` of presets and of files that do not set it.

        Raises:
            UserError: the name is neither a preset nor a readable file, a value is not allowed, or
                the file's `vocab_size` is smaller than the argument.
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
                f"the vocabulary has {vocab_size} entries but {name_or_path} has vocab_size "
                f"{config.vocab_size}. Remove vocab_size from the file, or use the vocabulary that "
                f"belongs to it."
            )
        return config

    def to_dict(self) -> dict[str, typing.Any]:
        """Returns the fields as a dict `d`; `BertConfig(**d)` is an equal config."""
        return dataclasses.asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fields as JSON."""
        pathlib.Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
