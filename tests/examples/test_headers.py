"""Headers and columns that are found by the rows of a table."""

import pytest

FILMS = [
    "a dull film with a long title",
    "a lovely film about two brothers",
    "the best thing on a rainy day",
    "poor acting and a poor story",
    "nobody laughed in the whole cinema",
    "worth every minute of the evening",
]
MOODS = ["bad", "good", "good", "bad", "bad", "good"]
STARS = ["2", "5", "4", "1", "1", "5"]
NUMBERS, DAYS = [str(n) for n in range(18)], [f"2024-05-{n}" for n in range(10, 28)]


def table(*rows, comma=","):
    return "".join(comma.join(row) + "\n" for row in rows)


def found(examples):
    return [(example.text, example.label) for example in examples]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("header", "columns", "label"),
    [
        ("tweet,sentiment", (FILMS, MOODS), MOODS),
        ("Sentiment,Tweet", (MOODS, FILMS), MOODS),
        ("comment,stars", (FILMS, STARS), STARS),
        ("review,rating", (FILMS, STARS), STARS),
        ("Review Text,Rating", (FILMS, STARS), STARS),
        ("utterance_raw,mood", (FILMS, MOODS), MOODS),
        ("mood,what they said", (MOODS, FILMS), MOODS),
        ("opinion,points", (FILMS, STARS), STARS),
        (",opinion,mood", (NUMBERS, FILMS, MOODS), MOODS),
        ("no,day,opinion,mood", (NUMBERS, DAYS, FILMS, MOODS), MOODS),
        ("评价,情绪", (["房间太小，隔音很差。", "早餐丰富，下次再来。"] * 3, MOODS), MOODS),
        ("0,1", (FILMS, MOODS), MOODS),
    ],
)
def test_headers(read, header, columns, label, times):
    texts = next(column for column in columns if column[0] in (FILMS[0], "房间太小，隔音很差。"))
    longer = [(column * times)[: 6 * times] for column in columns]
    text = f"{header}\n" + table(*zip(*longer, strict=True))
    examples = read("t.csv", text, "classify", report=lambda line: None)
    assert found(examples) == list(zip(texts, label, strict=True)) * times
    assert examples[0].where == "t.csv, line 2"


@pytest.mark.parametrize("task", ["classify", "regress"])
@pytest.mark.parametrize("order", [1, -1])
def test_no_header(read, task, order):
    """The text comes first or second; the first label may be a rare one."""
    columns = [["one of a kind, and so on and on", *FILMS], ["7", *STARS]][::order]
    notes = []
    text = table(*zip(*columns, strict=True), comma="\t")
    examples = read("t.tsv", text, task, report=notes.append)
    assert [(e.text, float(e.label)) for e in examples] == [
        (film, float(stars)) for film, stars in zip(*columns[::order], strict=True)
    ]
    column = (0, 1)[::order]
    assert notes == [
        f"note: t.tsv: columns found by their values: text {column[0]}, label {column[1]}; set "
        f"--text_column, --label_column to choose others"
    ]


def test_note_of_a_header(read):
    notes = []
    text = "opinion,mood\n" + table(*zip(FILMS, MOODS, strict=True))
    read("t.csv", text, "classify", report=notes.append)
    assert notes == [
        "note: t.csv: treating the first row as a header: 'opinion', 'mood'; if it is an example, "
        "set --header=no",
        "note: t.csv: columns found by their values: text 'opinion', label 'mood'; set "
        "--text_column, --label_column to choose others",
    ]
    notes.clear()
    text = "review,sentiment\n" + table(*zip(FILMS, MOODS, strict=True))
    read("t.csv", text, "classify", report=notes.append)
    assert notes == []


@pytest.mark.parametrize(
    ("text", "task", "problem"),
    [
        (
            "great,odd\nbad,even\n",
            "classify",
            "t.csv: it is not clear whether the first row is a header: 'great', 'odd'. Set "
            "--header=yes or --header=no.",
        ),
        (
            "text,0,1\n" + table(*zip(FILMS, "010101", "101010", strict=True)),
            "multilabel",
            "not clear whether the first row is a header: 'text', '0', '1'.",
        ),
        (
            table(*zip(FILMS, reversed(FILMS), MOODS, strict=True)),
            "classify",
            "t.csv: it is not clear which column is the text; its columns, without a header, are 0 "
            "('a dull film with a long title'), 1 ('worth every minute of the evening'), 2 "
            "('bad'). Set --text_column; to read two texts, use --task=pair or add "
            "--text_pair_column.",
        ),
        (
            "sentence1,sentence2,label\n" + table(*zip(FILMS, reversed(FILMS), MOODS, strict=True)),
            "classify",
            "which column is the text; it has 'sentence1', 'sentence2', 'label'. Set",
        ),
        (
            "text,mood,place\n" + table(*zip(FILMS, MOODS, "aabbcc", strict=True)),
            "classify",
            "which column is the label; it has 'text', 'mood', 'place'. Set --label_column.",
        ),
        (
            "text,sentiment,rating\n" + table(*zip(FILMS, MOODS, STARS, strict=True)),
            "classify",
            "which column is the label; it has 'text', 'sentiment', 'rating'. Set --label_column.",
        ),
        (
            "text,mood\n" + table(*zip(FILMS, MOODS, strict=True)),
            "pair",
            "t.csv has 2 columns in its first row, but 3 are needed.",
        ),
        ("id,text\n1,so good\n", "classify", "which column is the label; it has 'id', 'text'."),
    ],
)
def test_what_is_not_clear(error_of, text, task, problem):
    assert problem in error_of("t.csv", text, task)


def test_a_first_row_of_values_is_no_header(read):
    """A label that is also a column's name, a label that occurs once, a text of one word."""
    rows = [("is this a question of taste", "question"), ("what now", "other")] * 3
    assert len(read("t.tsv", table(*rows, comma="\t"), "classify")) == 6
    rows = [("great", "neutral"), *zip(FILMS, ["positive", "negative"] * 3, strict=True)]
    assert len(read("t.tsv", table(*rows, comma="\t"), "classify")) == 7


def test_a_repeated_header_is_a_bad_line(read, error_of):
    text = "text,label\n" + table(*zip(FILMS, MOODS, strict=True))
    assert "t.csv, line 8: the line repeats the header." in error_of("t.csv", text * 2, "classify")
    assert len(read("t.csv", text * 2, "classify", skip_bad_lines=True)) == 12


def test_header_of_flags(read):
    text = "opinion,mood\n" + table(*zip(FILMS, MOODS, strict=True))
    examples = read("t.csv", text, "classify", header="no", text_column="0", label_column="1")
    assert (examples[0].text, examples[0].label) == ("opinion", "mood")


def test_texts_without_labels(read):
    examples = read("t.csv", "opinion\n" + "\n".join(FILMS * 2), "classify", labeled=False)
    assert [e.text for e in examples] == FILMS * 2
    examples = read("t.csv", "\n".join(FILMS), "classify", labeled=False)
    assert [e.text for e in examples] == FILMS


def test_keys_of_json_by_their_values(read, error_of):
    lines = "".join(
        f'{{"n": {n}, "mood": "{mood}", "said": "{film}"}}\n'
        for n, (film, mood) in enumerate(zip(FILMS, MOODS, strict=True))
    )
    assert found(read("t.jsonl", lines, "classify")) == list(zip(FILMS, MOODS, strict=True))


def test_the_case_of_a_header(shared_cases, read):
    content = (shared_cases / "headers/tweet_sentiment.csv").read_bytes()
    examples = read("t.csv", content, "classify")
    assert examples[0].text == "a dull film number 0"
    assert {example.label for example in examples} == {"negative", "positive"}


def test_chinese_titles_with_digits_are_no_codes(read):
    rows = [(("体育", "财经")[n % 3 == 0], f"第{n}届运动会新闻") for n in range(12)]
    examples = read("t.txt", table(*rows, comma="\t"), "classify", report=lambda line: None)
    assert found(examples) == [(title, label) for label, title in rows]


@pytest.mark.parametrize(
    ("task", "names", "columns"),
    [
        ("classify", "topic,sentence,set", (MOODS, FILMS, ["dev", "train"] * 3)),
        ("classify", "comment,score,flair", (FILMS, STARS, MOODS)),
        ("multilabel", "text,rating,action,comedy", (FILMS, MOODS, "010101", "001100")),
        ("classify", "question,answer,correct", (FILMS, ["a b", "c"] * 3, "010011")),
    ],
)
def test_a_vague_name_beside_another_label(error_of, task, names, columns):
    text = f"{names}\n" + table(*zip(*columns, strict=True)) * 2
    message = error_of("t.csv", text, task)
    assert "it is not clear which column is the label" in message
    assert "Set --label_column" in message


@pytest.mark.parametrize(
    ("names", "columns", "label"),
    [
        ("ID,Target,Tweet,Stance", (NUMBERS[:6], ["dev", "train"] * 3, FILMS, MOODS), MOODS),
        ("topic,sentence,annotation,set", (STARS, FILMS, MOODS, STARS), MOODS),
        ("id,keyword,text,target", (NUMBERS[:6], ["fire", "flood"] * 3, FILMS, "010011"), "010011"),
        ("review,rating,brand", (FILMS, STARS, MOODS), STARS),
        ("post,topic,user_id", (FILMS, MOODS, STARS), MOODS),
    ],
)
def test_a_name_that_is_clear(read, names, columns, label):
    text = f"{names}\n" + table(*zip(*columns, strict=True))
    assert found(read("t.csv", text, "classify")) == list(zip(FILMS, label, strict=True))


def test_a_second_text_that_is_short(read, error_of):
    words = ["rain shower head", "deck over", "tub faucet", "garden hose", "deck", "wood screws"]
    columns = (NUMBERS[:6], FILMS, words, ["2.5", "3", "1", "2.25", "3", "1.5"])
    text = "id,product,search_term,relevance\n" + table(*zip(*columns, strict=True))
    message = error_of("t.csv", text, "regress")
    assert "it is not clear which column is the text;" in message
    assert "Set --text_column and --text_pair_column." in message
    flags = {"text_column": "product", "text_pair_column": "search_term"}
    assert read("t.csv", text, "regress", **flags)[0].text_pair == words[0]
    columns = (FILMS, ["web", "shop"] * 3, columns[-1])
    text = "product,place,relevance\n" + table(*zip(*columns, strict=True))
    assert read("t.csv", text, "regress")[0].text_pair is None
