"""From the logits of questions' windows to answers in the words of the context.

Source: google-research/bert's run_squad.py, write_predictions. It tries the 20 best starts with
the 20 best ends; here all spans are tried, which costs no more in numpy and never misses the best.
It puts an answer together from pieces and then looks for it in the text; here the tokens have
offsets, so an answer is cut out of the text as it stands there.
"""

import itertools

import numpy as np

from kbert.errors import UserError
from kbert.tasks.squad import answer_scores


def best_answers(
    examples,
    windows,
    start_logits,
    end_logits,
    top_k=20,
    max_answer_length=30,
    allow_no_answer=False,
    null_threshold=0.0,
):
    """The best answer to each question, and others that do not overlap it.

    An answer begins where its window has maximum context, ends in the same window, and its score is
    the sum of its two logits. Of equal scores the first counts.

    Args:
        examples: sequence of QuestionExample. windows: all of `question_windows(examples, ...)`.
        start_logits, end_logits: for each window an array of at least its length, L.
        top_k: number of spans to return at most.
        max_answer_length: tokens. SQuAD's 30 are too few for a third of CMRC 2018, in Chinese.
        allow_no_answer: the answer may be that there is none, as in SQuAD 2.0.
        null_threshold: there is none if `no_answer_score` is more than this above the best score.

    Returns:
        For each example a dict of
            text: str, "" = no answer. start, end: int, its offsets in bytes of the UTF-8 context,
                end exclusive; None = no answer.
            score: float, that of the answer; of no answer its `no_answer_score`.
            probability: float, softmax of the scores in `candidates`.
            no_answer_score: float, the least sum of the two logits of [CLS] in a window.
            candidates: list of dicts of text, start, end, score, probability; spans that share no
                byte, and no answer if it is allowed; best score first.
        Without `allow_no_answer` only a context without tokens has no answer.

    Raises:
        UserError: top_k or max_answer_length is below 1.
    """
    for name, value in (("top_k", top_k), ("max_answer_length", max_answer_length)):
        if value < 1:
            raise UserError(f"{name} must be at least 1; got {value}.")
    answers = []
    rows = zip(windows, start_logits, end_logits, strict=True)
    for index, group in itertools.groupby(rows, lambda row: row[0].example):
        example, null_score, parts = examples[index], np.inf, []
        for window, start, end in group:
            start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
            null_score = min(null_score, float(start[0] + end[0]))
            parts.append(_spans(window, start, end, max_answer_length))
        scores, starts, ends = (np.concatenate(part) for part in zip(*parts, strict=True))
        spans = _apart(scores, starts, ends, top_k)
        none = _candidate(b"", None, None, null_score)
        context = example.context.encode()
        candidates = [_candidate(context, *span) for span in spans] or [none]
        answer = candidates[0]
        if allow_no_answer and spans:
            if null_score - answer["score"] > null_threshold:
                answer = none
            candidates.append(none)
            candidates.sort(key=lambda candidate: -candidate["score"])
        _add_probabilities(candidates)
        answers.append({**answer, "no_answer_score": null_score, "candidates": candidates})
    return answers


def best_null_threshold(examples, answers):
    """The `null_threshold` that gives the best F1 on labelled questions.

    As find_best_thresh of the evaluation script of SQuAD 2.0, which however starts from 0 where it
    is best to answer nothing, and tells apart questions whose numbers are equal.

    Args:
        examples: sequence of QuestionExample. answers: those of `best_answers`, in their order.

    Returns:
        threshold (float), and the F1 there in percent.

    Raises:
        UserError: there are no examples, or one is unlabelled.
    """
    if not examples:
        raise UserError("there are no questions to find the threshold with.")
    gains, differences, total = [], [], 0.0
    for example, answer in zip(examples, answers, strict=True):
        spans = [c for c in answer["candidates"] if c["start"] is not None]
        silent = answer_scores(example, "")[1]
        total += silent
        if spans:
            gains.append(answer_scores(example, spans[0]["text"])[1] - silent)
            differences.append(answer["no_answer_score"] - spans[0]["score"])
    order = np.argsort(differences, kind="stable")
    differences = np.array(differences)[order]
    totals = total + np.concatenate([[0.0], np.cumsum(np.array(gains)[order])])
    # Questions up to `differences[i]` are answered; those of equal differences together.
    is_choice = np.append(differences[1:] != differences[:-1], [True] * (len(differences) > 0))
    thresholds = differences[is_choice]
    below_all = thresholds[0] - 1.0 if len(thresholds) else 0.0
    thresholds = np.append(below_all, thresholds)
    totals = np.append(totals[0], totals[1:][is_choice])
    best = int(np.argmax(totals))
    return float(thresholds[best]), float(100.0 * totals[best] / len(examples))


def _spans(window, start_logits, end_logits, max_answer_length):
    """Scores, and offsets of starts and ends, of all spans that a window may answer with."""
    T = len(window.starts)
    begin = window.context_begin
    first = np.flatnonzero(window.is_max_context)[:, None]
    last = first + np.arange(max_answer_length)  # (starts, lengths)
    inside = last < T
    first, last = np.broadcast_to(first, last.shape)[inside], last[inside]
    scores = start_logits[begin + first] + end_logits[begin + last]
    return scores, window.starts[first], window.ends[last]


def _apart(scores, starts, ends, top_k):
    """(start, end, score) of the best spans that share no byte with a better one."""
    spans = []
    while len(scores) and len(spans) < top_k:
        best = int(np.argmax(scores))
        spans.append((int(starts[best]), int(ends[best]), float(scores[best])))
        apart = (ends <= starts[best]) | (starts >= ends[best])
        scores, starts, ends = scores[apart], starts[apart], ends[apart]
    return spans


def _candidate(context, start, end, score):
    text = context[start:end].decode("utf-8", "replace")
    return {"text": text, "start": start, "end": end, "score": score}


def _add_probabilities(candidates):
    scores = np.array([candidate["score"] for candidate in candidates])
    weights = np.exp(scores - scores.max())
    for candidate, weight in zip(candidates, weights / weights.sum(), strict=True):
        candidate["probability"] = float(weight)
