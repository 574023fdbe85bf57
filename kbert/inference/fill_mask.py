"""Fills the [MASK] tokens of texts."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.errors import UserError
from kbert.tasks.encoding import encode_texts
from kbert.tasks.outputs import MAX_MASKS, masked_logits
from kbert.tokenizer.vocab import CONTINUATION

if TYPE_CHECKING:
    from kbert.inference.batch_runner import BatchRunner
    from kbert.model.models import BertForMaskedLM
    from kbert.tokenizer.tokenizer import BertTokenizer

_MASK = "[MASK]"
_CHUNK = 64  # with targets, number of texts whose scores for all tokens are in memory at a time
_LAST_WORD = re.compile(r"[^\W\u2e80-\u9fff\uf900-\ufaff]*\Z")  # a Chinese character is a word


class MaskFiller:
    """Predicts words for the [MASK] tokens of texts; see `kbert.Predictor.fill_mask`.

    Args:
        model: BertForMaskedLM.
        tokenizer: BertTokenizer that recognizes [MASK] in text.
        max_seq_length: maximum number of tokens in a sequence.
        runner: function that returns a BatchRunner; see `ModelRunner._runner`.
    """

    def __init__(
        self,
        model: "BertForMaskedLM",
        tokenizer: "BertTokenizer",
        max_seq_length: int,
        runner: "Callable[..., BatchRunner]",
    ):
        self.model: BertForMaskedLM = model
        self.tokenizer: BertTokenizer = tokenizer
        self.max_seq_length: int = max_seq_length
        self._runner = runner

    def __call__(
        self,
        texts: Sequence[str],
        top_k: int,
        targets: str | Sequence[str] | None,
        advance: Callable[[int], object] | None,
    ) -> list[dict[str, Any]]:
        """Returns a dict for each text; see `kbert.Predictor.fill_mask`.

        Args:
            texts, top_k, targets: as for `kbert.Predictor.fill_mask`, but `texts` is a list.
            advance: called with the number of texts done since the last call; None: not called.

        Raises:
            UserError: as for `kbert.Predictor.fill_mask`.
        """
        tokenizer = self.tokenizer
        if not 1 <= top_k <= tokenizer.vocab_size:
            raise UserError(
                f"top_k must be 1 to {tokenizer.vocab_size}, the vocabulary size; got {top_k}."
            )
        items = encode_texts(tokenizer, texts, None, self.max_seq_length)
        counts = [int(np.sum(item.input_ids == tokenizer.mask_id)) for item in items]
        for text, masks in zip(texts, counts, strict=True):
            if not 0 < masks <= MAX_MASKS:
                raise UserError(
                    f"each text must have 1 to {MAX_MASKS} [MASK] within its first "
                    f"{self.max_seq_length} tokens; got {masks} in {text[:60]!r}."
                )
        if targets is None:
            best = self._top_tokens(items, top_k, advance)
        else:
            best = self._top_targets(items, self._target_ids(targets), top_k, advance)
        return [
            self._fill(text, ids[:masks], scores[:masks])
            for text, masks, (ids, scores) in zip(texts, counts, best, strict=True)
        ]

    def _top_tokens(self, items, top_k, advance):
        """Yields the ids and the scores of the best tokens of each text, (M, top_k) each."""
        # The graph returns 16 tokens or a higher power of 2, so that few graphs are compiled.
        count = min(max(16, 1 << (top_k - 1).bit_length()), self.tokenizer.vocab_size)

        def pick(scores):
            best = tf.math.top_k(scores, count)  # (B, M, count)
            return {"scores": best.values, "ids": best.indices}

        for output in self._scores(count, pick)(items, advance):
            yield output["ids"][:, :top_k], output["scores"][:, :top_k]

    def _top_targets(self, items, target_ids, top_k, advance):
        """Yields the same as `_top_tokens`, but chooses only from the tokens in `target_ids`."""
        runner = self._scores("all", lambda scores: {"scores": scores})
        for begin in range(0, len(items), _CHUNK):
            for output in runner(items[begin : begin + _CHUNK], advance):
                scores = output["scores"][:, target_ids]
                order = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
                yield target_ids[order], np.take_along_axis(scores, order, axis=-1)

    def _scores(self, kind, pick):
        """Returns a BatchRunner of `pick`, a function of the scores, (B, M, V)."""
        model, tokenizer = self.model, self.tokenizer

        def compute(features):
            return pick(tf.nn.softmax(masked_logits(model, features, tokenizer)["logits"]))

        return self._runner(f"fill_mask_{kind}_{tokenizer.mask_id}", model, compute)

    def _target_ids(self, targets):
        """Returns the sorted ids of the targets.

        Warns about targets that are not in the vocabulary, and uses their first WordPieces instead.
        """
        targets = [targets] if isinstance(targets, str) else list(targets)
        ids_of_words = {word: i for i, word in enumerate(self.tokenizer.vocab)}
        missing = [target for target in targets if target not in ids_of_words]
        rows = self.tokenizer.tokenize(missing).to_list() if missing else []
        pieces = dict(zip(missing, rows, strict=True))
        for target, ids in pieces.items():
            used = f"{self.tokenizer.vocab[ids[0]]!r} is used instead" if ids else "it is ignored"
            warnings.warn(f"the target {target!r} is not in the vocabulary; {used}", stacklevel=4)
        first = [ids_of_words.get(t, next(iter(pieces.get(t, ())), None)) for t in targets]
        if not (ids := {i for i in first if i is not None}):
            raise UserError(f"targets must have at least one word; got {targets!r}.")
        return np.array(sorted(ids))

    def _fill(self, text, ids, scores):
        """Returns the result for a text; ids and scores of the best tokens: (masks, top_k)."""
        filled, *parts = text.split(_MASK)
        masks = []
        for place, part in enumerate(parts):
            if place >= len(ids):  # beyond max_seq_length
                filled += _MASK + part
                continue
            masks.append(
                [
                    {"token": self.tokenizer.vocab[i], "score": float(score)}
                    | {"word": _append(filled, self.tokenizer.vocab[i])[1]}
                    for i, score in zip(ids[place], scores[place], strict=True)
                ]
            )
            filled = _append(filled, masks[-1][0]["token"])[0] + part
        return {"text": filled, "masks": masks}


def _append(text, token):
    """Appends a token to a text; returns the new text and the word that the token completes."""
    if not token.startswith(CONTINUATION) or token == CONTINUATION:
        return text + token, token
    text = text.rstrip() + token.removeprefix(CONTINUATION)
    return text, _LAST_WORD.search(text)[0] or token.removeprefix(CONTINUATION)
