"""Questions with parts of their contexts, as BERT reads them: long contexts in windows.

Source: google-research/bert's run_squad.py, convert_examples_to_features.
"""

import dataclasses

import numpy as np

from kbert.errors import UserError

_BATCH = 256  # texts tokenized at a time


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionWindow:
    """[CLS] question [SEP] part of the context [SEP]: T tokens of context, L in all.

    example: index of the example.
    input_ids, token_type_ids: (L,) int32, not padded.
    context_begin: index in input_ids of the first of the T tokens.
    starts, ends: (T,) int32, the tokens' offsets in bytes of the UTF-8 context, end exclusive.
    start_position, end_position: indices in input_ids of the first and last token of the answer;
        both 0, which is [CLS], where the question is impossible or the answer is not wholly in
        this window; None where the example is unlabelled.
    is_max_context: (T,) bool, no other window shows more of what surrounds the token.
    """

    example: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    context_begin: int
    starts: np.ndarray
    ends: np.ndarray
    start_position: int | None
    end_position: int | None
    is_max_context: np.ndarray


def question_windows(examples, tokenizer, max_seq_length, doc_stride, max_query_length=64):
    """Windows of questions over their contexts.

    As run_squad.py has it, but for the tokens of an answer: those that cover it by byte offsets,
    which is exact, where run_squad.py searches among white-space words. The first answer counts. A
    context without tokens, which run_squad.py forgets, has one window.

    Args:
        examples: sequence of QuestionExample.
        tokenizer: BertTokenizer.
        max_seq_length: tokens of a window at most, L.
        doc_stride: tokens from the beginning of a window to that of the next one. More than fit
            into a window are as many as fit, so every token is in a window.
        max_query_length: tokens of a question; the rest is cut off.

    Returns:
        List of QuestionWindow, those of an example one after the other, examples in their order.

    Raises:
        UserError: an argument is out of range, or a question leaves no room for the context.
    """
    for name, value in (("doc_stride", doc_stride), ("max_query_length", max_query_length)):
        if value < 1:
            raise UserError(f"{name} must be at least 1; got {value}.")
    questions = _tokenize([example.question for example in examples], tokenizer)
    contexts = _tokenize([example.context for example in examples], tokenizer)
    windows = []
    for index, example in enumerate(examples):
        question = questions[example.question][0][:max_query_length]
        room = max_seq_length - len(question) - 3
        if room < 1:
            raise UserError(
                f"{example.where}: the question has {len(question)} tokens, which leaves no room "
                f"for the context; max_seq_length must be at least {len(question) + 4}, got "
                f"{max_seq_length}. Raise it, or lower max_query_length."
            )
        ids, starts, ends = contexts[example.context]
        spans = _spans(len(ids), room, doc_stride)
        best = _windows_of_max_context(spans, len(ids))
        answer = _answer_tokens(example, starts, ends)
        prefix = np.concatenate([[tokenizer.cls_id], question, [tokenizer.sep_id]]).astype(np.int32)
        for number, (begin, end) in enumerate(spans):
            tail = np.append(ids[begin:end], tokenizer.sep_id).astype(np.int32)
            first, last = _positions(answer, begin, end, len(prefix))
            windows.append(
                QuestionWindow(
                    example=index,
                    input_ids=np.concatenate([prefix, tail]),
                    token_type_ids=np.repeat([0, 1], [len(prefix), len(tail)]).astype(np.int32),
                    context_begin=len(prefix),
                    starts=starts[begin:end],
                    ends=ends[begin:end],
                    start_position=first,
                    end_position=last,
                    is_max_context=best[begin:end] == number,
                )
            )
    return windows


def _tokenize(texts, tokenizer):
    """text -> ids, starts, ends, of each distinct text once."""
    distinct, by_text = list(dict.fromkeys(texts)), {}
    for begin in range(0, len(distinct), _BATCH):
        batch = distinct[begin : begin + _BATCH]
        columns = tokenizer.tokenize_with_offsets(batch)
        splits = columns[0].row_splits.numpy()
        columns = [column.flat_values.numpy() for column in columns]
        for text, first, last in zip(batch, splits[:-1], splits[1:], strict=True):
            by_text[text] = [column[first:last] for column in columns]
    return by_text


def _spans(length, room, doc_stride):
    """(begin, end) of the windows over a context of `length` tokens."""
    step = min(doc_stride, room)
    begins = range(0, max(length - room, 0) + step, step)
    return [(begin, min(begin + room, length)) for begin in begins]


def _windows_of_max_context(spans, length):
    """(T,) number of the window that shows most of what surrounds each token.

    What it shows is the smaller of the tokens to the left and to the right; of two windows alike,
    the one that is 100 tokens longer counts as showing one token more, and then the first.
    """
    best, score = np.zeros(length, np.int32), np.full(length, -1)
    for number, (begin, end) in enumerate(spans):
        left = np.arange(end - begin)
        shown = 100 * np.minimum(left, left[::-1]) + (end - begin)
        better = shown > score[begin:end]
        best[begin:end][better] = number
        score[begin:end][better] = shown[better]
    return best


def _answer_tokens(example, starts, ends):
    """First and last token of the context that the answer touches, (None, None) without labels.

    (-1, -1) where the question is impossible, or the answer has no token (it is white space).
    """
    if example.is_impossible:
        return -1, -1
    if not example.answers:
        return None, None
    answer = example.answers[0]
    begin = len(example.context[: answer.start].encode())
    end = begin + len(answer.text.encode())
    first = int(np.searchsorted(ends, begin, side="right"))
    last = int(np.searchsorted(starts, end, side="left")) - 1
    return (first, last) if first <= last else (-1, -1)


def _positions(answer, begin, end, context_begin):
    """Where the tokens of the answer are in the window of the context's tokens [begin, end)."""
    first, last = answer
    if first is None:
        return None, None
    if begin <= first and last < end:
        return first - begin + context_begin, last - begin + context_begin
    return 0, 0
