"""Questions in the shapes of public datasets: what is read, and what training needs."""

import json

import pytest
from example_files import CONTEXT, rows, squad_file

import kbert
from kbert.data.examples import Answer, QuestionExample
from kbert.errors import UserError
from kbert.tasks.registry import get_task

pytestmark = pytest.mark.smoke


def test_squad(read):
    answers = [{"text": "the", "answer_start": 15}, {"text": "cat", "answer_start": 4}]
    text = squad_file(
        {"id": "q1", "question": "who ?", "answers": answers},
        {"id": "q2", "question": "no ?", "answers": [], "is_impossible": True},
        {"id": "q3", "question": "un ?", "answers": answers, "is_impossible": True},
    )
    assert read("s.json", text, "qa") == [
        QuestionExample(
            "s.json, question q1", "q1", "who ?", CONTEXT, (Answer("the", 15), Answer("cat", 4))
        ),
        QuestionExample("s.json, question q2", "q2", "no ?", CONTEXT, (), True),
        QuestionExample("s.json, question q3", "q3", "un ?", CONTEXT, (), True),
    ]
    text = squad_file({"question": "who ?"}, {"id": 9, "question": "?"})
    assert read("s.json.gz", text, "qa", labeled=False) == [
        QuestionExample("s.json.gz, question 1", "1", "who ?", CONTEXT),
        QuestionExample("s.json.gz, question 9", "9", "?", CONTEXT),
    ]


def test_questions_of_json_lines(read):
    text = rows(
        {"question": "a ?", "context": CONTEXT, "answers": [{"text": "cat", "answer_start": 4}]},
        {
            "id": "x",
            "question": "b ?",
            "context": CONTEXT,
            "answers": {"text": ["sat", "mat"], "answer_start": [8, 19]},
        },
        {"question": "c ?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    )
    assert read("s.jsonl", text, "qa") == [
        QuestionExample("s.jsonl, line 1", "1", "a ?", CONTEXT, (Answer("cat", 4),)),
        QuestionExample(
            "s.jsonl, line 2 (question x)",
            "x",
            "b ?",
            CONTEXT,
            (Answer("sat", 8), Answer("mat", 19)),
        ),
        QuestionExample("s.jsonl, line 3", "3", "c ?", CONTEXT, (), True),
    ]


PARIS = "Paris is in France."
FRANCE = (Answer("France", 12),)
QUESTION = {"question": "Where?", "id": "a", "answers": [{"text": "France", "answer_start": 12}]}
PARAGRAPH = {"context": PARIS, "qas": [QUESTION]}
HF = {"text": ["France"], "answer_start": [12]}


@pytest.mark.parametrize(
    "root",
    [
        {"version": "1.1", "data": [{"title": "t", "paragraphs": [PARAGRAPH]}]},
        [{"title": "t", "paragraphs": [PARAGRAPH]}],
        [PARAGRAPH],
        PARAGRAPH,
        {"data": [PARAGRAPH]},
        [QUESTION | {"context": PARIS}],
        {"data": [QUESTION | {"context": PARIS, "answers": HF}]},
        [{"context": PARIS, "qas": [QUESTION | {"answers": HF}]}],
        [QUESTION | {"context": PARIS, "answers": {"text": "France", "answer_start": "12"}}],
        [
            {
                "question": "Where?",
                "id": "a",
                "context": PARIS,
                "answer": "France",
                "answer_start": 12,
            }
        ],
        [QUESTION | {"context": PARIS, "is_impossible": "False"}],
        [
            {"question": "Where?", "qid": "a", "context": PARIS}
            | {"answer_text": "France", "answer_start": 12}
        ],
        [  # the raw form of CMRC 2018
            {
                "context_id": "c",
                "context_text": PARIS,
                "qas": [
                    {
                        "query_text": "Where?",
                        "query_id": "a",
                        "answers": [{"text": "France", "answer_start": 12.0}],
                    }
                ],
            }
        ],
    ],
)
def test_shapes_of_json(read, root):
    expected = [QuestionExample("s.json, question a", "a", "Where?", PARIS, FRANCE)]
    assert read("s.json", json.dumps(root), "qa") == expected
    assert read("s.json", json.dumps(root, indent=2), "qa") == expected


def test_lines_of_json(read):
    """Whatever the file is called; a line may hold a paragraph of several questions."""
    text = rows(PARAGRAPH, PARAGRAPH | {"qas": [QUESTION | {"id": "b"}, QUESTION | {"id": "c"}]})
    for name in ("s.json", "s.jsonl"):
        found = read(name, text, "qa")
        assert [e.id for e in found] == ["a", "b", "c"]
        assert {e.answers for e in found} == {FRANCE}
        assert found[2].where == f"{name}, line 2 (question c)"


@pytest.mark.parametrize("answers", ["France", ["France"], {"text": ["France"]}])
def test_answers_without_offset(read, answers):
    """Evaluation needs none; training finds them if they occur once."""
    text = json.dumps([QUESTION | {"context": PARIS, "answers": answers}])
    examples = read("s.json", text, "qa")
    assert examples[0].answers == (Answer("France", None),)
    reports = []
    (example,) = get_task("qa").checked_for_training(examples, False, reports.append)
    assert example.answers == FRANCE
    assert reports == [
        "note: 1 of 1 training questions have answers whose answer_start is missing or does "
        "not account for white space; the answers were located by their text"
    ]


def trained(read, answer, context=CONTEXT, **flags):
    text = squad_file({"id": "q0", "question": "?", "answers": [answer]}, context=context)
    reports = []
    examples = read("s.json", text, "qa")
    kept = get_task("qa").checked_for_training(examples, flags.get("skip", False), reports.append)
    return kept, reports


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        (" cat", 3, Answer(" cat", 3)),  # as it stands there
        (" cat", 4, Answer("cat", 4)),
        ("cat\n", 4, Answer("cat", 4)),
        ("\ncat ", 3, Answer("cat", 4)),
        ("cat", 3, Answer("cat", 4)),
    ],
)
def test_white_space_at_the_ends_of_answers(read, text, start, expected):
    """In COVID-QA 234 of 1,380 answers are off by it."""
    (example,), reports = trained(read, {"text": text, "answer_start": start})
    assert example.answers == (expected,)
    assert len(reports) == ((text, start) != (expected.text, expected.start))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            {"text": "cat", "answer_start": 6},
            "the answer 'cat' is not at character 6 of the context; it occurs at 4",
        ),
        (
            {"text": "the", "answer_start": -7},
            "the answer 'the' is not at character -7 of the context; it occurs at 0, 15",
        ),
        (
            {"text": "dog", "answer_start": 0},
            "the answer 'dog' is not at character 0 of the context; it does not occur in the "
            "context",
        ),
        (
            "the",
            "the answer 'the' has no answer_start and occurs at 0, 15 in the context; it must "
            "occur exactly once",
        ),
        ("dog", "the answer 'dog' has no answer_start and does not occur in the context"),
    ],
)
def test_answers_that_are_not_there(read, answer, problem):
    with pytest.raises(UserError) as error:
        trained(read, answer)
    assert str(error.value).startswith(f"s.json, question q0: {problem}")
    assert str(error.value).endswith("Fix it, or skip such lines with --skip_bad_lines.")
    with pytest.raises(
        UserError, match=r"no question can be used for training; s\.json, question q0: "
    ):
        trained(read, answer, skip=True)


def test_questions_that_are_skipped(read):
    good, bad = {"text": "cat", "answer_start": 4}, {"text": "cat", "answer_start": 9}
    text = squad_file(*({"question": "?", "answers": [a]} for a in (good, bad, good)))
    reports = []
    examples = read("s.json", text, "qa")
    kept = get_task("qa").checked_for_training(examples, True, reports.append)
    assert kept == [examples[0], examples[2]]
    assert reports == [
        "note: 1 of 3 training questions are skipped; the first: s.json, question 2: the answer "
        "'cat' is not at character 9 of the context; it occurs at 4."
    ]


@pytest.mark.parametrize("name", ["paragraph_list.json", "flat_rows.json", "text_offset.json"])
def test_files_of_the_collection(read, shared_cases, name):
    (example,) = read(name, (shared_cases / "qa_shapes" / name).read_bytes(), "qa")
    assert (example.context, example.question) == (PARIS, "Where?")
    assert example.answers == FRANCE


def test_the_public_reader_locates_answers(tmp_path):
    path = tmp_path / "s.jsonl"
    answer = {"text": "cat  ", "answer_start": 3}
    path.write_text(rows({"question": "a ?", "context": CONTEXT, "answers": [answer]}))
    assert kbert.read_examples(path, "qa")[0].answers == (Answer("cat", 4),)
    answer = {"text": "cat", "answer_start": 9}
    path.write_text(rows({"question": "a ?", "context": CONTEXT, "answers": [answer]}))
    with pytest.raises(UserError, match="'cat' is not at character 9 of the context; it occurs"):
        kbert.read_examples(path, "qa")


@pytest.mark.parametrize(
    "answers",
    [
        "{'text': ['cat'], 'answer_start': [4]}",
        "['cat']",
        "[]",
        '[{"text": "cat", "answer_start": 4}]',
    ],
)
def test_strings_of_answers(error_of, answers):
    text = rows({"id": 1, "question": "a ?", "context": CONTEXT, "answers": answers})
    problem = (
        '"answers" must be a text, a JSON list or a JSON object, but not a list or object in a '
        "string; got "
    )
    assert problem in error_of("s.jsonl", text, "qa")


def test_starts_that_are_no_numbers(read, error_of):
    answer = {"text": "cat", "answer_start": " 4"}
    record = {"question": "a ?", "context": CONTEXT, "answers": [answer]}
    assert read("s.jsonl", rows(record), "qa")[0].answers == (Answer("cat", 4),)
    answer["answer_start"] = "--5"
    problem = 'an answer must have "text", a string, and optionally "answer_start", a whole number'
    assert problem in error_of("s.jsonl", rows(record), "qa")
