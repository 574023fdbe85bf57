"""Counts of the real files, after the README beside them."""

import collections

import pytest
from example_files import settings

from kbert.data.examples import TextExample
from kbert.errors import UserError
from kbert.tasks.examples import read_split
from kbert.tasks.registry import get_task


@pytest.mark.parametrize(
    ("path", "task", "flags", "counts"),
    [
        ("sst2/dev.tsv", "classify", {}, {"0": 428, "1": 444}),
        ("sst2/train.tsv.gz", "classify", {}, {"0": 29780, "1": 37569}),
        ("thucnews/dev.txt", "classify", {}, {str(i): 1000 for i in range(10)}),
        ("chnsenticorp/dev.tsv", "classify", {}, {"0": 607, "1": 593}),
        ("mrpc/train.tsv", "pair", {}, {"0": 1169, "1": 2407}),
        ("rte/test.tsv", "pair", {}, {"0": 390, "1": 410}),
        (
            "cola/in_domain_dev.tsv",
            "classify",
            {"text_column": "3", "label_column": "1"},
            {"0": 162, "1": 365},
        ),
        (
            "ocnli/dev.json",
            "pair",
            {},
            {"contradiction": 900, "entailment": 947, "neutral": 1103},
        ),
    ],
)
def test_real_labels(shared_data, path, task, flags, counts):
    found = read_split(shared_data / path, settings(task, **flags))
    assert collections.Counter(e.label for e in found) == counts


def test_real_texts(shared_data):
    first = read_split(shared_data / "mrpc/train.tsv", settings("pair"))[0]
    assert first.text.startswith('Amrozi accused his brother, whom he called "the witness", of')
    assert first.text_pair.startswith('Referring to him as only "the witness", Amrozi')
    flags = {"text_column": "5", "text_pair_column": "6", "label_column": "4"}
    found = read_split(shared_data / "stsb/sts-train.tsv.gz", settings("regress", **flags))
    assert len(found) == 5749 and all(0 <= e.label <= 5 for e in found)
    assert found[1] == TextExample(
        "sts-train.tsv.gz, line 2",
        "A man is playing a large flute.",
        "A man is playing a flute.",
        3.8,
    )


def entities(examples):
    return collections.Counter(t[2:] for e in examples for t in e.tags if t.startswith("B-"))


@pytest.mark.parametrize(
    ("path", "flags", "sentences", "counts"),
    [
        (
            "wnut17/emerging.dev.conll",
            {},
            1009,
            {
                "corporation": 34,
                "creative-work": 105,
                "group": 39,
                "location": 74,
                "person": 470,
                "product": 114,
            },
        ),
        (
            "wikineural_en/val.conllu.gz",
            {"text_column": "1"},
            11590,
            {"LOC": 5904, "MISC": 4173, "ORG": 3512, "PER": 5593},
        ),
        (
            "resume_ner_zh/dev.char.bmes",
            {},
            463,
            {
                "CONT": 33,
                "EDU": 106,
                "LOC": 2,
                "NAME": 110,
                "ORG": 523,
                "PRO": 18,
                "RACE": 15,
                "TITLE": 690,
            },
        ),
    ],
)
def test_real_entities(shared_data, path, flags, sentences, counts):
    found = read_split(shared_data / path, settings("tag", **flags))
    assert len(found) == sentences and entities(found) == counts
    assert {tag[:2] for e in found for tag in e.tags} == {"O", "B-", "I-"}


def test_real_parts_of_speech(shared_data):
    path = shared_data / "ud_english_ewt/en_ewt-ud-dev.conllu.gz"
    found = read_split(path, settings("tag"))
    assert len(found) == 2001 and len({tag for e in found for tag in e.tags}) == 17
    assert found[0].words == ("From", "the", "AP", "comes", "this", "story", ":")
    assert found[0].tags == ("ADP", "DET", "PROPN", "VERB", "DET", "NOUN", "PUNCT")


@pytest.mark.parametrize(
    ("path", "questions", "impossible", "answers"),
    [
        ("squad/dev-v1.1.json.gz", 10570, 0, 34726),
        ("squad/dev-v2.0.json.gz", 11873, 5945, None),
        ("squad/xquad.en.json.gz", 1190, 0, 1190),
    ],
)
def test_real_questions(shared_data, path, questions, impossible, answers):
    found = read_split(shared_data / path, settings("qa"))
    assert len(found) == questions and sum(e.is_impossible for e in found) == impossible
    assert all(bool(e.answers) != e.is_impossible for e in found)
    assert answers in (None, sum(len(e.answers) for e in found))
    for e in found[:999]:
        assert all(e.context[a.start : a.start + len(a.text)] == a.text for a in e.answers)


def test_real_answers_that_are_not_there(shared_data):
    """Five answers of the file are not where they should be, and two questions are empty."""
    reports = []
    path = shared_data / "cmrc2018/cmrc2018_trial.json.gz"
    found = read_split(path, settings("qa", skip_bad_lines=True), report=reports.append)
    assert len(found) == 1002 - 2
    assert len(get_task("qa").checked_for_training(found, True, reports.append)) == 1000 - 5
    assert reports == [
        "note: 2 of 1,002 examples of cmrc2018_trial.json.gz are skipped; the first: "
        "cmrc2018_trial.json.gz, question TRIAL_776_QUERY_4: the question is empty.",
        "note: 5 of 1,000 training questions are skipped; the first: cmrc2018_trial.json.gz, "
        "question TRIAL_210_QUERY_0: the answer '俗名龙尖' is not at character 14 of the context; "
        "it occurs at 13.",
    ]
    with pytest.raises(UserError, match=r"question TRIAL_210_QUERY_0: the answer .* is not at"):
        get_task("qa").checked_for_training(found, False, print)
