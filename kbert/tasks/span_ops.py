"""TensorFlow ops that split long texts into token windows and find spans in them.

Training, prediction (which runs them eagerly) and exported graphs share this implementation.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from kbert.tasks.limits import with_limit_check, with_token_limit_check
from kbert.tasks.outputs import TensorDict
from kbert.tokenizer.packing import pack_slices
from kbert.tokenizer.vocab import CONTINUATION

if TYPE_CHECKING:
    from typing import Any, Self

    from kbert.settings import TextLimits
    from kbert.tokenizer.tokenizer import BertTokenizer


@dataclasses.dataclass(frozen=True)
class TokenWindows:
    """W windows over the tokens of B texts, each with at most R tokens of its text.

    All tensors are int32 unless stated otherwise.

    Attributes:
        features: features of all windows, (W, L) each.
        owner: (W,) index of the window's text.
        first: (W, 1) position in the window of its first text token.
        token: (W, R) indices of the window's text tokens among all T tokens of the batch.
        inside: (W, R) bool, whether the window has such a token; if not, `token` is 0.
        begin: (W,) index of the window's first text token among the tokens of its text.
        ids, starts, ends: (B, None) ragged, the tokens of the texts and their byte offsets.
    """

    features: TensorDict
    owner: tf.Tensor
    first: tf.Tensor
    token: tf.Tensor
    inside: tf.Tensor
    begin: tf.Tensor
    ids: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor

    def tensors(self) -> TensorDict:
        """Returns everything except the features as dense tensors; see `from_tensors`."""
        dense = ("owner", "first", "token", "inside", "begin")
        ragged = {name: getattr(self, name).flat_values for name in ("ids", "starts", "ends")}
        return (
            {name: getattr(self, name) for name in dense}
            | ragged
            | {"row_splits": self.ids.row_splits}
        )

    @classmethod
    def from_tensors(cls, tensors: TensorDict) -> "Self":
        """Returns the TokenWindows, without features, of the result of `tensors`."""
        fields: dict[str, Any] = dict(tensors)
        splits = fields.pop("row_splits")
        for name in ("ids", "starts", "ends"):
            values = fields[name]
            fields[name] = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
        return cls(features={}, **fields)

    def padded(
        self, outputs: Iterator[dict[str, np.ndarray]], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Takes the outputs of all W windows from an iterator, and pads them to (W, L, ...) arrays.

        Args:
            outputs: iterator that yields a dict of arrays for each window; the first axis of the
                arrays is the tokens.
            names: names of the outputs to return.
        """
        rows = list(itertools.islice(outputs, len(self.owner)))
        L = int(tf.reduce_max(self.first)) + self.token.shape[1] + 1
        arrays = {}
        for name in names:
            first = rows[0][name]
            arrays[name] = np.zeros((len(rows), L, *first.shape[1:]), first.dtype)
            for row, output in zip(arrays[name], rows, strict=True):
                row[: len(output[name])] = output[name][:L]
        return arrays


def text_windows(
    texts: tf.Tensor | Sequence[str],
    tokenizer: "BertTokenizer",
    max_seq_length: int,
    limits: "TextLimits | None" = None,
) -> TokenWindows:
    """Splits texts into windows that overlap by half: [CLS] tokens [SEP].

    Args:
        texts: (B,) string.
        tokenizer: BertTokenizer.
        max_seq_length: maximum length of a window in tokens.
        limits: see `kbert.tasks.limits`.
    """
    texts = tf.convert_to_tensor(texts, tf.string)
    columns = tokenizer.tokenize_with_offsets(texts)
    room = tf.fill([tf.size(texts)], max_seq_length - 2)
    return _windows(columns, room, tf.maximum(room // 2, 1), tokenizer, limits)


def tokenize_questions(
    questions: tf.Tensor | Sequence[str],
    contexts: tf.Tensor | Sequence[str],
    tokenizer: "BertTokenizer",
    max_query_length: int,
) -> tuple[tf.RaggedTensor, list[tf.RaggedTensor]]:
    """Tokenizes B questions and contexts; equal texts are tokenized once.

    Returns the ids of the questions, truncated to `max_query_length` tokens, and [ids, starts,
    ends] of the contexts, ragged (B, None) each.
    """
    distinct, index = tf.unique(tf.convert_to_tensor(questions, tf.string))
    question_ids = tf.gather(tokenizer.tokenize(distinct)[:, :max_query_length], index)
    distinct, index = tf.unique(tf.convert_to_tensor(contexts, tf.string))
    columns = tokenizer.tokenize_with_offsets(distinct)
    return question_ids, [tf.gather(column, index) for column in columns]


def question_windows(
    question_ids: tf.RaggedTensor,
    columns: Sequence[tf.RaggedTensor],
    tokenizer: "BertTokenizer",
    max_seq_length: int,
    doc_stride: int,
    limits: "TextLimits | None" = None,
) -> TokenWindows:
    """Splits contexts into windows with their questions: [CLS] question [SEP] tokens [SEP].

    Source: convert_examples_to_features in google-research/bert's run_squad.py, except that a
    context without tokens, which run_squad.py drops, has one window.

    Args:
        question_ids, columns: results of `tokenize_questions`.
        max_seq_length: maximum length of a window in tokens; at least 4 more than the longest
            question.
        doc_stride: number of tokens between the starts of two windows; at most the number of
            context tokens per window is used, so that no token is skipped.
        limits: see `kbert.tasks.limits`.
    """
    room = max_seq_length - tf.cast(question_ids.row_lengths(), tf.int32) - 3
    return _windows(columns, room, tf.minimum(doc_stride, room), tokenizer, limits, question_ids)


def _windows(columns, room, step, tokenizer, limits, question_ids=None):
    ids, starts, ends = columns
    ids = with_token_limit_check(ids, limits)
    lengths = tf.cast(ids.row_lengths(), tf.int32)
    counts = (tf.maximum(lengths - room, 0) + step - 1) // step + 1
    what = "the texts of a request have more windows"
    counts = with_limit_check(counts, tf.reduce_sum(counts), what, limits, "max_windows")
    number = tf.ragged.range(counts).flat_values
    owner = tf.repeat(tf.range(tf.size(lengths)), counts)
    begin = number * tf.gather(step, owner)
    count = tf.minimum(tf.gather(room, owner), tf.gather(lengths, owner) - begin)
    first_token = tf.gather(tf.cast(ids.row_starts(), tf.int32), owner) + begin
    slices, first = [(ids.flat_values, first_token, count)], tf.ones_like(owner)
    if question_ids is not None:
        rows = (
            tf.gather(x, owner) for x in (question_ids.row_starts(), question_ids.row_lengths())
        )
        slices.insert(0, (question_ids.flat_values, *rows))
        first = tf.cast(slices[0][2], tf.int32) + 2
    features = pack_slices(tokenizer, slices)
    place = tf.range(tf.reduce_max(tf.concat([count, [0]], axis=0)))
    inside = place < count[:, None]
    token = tf.where(inside, first_token[:, None] + place, 0)
    return TokenWindows(features, owner, first[:, None], token, inside, begin, ids, starts, ends)


def apply_in_batches(
    function: Callable[[TensorDict], TensorDict], features: TensorDict, rows: int = 32
) -> TensorDict:
    """Applies a function to rows in small batches, because a text may have thousands of windows.

    Args:
        function: maps a dict of features (N, ...) to a dict of tensors (N, ...); except for N, the
            shapes of the results must be the same in all calls.
        features: (W, ...) each.
        rows: number of rows per call.

    Returns:
        dict of the results for all rows, (W, ...) each.
    """
    if not tf.executing_eagerly():  # in a graph: trace the function once for its two calls
        function = tf.function(function, autograph=False)

    def outputs_at(begin):
        return function({name: x[begin : begin + rows] for name, x in features.items()})

    def write_part(begin, arrays):
        outputs = outputs_at(begin)
        written = {n: array.write(begin // rows, outputs[n]) for n, array in arrays.items()}
        return begin + rows, written

    first = outputs_at(0)
    W = tf.shape(features["input_ids"])[0]
    arrays = {
        name: tf.TensorArray(x.dtype, 1, dynamic_size=True, infer_shape=False).write(0, x)
        for name, x in first.items()
    }
    _, arrays = tf.while_loop(
        lambda begin, _: begin < W, write_part, (tf.constant(rows), arrays), parallel_iterations=1
    )
    return {
        name: tf.ensure_shape(array.concat(), [None, *first[name].shape[1:]])
        for name, array in arrays.items()
    }


def tagged_spans(
    texts: tf.Tensor | Sequence[str],
    windows: TokenWindows,
    probabilities: tf.Tensor | np.ndarray,
    roles: Sequence[tuple[str, str]],
    tokenizer: "BertTokenizer",
) -> TensorDict:
    """Returns the spans of texts, (B, S) each; see `output_spec` of `kbert.tasks.tag.TagEndpoint`.

    Args:
        texts: (B,) string.
        windows: result of `text_windows` for the texts.
        probabilities: (W, L, C) float32.
        roles: (role, type) of each of the C labels; see `kbert.data.tag_schemes.TagScheme`.
        tokenizer: BertTokenizer.
    """
    ids, starts, ends = (x.flat_values for x in (windows.ids, windows.starts, windows.ends))
    text = tf.cast(windows.ids.value_rowids(), tf.int32)  # text of each of the T tokens
    shares = _values_per_token(windows, probabilities)  # (T, C)

    # A word is a WordPiece that starts a word, and the continuation WordPieces after it.
    starts_word = tf.constant([not word.startswith(CONTINUATION) for word in tokenizer.vocab])
    new_text = tf.concat([[True], text[1:] != text[:-1]], axis=0)[: tf.size(text)]
    first = tf.where(tf.gather(starts_word, ids) | new_text)[:, 0]
    last = tf.concat([first[1:], [tf.size(text, tf.int64)]], axis=0)[: tf.size(first)] - 1
    best = tf.argmax(tf.gather(shares, first), axis=-1)
    score = tf.reduce_max(tf.gather(shares, first), axis=-1)
    text = tf.gather(text, first)

    # A span is the words of an entity (see TagScheme.spans), or a single word.
    kinds = sorted({type for _, type in roles})
    kind = tf.gather(tf.constant([kinds.index(type) for _, type in roles]), best)
    counts, begins, ends_here = (
        tf.gather(tf.constant([role in some for role, _ in roles]), best)
        for some in ("BIES", "BS", "ES")
    )
    same = (kind[1:] == kind[:-1]) & (text[1:] == text[:-1]) & counts[:-1] & ~ends_here[:-1]
    continues = counts & ~begins & tf.concat([[False], same], axis=0)[: tf.size(kind)]
    number = tf.cumsum(tf.cast(counts & ~continues, tf.int32)) - 1  # number of the span
    words = tf.where(counts)[:, 0]
    number, begins = tf.gather(number, words), tf.gather(counts & ~continues, words)
    first_words = tf.boolean_mask(words, begins)
    S = tf.size(first_words)
    ending = tf.math.unsorted_segment_max(tf.gather(last, words), number, S)
    text = tf.gather(text, first_words)
    start = tf.gather(starts, tf.gather(first, first_words))
    end = tf.gather(ends, ending)
    rows = {
        "label": (tf.gather(tf.constant(kinds), tf.gather(kind, first_words)), ""),
        "text": (tf.strings.substr(tf.gather(texts, text), start, end - start), ""),
        "start": (start, -1),
        "end": (end, -1),
        "score": (tf.math.unsorted_segment_mean(tf.gather(score, words), number, S), 0.0),
    }
    B = tf.size(texts, tf.int64)
    columns = {
        name: tf.RaggedTensor.from_value_rowids(x, tf.cast(text, tf.int64), B, validate=False)
        for name, (x, _) in rows.items()
    }
    count = tf.cast(columns["start"].row_lengths(), tf.int32)
    return {name: x.to_tensor(rows[name][1]) for name, x in columns.items()} | {"count": count}


def _values_per_token(windows, values):
    """Returns the values of each token, (T, C), given the values (W, L, C) in each window.

    If several windows contain a token, the last one is used in which the token is not in the first
    quarter.
    """
    W, R = tf.shape(windows.token)[0], tf.shape(windows.token)[1]
    room = tf.shape(values)[1] - 2
    begins_own = tf.where(windows.begin > 0, room // 4, 0)[:, None]
    own = windows.inside & (tf.range(R) >= begins_own)
    window = tf.range(W)[:, None] + tf.zeros_like(windows.token)
    token = tf.boolean_mask(windows.token, own)
    T = tf.size(windows.ids.flat_values)
    last = tf.math.unsorted_segment_max(tf.boolean_mask(window, own), token, T)  # later windows win
    owner_first = tf.gather(tf.reshape(windows.token, [-1]), last * R)
    place = tf.range(T) - owner_first + 1  # after [CLS]
    return tf.gather_nd(values, tf.stack([last, place], axis=1))


def span_scores(
    windows: TokenWindows, logits: Mapping[str, tf.Tensor | np.ndarray], max_answer_length: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the scores of all candidate answers: the sums of their start and end logits.

    A span starts at a token for which its window has maximum context, and ends in the same window.
    run_squad.py (write_predictions) combines only the 20 best starts with the 20 best ends; this
    function scores all spans.

    Args:
        windows: result of `question_windows`.
        logits: dict of `start_logits` and `end_logits`, (W, L) each.
        max_answer_length: A, maximum length of a span in tokens.

    Returns:
        (W, R, A) float64: element [w, r, a] is the score of the span of a + 1 tokens that starts at
        token r of window w, or -inf if there is no such span. And (B,) float64, the score of having
        no answer: the sum of the two logits of [CLS], minimum over the windows.
    """
    R = tf.shape(windows.token)[1]
    lowest = tf.constant(float("-inf"), tf.float64)
    start, end = (tf.cast(logits[f"{name}_logits"], tf.float64) for name in ("start", "end"))
    none = tf.math.segment_min(tf.reduce_sum(start[:, :1] + end[:, :1], axis=1), windows.owner)
    place = tf.minimum(windows.first + tf.range(R), tf.shape(start)[1] - 1)
    start, end = (tf.gather(x, place, batch_dims=1) for x in (start, end))  # (W, R)
    start = tf.where(windows.inside & has_maximum_context(windows), start, lowest)
    paddings = [[0, 0], [0, max_answer_length - 1]]
    end = tf.pad(tf.where(windows.inside, end, lowest), paddings, constant_values=float("-inf"))
    last = tf.range(R)[:, None] + tf.range(max_answer_length)  # (R, A)
    return start[:, :, None] + tf.gather(end, last, axis=1), none


def best_spans(windows: TokenWindows, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the span with the highest score in each context; of equal ones, the first.

    Args:
        windows: result of `question_windows`.
        scores: (W, R, A), the first result of `span_scores`.

    Returns:
        start, end: (B,) int32, byte offsets in the UTF-8 context, end exclusive.
        score: (B,) float64, -inf if the context has no tokens.
    """
    W, R, A = (tf.shape(scores)[axis] for axis in range(3))
    # Without tokens, R is 0 and the maximum of an empty axis would fail.
    scores = tf.pad(tf.reshape(scores, [W, R * A]), [[0, 0], [0, 1]], constant_values=float("-inf"))
    of_window = tf.reduce_max(scores, axis=1)
    best = tf.math.segment_max(of_window, windows.owner)
    is_best = of_window == tf.gather(best, windows.owner)
    window = tf.math.segment_min(tf.where(is_best, tf.range(W), W), windows.owner)  # (B,)
    span = tf.argmax(tf.gather(scores, window), axis=1, output_type=tf.int32)
    tokens = (span // A, span // A + span % A)
    start, end = (
        tf.gather(tf.pad(tf.gather(offsets, window), [[0, 0], [0, 1]]), token, batch_dims=1)
        for offsets, token in zip(window_offsets(windows), tokens, strict=True)
    )
    return start, end, best


def window_offsets(windows: TokenWindows) -> Iterator[tf.Tensor]:
    """Yields the byte starts, then the byte ends of the tokens, (W, R); 0 if there is no token."""
    for offsets in (windows.starts, windows.ends):
        flat = tf.concat([offsets.flat_values, [0]], axis=0)  # there may be no tokens
        yield tf.where(windows.inside, tf.gather(flat, windows.token), 0)


def has_maximum_context(windows: TokenWindows) -> tf.Tensor:
    """Returns whether each window has the most context for each of its tokens, (W, R) bool.

    The context of a token is the number of context tokens to its left or to its right in the
    window, whichever is smaller, plus 1/100 of the number of context tokens in the window. Of
    several windows with the same value, the first one wins. Source: _check_is_max_context in
    google-research/bert's run_squad.py.
    """
    W, R = tf.shape(windows.token)[0], tf.shape(windows.token)[1]
    count = tf.reduce_sum(tf.cast(windows.inside, tf.int32), axis=1, keepdims=True)
    place = tf.range(R)
    shown = tf.where(windows.inside, 100 * tf.minimum(place, count - 1 - place) + count, -1)
    T = tf.maximum(tf.size(windows.ids.flat_values), 1)
    most = tf.gather(tf.math.unsorted_segment_max(shown, windows.token, T), windows.token)
    window = tf.range(W)[:, None] + tf.zeros_like(windows.token)
    first = tf.math.unsorted_segment_min(tf.where(shown == most, window, W), windows.token, T)
    return tf.gather(first, windows.token) == window


def characters_before(text: bytes) -> np.ndarray:
    """Returns the number of characters before each byte offset of a UTF-8 text, (bytes + 1,)."""
    begins = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80
    return np.concatenate([[0], np.cumsum(begins)])
