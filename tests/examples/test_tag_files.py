"""Files of tagged words as people have them: comments, numbers, columns and schemes."""

import json

import pytest
from example_files import rows, settings

from kbert.data.examples import TagExample, read_label_names
from kbert.tasks.examples import read_split
from kbert.tasks.labels import keep_known_labels, label_names

pytestmark = pytest.mark.smoke


def sentences(read, name, text, **flags):
    found = read(name, text, "tag", report=lambda line: None, **flags)
    return [(" ".join(e.words), " ".join(e.tags or ())) for e in found]


# Comments

MULTICONER = (
    "# id 5239d808-0001\tdomain=en\nhis _ _ O\nsonny _ _ B-PER\nsharrock _ _ I-PER\n\n"
    "# id 5239d808-0002\tdomain=en\n# _ _ O\n# _ _ O\nparis _ _ B-LOC\n"
)
GERMEVAL = (
    "#\thttp://de.wikipedia.org/wiki/A [2009-10-17]\n1\tAufgrund\tO\tO\n2\tFC\tB-ORG\tO\n"
    "3\tBayern\tI-ORG\tB-LOC\n\n#\thttp://de.wikipedia.org/wiki/B [2010-01-19]\n1\t#\tO\tO\n"
)
UNER = (
    "# sent_id = n01\n# text = Anna Ü.\n1\tAnna\tB-PER\t-\tA\n2\tÜ.\tO\t-\tA\n\n"
    "# sent_id = n02\n# text = Oslo\n1\tOslo\tB-LOC\t-\tA\n"
)
ONTONOTES = (
    "#begin document (bc/cctv/00); part 000\nbc/cctv 0 0 In IN O\n"
    "bc/cctv 0 1 Oslo NNP B-GPE\nbc/cctv 0 2 . . O\n\n"
    "#end document\n#begin document (bc/cctv/01); part 000\nbc/cctv 0 0 It PRP O\n\n#end document\n"
)
WNUT = "#\tO\n#Oslo\tB-location\n\n@anna\tO\n#\tO\n\n#\tO\n"
CONLL_2003 = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n# NN O O\n\n# NN O O\n"
CHARACTERS = "张\tB-PER\n三\tI-PER\n\u3000\tO\n\n#\tO\n京\tB-LOC\n"


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        (
            MULTICONER,
            {},
            [("his sonny sharrock", "O B-PER I-PER"), ("# # paris", "O O B-LOC")],
        ),
        (
            GERMEVAL,
            {"text_column": "1", "label_column": "2"},
            [("Aufgrund FC Bayern", "O B-ORG I-ORG"), ("#", "O")],
        ),
        (
            GERMEVAL,
            {"text_column": "1", "label_column": "3"},
            [("Aufgrund FC Bayern", "O O B-LOC"), ("#", "O")],
        ),
        (
            UNER,
            {"text_column": "1", "label_column": "2"},
            [("Anna Ü.", "B-PER O"), ("Oslo", "B-LOC")],
        ),
        (ONTONOTES, {"text_column": "3"}, [("In Oslo .", "O B-GPE O"), ("It", "O")]),
        (WNUT, {}, [("# #Oslo", "O B-location"), ("@anna #", "O O"), ("#", "O")]),
        (CONLL_2003, {}, [("EU #", "B-ORG O"), ("#", "O")]),
        (CHARACTERS, {}, [("张 三 \u3000", "B-PER I-PER O"), ("# 京", "O B-LOC")]),
    ],
)
def test_comments_are_no_words(read, text, flags, expected):
    assert sentences(read, "t.conll", text, **flags) == expected
    found = sentences(read, "t.tsv", text, labeled=False, **flags)
    assert [words for words, _ in found] == [words for words, _ in expected]


def test_comments_of_one_column(read):
    text = "# a comment\nthe\n#\ncat\n\n#\nsat\n"
    found = sentences(read, "t.conll", text, labeled=False)
    assert [words for words, _ in found] == ["the # cat", "# sat"]


def test_a_tag_that_no_other_word_has_is_a_comment(read):
    assert sentences(read, "t.conll", "# 12\na O\n\n# 13\n# O\n") == [("a", "O"), ("#", "O")]


# Columns


@pytest.mark.parametrize(("text", "count"), [(GERMEVAL, 4), (UNER, 5)])
def test_columns_that_must_be_named(error_of, text, count):
    message = error_of("t.conll", text, "tag")
    assert message.startswith(f"t.conll has {count} columns, of which the first numbers the words;")
    assert message.endswith("numbered from 0, such as --text_column=1 --label_column=2.")
    message = error_of("t.conll", ONTONOTES, "tag", skip_bad_lines=True)
    assert "t.conll has 6 columns, of which the first is the same in all lines of a" in message


def test_numbered_words(read):
    text = "0\tHer\tO\n1\tOslo\tB-LOC\n\n0\tIt\tO\n"
    reports = []
    found = read("t.tsv", text, "tag", report=reports.append)
    assert [e.words for e in found] == [("Her", "Oslo"), ("It",)]
    note = "the first column (column 0) contains word numbers; words are read from column 1"
    assert reports[0] == f"note: t.tsv: {note}"
    assert sentences(read, "t.tsv", "1 O\n2 O\n4 O\n") == [("1 2 4", "O O O")]


def test_languages_in_front_of_words(read):
    """As WikiANN is distributed."""
    text = "en:R.\tO\nen:Oslo\tB-LOC\nen::\tO\n\nen:en:\tO\n"
    assert sentences(read, "t.tsv", text) == [("R. Oslo :", "O B-LOC O"), ("en:", "O")]
    text = "en:R.\tO\nde:Oslo\tB-LOC\nfr\tO\n"
    assert sentences(read, "t.tsv", text) == [("en:R. de:Oslo fr", "O B-LOC O")]


def test_headers_of_columns(read):
    text = "word\ttag\nthe\tO\n\nword\ttag\ncat\tB-X\n"
    assert sentences(read, "t.tsv", text)[0] == ("the", "O")
    assert sentences(read, "t.tsv", "word tags the\nO O O\n") == [("word O", "the O")]


IDS = "sentence_id\twords\tlabels\n0\tIn\tO\n0\tOslo\tB-LOC\n1\tIt\tO\n1\trained\tO\n"
KAGGLE = "Sentence #\tWord\tPOS\tTag\nSentence: 1\tIn\tIN\tO\n\tOslo\tNNP\tB-LOC\n"
KAGGLE += "Sentence: 2\tIt\tPRP\tO\n\trained\tVBD\tO\n"
IN_OSLO = [("In Oslo", "O B-LOC"), ("It rained", "O O")]


def test_ids_of_sentences(read, error_of):
    assert sentences(read, "t.tsv", IDS) == IN_OSLO
    assert sentences(read, "t.tsv", IDS, text_column="1", label_column="2") == IN_OSLO
    assert sentences(read, "t.tsv", IDS.partition("\n")[2]) == IN_OSLO
    message = "t.tsv has 4 columns, of which the first numbers the sentences"
    assert message in error_of("t.tsv", KAGGLE, "tag")
    assert sentences(read, "t.tsv", KAGGLE, text_column="1", label_column="3") == IN_OSLO


def test_numbers_that_run_on(read, error_of):
    text = "0\tIn\tO\n1\tOslo\tB-LOC\n\n2\tIt\tO\n3\trained\tO\n"
    message = "t.tsv has 3 columns, of which the first has numbers; one line is '3 rained O'."
    assert message in error_of("t.tsv", text, "tag")
    assert sentences(read, "t.tsv", text, text_column="1", label_column="2") == IN_OSLO


@pytest.mark.parametrize("header", ["token\tentity\n", "Wort\tNE-COARSE\n"])
@pytest.mark.parametrize("comment", ["", "# language = fr\n"])
def test_headers_with_unknown_names(read, header, comment):
    text = "In\tO\nOslo\tB-LOC\n\nIt\tO\nrained\tO\n"
    assert sentences(read, "t.tsv", header + comment + text) == IN_OSLO
    assert sentences(read, "t.tsv", comment + header + text) == IN_OSLO


def test_headers_of_several_columns(read, error_of):
    """As in HIPE; column 1 has the entities."""
    text = "TOKEN\tNE\tMISC\n# language = fr\nIn\tO\t_\nOslo\tB-LOC\t_\n"
    assert sentences(read, "t.tsv", text, label_column="1") == IN_OSLO[:1]
    assert error_of("t.tsv", text, "tag") == (
        "t.tsv has 3 columns, of which the last is '_' in all lines; entity tags are in column 1, "
        "counted from 0. Name the column to read, such as --label_column=1."
    )


def test_tags_in_front_of_words(read):
    """As in the files of MIT."""
    text = "O\tIn\nB-LOC\tOslo\n\nO\tIt\nO\trained\n"
    reports = []
    (example, _) = read("t.bio", text, "tag", report=reports.append)
    assert (example.words, example.tags) == (("In", "Oslo"), ("O", "B-LOC"))
    assert reports[0] == "note: t.bio: the tags are in column 0, the words in column 1"


def test_documents_end_sentences(read):
    text = "-DOCSTART- O\nIn O\nOslo B-LOC\n-DOCSTART- O\nIt O\nrained O\n"
    assert sentences(read, "t.conll", text) == IN_OSLO


@pytest.mark.parametrize("space", [" ", "\2"])
def test_a_sentence_in_each_line(error_of, space):
    text = "In Oslo\tO B-LOC\nIt rained\tO O\n".replace(" ", space)
    message = error_of("t.tsv", text, "tag")
    assert message.startswith("t.tsv has a sentence in each line, such as 'It")
    assert 'or JSON lines: {"words": ["the", "cat"], "tags": ["O", "O"]}.' in message


def test_quotes_of_csv(error_of):
    message = error_of("t.tsv", '""""\tO\nOslo\tB-LOC\n', "tag")
    assert 't.tsv has the word """", which is how CSV writes a quote.' in message


# Schemes


SCHEMES = {
    "IOB2": "B-PER I-PER O B-LOC B-LOC",
    "IOB1": "I-PER I-PER O I-LOC B-LOC",
    "BIOES": "B-PER E-PER O S-LOC S-LOC",
    "BILOU": "B-PER L-PER O U-LOC U-LOC",
    "BMES": "B-PER M-PER O S-LOC S-LOC",
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("form", ["{0}-{1}", "{0}_{1}", "{0}:{1}", "{1}-{0}", "{1}_{0}"])
def test_schemes_of_files(read, scheme, form):
    tags = [tag if tag == "O" else form.format(*tag.split("-")) for tag in SCHEMES[scheme].split()]
    reports = []
    text = "".join(f"w{i} {tag}\n" for i, tag in enumerate(tags))
    (example,) = read("t.conll", text, "tag", report=reports.append)
    assert " ".join(example.tags) == SCHEMES["IOB2"]
    assert reports == [f"note: t.conll: the tags mark entities in {scheme}; types: LOC, PER"]
    (example,) = read("t.conll", text.lower(), "tag", report=reports.append)
    assert " ".join(example.tags) == "B-per I-per O B-loc B-loc"


def test_brackets_of_conll_2012(read):
    text = "#begin document (bc/cctv); part 000\nbc 0 0 John (PERSON*\nbc 0 1 Smith *)\n"
    text += "bc 0 2 left *\nbc 0 3 IBM (ORG)\n\n#end document\n"
    found = sentences(read, "t.conll", text, text_column="3")
    assert found == [("John Smith left IBM", "B-PERSON I-PERSON O B-ORG")]


def test_tables_with_commas(error_of):
    message = error_of("ner.csv", "Sentence #,Word,Tag\n1,the,O\n", "tag")
    assert "ner.csv is a comma-separated table. Convert it to a file with one word" in message


def test_bmes_and_segments_without_types(read):
    assert sentences(read, "t.txt", "今 B\n天 E\n好 S\n") == [("今 天 好", "B I B")]
    assert sentences(read, "t.txt", "今 B\n天 I\n好 O\n") == [("今 天 好", "B I O")]


@pytest.mark.parametrize(
    ("tags", "note"),
    [
        ("O PER PER LOC", "the tags mark entities in plain types with O; types: LOC, PER"),
        ("D N V", "the 3 tags mark no entities; each word is scored"),
        (
            "0 3 3 7",
            "the tags are ids, 0 to 7, of the labels in --label_names or in the model; without "
            "names, each word is scored",
        ),
    ],
)
def test_other_tags_stay(read, tags, note):
    reports = []
    text = "".join(f"a {tag}\n" for tag in tags.split())
    (example,) = read("t.conll", text, "tag", report=reports.append)
    assert " ".join(example.tags) == tags and reports == [f"note: t.conll: {note}"]


# Numbers


NAMES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def test_numbers_are_named(read):
    text = rows(
        {"tokens": ["EU", "rejects", "German", "call"], "ner_tags": [3, 0, 7, 0]},
        {"tokens": ["Peter", "Blackburn"], "ner_tags": [1, 2]},
    )
    examples = read("t.jsonl", text, "tag", report=lambda line: None)
    assert [e.tags for e in examples] == [("3", "0", "7", "0"), ("1", "2")]
    assert label_names(examples) == ("0", "1", "2", "3", "7")
    named = keep_known_labels(examples, NAMES, False, print)
    assert [e.tags for e in named] == [("B-ORG", "O", "B-MISC", "O"), ("B-PER", "I-PER")]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_objects(read, error_of, indent):
    items = [{"tokens": ["EU", "left"], "ner_tags": [3, 0]}, {"tokens": ["it"], "ner_tags": [0]}]
    found = read("t.json", json.dumps(items, indent=indent), "tag")
    assert found == [
        TagExample("t.json, item 1", ("EU", "left"), ("3", "0")),
        TagExample("t.json, item 2", ("it",), ("0",)),
    ]
    message = error_of("t.json", json.dumps([items[0], 3], indent=indent), "tag")
    assert "t.json, item 2: every item must be a JSON object; got 3." in message


def test_strings_of_words(read, error_of):
    text = rows(
        {"text": "the cat sat", "labels": "O B-X O"},
        {"text": "张三在", "labels": ["B-X", "I-X", "O"]},
    )
    assert sentences(read, "t.jsonl", text) == [
        ("the cat sat", "O B-X O"),
        ("张 三 在", "B-X I-X O"),
    ]
    text = rows({"text": "the cat", "labels": "O B-X O"})
    assert "line 1: 2 words, but 3 tags" in error_of("t.jsonl", text, "tag")


@pytest.mark.parametrize(
    ("words", "tags", "expected"),
    [
        ("['EU', \"it's\"]", "['B-ORG', 'O']", ("EU it's", "B-ORG O")),
        ('["EU", "left"]', "[3, 0]", ("EU left", "3 0")),
        ("['EU' 'left']", "[3 0]", ("EU left", "3 0")),
        ("[ EU ]", "O B-ORG O", ("[ EU ]", "O B-ORG O")),
        ("[ 3 ]", ["O", "O", "O"], ("[ 3 ]", "O O O")),
    ],
)
def test_strings_of_lists(read, words, tags, expected):
    text = rows({"tokens": words, "ner_tags": tags})
    assert sentences(read, "t.jsonl", text) == [expected]


def test_numbers_of_another_scheme(read):
    names = ("O", "B-X", "M-X", "E-X", "S-X")
    text = rows({"words": list("abcde"), "labels": [1, 2, 3, 0, 4]})
    (example,) = read("t.json", text, "tag", report=lambda line: None)
    (named,) = keep_known_labels([example], names, False, print)
    assert named.tags == ("B-X", "M-X", "E-X", "O", "S-X")


def test_names_of_a_model_with_another_scheme():
    """The file is in IOB2 after reading; the model's labels may be written otherwise."""
    example = TagExample("", tuple("abcde"), ("B-X", "I-X", "I-X", "O", "B-X"))
    for names, expected in (
        (("O", "B-X", "M-X", "E-X", "S-X"), "B-X M-X E-X O S-X"),
        (("O", "B-X", "I-X", "L-X", "U-X"), "B-X I-X L-X O U-X"),
        (("O", "B_X", "I_X"), "B_X I_X I_X O B_X"),
        (("O", "X"), "X X X O X"),
        (("O", "I-X"), "I-X I-X I-X O I-X"),
        (("o", "b_x", "i_x"), "b_x i_x i_x o b_x"),
    ):
        (named,) = keep_known_labels([example], names, False, print)
        assert " ".join(named.tags) == expected


# The files of the collection


def test_files_of_the_collection(shared_cases):
    def found(name, **flags):
        path = shared_cases / name
        examples = read_split(path, settings("tag", **flags), report=lambda line: None)
        return [(" ".join(e.words), " ".join(e.tags)) for e in examples]

    assert found("conll_comments/multiconer.conll") == [
        ("his playlist includes sonny sharrock", "O O O B-PER I-PER"),
        ("it is in paris", "O O O B-LOC"),
    ]
    assert found("conll_comments/germeval.tsv", text_column="1", label_column="2") == [
        ("Aufgrund seiner Zeit Bayern", "O O O B-LOC"),
        ("Der FC Bayern", "O B-ORG I-ORG"),
    ]
    assert found("tags/underscore.conll")[0] == ("张 三 在 北 京", "B-PER I-PER O B-LOC I-LOC")
    assert found("tags/lower.conll")[0] == ("张 三 在 北 京", "B-per I-per O B-loc I-loc")
    examples = read_split(
        shared_cases / "ner_json/train.jsonl", settings("tag"), report=lambda line: None
    )
    names = read_label_names(str(shared_cases / "ner_json/labels.txt"))
    assert keep_known_labels(examples, names, False, print)[0].tags == ("B-ORG", "O", "B-MISC", "O")


def test_a_word_that_is_a_hash_may_have_a_tag_of_its_own(read):
    text = "# B-X\n1 I-X\nrule O\n\n# newdoc\nthe O\n"
    assert sentences(read, "x.conll", text) == [("# 1 rule", "B-X I-X O"), ("the", "O")]
