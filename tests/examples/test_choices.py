"""Choices in the layouts of public datasets, and what their labels mean."""

import json

import pytest
from example_files import rows

from kbert.data.examples import ChoiceExample

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    "record",
    [
        {"text": "a", "choices": ["c", "d"], "label": 1},
        {"text": "a", "endings": ["c", "d"], "label": "d"},
        {"premise": "a", "choice1": "c", "choice2": "d", "label": "choice2"},
    ],
)
def test_choices_of_json(read, record):
    expected = [ChoiceExample("t.jsonl, line 1", "a", ("c", "d"), 1)]
    assert read("t.jsonl", rows(record), "choice", first_choice="0") == expected


def labels(read, name, text, **flags):
    return [example.label for example in read(name, text, "choice", **flags)]


def table(values, choices="bike,car,hat", header="question,A,B,C,answer"):
    return header + "\n" + "".join(f"What is {i}?,{choices},{v}\n" for i, v in enumerate(values))


@pytest.mark.parametrize(
    ("values", "expected", "meaning"),
    [
        ("ABC", [0, 1, 2], "the name"),
        ("abc", [0, 1, 2], "the name"),
        (["(A)", "b)", "C."], [0, 1, 2], "the letter or number (from 0)"),
        ("021", [0, 2, 1], "the letter or number (from 0)"),
        ("132", [0, 2, 1], "the letter or number (from 1)"),
        (["1.0", "3.0"], [0, 2], "the letter or number (from 1)"),
        (["hat", "bike"], [2, 0], "the text"),
    ],
)
def test_what_labels_mean(read, values, expected, meaning):
    reports = []
    assert labels(read, "t.csv", table(values), report=reports.append) == expected
    assert reports == [f"note: t.csv: interpreting each label as {meaning} of the right choice"]
    header = "question,choice1,choice2,choice3,answer"
    if meaning != "the name":
        assert labels(read, "t.csv", table(values, header=header)) == expected


def test_names_of_columns_come_first(read):
    """choice1 is the name of the first choice; a number on its own is not."""
    header = "question,choice1,choice2,choice3,label"
    values = ["choice3", "choice1"]
    assert labels(read, "t.csv", table(values, header=header)) == [2, 0]
    header = "question,ending0,ending1,ending2,label"
    assert labels(read, "t.csv", table("1", header=header)) == [1]


def test_labels_that_may_be_two_things(read, error_of):
    """Neither 0 nor 3 occurs, so the numbers may begin with 0 or 1."""
    text = table("1212")
    assert error_of("t.csv", text, "choice") == (
        "t.csv: the label '1' is ambiguous: it may be the letter or number (from 0) or the letter "
        "or number (from 1) of the right choice, and the other labels do not settle it. Set "
        "--first_choice to the number of the first choice, 0 or 1, or write letters, A, B and so "
        "on."
    )
    assert labels(read, "t.csv", text, first_choice="0") == [1, 2, 1, 2]
    assert labels(read, "t.csv", text, first_choice="1") == [0, 1, 0, 1]
    text = table("23", choices="3,2,7")
    assert (
        "the label '3' is ambiguous: it may be the text or the letter or number (from 1)"
        in error_of("t.csv", text, "choice")
    )
    text = table("27", choices="3,2,7")
    assert labels(read, "t.csv", text) == [1, 2]  # 7 is only a text


def test_bad_labels_of_choices(read, error_of):
    assert "line 4: the label must be one of A, B, C; got 'D'" in error_of(
        "t.csv", table("ABD"), "choice"
    )
    problem = "line 4: the label must be in [1, 3], or a letter; got '4'"
    assert problem in error_of("t.csv", table("134"), "choice")
    assert "line 4: the label must be the text of one choice; got 'sky'" in error_of(
        "t.csv", table(["car", "hat", "sky"]), "choice"
    )
    assert labels(read, "t.csv", table("ABD"), skip_bad_lines=True) == [0, 1]


FIRST = ("bike", "car", "hat", "sky")
NESTED = [{"label": letter, "text": text} for letter, text in zip("ABCD", FIRST, strict=True)]
HF = {"text": list(FIRST), "label": list("ABCD")}


@pytest.mark.parametrize(
    ("record", "text", "choices"),
    [
        # CommonsenseQA and ARC, as their authors and as Hugging Face write them
        ({"answerKey": "C", "question": {"stem": "Q?", "choices": NESTED}}, "Q?", FIRST),
        ({"id": "1", "question": "Q?", "choices": HF, "answerKey": "C"}, "Q?", FIRST),
        (
            {"question": "Q?", "choices": HF | {"label": list("1234")}, "answerKey": "3"},
            "Q?",
            FIRST,
        ),
        ({"question_stem": "Q?", "choices": HF, "answerKey": "C"}, "Q?", FIRST),  # OpenBookQA
        (  # RACE
            {"article": "T.", "question": "Q?", "options": list(FIRST), "answer": "C"},
            "T.",
            tuple(f"Q? {choice}" for choice in FIRST),
        ),
        (
            {"article": "T.", "questions": ["Q?"], "options": [list(FIRST)], "answers": ["C"]},
            "T.",
            tuple(f"Q? {choice}" for choice in FIRST),
        ),
        (  # SWAG
            {
                **{"sent1": "T.", "sent2": "She", "label": 2},
                **{f"ending{i}": choice for i, choice in enumerate(FIRST)},
            },
            "T.",
            tuple(f"She {choice}" for choice in FIRST),
        ),
        ({"ctx": "T.", "endings": list(FIRST), "label": "2", "ind": 4}, "T.", FIRST),  # HellaSwag
        (  # Cosmos QA
            {
                **{"context": "T.", "question": "Q?", "label": "2"},
                **{f"answer{i}": choice for i, choice in enumerate(FIRST)},
            },
            "T.",
            tuple(f"Q? {choice}" for choice in FIRST),
        ),
        (  # MedMCQA
            {
                "question": "Q?",
                "cop": "C",
                **dict(zip(("opa", "opb", "opc", "opd"), FIRST, strict=True)),
            },
            "Q?",
            FIRST,
        ),
        ({"context": "T.", "question": "Q?", "answers": list(FIRST), "label": "C"}, "T.", None),
        (
            {"context": "T.", "query": "Q?", "options": list(FIRST), "label": 2},
            "T.",
            None,
        ),  # LogiQA
        ({"text": "T.", "question": "Q?", "choices": list(FIRST), "label": 2}, "T.", None),
        ({"passage": "T.", "stem": "Q?", "options": list(FIRST), "answer": 2}, "T.", None),
        ({"story": "T.", "question": "Q?", "choices": list(FIRST), "answer": 2}, "T.", None),
        ({"paragraph": "T.", "question": "Q?", "choices": list(FIRST), "answer": 2}, "T.", None),
        (  # DREAM
            {"dialogue": ["W: T.", "M: U."], "question": "Q?", "choice": FIRST, "answer": "hat"},
            "W: T. M: U.",
            None,
        ),
        ({"question": "Q?", "subject": "s", "choices": list(FIRST), "answer": "C"}, "Q?", FIRST),
    ],
)
def test_layouts(read, record, text, choices):
    choices = choices or tuple(f"Q? {choice}" for choice in FIRST)
    (example,) = read("t.jsonl", rows(record), "choice", first_choice="0")
    assert (example.text, example.choices, example.label) == (text, choices, 2)
    found = read("t.jsonl", rows(record), "choice", labeled=False)
    assert (found[0].text, found[0].choices, found[0].label) == (text, choices, None)


@pytest.mark.parametrize(
    ("header", "values", "expected"),
    [
        ("goal,sol1,sol2,label", "010", [0, 1, 0]),  # PIQA
        ("sentence,option1,option2,answer", "121", [0, 1, 0]),  # WinoGrande
        ("premise,choice1,choice2,label", "010", [0, 1, 0]),  # COPA
    ],
)
def test_pairs_of_choices(read, header, values, expected):
    assert labels(read, "t.csv", table(values, "bike,car", header)) == expected


@pytest.mark.parametrize(
    "cell", ["['x', \"y's\"]", '["x", "y\'s"]', "{'text': ['x', \"y's\"], 'label': ['A', 'B']}"]
)
def test_lists_in_a_cell(read, cell):
    text = f"question\tchoices\tanswerKey\na?\t{cell}\tB\n"
    (example,) = read("t.tsv", text, "choice")
    assert (example.text, example.choices, example.label) == ("a?", ("x", "y's"), 1)


def test_letters_and_numbers_of_one_file(read):
    """In ARC some questions number their choices."""
    numbered = {"text": ["x", "y"], "label": ["1", "2"]}
    lettered = {"text": ["x", "y"], "label": ["A", "B"]}
    text = rows(
        {"question": "a", "choices": lettered, "answerKey": "B"},
        {"question": "b", "choices": numbered, "answerKey": "1"},
    )
    assert labels(read, "t.jsonl", text) == [1, 0]


def test_several_questions_of_an_article(read, error_of):
    record = {
        "article": "T.",
        "questions": ["Q?", "R?"],
        "options": [["x", "y"], ["v", "w"]],
        "answers": ["B", "A"],
    }
    found = read("t.jsonl", rows(record), "choice")
    assert [(e.where, e.choices, e.label) for e in found] == [
        ("t.jsonl, line 1, question 1", ("Q? x", "Q? y"), 1),
        ("t.jsonl, line 1, question 2", ("R? v", "R? w"), 0),
    ]
    text = rows(record, record | {"answers": ["B"]})
    problem = 'line 2: "questions", "options" and "answers" must be lists of equal length'
    assert problem in error_of("t.jsonl", text, "choice")


def test_files_of_the_collection(read, shared_cases):
    folder = shared_cases / "choice"
    (example,) = read("c.csv", (folder / "columns.csv").read_bytes(), "choice")
    assert (example.text, example.choices, example.label) == ("What is red?", FIRST, 1)
    lines = (folder / "science.csv").read_text().splitlines()[1:]
    found = read("s.csv", (folder / "science.csv").read_bytes(), "choice")
    assert [example.label for example in found] == ["ABCDE".index(line[-1]) for line in lines]
    assert found[0].choices == (*FIRST, "sun")


def test_a_column_in_front_of_each_choice(read):
    text = json.dumps({"text": "T.", "stem": "She", "choices": ["ran", "sat"], "label": "B"})
    (example,) = read("t.jsonl", text, "choice", text_pair_column="stem")
    assert (example.text, example.choices, example.label) == ("T.", ("She ran", "She sat"), 1)


def test_columns_that_are_not_read(read):
    record = {"question": "Q?", "fact": "Bikes have two thin wheels.", "topic": "things"}
    reports = []
    text = rows(record | {"choices": ["bike", "car"], "answer": "A"})
    read("t.jsonl", text, "choice", report=reports.append)
    assert reports[0] == (
        "note: t.jsonl: columns not read: 'fact'; to read one, set --text_column or "
        "--text_pair_column"
    )
    text = "question,fact,A,B,answer\nQ?,Bikes have two thin wheels.,bike,car,A\n"
    reports.clear()
    read("t.csv", text, "choice", report=reports.append)
    assert reports[0].startswith("note: t.csv: columns not read: 'fact'; ")


def test_what_copa_asks_for(read):
    text = "premise,asks_for,choice1,choice2,label\nIt rained.,cause,bike,car,1\n"
    (example,) = read("t.csv", text, "choice", first_choice="0")
    assert (example.text, example.choices) == ("It rained.", ("cause bike", "cause car"))
