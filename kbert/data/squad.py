"""Reads questions about texts as flat records: the JSON of SQuAD 1.1, 2.0, CMRC 2018 and others."""

import json
from collections.abc import Mapping

from kbert.data.records import BadExample, Records, shown
from kbert.errors import UserError
from kbert.utils.input_files import read_text


def squad(path: str, name: str) -> Records:
    """Returns the questions of a SQuAD file as records, each with the context of its paragraph.

    Args:
        path: path of the file. name: its name in messages.

    Raises:
        UserError: the file cannot be read, is not JSON, or lacks the structure of SQuAD.
    """
    text = read_text(path)
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON: {error}. If it has one question per line, rename it to .jsonl."
        ) from None
    return Records(name, iter(list(_questions(root, path, name))), ("question", "context"))


def _questions(root, path, name):
    number = 0
    for i, article in enumerate(_part(root, "data", "the file", path)):
        place = f"data[{i}]"
        for k, paragraph in enumerate(_part(article, "paragraphs", place, path)):
            for question in _part(paragraph, "qas", f"{place}.paragraphs[{k}]", path):
                number += 1
                if not isinstance(question, dict):
                    problem = BadExample(f"a question must be an object; got {shown(question)}")
                    yield f"{name}, question number {number}", problem
                    continue
                record = {"id": str(number), **question}
                if "context" in paragraph:
                    record["context"] = paragraph["context"]
                yield f"{name}, question {record['id']}", record


def _part(value, key, place, path):
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise UserError(
            f"{path} lacks the structure of SQuAD, data[].paragraphs[].qas[]: {place} has no list "
            f'"{key}". If it has one question per line, rename it to .jsonl.'
        )
    return value[key]


def checked_answers(
    record: Mapping[str, object], context: str
) -> tuple[list[tuple[str, int]], bool]:
    """Returns the answers of a record, (text, start) each, and whether it is impossible.

    Args:
        record: has "answers", a list of {"text", "answer_start"} or, as in Hugging Face's datasets,
            {"text": list, "answer_start": list}; and optionally "is_impossible": by default, a
            question without answers is impossible.
        context: str; starts are in characters of it.

    Raises:
        BadExample: answers are missing, or one is not at its start in the context.
    """
    answers = record.get("answers")
    impossible = record.get("is_impossible", answers in ([], {"text": [], "answer_start": []}))
    if not isinstance(impossible, bool):
        raise BadExample(f'"is_impossible" must be true or false; got {shown(impossible)}')
    if impossible:
        return [], True
    if isinstance(answers, dict):
        columns = [answers.get("text"), answers.get("answer_start")]
        if not all(isinstance(c, list) for c in columns) or len({*map(len, columns)}) > 1:
            raise BadExample('"text" and "answer_start" of "answers" must be lists of equal length')
        answers = [{"text": t, "answer_start": s} for t, s in zip(*columns, strict=True)]
    if not isinstance(answers, list):
        raise BadExample(f'"answers" must be a list; got {shown(answers)}')
    if not answers:
        raise BadExample('the question has no answers, and "is_impossible" is false')
    return [_checked_answer(answer, context) for answer in answers], False


def _checked_answer(answer, context):
    text = answer.get("text") if isinstance(answer, dict) else None
    start = answer.get("answer_start") if isinstance(answer, dict) else None
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise BadExample(
            f'an answer must have "text", a string, and "answer_start", a whole number; got '
            f"{shown(answer)}"
        )
    if not text.strip():
        raise BadExample("an answer is empty")
    if start < 0 or not context.startswith(text, start):
        raise BadExample(
            f"answer not in context: {shown(text)} is not at character {start}, "
            f"{_places(text, context)}"
        )
    return text, start


def _places(text, context):
    places, start = [], context.find(text)
    while start >= 0 and len(places) < 3:
        places.append(str(start))
        start = context.find(text, start + 1)
    return f"but at {', '.join(places)}" if places else "nor anywhere else"
