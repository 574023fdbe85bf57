"""Converts labeled answers to token positions in windows, and logits to predicted answers."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.errors import UserError
from kbert.tasks.span_ops import characters_before, span_scores, window_offsets
from kbert.tasks.squad import answer_scores

if TYPE_CHECKING:
    from kbert.data.examples import QuestionExample
    from kbert.tasks.span_ops import TokenWindows


def answer_positions(
    examples: "Sequence[QuestionExample]", windows: "TokenWindows"
) -> list[tuple[int, int] | None]:
    """Returns the position of the answer in each window.

    This is the method of google-research/bert's run_squad.py, except that the tokens of an answer
    are located by byte offsets instead of words. Only the first answer of an example is used.

    Args:
        examples: list of QuestionExample.
        windows: the TokenWindows of these examples.

    Returns:
        For each window the positions of the first and the last token of the answer, or None if the
        example is unlabeled. Both positions are 0, the position of [CLS], if the question is
        impossible, the window does not contain the whole answer, or the answer has no tokens or no
        offset.
    """
    columns = zip(examples, windows.starts.numpy(), windows.ends.numpy(), strict=True)
    answers = [_answer_token_span(*column) for column in columns]
    counts = np.count_nonzero(windows.inside, axis=1)
    rows = (windows.owner.numpy(), windows.begin.numpy(), counts, windows.first.numpy()[:, 0])
    positions = []
    for owner, begin, count, context_begin in zip(*rows, strict=True):
        position = answer = answers[owner]
        if answer is not None:
            inside = begin <= answer[0] and answer[1] < begin + count
            shift = context_begin - begin
            position = (answer[0] + shift, answer[1] + shift) if inside else (0, 0)
        positions.append(position)
    return positions


def _answer_token_span(example, starts, ends):
    """Returns the indices of the first and the last token of the context that overlap the answer.

    Returns (-1, -1) if the question is impossible or the answer has no tokens (it is white space)
    or no offset (evaluation does not require one); None if the example is unlabeled.
    """
    if not example.answers and not example.is_impossible:
        return None
    if example.is_impossible or example.answers[0].start is None:
        return -1, -1
    answer = example.answers[0]
    begin = len(example.context[: answer.start].encode())
    end = begin + len(answer.text.encode())
    first = int(np.searchsorted(ends, begin, side="right"))
    last = int(np.searchsorted(starts, end, side="left")) - 1
    return (first, last) if first <= last else (-1, -1)


def best_answers(
    examples: "Iterable[QuestionExample]",
    windows: "Iterable[TokenWindows]",
    outputs: Iterable[dict[str, np.ndarray]],
    top_k: int = 20,
    max_answer_length: int = 30,
    allow_no_answer: bool = False,
    null_threshold: float = 0.0,
    allow_overlap: bool = False,
) -> list[dict[str, Any]]:
    """Returns the best answer to each question, and further candidates.

    Of several spans with the same score, the first one wins.

    Args:
        examples: sequence of QuestionExample.
        windows: TokenWindows of consecutive parts of the examples.
        outputs: for each window a dict of `start_logits` and `end_logits`, (L,) each, where L is at
            least the length of the window.
        top_k: maximum number of spans in `candidates`.
        max_answer_length: maximum length of an answer in tokens.
        allow_no_answer: whether questions may have no answer, as in SQuAD 2.0.
        null_threshold: with `allow_no_answer`, the answer is "" if `no_answer_score` exceeds the
            score of the best span by more than this value.
        allow_overlap: whether the spans in `candidates` may overlap, as in Hugging Face's pipeline.

    Returns:
        For each example a dict of
            text: str, "" for no answer.
            start, end: int, offsets in characters of the context, end exclusive; None for no
                answer.
            byte_start, byte_end: the same offsets in bytes of the UTF-8 context.
            score: float, score of the answer (`kbert.tasks.span_ops.span_scores`), or
                `no_answer_score`.
            probability: float, the answer's share in the softmax over the scores of `candidates`.
            no_answer_score: float, the sum of the start and end logits of [CLS], minimum over the
                windows.
            candidates: list of dicts of text, start, end, byte_start, byte_end, score and
                probability, best score first: the best spans and, with `allow_no_answer`, a
                candidate for no answer.
        Without `allow_no_answer`, the answer is "" only for a context without tokens.

    Raises:
        UserError: top_k or max_answer_length is below 1.
    """
    for name, value in (("top_k", top_k), ("max_answer_length", max_answer_length)):
        if value < 1:
            raise UserError(f"{name} must be at least 1; got {value}.")
    answers, examples, outputs = [], iter(examples), iter(outputs)
    for part in windows:
        logits = part.padded(outputs, ("start_logits", "end_logits"))
        scores, null_scores = span_scores(part, logits, max_answer_length)
        columns = [scores.numpy(), *(offsets.numpy() for offsets in window_offsets(part))]
        for index, null_score in enumerate(null_scores.numpy().tolist()):
            context = next(examples).context.encode()
            own = slice(*np.searchsorted(part.owner, (index, index + 1)))
            spans = _best_spans(*(column[own] for column in columns), top_k, allow_overlap)
            none = _candidate(b"", [], None, None, null_score)
            places = characters_before(context)
            candidates = [_candidate(context, places, *span) for span in spans] or [none]
            answer = candidates[0]
            if allow_no_answer and spans:
                if null_score - answer["score"] > null_threshold:
                    answer = none
                candidates.append(none)
                candidates.sort(key=lambda candidate: -candidate["score"])
            _add_probabilities(candidates)
            answers.append({**answer, "no_answer_score": null_score, "candidates": candidates})
    return answers


def best_null_threshold(
    examples: "Sequence[QuestionExample]", answers: Sequence[dict[str, Any]]
) -> tuple[float, float]:
    """Returns the `null_threshold` with the best F1 on labeled questions, and the F1 in percent.

    This is find_best_thresh of SQuAD 2.0's evaluation script, with two differences: the script
    returns 0 if it is best never to answer, and it can put a threshold between questions with equal
    score differences.

    Args:
        examples: labeled examples.
        answers: results of `best_answers` for the examples.

    Raises:
        UserError: there are no examples, or one is unlabeled.
    """
    if not examples:
        raise UserError("there are no questions to tune the threshold on.")
    gains, differences, total = [], [], 0.0
    for example, answer in zip(examples, answers, strict=True):
        spans = [c for c in answer["candidates"] if c["start"] is not None]
        f1_without_answer = answer_scores(example, "")[1]
        total += f1_without_answer
        if spans:
            gains.append(answer_scores(example, spans[0]["text"])[1] - f1_without_answer)
            differences.append(answer["no_answer_score"] - spans[0]["score"])
    order = np.argsort(differences, kind="stable")
    differences = np.array(differences)[order]
    totals = total + np.concatenate([[0.0], np.cumsum(np.array(gains)[order])])
    # Questions up to `differences[i]` are answered; equal differences count together.
    is_choice = np.append(differences[1:] != differences[:-1], [True] * (len(differences) > 0))
    thresholds = differences[is_choice]
    below_all = thresholds[0] - 1.0 if len(thresholds) else 0.0
    thresholds = np.append(below_all, thresholds)
    totals = np.append(totals[0], totals[1:][is_choice])
    best = int(np.argmax(totals))
    return float(thresholds[best]), float(100.0 * totals[best] / len(examples))


def _best_spans(scores, starts, ends, top_k, allow_overlap):
    """Returns (byte start, byte end, score) of the best spans of a context, best score first.

    Unless `allow_overlap` is set, skips spans that overlap a better one. NumPy is five times as
    fast here as eager TensorFlow ops. Exported graphs return only the best span and do not need
    this function.
    """
    window, first, more = np.nonzero(scores > -np.inf)
    scores = scores[window, first, more]
    starts, ends = starts[window, first], ends[window, first + more]
    if allow_overlap:
        best = np.argsort(-scores, kind="stable")[:top_k]
        return list(zip(*(x[best].tolist() for x in (starts, ends, scores)), strict=True))
    spans = []
    while len(scores) and len(spans) < top_k:
        best = int(np.argmax(scores))
        spans.append((int(starts[best]), int(ends[best]), float(scores[best])))
        apart = (ends <= starts[best]) | (starts >= ends[best])
        scores, starts, ends = scores[apart], starts[apart], ends[apart]
    return spans


def _candidate(context, places, start, end, score):
    """Returns an element of `candidates`, from a context in bytes and its `characters_before`."""
    text = context[start:end].decode("utf-8", "replace")
    offsets = {"byte_start": start, "byte_end": end}
    if start is not None:
        start, end = int(places[start]), int(places[end])
    return {"text": text, "start": start, "end": end, **offsets, "score": score}


def _add_probabilities(candidates):
    scores = np.array([candidate["score"] for candidate in candidates])
    weights = np.exp(scores - scores.max())
    for candidate, weight in zip(candidates, weights / weights.sum(), strict=True):
        candidate["probability"] = float(weight)
