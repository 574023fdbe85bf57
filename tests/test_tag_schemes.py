"""Schemes of entity tags, against seqeval's definition of them."""

import random

import pytest

from kbert.data.tag_schemes import tag_scheme, to_iob2
from kbert.tasks.metrics import entity_scores

pytestmark = pytest.mark.smoke

PREFIXES = {"IOB2": "BI", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}
# seqeval/scheme.py (version 1.2.2): the pairs (previous, next) that begin an entity or continue it,
# and those behind which it is complete. "*": any. "=": of the same type, "!": of another.
SEQEVAL = {
    "IOB2": {
        "start": {"*B*"},
        "inside": {"BI=", "II="},
        "end": {"IO*", "II!", "IB*", "BO*", "BI!", "BB*"},
    },
    "BIOES": {
        "start": {"*B*", "*S*"},
        "inside": {"BI=", "BE=", "II=", "IE="},
        "end": {"S**", "E**"},
    },
    "BILOU": {
        "start": {"*B*", "*U*"},
        "inside": {"BI=", "BL=", "II=", "IL="},
        "end": {"U**", "L**"},
    },
}
SEQEVAL["BMES"] = {
    name: {pair.replace("I", "M") for pair in pairs} for name, pairs in SEQEVAL["BIOES"].items()
}


def strict_entities(tags, patterns):
    """`Tokens.entities` of seqeval: strict mode."""

    def fits(pairs, before, after):
        relation = "=" if before[2:] == after[2:] else "!"
        return any(
            a in ("*", before[0]) and b in ("*", after[0]) and r in ("*", relation)
            for a, b, r in pairs
        )

    tags = [*tags, "O"]
    entities, place, before = [], 0, "O"
    while place < len(tags):
        if fits(patterns["start"], before, tags[place]):
            end = place + 1
            while end < len(tags) and fits(patterns["inside"], tags[end - 1], tags[end]):
                end += 1
            if end < len(tags) and fits(patterns["end"], tags[end - 1], tags[end]):
                entities.append((tags[place][2:], place, end))
            place = end
        else:
            place += 1
        before = tags[place - 1]
    return entities


def default_entities(tags):
    """`get_entities` of seqeval: default mode, which knows B, I, E and S."""
    entities, begin, before = [], None, "O"
    for place, tag in enumerate([*tags, "O"]):
        other = before[2:] != tag[2:]
        if before != "O" and (before[0] in "ES" or tag == "O" or tag[0] in "BS" or other):
            entities.append((before[2:], begin, place))
        if tag != "O" and (tag[0] in "BS" or before == "O" or before[0] in "ES" or other):
            begin = place
        before = tag
    return entities


def random_rows(scheme, generator):
    types = ["PER", "LOC", "A-B"][: generator.randrange(1, 4)]
    pool = ["O", *(f"{letter}-{type}" for type in types for letter in PREFIXES[scheme])]
    rows = [generator.choices(pool, k=generator.randrange(1, 14)) for _ in range(4)]
    changed = [[t if generator.random() < 0.7 else generator.choice(pool) for t in r] for r in rows]
    return pool, rows, changed


def f1_of(rows, predictions, entities_of):
    sets = [
        {(n, *e) for n, row in enumerate(some) for e in entities_of(row)}
        for some in (rows, predictions)
    ]
    right, total = len(sets[0] & sets[1]), len(sets[0]) + len(sets[1])
    return 2 * right / total if total else 0.0


@pytest.mark.parametrize("name", PREFIXES)
def test_equals_seqeval(name):
    """2,000 random sets of tags, right or not by the scheme."""
    generator = random.Random(0)
    for _ in range(2000):
        pool, rows, _ = random_rows(name, generator)
        scheme = tag_scheme(pool)
        assert scheme.name == name
        for row in rows:
            assert scheme.strict_spans(row) == strict_entities(row, SEQEVAL[name])
            letters = str.maketrans("MLU", "IES")
            usual = [tag[0].translate(letters) + tag[1:] for tag in row]
            assert scheme.spans(row) == default_entities(usual)
        ((iob2,), found) = to_iob2([rows[0] + pool])
        assert found.name == name
        assert tag_scheme(iob2).spans(iob2) == scheme.spans(rows[0] + pool)


@pytest.mark.parametrize("name", PREFIXES)
def test_scores_equal_seqeval(name):
    generator = random.Random(1)
    for _ in range(50):
        pool, rows, predictions = random_rows(name, generator)
        scores = entity_scores(rows, predictions, pool)
        strict = f1_of(rows, predictions, lambda row: strict_entities(row, SEQEVAL[name]))
        assert scores["entity_f1_strict"] == pytest.approx(strict)
        scheme = tag_scheme(pool)
        assert scores["entity_f1"] == pytest.approx(f1_of(rows, predictions, scheme.spans))


@pytest.mark.parametrize(
    ("tags", "name", "roles"),
    [
        ("O", "IOB2", {}),
        ("O B-X I-X", "IOB2", {"B-X": ("B", "X"), "I-X": ("I", "X")}),
        ("o b_x i_x", "IOB2", {"b_x": ("B", "x"), "i_x": ("I", "x")}),
        ("O X-B X-I", "IOB2", {"X-B": ("B", "X"), "X-I": ("I", "X")}),
        ("O E-B E-I", "IOB2", {"E-B": ("B", "E"), "E-I": ("I", "E")}),
        ("B I O", "IOB2", {"B": ("B", "_"), "I": ("I", "_")}),
        ("O B-X I-X X [CLS] [SEP]", "IOB2", {"B-X": ("B", "X"), "I-X": ("I", "X")}),
        ("O B-X I-X MISC", "IOB2", {"B-X": ("B", "X"), "I-X": ("I", "X"), "MISC": ("I", "MISC")}),
        ("O I-X", "IOB2", {"I-X": ("I", "X")}),
        ("O S-X", "BIOES", {"S-X": ("S", "X")}),
        ("O PER", "plain types with O", {"PER": ("I", "PER")}),
        ("O E-MAIL PER", "plain types with O", {"E-MAIL": ("I", "E-MAIL"), "PER": ("I", "PER")}),
        ("O B_CELL DNA", "plain types with O", {"B_CELL": ("I", "B_CELL"), "DNA": ("I", "DNA")}),
        ("B-NP I-NP OTHER", "IOB2", {"B-NP": ("B", "NP"), "I-NP": ("I", "NP")}),
    ],
)
def test_sets_of_tags(tags, name, roles):
    scheme = tag_scheme(tags.split())
    assert (scheme.name, scheme.roles) == (name, roles)


@pytest.mark.parametrize(
    "tags",
    [
        "NOUN VERB X ADP",
        "NN VBZ , . -LRB-",
        "0 1 2",
        "N O S ^ Z L M V A R ! D P",  # parts of speech of tweets, where O is a pronoun
        "n v a d b m s i e o l",  # of Chinese, where o is an onomatopoeia
        "S-V S-N",
        "",
    ],
)
def test_sets_of_words(tags):
    assert tag_scheme(tags.split()) is None


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["I-X I-X B-X O"], ["B-X I-X B-X O"]),  # IOB1
        (["I-X O", "I-Y I-X"], ["B-X O", "B-Y B-X"]),  # B does not occur
        (["B-X I-X", "I-X O"], ["B-X I-X", "I-X O"]),  # an error in IOB2
        (["S-X E-X NOUN"], ["S-X E-X NOUN"]),  # no scheme
        (["O PER PER"], ["O PER PER"]),
        (["b-x i-x o"], ["B-x I-x O"]),
    ],
)
def test_files_become_iob2(rows, expected):
    assert to_iob2([row.split() for row in rows])[0] == [tuple(row.split()) for row in expected]


@pytest.mark.parametrize(
    ("names", "tag", "expected"),
    [
        ("O B-X I-X", "B-X", "B-X I-X I-X"),
        ("O B-X I-X", "I-X", "I-X I-X I-X"),
        ("O B-X M-X E-X S-X", "S-X", "B-X M-X E-X"),
        ("O B-X M-X E-X S-X", "B-X", "B-X M-X M-X"),
        ("O B-X M-X E-X S-X", "E-X", "M-X M-X E-X"),
        ("O B-X", "B-X", "B-X B-X B-X"),
        ("O X", "X", "X X X"),
        ("O X", "O", "O O O"),
    ],
)
def test_parts_of_a_word(names, tag, expected):
    assert tag_scheme(names.split()).split(tag, 3) == expected.split()
    assert tag_scheme(names.split()).split(tag, 1) == [tag]
