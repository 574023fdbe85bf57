"""Reads questions about texts from SQuAD 1.1 and 2.0, CMRC 2018, similar files, and records."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kbert.data import validation
from kbert.data.examples import Answer, QuestionExample
from kbert.data.records import BadExample, Records, read_json_lines, value_text
from kbert.errors import UserError
from kbert.utils.input_files import read_text

if TYPE_CHECKING:
    from kbert.data.records import Record

# The keys of a question, and other names of these keys in some files.
_ALIASES = {
    "id": ("query_id", "qid", "qas_id"),
    "question": ("query_text", "query"),
    "context": ("context_text", "passage"),
    "answers": ("answer", "answer_text"),
}
_STRUCTURES = (
    "data[].paragraphs[].qas[] (SQuAD), a list of paragraphs with a context and qas[], or a list "
    "of objects with a question, a context and answers"
)


def read_squad(path: str, name: str) -> Records:
    """Returns the questions of a JSON file as records, each with the context of its paragraph.

    The file has the structure of SQuAD, or is a list of articles, paragraphs or questions (or an
    object with such a list under "data"), or has one of these objects per line.
    """
    text = read_text(path)
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):  # one object per line
            return flatten_questions(read_json_lines(path, name))
        raise UserError(f"{path} is not JSON: {error}.") from None
    place = "data" if isinstance(root, dict) and "data" in root else ""
    root = root["data"] if place else root
    nodes = enumerate(root) if isinstance(root, list) else [(0, root)]
    questions = [q for i, node in nodes for q in _questions(node, f"{place}[{i}]", path)]
    items = [_item(question, number, name) for number, question in enumerate(questions, 1)]
    return Records(name, iter(items), ("question", "context"))


def flatten_questions(records: Records) -> Records:
    """Converts records (articles, paragraphs, or questions with a context) to single questions.

    A question without an id gets its number in the file, from 1, as its id.
    """

    def items():
        number = 0
        for where, record in records.items:
            if not isinstance(record, dict):
                yield where, record
                continue
            for question in _questions(record, "the object", where, is_question=True):
                number += 1
                if not isinstance(question, dict):
                    yield (
                        where,
                        BadExample(f"a question must be an object; got {value_text(question)}"),
                    )
                elif "id" in question:
                    yield f"{where} (question {question['id']})", question
                else:
                    yield where, {"id": number, **question}

    return dataclasses.replace(records, items=items())


def _item(question, number, name):
    if isinstance(question, dict):
        record = {"id": str(number), **question}
        return f"{name}, question {record['id']}", record
    problem = BadExample(f"a question must be an object; got {value_text(question)}")
    return f"{name}, question number {number}", problem


def _questions(node, place, path, context=None, is_question=False) -> "Iterator[Any]":
    """Yields the questions below a node of a file: an article, a paragraph or a question."""
    is_object = isinstance(node, dict)
    node = _rename_keys(node) if is_object else node
    key = next((key for key in ("paragraphs", "qas") if is_object and key in node), None)
    if key and not isinstance(node[key], list):
        raise UserError(f'{path}: "{key}" of {place} must be a list; got {value_text(node[key])}.')
    if key:
        context = {"context": node["context"]} if "context" in node else context
        for i, part in enumerate(node[key]):
            yield from _questions(part, f"{place}.{key}[{i}]", path, context, key == "qas")
    elif is_question or (is_object and "question" in node):
        yield node | (context or {}) if is_object else node
    else:
        raise UserError(
            f"{path} has no question at {place}: {value_text(node)}. The file must have the "
            f"structure {_STRUCTURES}."
        )


def _rename_keys(record):
    """Renames the keys of a record as in `_ALIASES`."""
    named = dict(record)
    for key, others in _ALIASES.items():
        other = next((name for name in others if name in named), None)
        if key not in named and other:
            named[key] = named.pop(other)
    return named


class QuestionConverter:
    """Converts records to QuestionExamples, whose ids must be unique."""

    def __init__(self, labeled: bool):
        self.labeled = labeled
        self.ids: set[str] = set()

    def __call__(self, where: str, record: "Record") -> QuestionExample:
        """Returns the QuestionExample of a record; raises BadExample if it is invalid."""
        identity = str(validation.get_value(record, "id"))
        if identity in self.ids:
            raise BadExample(f"an earlier question has the same id, {identity}")
        self.ids.add(identity)
        question = validation.check_text(validation.get_value(record, "question"), "the question")
        context = validation.check_text(validation.get_value(record, "context"), "the context")
        if not self.labeled:
            return QuestionExample(where, identity, question, context)
        validation.get_value(record, "answers")
        answers, impossible = parse_answers(record)
        return QuestionExample(where, identity, question, context, answers, impossible)


def parse_answers(record: "Record") -> tuple[tuple[Answer, ...], bool]:
    """Returns the answers of a record, unverified, and whether its question is impossible.

    Args:
        record: dict with "answers", which is a text, {"text", "answer_start"}, a list of these, or,
            as in Hugging Face `datasets`, {"text": list, "answer_start": list}. "answer_start" may
            be missing, or a key of the record itself. The question is impossible if the optional
            key "is_impossible" is true or, without this key, if it has no answers.

    Raises:
        BadExample: "is_impossible" is false but there are no answers, or a value is invalid.
    """
    impossible = str(record.get("is_impossible", "")).lower()
    if impossible not in ("true", "false", ""):
        value = value_text(record["is_impossible"])
        raise BadExample(f'"is_impossible" must be true or false; got {value}')
    if impossible == "true":
        return (), True
    answers = _answer_list(record["answers"], record.get("answer_start"))
    if not answers and impossible:
        raise BadExample('the question has no answers, and "is_impossible" is false')
    return tuple(map(_answer, answers)), not answers


def _answer_list(answers, start):
    if isinstance(answers, str) and re.fullmatch(r"""(?s)[\[{]\s*(['"{].*)?[\]}]""", answers):
        raise BadExample(
            f'"answers" must be a text, a JSON list or a JSON object, but not a list or object in '
            f"a string; got {value_text(answers)}"
        )
    if isinstance(answers, str):
        answers = {"text": answers, "answer_start": start}
    if isinstance(answers, dict):
        columns = [answers.get("text"), answers.get("answer_start")]
        if not isinstance(columns[0], list):
            columns = [[column] for column in columns]
        elif columns[1] is None:
            columns[1] = [None] * len(columns[0])
        if not isinstance(columns[1], list) or len(columns[0]) != len(columns[1]):
            raise BadExample('"text" and "answer_start" of "answers" must be lists of equal length')
        answers = [{"text": t, "answer_start": s} for t, s in zip(*columns, strict=True)]
    if not isinstance(answers, list):
        raise BadExample(f'"answers" must be a list; got {value_text(answers)}')
    return answers


def _answer(answer):
    parts = {"text": answer} if isinstance(answer, str) else answer
    text = parts.get("text") if isinstance(parts, dict) else None
    start = parts.get("answer_start") if isinstance(parts, dict) else None
    if isinstance(start, str) and re.fullmatch(r"\s*-?\d{1,11}\s*", start):
        start = int(start)
    if isinstance(start, float) and start.is_integer():
        start = int(start)
    if not isinstance(text, str) or not (start is None or type(start) is int):
        raise BadExample(
            f'an answer must have "text", a string, and optionally "answer_start", a whole number; '
            f"got {value_text(answer)}"
        )
    if not text.strip():
        raise BadExample("an answer is empty")
    return Answer(text, start)


def locate_answer(answer: Answer, context: str) -> Answer:
    """Returns the answer with a verified offset in the context.

    If the context does not have the answer at its offset, white space around the answer and at the
    offset is skipped. An answer without an offset must occur exactly once, and gets the offset of
    this occurrence.

    Raises:
        BadExample: the answer is not at its offset, or has no offset and does not occur exactly
            once.
    """
    text, start = answer.text, answer.start
    if start is not None and start >= 0 and context.startswith(text, start):
        return answer
    bare = text.strip()
    if start is None:
        positions = _find_all(bare, context)
        if len(positions) == 1:
            return Answer(bare, positions[0])
        where = f"occurs at {_positions_text(positions)}" if positions else "does not occur"
        raise BadExample(
            f"the answer {value_text(text)} has no answer_start and {where} in the context; it "
            f"must occur exactly once"
        )
    lead = len(text) - len(text.lstrip())
    behind = context[max(start, 0) :]
    for begin in {start, start + lead, start + len(behind) - len(behind.lstrip())}:
        if begin >= 0 and context.startswith(bare, begin):
            return Answer(bare, begin)
    positions = _find_all(text, context)
    raise BadExample(
        f"the answer {value_text(text)} is not at character {start} of the context; it "
        + (
            f"occurs at {_positions_text(positions[:3])}"
            if positions
            else "does not occur in the context"
        )
    )


def _positions_text(positions):
    return ", ".join(map(str, positions[:3])) + (", ..." if len(positions) > 3 else "")


def _find_all(text, context):
    positions, start = [], context.find(text)
    while start >= 0 and len(positions) < 4:
        positions.append(start)
        start = context.find(text, start + 1)
    return positions
