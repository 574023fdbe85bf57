"""The features of a batch, with the same names in the pipeline, the models and the exports.

Dimensions, in every file of kbert:
    B batch   L length in tokens   M masked slots   D width   H heads   K width of a head (D = H*K)
    F inner width   V vocabulary   N layers   C classes
"""

from collections.abc import Mapping

# name: (dimensions, dtype)
ENCODER_FEATURES = {
    "input_ids": ("BL", "int32"),  # WordPiece ids, [CLS] first
    "attention_mask": ("BL", "int32"),  # 1 = real token, 0 = padding; optional (all real)
    "token_type_ids": ("BL", "int32"),  # 0 = first segment, 1 = second; optional (all 0)
}

PRETRAINING_FEATURES = {
    **ENCODER_FEATURES,
    "masked_positions": ("BM", "int32"),  # positions to predict; 0 in padding slots
    "masked_ids": ("BM", "int32"),  # the original ids at these positions; 0 in padding slots
    "masked_weights": ("BM", "float32"),  # 1 = counts, 0 = padding slot
    "next_sentence_labels": ("B", "int32"),  # 0 = B follows A, 1 = B is from another document
}


def feature_shapes(
    features: Mapping[str, tuple[str, str]], **sizes: int | None
) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """Returns the shape and dtype of each feature.

    Args:
        features: `ENCODER_FEATURES` or `PRETRAINING_FEATURES`.
        **sizes: size of each dimension, such as B=8, L=128.

    Returns:
        dict of name -> (shape tuple, dtype name).
    """
    return {
        name: (tuple(sizes[letter] for letter in letters), dtype)
        for name, (letters, dtype) in features.items()
    }
