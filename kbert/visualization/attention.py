"""Attention weights of a text, as arrays, plots and an HTML page."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kbert.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from kbert.model.pretrained import PretrainedModel
    from kbert.tokenizer import BertTokenizer


def attention_weights(
    folder_or_model: "str | os.PathLike[str] | PretrainedModel",
    tokenizer: "BertTokenizer",
    text: str,
    text_pair: str | None = None,
    report: Callable[[str], None] = print,
    max_length: int | None = None,
) -> "tuple[list[str], np.ndarray]":
    """Computes the attention weights for a text, of every head in every layer.

    A text longer than the model's limit or than `max_length` is truncated, as in training.

    Args:
        folder_or_model: a folder or name as for `BertModel.from_pretrained`, or a kbert model
            created with `output_attentions=True`.
        tokenizer: the model's tokenizer.
        text, text_pair: the text, and an optional second segment.
        report: called with a line of text if the text is truncated.
        max_length: maximum L in tokens, at least 5; None for the model's limit.

    Returns:
        list of L tokens, including [CLS] and [SEP], and the weights, (N, H, L, L) float32: [n, h,
        i, j] is the weight with which token i attends to token j, so rows sum to 1. H is the
        largest number of heads in a layer; for layers with fewer heads, the others are zeros.

    Raises:
        UserError: the folder does not exist, `max_length` is below 5, a text is empty, or the model
            returns no attention weights, has a smaller vocabulary than the tokenizer, or has no
            second segment for `text_pair`.
    """
    import numpy as np

    model = folder_or_model
    if isinstance(model, (str, os.PathLike)):
        from kbert.model.models import BertModel

        model = BertModel.from_pretrained(model, add_pooling_layer=False, output_attentions=True)
    if not getattr(model, "output_attentions", False):
        raise UserError(
            "the model returns no attention weights. Create it with output_attentions=True."
        )
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size:,} entries, but the model has vocab_size "
            f"{config.vocab_size:,}. Use the model's own tokenizer."
        )
    if text_pair is not None and config.type_vocab_size < 2:
        raise UserError(
            "the model has a single segment type (type_vocab_size 1), so text_pair must be None."
        )
    texts = {"text": text} | ({} if text_pair is None else {"text_pair": text_pair})
    length = 1  # [CLS]
    for name, value in texts.items():
        count = int(tokenizer.tokenize([value]).row_lengths()[0])
        if count == 0:
            raise UserError(f"{name} is empty: got {value!r}. It must contain at least one token.")
        length += count + 1  # [SEP]
    limit = config.max_position_embeddings
    most = limit if max_length is None else min(limit, max_length)
    if most < min(limit, 5):
        raise UserError(f"max_length must be at least 5; got {max_length}.")
    if length > most:
        what = "the limit of the model" if most == limit else "max_length"
        report(f"note: the text has {length:,} tokens; truncated to {what}, {most:,}")
        length = most
    # The tokenizer's minimum length for pairs is 5; the features of short texts are cut afterwards.
    features = tokenizer(*([value] for value in texts.values()), max_length=max(length, 5))
    features = {name: value[:, :length] for name, value in features.items()}
    attentions = model(features, training=False)["attentions"]
    layers = [np.asarray(layer, np.float32)[0] for layer in attentions]
    H = max(len(layer) for layer in layers)
    weights = np.stack([np.pad(x, ((0, H - len(x)), (0, 0), (0, 0))) for x in layers])
    return [tokenizer.vocab[i] for i in features["input_ids"].numpy()[0]], weights


def write_attention(
    folder: str | os.PathLike[str],
    tokens: Sequence[str],
    weights: "np.ndarray",
    layer: str = "all",
    head: str = "all",
    name: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Writes `attention.png` and `attention.html`.

    Args:
        folder: created if missing; files of the same names are replaced.
        tokens, weights: as returned by `attention_weights`.
        layer: "all", or a string with a number from 0 to N - 1.
        head: "all", "mean" for the mean over the heads, or a string with a number from 0 to H - 1.
            The plot is a grid of small heat maps if `layer` or `head` is "all", otherwise one heat
            map. The page always contains all layers and heads.
        name: name of the model, for the titles.
        report: called with a line of text about each file.

    Raises:
        UserError: the layer or head does not exist.
    """
    from kbert.visualization.attention_page import DECIMALS, attention_page
    from kbert.visualization.plots import plot_attention, plot_attention_grid

    N, H, L, _ = weights.shape
    layers = _parse_indices("layer", layer, N)
    maps = weights[layers]
    if head == "mean":
        exists = maps.any(axis=(2, 3), keepdims=True)  # False for pruned heads
        maps, heads = maps.mean(axis=1, keepdims=True, where=exists), ["mean of heads"]
    else:
        numbers = _parse_indices("head", head, H, " or mean")
        maps, heads = maps[:, numbers], [f"head {number}" for number in numbers]
    layers = [f"layer {number}" for number in layers]
    title = f"Attention of {name}" if name else "Attention"
    size = f"{N} layers of {H} heads, {L} tokens"
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plot, page = folder / "attention.png", folder / "attention.html"
    if maps.shape[:2] == (1, 1):
        plot_attention(plot, tokens, maps[0, 0], f"{title}: {layers[0]}, {heads[0]}")
    else:
        plot_attention_grid(plot, tokens, maps, title, layers, heads)
    page.write_text(attention_page(tokens, weights, f"{title}: {size}"), encoding="utf-8")
    shown = f"{_range_text(layers)}, {_range_text(heads)}"
    report(f"{plot}: {shown}; {plot.stat().st_size / 1e6:.1f} MB")
    report(
        f"{page}: {size}, weights to {DECIMALS} decimals; {page.stat().st_size / 1e6:.1f} MB. "
        f"Open it in a browser"
    )


def _parse_indices(name, text, count, others=""):
    """Parses the value of a flag; returns a list of indices."""
    if text == "all":
        return list(range(count))
    if text.isdecimal() and int(text) < count:
        return [int(text)]
    raise UserError(
        f"--{name} must be all{others}, or a number from 0 to {count - 1}; got {text!r}."
    )


def _range_text(names):
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
