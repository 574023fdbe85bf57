"""Converts a kbert model to HF's BertForPreTraining (torch) for comparisons."""

import tempfile

import transformers

from kbert.model.weights import Tensors, write_weights


def hf_model(weights, config):
    """Returns HF's model with the given weights, in float32 and eval mode.

    Args:
        weights: dict of name in kbert -> array. config: BertConfig.
    """
    shapes = {name: array.shape for name, array in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_weights(folder, "hf", config, Tensors(shapes, weights.__getitem__))
        return transformers.BertForPreTraining.from_pretrained(
            folder,
            attn_implementation="eager",
            pad_token_id=None,  # otherwise torch computes no gradient for the [PAD] embedding
        ).eval()
