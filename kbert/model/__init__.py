"""BERT in `keras.ops`: layers, encoder, heads, models. Runs on every Keras backend."""

from kbert.model.models import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertModel,
)

__all__ = ["BertForMaskedLM", "BertForNextSentencePrediction", "BertForPreTraining", "BertModel"]
