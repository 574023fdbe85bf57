"""Texts in windows, and what is found in them, as TensorFlow ops for a served model.

The same arithmetic as `kbert.data.question_windows`, `kbert.tasks.tag` and `kbert.tasks.answers`,
which compute it in numpy and document it; the tests compare the two.
"""

import dataclasses

import tensorflow as tf

from kbert.tokenizer.vocab import CONTINUATION


@dataclasses.dataclass(frozen=True)
class TokenWindows:
    """W windows over the tokens of B texts; R tokens of a text in the longest.

    features: of all windows, (W, L) each. owner: (W,) the text of each. first: (W, 1) where its
    tokens of the text begin in the window. token: (W, R) their numbers among all T tokens of the
    batch. inside: (W, R) whether there is such a token. number: (W,) of the window in its text.
    ids, starts, ends: (B, None) ragged, of the texts.
    """

    features: dict
    owner: tf.Tensor
    first: tf.Tensor
    token: tf.Tensor
    inside: tf.Tensor
    number: tf.Tensor
    ids: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor


def text_windows(texts, tokenizer, max_seq_length):
    """Windows of texts that overlap by half: [CLS] tokens [SEP]."""
    columns = tokenizer.tokenize_with_offsets(texts)
    room = tf.fill([tf.size(texts)], max_seq_length - 2)
    prefix = tf.fill([tf.size(texts), 1], tokenizer.cls_id)
    prefix = tf.RaggedTensor.from_tensor(prefix)
    return _windows(columns, prefix, room, tf.maximum(room // 2, 1), tokenizer)


def question_windows(questions, contexts, tokenizer, max_seq_length, stride, longest_question):
    """Windows of contexts with their questions: [CLS] question [SEP] tokens [SEP]."""
    columns = tokenizer.tokenize_with_offsets(contexts)
    questions = tokenizer.tokenize(questions)[:, :longest_question]
    border = tf.ones([tf.size(contexts), 1], tf.int32)
    prefix = tf.concat([border * tokenizer.cls_id, questions, border * tokenizer.sep_id], axis=1)
    room = max_seq_length - tf.cast(prefix.row_lengths(), tf.int32) - 1
    return _windows(columns, prefix, room, tf.minimum(stride, room), tokenizer, pairs=True)


def _windows(columns, prefix, room, step, tokenizer, pairs=False):
    ids, starts, ends = columns
    lengths = tf.cast(ids.row_lengths(), tf.int32)
    counts = (tf.maximum(lengths - room, 0) + step - 1) // step + 1
    number = tf.ragged.range(counts).flat_values
    owner = tf.repeat(tf.range(tf.size(lengths)), counts)
    begin = number * tf.gather(step, owner)
    count = tf.minimum(tf.gather(room, owner), tf.gather(lengths, owner) - begin)
    place = tf.range(tf.reduce_max(tf.concat([count, [0]], axis=0)))
    inside = place < count[:, None]
    first_token = tf.cast(ids.row_starts(), tf.int32)
    token = tf.where(inside, (tf.gather(first_token, owner) + begin)[:, None] + place, 0)
    some = tf.concat([ids.flat_values, [tokenizer.pad_id]], axis=0)  # there may be no token at all
    tokens = tf.ragged.boolean_mask(tf.gather(some, token), inside)
    tail = tf.concat([tokens, tf.fill([tf.size(owner), 1], tokenizer.sep_id)], axis=1)
    prefix = tf.gather(prefix, owner)
    sequence = tf.concat([prefix, tail], axis=1)
    types = tf.concat([tf.zeros_like(prefix), tf.ones_like(tail) * int(pairs)], axis=1)
    features = {
        "input_ids": sequence.to_tensor(tokenizer.pad_id),
        "attention_mask": tf.ones_like(sequence).to_tensor(0),
        "token_type_ids": types.to_tensor(0),
    }
    first = tf.cast(prefix.row_lengths(), tf.int32)[:, None]
    return TokenWindows(features, owner, first, token, inside, number, ids, starts, ends)


def in_parts(function, features, rows=32):
    """What a function gives for all windows, of a few at a time: a text may have thousands.

    Args:
        function: from a dict of features (N, L) to a dict of float32 tensors (N, ...).
        features: (W, L) each. rows: windows at a time.

    Returns:
        dict of float32 tensors (W, ...).
    """
    first = {name: x[:rows] for name, x in features.items()}
    outputs_of_first = function(first)
    W = tf.shape(features["input_ids"])[0]
    arrays = {
        name: tf.TensorArray(tf.float32, 1, dynamic_size=True, infer_shape=False).write(0, x)
        for name, x in outputs_of_first.items()
    }

    def part(begin, arrays):
        outputs = function({name: x[begin : begin + rows] for name, x in features.items()})
        written = {n: array.write(begin // rows, outputs[n]) for n, array in arrays.items()}
        return begin + rows, written

    _, arrays = tf.while_loop(
        lambda begin, _: begin < W, part, (tf.constant(rows), arrays), parallel_iterations=1
    )
    shapes = {name: tf.TensorShape([None, *x.shape[1:]]) for name, x in outputs_of_first.items()}
    return {name: tf.ensure_shape(x.concat(), shapes[name]) for name, x in arrays.items()}


def tagged_spans(texts, windows, probabilities, label_names, tokenizer):
    """What is found in texts, each (B, S): see `kbert.serving.endpoints.Tag`.

    Args:
        texts: (B,) string. windows: of `text_windows`. probabilities: (W, L, C) float32.
    """
    ids, starts, ends = (x.flat_values for x in (windows.ids, windows.starts, windows.ends))
    text = tf.cast(windows.ids.value_rowids(), tf.int32)  # of each of T tokens
    shares = _of_tokens(windows, probabilities)  # (T, C)

    # Words: the pieces from one that starts a word to the next.
    starts_word = tf.constant([not word.startswith(CONTINUATION) for word in tokenizer.vocab])
    new_text = tf.concat([[True], text[1:] != text[:-1]], axis=0)[: tf.size(text)]
    first = tf.where(tf.gather(starts_word, ids) | new_text)[:, 0]
    last = tf.concat([first[1:], [tf.size(text, tf.int64)]], axis=0)[: tf.size(first)] - 1
    best = tf.argmax(tf.gather(shares, first), axis=-1)
    score = tf.reduce_max(tf.gather(shares, first), axis=-1)
    text = tf.gather(text, first)

    # Stretches: the words of an entity, by IOB2, or each word by itself.
    is_iob = any(name.startswith(("B-", "I-")) for name in label_names)
    names = [name[2:] if name.startswith(("B-", "I-")) else name for name in label_names]
    kinds = sorted(set(names))
    kind = tf.gather(tf.constant([kinds.index(name) for name in names]), best)
    counts = tf.gather(
        tf.constant([not is_iob or name.startswith(("B-", "I-")) for name in label_names]), best
    )
    goes_on = tf.gather(tf.constant([name.startswith("I-") for name in label_names]), best)
    same = (kind[1:] == kind[:-1]) & (text[1:] == text[:-1]) & counts[:-1]
    goes_on &= tf.concat([[False], same], axis=0)[: tf.size(kind)]
    number = tf.cumsum(tf.cast(counts & ~goes_on, tf.int32)) - 1  # of the stretch
    words = tf.where(counts)[:, 0]
    number, begins = tf.gather(number, words), tf.gather(counts & ~goes_on, words)
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


def _of_tokens(windows, values):
    """(T, C): what the window says of each token in which more is to the left, from a quarter on.

    Args:
        values: (W, L, C).
    """
    W, R = tf.shape(windows.token)[0], tf.shape(windows.token)[1]
    room = tf.shape(values)[1] - 2
    begins_own = tf.where(windows.number > 0, room // 4, 0)[:, None]
    own = windows.inside & (tf.range(R) >= begins_own)
    window = tf.range(W)[:, None] + tf.zeros_like(windows.token)
    token = tf.boolean_mask(windows.token, own)
    T = tf.size(windows.ids.flat_values)
    last = tf.math.unsorted_segment_max(tf.boolean_mask(window, own), token, T)  # later ones win
    owner_first = tf.gather(tf.reshape(windows.token, [-1]), last * R)
    place = tf.range(T) - owner_first + 1  # behind [CLS]
    return tf.gather_nd(values, tf.stack([last, place], axis=1))


def best_spans(contexts, windows, logits, task):
    """The best answer in each context: see `kbert.serving.endpoints.Answer`.

    Args:
        contexts: (B,) string. windows: of `question_windows`.
        logits: dict of `start_logits` and `end_logits`, (W, L) each.
        task: has max_answer_length, allow_no_answer and null_threshold.
    """
    W, R = tf.shape(windows.token)[0], tf.shape(windows.token)[1]
    lowest = tf.constant(float("-inf"), tf.float64)
    start, end = (tf.cast(logits[f"{name}_logits"], tf.float64) for name in ("start", "end"))
    none = tf.reduce_sum(start[:, :1] + end[:, :1], axis=1)  # of [CLS]; there may be no window
    none = tf.math.segment_min(none, windows.owner)

    place = tf.minimum(windows.first + tf.range(R), tf.shape(start)[1] - 1)
    start, end = (tf.gather(x, place, batch_dims=1) for x in (start, end))  # (W, R)
    start = tf.where(windows.inside & _has_maximum_context(windows), start, lowest)
    end = tf.where(windows.inside, end, lowest)
    A = task.max_answer_length
    end = tf.pad(end, [[0, 0], [0, A - 1]], constant_values=float("-inf"))
    scores = start[:, :, None] + tf.gather(end, tf.range(R)[:, None] + tf.range(A), axis=1)
    scores = tf.reshape(scores, [W, R * A])
    # Without tokens, R is 0 and there is nothing to reduce.
    scores = tf.concat([scores, tf.fill([W, 1], lowest)], axis=1)

    of_window = tf.reduce_max(scores, axis=1)
    best = tf.math.segment_max(of_window, windows.owner)
    is_best = of_window == tf.gather(best, windows.owner)
    window = tf.math.segment_min(tf.where(is_best, tf.range(W), W), windows.owner)  # (B,)
    span = tf.argmax(tf.gather(scores, window), axis=1, output_type=tf.int32)
    answers = best > lowest
    if task.allow_no_answer:
        answers &= none - best <= task.null_threshold
    span = tf.where(answers, span, 0)
    tokens = tf.concat([windows.token, tf.zeros([W, 1], tf.int32)], axis=1)
    first = tf.gather(tf.gather(tokens, window), span // A, batch_dims=1)
    last = first + span % A
    offset = tf.concat([windows.starts.flat_values, [0]], axis=0)
    starts = tf.where(answers, tf.gather(offset, tf.where(answers, first, 0)), -1)
    offset = tf.concat([windows.ends.flat_values, [0]], axis=0)
    ends = tf.where(answers, tf.gather(offset, tf.where(answers, last, 0)), -1)
    length = tf.where(answers, ends - starts, 0)
    return {
        "answer": tf.strings.substr(contexts, tf.maximum(starts, 0), length),
        "start": starts,
        "end": ends,
        "score": tf.cast(tf.where(answers, best, none), tf.float32),
        "no_answer_score": tf.ensure_shape(tf.cast(none, tf.float32), [None]),
    }


def _has_maximum_context(windows):
    """(W, R): whether no other window shows more of what surrounds the token."""
    W, R = tf.shape(windows.token)[0], tf.shape(windows.token)[1]
    count = tf.reduce_sum(tf.cast(windows.inside, tf.int32), axis=1, keepdims=True)
    place = tf.range(R)
    shown = tf.where(windows.inside, 100 * tf.minimum(place, count - 1 - place) + count, -1)
    T = tf.maximum(tf.size(windows.ids.flat_values), 1)
    most = tf.gather(tf.math.unsorted_segment_max(shown, windows.token, T), windows.token)
    window = tf.range(W)[:, None] + tf.zeros_like(windows.token)
    first = tf.math.unsorted_segment_min(tf.where(shown == most, window, W), windows.token, T)
    return tf.gather(first, windows.token) == window
