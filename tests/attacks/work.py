"""An export of kbert that does no work, for tests of what requests may take."""

import time
import types

import numpy as np

from kbert.features import ENCODER_FEATURES

TEXTS = types.SimpleNamespace(name="serving_default")


class Rows:
    """Texts are rows of their bytes; a text with a byte W has as many windows as W tells.

    seconds: of a batch. batches: a list of (bytes that rows begin with, tokens) for each batch.
    """

    metadata = {"padded": {}, "token_outputs": [], "pad_id": 0}
    decodes, rows = True, types.SimpleNamespace(name="from_ids")

    def __init__(self, seconds=0.0):
        self.seconds, self.batches = seconds, []

    def check(self, signature, inputs):
        return len(next(iter(inputs.values())))

    def encode(self, texts):
        texts = texts["text"].tolist()
        owner = [i for i, text in enumerate(texts) for _ in range(max(text.count(b"W"), 1))]
        lengths = np.array([max(len(texts[i]), 1) for i in owner])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
        ids = mask * np.array([texts[i][0] if texts[i] else 1 for i in owner], np.int32)[:, None]
        features = dict(zip(ENCODER_FEATURES, (ids, mask, 0 * ids), strict=True))
        return features, {"owner": np.array(owner), "size": np.array(len(texts))}

    def compute(self, signature, features):
        ids = features["input_ids"]
        self.batches.append((bytes(ids[:, 0].tolist()), ids.size))
        time.sleep(self.seconds)
        return {"sum": features["attention_mask"].sum(axis=1)}

    def decode(self, texts, extra, outputs):
        return {"sum": np.bincount(extra["owner"], outputs["sum"], extra["size"])}

    def select(self, signature, results):
        return results


def sums(*texts):
    """The results of texts."""
    return [max(len(text), 1) * max(text.count(b"W"), 1) for text in texts]


def ask(batcher, servable, *texts):
    return batcher.compute(servable, TEXTS, {"text": np.array(texts, object)})
