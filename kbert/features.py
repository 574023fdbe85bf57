"""The features of a batch, with the same names in the pipeline, the models and the exports.

Dimensions, in every file of kbert:
    B batch   L length in tokens   M masked slots   D width   H heads   K width of a head (D = H*K)
    F inner width   V vocabulary   N layers   C classes
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kbert.errors import UserError

# name: (dimensions, dtype)
ENCODER_FEATURES = {
    "input_ids": ("BL", "int32"),  # WordPiece ids, [CLS] first
    "attention_mask": ("BL", "int32"),  # 1 = real token, 0 = padding; optional (all real)
    "token_type_ids": ("BL", "int32"),  # 0 = first segment, 1 = second; optional (all 0)
}

# The features that separate the texts of a packed row; see `kbert.data.packed_rows`.
PACKED_FEATURES = {
    "position_ids": ("BL", "int32"),  # rows of the position table; 0 to L - 1 by default
    "sequence_ids": ("BL", "int32"),  # 1, 2, ... = the row's first, second, ... text, 0 = padding
}

# Features that the models accept and the exports do not.
OPTIONAL_FEATURES = {
    **PACKED_FEATURES,
    "inputs_embeds": ("BLD", "float32"),  # word embeddings, instead of input_ids
}

PRETRAINING_FEATURES = {
    **ENCODER_FEATURES,
    "masked_positions": ("BM", "int32"),  # positions to predict; 0 in padding slots
    "masked_ids": ("BM", "int32"),  # the original ids at these positions; 0 in padding slots
    "masked_weights": ("BM", "float32"),  # 1 = slot with a prediction, 0 = padding slot
    "next_sentence_labels": ("B", "int32"),  # 0 = B follows A, 1 = B is from another document
}


def feature_shapes(
    features: Mapping[str, tuple[str, str]], **sizes: int | None
) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """Returns the shape and dtype of each feature of a dict such as `PRETRAINING_FEATURES`.

    `sizes` are the sizes of the dimensions, such as B=8, L=128; None if variable.
    """
    return {
        name: (tuple(sizes[letter] for letter in letters), dtype)
        for name, (letters, dtype) in features.items()
    }


# Names in google-research/bert, TF Hub, KerasHub and older libraries.
_OTHER_NAMES = {
    "input_mask": "attention_mask",
    "padding_mask": "attention_mask",
    "segment_ids": "token_type_ids",
    "input_type_ids": "token_type_ids",
    "input_word_ids": "input_ids",
    "token_ids": "input_ids",
    "masked_lm_positions": "masked_positions",
    "mask_positions": "masked_positions",
}
_TARGETS = {"start_positions", "end_positions"}  # HF's names of labels; others begin with "label"


def check_names(names: Iterable[str], extra_features: Collection[str] = ()) -> None:
    """Checks the names of a model's inputs.

    Args:
        names: keys of a batch; labels are allowed.
        extra_features: other names to allow.

    Raises:
        UserError: a name is unknown, such as `segment_ids`; the batch has neither or both of
            `input_ids` and `inputs_embeds`; or it has `sequence_ids` without `position_ids`.
    """
    names, inputs = set(names), {**ENCODER_FEATURES, **OPTIONAL_FEATURES}
    known = {*inputs, *PRETRAINING_FEATURES, *_TARGETS, *extra_features}
    for name in sorted(names - known):
        if name.startswith("label"):
            continue
        near = _OTHER_NAMES.get(name) or next(iter(difflib.get_close_matches(name, known, 1)), "")
        raise UserError(
            f"unknown feature {name!r}."
            + (f" Did you mean {near!r}?" if near else "")
            + f" The inputs of a model are {', '.join(inputs)} and masked_positions. To make the "
            f"model ignore {name!r}, create it with extra_features=({name!r},)."
        )
    if len(names & {"input_ids", "inputs_embeds"}) != 1:
        raise UserError(
            f"a batch must have either input_ids or inputs_embeds; got {', '.join(sorted(names))}."
        )
    if "sequence_ids" in names and "position_ids" not in names:
        raise UserError(
            "sequence_ids requires position_ids that restart at 0 with each text of a row; "
            "kbert.data.packed_rows.lay_out computes both."
        )


def check_inputs(inputs: Mapping[str, Any], rank: int) -> None:
    """Checks the static shapes of a model's inputs.

    Args:
        inputs: features.
        rank: rank of the token ids: 2 for (B, L), 3 for (B, C, L).

    Raises:
        UserError: a feature is not an array or tensor, or its shape is wrong.
    """
    first = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"]
    for name in (*ENCODER_FEATURES, *OPTIONAL_FEATURES):
        if name not in inputs:
            continue
        x, axes = inputs[name], "BCL" if rank == 3 else "BL"
        axes += "D" if name == "inputs_embeds" else ""
        if not hasattr(x, "shape"):
            raise UserError(
                f"{name} must be a tensor {_axes(axes)}; got a {type(x).__name__}. The inputs of a "
                f"model are a dict of features, or only input_ids."
            )
        pairs = zip(x.shape, first.shape, strict=False)
        if len(x.shape) != len(axes) or any(a and b and a != b for a, b in pairs):
            raise UserError(
                f"{name} must have the shape {_axes(axes)}; got {tuple(x.shape)}"
                + ("." if x is first else f", but the token ids have {tuple(first.shape)[:rank]}.")
            )


def _axes(letters):
    return f"({', '.join(letters)})"
