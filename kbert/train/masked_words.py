"""Shows what a model learned: masked words of held-out text, before and after training."""

import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.tokenizer.vocab import CONTINUATION
from kbert.train.callbacks import Callback
from kbert.utils import atomic
from kbert.utils.logging import log

if TYPE_CHECKING:
    from kbert.corpus import Corpus

SENTENCES, TOP_K = 5, 4
# Sentences of these lengths in tokens are preferred; longer ones are cut.
SHORTEST, LONGEST = 8, 16


def choose_sentences(corpus: "Corpus", longest: int = LONGEST) -> list[np.ndarray]:
    """Returns the ids of up to five sentences, spread evenly over the corpus.

    Sentences of more than `longest` tokens are cut.
    """
    spans = []
    for shard, start in zip(corpus.shards, corpus.shard_starts, strict=False):
        ends = np.append(shard.sentences[1:], len(shard.ids))
        spans.append(np.stack([shard.sentences, ends], axis=1) + start)
    spans = np.concatenate(spans)
    lengths = spans[:, 1] - spans[:, 0]
    for fits in ((lengths >= SHORTEST) & (lengths <= longest), lengths >= SHORTEST, lengths > 1):
        places = np.flatnonzero(fits)
        if len(places) >= SENTENCES:
            break
    if not len(places):
        return []
    chosen = np.unique(np.arange(1, 2 * SENTENCES, 2) * len(places) // (2 * SENTENCES))
    return [corpus.read(a, min(b, a + longest)) for a, b in spans[places[chosen]]]


def middle_word(tokens: list[str]) -> int:
    """Returns the index of the token to mask, the one-token word that is nearest to the middle.

    If there is no such word, it is the middle token.
    """
    whole = [
        i
        for i, (token, after) in enumerate(itertools.pairwise(tokens))
        if token.isalpha() and not after.startswith(CONTINUATION)
    ]
    return min(whole or range(len(tokens)), key=lambda i: abs(2 * i + 1 - len(tokens)))


class MaskedWords(Callback):
    """Prints masked words of held-out text with the model's predictions before and after training.

    Before training, stores the predictions and the held-out loss of one batch in
    `masked_words.json`. Without held-out text, does nothing.
    """

    _before: dict[str, Any] | None = None

    def on_train_begin(self) -> None:
        trainer = self.trainer
        held_out = trainer.workload.held_out
        if held_out is None or not trainer.devices.workers.is_chief:
            return
        path = trainer.folder / "masked_words.json"
        if trainer.step == 0:
            loss = held_out.metrics(batches=1)["eval_mlm_loss"]
            self._before = {"mlm_loss": loss, "predictions": self._predictions()}
            atomic.write_json(path, self._before, ensure_ascii=False)
        elif path.exists():
            self._before = json.loads(path.read_text(encoding="utf-8"))

    def on_finish(self, results: dict[str, Any]) -> None:
        if not self._before or "eval_mlm_loss" not in results:
            return
        before, after = self._before["predictions"], self._predictions()
        if after and [row[:2] for row in before] == [row[:2] for row in after]:  # the same text
            for line in report_lines(self._before, results, after):
                log(line)

    def _predictions(self):
        """Returns rows of [sentence with a mask, masked word, its rank, most likely words]."""
        workload, tokenizer = self.trainer.workload, self.trainer.workload.tokenizer
        longest = min(LONGEST, workload.config.max_seq_length - 2)
        sentences = choose_sentences(workload.held_out_corpus, longest)
        if not sentences:
            return []
        places = [middle_word(_tokens_of(tokenizer, ids)) for ids in sentences]
        words = [ids[place] for ids, place in zip(sentences, places, strict=True)]
        for ids, place in zip(sentences, places, strict=True):
            ids[place] = tokenizer.mask_id
        features = tokenizer.pack(
            [tf.ragged.constant([ids.tolist() for ids in sentences], tf.int32)], longest + 2
        )
        features["masked_positions"] = tf.constant(places)[:, None] + 1  # after [CLS]
        outputs = self.trainer.model(features, training=False)
        logits = outputs["mlm_logits" if "mlm_logits" in outputs else "logits"]  # (B, 1, V)
        order = np.argsort(-logits.numpy()[:, 0], axis=1)  # (B, V), the most likely first
        ranks = 1 + np.argmax(order == np.stack(words)[:, None], axis=1)
        return [
            [tokenizer.decode(ids), tokenizer.vocab[word], int(rank), _tokens_of(tokenizer, best)]
            for ids, word, rank, best in zip(sentences, words, ranks, order[:, :TOP_K], strict=True)
        ]


def report_lines(
    before: dict[str, Any], results: dict[str, Any], predictions: list[list[Any]]
) -> Iterator[str]:
    """Yields lines that compare predictions before and after training.

    `before` are the contents of `masked_words.json`, and `results` the last evaluation metrics.
    """
    yield (
        f"held-out MLM loss: {before['mlm_loss']:.2f} before training, "
        f"{results['eval_mlm_loss']:.2f} after it (unigram entropy "
        f"{results['eval_unigram_entropy']:.2f}). Predictions before -> after:"
    )
    for old, new in zip(before["predictions"], predictions, strict=True):
        sentence, word, rank, words = new
        yield f"  {sentence}"
        yield (
            f"      {' / '.join(old[3])} -> {' / '.join(words)}    "
            f"({word}: rank {old[2]:,} -> {rank:,})"
        )


def _tokens_of(tokenizer, ids):
    return [tokenizer.vocab[i] for i in ids]
