"""From the answers of examples to windows of tokens, and from logits back to answers."""

import numpy as np

from kbert.errors import UserError
from kbert.tasks.span_ops import span_scores, window_offsets
from kbert.tasks.squad import answer_scores


def answer_positions(examples, windows):
    """Where the answer to each question is in its windows.

    As run_squad.py has it, but for the tokens of an answer: those that it touches by byte offsets,
    which is exact, where run_squad.py searches among white-space words. The first answer counts.

    Args:
        examples: list of QuestionExample. windows: their TokenWindows.

    Returns:
        For each window the indices of the first and the last token of the answer; (0, 0), which is
        [CLS], where the question is impossible or the answer is not wholly in this window; None
        where the example is unlabelled.
    """
    columns = zip(examples, windows.starts.numpy(), windows.ends.numpy(), strict=True)
    answers = [_answer_tokens(*column) for column in columns]
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


def _answer_tokens(example, starts, ends):
    """First and last token of the context that the answer touches, None without labels.

    (-1, -1) where the question is impossible, or the answer has no token (it is white space).
    """
    if example.is_impossible:
        return -1, -1
    if not example.answers:
        return None
    answer = example.answers[0]
    begin = len(example.context[: answer.start].encode())
    end = begin + len(answer.text.encode())
    first = int(np.searchsorted(ends, begin, side="right"))
    last = int(np.searchsorted(starts, end, side="left")) - 1
    return (first, last) if first <= last else (-1, -1)


def best_answers(
    examples,
    windows,
    outputs,
    top_k=20,
    max_answer_length=30,
    allow_no_answer=False,
    null_threshold=0.0,
):
    """The best answer to each question, and others that do not overlap it.

    Of equal scores the first counts.

    Args:
        examples: sequence of QuestionExample.
        windows: list of TokenWindows, which hold those of all examples in their order.
        outputs: for each window a dict of `start_logits` and `end_logits`, arrays of at least its
            length.
        top_k: number of spans to return at most.
        max_answer_length: tokens. SQuAD's 30 are too few for a third of CMRC 2018, in Chinese.
        allow_no_answer: the answer may be that there is none, as in SQuAD 2.0.
        null_threshold: there is none if `no_answer_score` is more than this above the best score.

    Returns:
        For each example a dict of
            text: str, "" = no answer. start, end: int, its offsets in bytes of the UTF-8 context,
                end exclusive; None = no answer.
            score: float, that of the answer (`kbert.tasks.span_ops.span_scores`); of no answer its
                `no_answer_score`.
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
    answers, examples, outputs = [], iter(examples), iter(outputs)
    for part in windows:
        logits = part.padded(outputs, ("start_logits", "end_logits"))
        scores, null_scores = span_scores(part, logits, max_answer_length)
        columns = [scores.numpy(), *(offsets.numpy() for offsets in window_offsets(part))]
        for index, null_score in enumerate(null_scores.numpy().tolist()):
            context = next(examples).context.encode()
            own = slice(*np.searchsorted(part.owner, (index, index + 1)))
            spans = _apart(*(column[own] for column in columns), top_k)
            none = _candidate(b"", None, None, null_score)
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
    """The `null_threshold` (float) with the best F1 on labelled questions, and that F1 in percent.

    As find_best_thresh of the evaluation script of SQuAD 2.0, which however starts from 0 where it
    is best to answer nothing, and tells apart questions whose numbers are equal.

    Args:
        examples: sequence of QuestionExample. answers: those of `best_answers`, in their order.

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


def _apart(scores, starts, ends, top_k):
    """(start, end, score) of the best spans that share no byte with a better one.

    In numpy, where it is five times as fast as in TensorFlow ops that are run eagerly; an exported
    graph needs the best span alone. scores: (W, R, A). starts, ends: (W, R).
    """
    window, first, more = np.nonzero(scores > -np.inf)
    scores = scores[window, first, more]
    starts, ends = starts[window, first], ends[window, first + more]
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
