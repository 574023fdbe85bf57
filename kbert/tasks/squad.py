"""Exact match and F1 of answers, as in the evaluation scripts of SQuAD 1.1 and 2.0.

Source: evaluate-v1.1.py and evaluate-v2.0.py of rajpurkar/SQuAD-explorer. Words are separated by
white space, so most Chinese answers are a single word, and F1 is close to exact match.
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kbert.errors import UserError

if TYPE_CHECKING:
    from kbert.data.examples import QuestionExample

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_scores(
    examples: "Sequence[QuestionExample]", predictions: Mapping[str, str]
) -> dict[str, float]:
    """Returns exact match and F1 in percent.

    The scripts of SQuAD 1.1 and 2.0 differ in two cases. Here, a question without a prediction
    scores 0, as in 1.1 (2.0 skips it). A correct answer that consists only of articles and
    punctuation, such as "The", is ignored, as in 2.0 (in 1.1, predicting it gives an exact match,
    but an F1 of 0).

    Args:
        examples: labeled QuestionExamples.
        predictions: dict of question id -> answer text, "" for no answer; ids of other questions
            are ignored.

    Returns:
        dict of exact_match and f1, float. If a question is impossible, also NoAns_exact and
        NoAns_f1, float, and NoAns_total, int: the scores and the number of the impossible
        questions; and the same with HasAns for the questions with an answer, if there are any.

    Raises:
        UserError: there are no examples, or one is unlabeled.
    """
    if not examples:
        raise UserError("there are no questions to score.")
    scores = {True: [], False: []}
    for example in examples:
        text = predictions.get(example.id)
        pair = answer_scores(example, "" if text is None else text)
        scores[example.is_impossible].append((0.0, 0.0) if text is None else pair)
    exact_match, f1 = _means(scores[False] + scores[True])
    result = {"exact_match": exact_match, "f1": f1}
    if scores[True]:
        for name, group in (("HasAns", scores[False]), ("NoAns", scores[True])):
            if group:
                result[f"{name}_exact"], result[f"{name}_f1"] = _means(group)
                result[f"{name}_total"] = len(group)
    return result


def answer_scores(example: "QuestionExample", text: str) -> tuple[float, float]:
    """Returns an answer's best exact match and best F1 over the correct answers, in [0, 1].

    Raises:
        UserError: the example is unlabeled.
    """
    if not example.answers and not example.is_impossible:
        raise UserError(f"{example.where}: the question has no answers, so it cannot be scored.")
    words = _words(text)
    right = [_words(answer.text) for answer in example.answers]
    right = [answer for answer in right if answer] or [[]]
    return (
        max(float(answer == words) for answer in right),
        max(_f1(answer, words) for answer in right),
    )


def _words(text):
    """Returns the words of a text in lower case, without ASCII punctuation and English articles."""
    text = text.lower().translate(_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _f1(right, words):
    if not right or not words:
        return float(right == words)
    common = (collections.Counter(right) & collections.Counter(words)).total()
    return 2 * common / (len(right) + len(words))


def _means(pairs):
    return tuple(100.0 * sum(column) / len(pairs) for column in zip(*pairs, strict=True))
