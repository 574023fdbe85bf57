"""Batches for pretraining: example n is a pure function of (corpus, settings, seed, n)."""

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from kbert.data.input_context import batch_number
from kbert.data.masking import choose_tokens, choose_words, mask_tokens, prediction_counts
from kbert.data.sentence_pairs import PairSampler
from kbert.data.single_texts import TextSampler
from kbert.errors import UserError
from kbert.features import PACKED_FEATURES, PRETRAINING_FEATURES, feature_shapes
from kbert.tokenizer.vocab import CONTINUATION, SPECIAL_TOKENS, read_vocab
from kbert.utils.numpy_map import numpy_map
from kbert.utils.stateless_random import uniform

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    from tensorflow.python.distribute.distribute_lib import InputContext

    from kbert.corpus.corpus import Corpus

    class _Settings(TypedDict, total=False):
        max_predictions_per_seq: int | None
        mask_rate: float
        whole_word_mask: bool
        short_seq_prob: float
        seed: int
        next_sentence: bool
        packing: bool


# Calling NumPy functions takes longer than filling a small batch, so one call creates several.
_TOKENS_AT_ONCE = 1 << 16
# Streams of kbert.utils.stateless_random; pairs and single texts use 0, 1 and 8.
_STREAM_SELECTION, _STREAM_REPLACEMENT, _STREAM_ORDER = 2, 3, 4


class PretrainingExamples:
    """Creates pretraining examples from a corpus; see `pretraining_dataset`.

    Attributes:
        count: number of examples per epoch.
        max_predictions: M.
    """

    def __init__(
        self,
        corpus: "Corpus",
        max_seq_length: int = 128,
        max_predictions_per_seq: int | None = None,
        mask_rate: float = 0.15,
        whole_word_mask: bool = False,
        short_seq_prob: float = 0.1,
        seed: int = 0,
        next_sentence: bool = True,
        packing: bool = False,
    ):
        _check(corpus, max_seq_length, mask_rate, next_sentence, packing)
        vocab = read_vocab(corpus.vocab_file)
        self.max_predictions: int = max_predictions_per_seq or int(
            np.ceil(max_seq_length * mask_rate)
        )
        self._corpus = corpus
        self._features, shape = dict(PRETRAINING_FEATURES), (max_seq_length, short_seq_prob, seed)
        self._sampler: PairSampler | TextSampler
        if next_sentence:
            self._sampler = PairSampler(corpus, *shape)
        else:
            self._sampler = TextSampler(corpus, *shape, packing)
            del self._features["next_sentence_labels"]
        if packing:
            self._features |= PACKED_FEATURES
        self.count: int = self._sampler.count
        self._max_seq_length = max_seq_length
        self._mask_rate = mask_rate
        self._seed = seed
        self._vocab_size = len(vocab)
        self._pad, _, self._cls, self._sep, self._mask = map(vocab.index, SPECIAL_TOKENS)
        self._continues = None
        if whole_word_mask:
            self._continues = np.array([token.startswith(CONTINUATION) for token in vocab])

    def batch(
        self, index: np.ndarray, epoch: np.ndarray, slots: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the features of examples as arrays; see `pretraining_dataset`.

        Args:
            index: (B,) int64, number of each example in the run.
            epoch: (B,) int64, epoch of each example.
            slots: (B,) int64, number of the window or row of each example.
        """
        B, L, M = len(index), self._max_seq_length, self.max_predictions
        rows = self._sampler.rows(index, epoch, slots)
        input_ids = np.full((B, L), self._pad, np.int32)
        input_ids[rows.is_text] = self._corpus.read_all(rows.spans)
        input_ids[rows.is_cls] = self._cls
        input_ids[rows.is_sep] = self._sep

        counts = prediction_counts(rows.is_token.sum(axis=1), self._mask_rate, M)
        draws = uniform(self._seed, _STREAM_SELECTION, index, L)
        if self._continues is None:
            chosen = choose_tokens(rows.is_text, counts, draws)
        else:
            chosen = choose_words(rows.is_text, self._continues[input_ids], counts, draws)
        draws = uniform(self._seed, _STREAM_REPLACEMENT, index, 2 * M)
        input_ids, masked_positions, masked_ids, masked_weights = mask_tokens(
            input_ids, chosen, M, draws, self._mask, self._vocab_size
        )
        return {
            "input_ids": input_ids,
            "attention_mask": rows.is_token.astype(np.int32),
            **rows.features,
            "masked_positions": masked_positions,
            "masked_ids": masked_ids,
            "masked_weights": masked_weights,
        }

    def views_per_token(self) -> float:
        """Estimates the mean number of examples of an epoch that contain a token."""
        return self._sampler.views_per_token()

    def padding(self) -> float:
        """Returns the fraction of padding in up to 2,000 rows of the first epoch."""
        slots = np.linspace(0, self.count - 1, min(self.count, 2000)).astype(np.int64)
        return 1 - float(self._sampler.rows(slots, np.zeros_like(slots), slots).is_token.mean())

    def _shuffle_seeds(self, epoch):
        """Returns {"seeds": (B, 3) int64}, well mixed, because TensorFlow mixes seeds weakly."""
        seeds = uniform(self._seed, _STREAM_ORDER, epoch, 3) * 2.0**53
        return {"seeds": seeds.astype(np.int64)}

    def dataset(
        self,
        batch_size: int,
        start_step: int = 0,
        steps: int | None = None,
        input_context: "InputContext | None" = None,
    ) -> "tf.data.Dataset[dict[str, tf.Tensor]]":
        """Returns a tf.data.Dataset of batches.

        The arguments are as for `pretraining_dataset` and `kbert.data.input_context.batch_number`.
        """
        B, count = batch_size, self.count
        per_call = _TOKENS_AT_ONCE // (B * self._max_seq_length)  # batches
        per_call = max(1, per_call if steps is None else min(per_call, steps))
        specs = feature_shapes(
            self._features, B=per_call * B, L=self._max_seq_length, M=self.max_predictions
        )

        @tf.autograph.experimental.do_not_convert
        def make_batches(step):
            numbers = batch_number(input_context, step + tf.range(per_call, dtype=tf.int64))
            index = tf.reshape(numbers[:, None] * B + tf.range(B, dtype=tf.int64), [per_call * B])
            epoch = index // count
            seeds = numpy_map(
                self._shuffle_seeds, [epoch], {"seeds": ([per_call * B, 3], tf.int64)}
            )
            # tf.random.experimental.index_shuffle wraps this op, but it does not accept a seed per
            # index, and its 4 rounds leave neighboring indices close to each other.
            slots = tf.raw_ops.RandomIndexShuffle(
                index=index % count,
                seed=seeds["seeds"],
                max_index=tf.constant(count - 1, tf.int64),
                rounds=12,
            )
            arrays = numpy_map(self.batch, [index, epoch, slots], specs)
            return {n: tf.reshape(x, [per_call, B, *x.shape[1:]]) for n, x in arrays.items()}

        end = np.iinfo(np.int64).max // B - per_call if steps is None else start_step + steps
        dataset = tf.data.Dataset.range(start_step, end, per_call)
        dataset = dataset.map(make_batches, num_parallel_calls=2, deterministic=True).unbatch()
        return dataset.take(-1 if steps is None else steps).prefetch(4)


def _check(corpus, max_seq_length, mask_rate, next_sentence, packing):
    if max_seq_length < 5:
        raise UserError(
            f"max_seq_length must be at least 5, for three special tokens and one token per "
            f"segment; got {max_seq_length}."
        )
    if not 0 < mask_rate < 1:
        raise UserError(f"mask_rate must be in (0, 1); got {mask_rate}. Write 0.15 for 15 %.")
    if packing and next_sentence:
        raise UserError("packing requires next_sentence=False: sentence pairs cannot share a row.")
    if next_sentence and corpus.documents < 2:
        raise UserError(
            f"the corpus {corpus.folder} is a single document, but next sentence prediction needs "
            f"several. Set --next_sentence=false."
        )


def pretraining_dataset(
    corpus: "Corpus",
    batch_size: int,
    max_seq_length: int = 128,
    *,
    start_step: int = 0,
    steps: int | None = None,
    **settings: "Unpack[_Settings]",
) -> "tf.data.Dataset[dict[str, tf.Tensor]]":
    """Returns a dataset of batches for MLM and NSP, or MLM alone, with new masks in every epoch.

    Example n of a run is a pure function of (corpus, settings, seed, n), and batch k holds the
    examples [k * batch_size, (k + 1) * batch_size). A dataset with `start_step=k` therefore resumes
    immediately after k batches, without stored state.

    `kbert.data.sentence_pairs` describes how examples are created and how this differs from
    google-research/bert's `create_pretraining_data.py`; `kbert.data.single_texts` describes
    examples for MLM alone.

    Args:
        corpus: `kbert.corpus.Corpus`.
        batch_size: B of the global batch.
        max_seq_length: L, length of every row in tokens, including special tokens; at least 5.
        start_step: number of batches to skip.
        steps: number of batches to return; None: unlimited.
        max_predictions_per_seq: M; default: mask_rate * L, rounded up.
        mask_rate: fraction of a row's tokens to predict, in (0, 1); default: 0.15.
        whole_word_mask: whether to mask all pieces of a word together; default: False. In scripts
            written without spaces a "word" is a token with the "##" tokens that follow it: in
            Chinese, one character.
        short_seq_prob: fraction of the texts cut to a random length; default: 0.1.
        seed: seed of the run; default: 0.
        next_sentence: True, the default: pairs of segments, for NSP; False: single texts, for MLM
            alone.
        packing: whether to fill rows with several short documents, which requires
            next_sentence=False; default: False. See `kbert.data.packed_rows`.

    Returns:
        tf.data.Dataset of dicts with the features of `kbert.features.PRETRAINING_FEATURES`, with
        `next_sentence_labels` only for NSP, and with `PACKED_FEATURES` for packed rows.

    Raises:
        UserError: a setting is out of range, `packing` is combined with NSP, or the corpus has too
            few documents for NSP.
    """
    examples = PretrainingExamples(corpus, max_seq_length, **settings)
    return examples.dataset(batch_size, start_step, steps)
