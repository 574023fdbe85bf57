"""Checks the inputs of pretraining without TensorFlow, so that errors appear immediately."""

import os

from kbert.config import BertConfig
from kbert.corpus.corpus import is_prepared
from kbert.corpus.text_sources import find_inputs, split_into_pieces
from kbert.errors import UserError
from kbert.settings import PretrainConfig
from kbert.utils import storage


def check_text(patterns: str) -> list[str]:
    """Returns `find_inputs(patterns)`; also checks the formats of local files."""
    paths = find_inputs(patterns)
    split_into_pieces([path for path in paths if not storage.is_remote(path)])
    return paths


def check_inputs(config: PretrainConfig) -> None:
    """Checks the text and the architecture of a pretraining run.

    For remote text, only its existence is checked.
    """
    places = []
    for inputs in filter(None, (config.input, config.eval_input)):
        paths = [inputs] if is_prepared(inputs) else check_text(inputs)
        places.append({os.path.realpath(p) if os.path.exists(p) else p for p in paths})
    if len(places) == 2 and (both := places[0] & places[1]):
        raise UserError(
            f"{min(both)} is in both --input and --eval_input; training text cannot be used for "
            f"evaluation. Remove it from one of them."
        )
    if config.bert_config:
        BertConfig.load(config.bert_config, vocab_size=5)
