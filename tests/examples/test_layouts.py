"""Layouts of public datasets, with sentences of our own: how each is read, or why it is not."""

import csv
import io
import json

from kbert.errors import UserError

ROWS = 12
FIRST = [
    "The ferry left the harbour an hour late.",
    "Nobody had told the baker about the wedding.",
    "She painted the old fence green last summer.",
    "The committee will meet again in two weeks.",
    "A small dog sleeps under the kitchen table.",
    "He could not find his keys this morning.",
    "The museum is closed on the first Monday.",
    "Rain is expected in the north by noon.",
    "They sold their bicycle to a neighbour.",
    "The violin was older than the orchestra.",
    "Her train arrives at a quarter past nine.",
    "We planted three apple trees by the gate.",
]
SECOND = [f"Somebody said that {text[0].lower()}{text[1:]}" for text in FIRST]
TITLES = [" ".join(text.split()[:4]) for text in FIRST]
CHINESE = [
    "酒店位置很好，离地铁站不远。",
    "房间太小，隔音效果也很差。",
    "早餐种类丰富，下次还会再来。",
] * 4
NUMBERS = [str(n) for n in range(ROWS)]
CODES = [f"a{n}f{7 * n}c9" for n in range(ROWS)]


def cycle(*values):
    return [values[n % len(values)] for n in range(ROWS)]


def tsv(header, *columns):
    """A table; the header's names are separated by |."""
    lines = [header.replace("|", "\t")] if header else []
    return "\n".join([*lines, *map("\t".join, zip(*columns, strict=True))]) + "\n"


def table(header, *columns):
    """The same with commas, everything in quotes."""
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([header.split("|")] if header else [])
    writer.writerows(zip(*columns, strict=True))
    return file.getvalue()


def lines(**columns):
    rows = zip(*columns.values(), strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


BINARY, NLI = cycle("0", "1"), cycle("neutral", "entailment", "contradiction")
STARS, SCORES = cycle("5", "1", "3", "4"), cycle("3.8", "0.25", "5.0")
ONE_HOT = [cycle(*row) for row in ("01", "001", "0001", "00001", "1000", "01000")]
TOXIC = "toxic|severe_toxic|obscene|threat|insult|identity_hate"
NEWS = cycle("3", "4", "1", "2")
A, PAIR = FIRST[0], (FIRST[0], SECOND[0])
ONE_COLUMN = "1 column in its first row, but 2 are needed"
CLEAR = "it is not clear which column is "
TWO_TEXTS = "Set --text_column; to read two texts, use --task=pair or add --text_pair_column."

LAYOUTS = []  # name, file, task, content, what is expected, flags


def add(name, file, task, content, expected, **flags):
    """`expected` is text, second text and label of the first example, or a part of the error."""
    LAYOUTS.append((name, file, task, content, expected, flags))


def add_glue():
    ids = (NUMBERS, CODES)
    cola = tsv("", cycle("gj04", "bc01"), BINARY, cycle("", "*"), FIRST)
    add("CoLA", "c.tsv", "classify", cola, (A, None, "0"))
    add("SST-2", "s.tsv", "classify", tsv("sentence|label", FIRST, BINARY), (A, None, "0"))
    unlabeled = CLEAR + "the label; it has 'index', 'sentence'. Set --label_column."
    add("SST-2 test", "s.tsv", "classify", tsv("index|sentence", NUMBERS, FIRST), unlabeled)
    header = "Quality|#1 ID|#2 ID|#1 String|#2 String"
    mrpc = tsv(header, BINARY, *ids, FIRST, SECOND)
    add("MRPC", "m.tsv", "pair", mrpc, (*PAIR, "0"))
    add("MRPC as classify", "m.tsv", "classify", mrpc, TWO_TEXTS)
    header = "id|qid1|qid2|question1|question2|is_duplicate"
    add("QQP", "q.tsv", "pair", tsv(header, NUMBERS, *ids, FIRST, SECOND, BINARY), (*PAIR, "0"))
    header = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score"
    columns = (NUMBERS, cycle("news"), cycle("MSRvid"), cycle("2012"), NUMBERS, CODES, CODES)
    stsb = tsv(header, *columns, FIRST, SECOND, SCORES)
    add("STS-B of GLUE", "s.tsv", "regress", stsb, (*PAIR, 3.8))
    columns = (cycle("news"), cycle("MSRvid"), cycle("2012test"), cycle("0001", "0005", "0004"))
    stsb = tsv("", *columns, SCORES, FIRST, SECOND)
    add("STS-B", "s.tsv", "regress", stsb, (*PAIR, 3.8))
    header = "index|promptID|pairID|genre|sentence1_parse|sentence2_parse|sentence1|sentence2"
    header += "|label1|label2|gold_label"
    columns = (NUMBERS, *ids, cycle("fiction"), FIRST, SECOND, FIRST, SECOND)
    mnli = tsv(header, *columns, cycle("entailment"), cycle("neutral"), NLI)
    add("MNLI", "m.tsv", "pair", mnli, (*PAIR, "neutral"))
    qnli = tsv("index|question|sentence|label", NUMBERS, FIRST, SECOND, NLI)
    add("QNLI", "q.tsv", "pair", qnli, (*PAIR, "neutral"))
    wnli = tsv("index|sentence1|sentence2|label", NUMBERS, FIRST, SECOND, BINARY)
    add("RTE, WNLI", "w.tsv", "pair", wnli, (*PAIR, "0"))


def add_inference():
    snli = lines(
        annotator_labels=[[label] for label in NLI],
        gold_label=["-", *NLI[1:]],
        pairID=CODES,
        sentence1=FIRST,
        sentence1_binary_parse=FIRST,
        sentence2=SECOND,
        sentence2_parse=SECOND,
    )
    add("SNLI", "s.jsonl", "pair", snli, (FIRST[1], SECOND[1], "entailment"))
    header = "language|gold_label|sentence1|sentence2|promptID|genre|label1|label2|match"
    same = (NUMBERS, cycle("facetoface"), NLI, NLI, cycle("True"))
    xnli = tsv(header, cycle("sw"), NLI, FIRST, SECOND, *same)
    add("XNLI", "x.tsv", "pair", xnli, (*PAIR, "neutral"))
    xnli = tsv("premise|hypo|label", FIRST, SECOND, cycle("contradictory", "neutral"))
    add("XNLI, translated", "x.tsv", "pair", xnli, (*PAIR, "contradictory"))
    sick = ("pair_ID|sentence_A|sentence_B|relatedness_score|entailment_judgment", NUMBERS)
    sick = tsv(*sick, FIRST, SECOND, SCORES, cycle("NEUTRAL", "ENTAILMENT"))
    add("SICK", "s.txt", "regress", sick, (*PAIR, 3.8))
    flags = {"label_column": "entailment_judgment"}
    add("SICK, entailment", "s.txt", "pair", sick, (*PAIR, "NEUTRAL"), **flags)
    add("SICK, by its values", "s.txt", "pair", sick, (*PAIR, "NEUTRAL"))
    paws = tsv("id|sentence1|sentence2|label", NUMBERS, FIRST, SECOND, BINARY)
    add("PAWS-X", "p.tsv", "pair", paws, (*PAIR, "0"))
    add("LCQMC", "l.txt", "pair", tsv("", FIRST, SECOND, BINARY), (*PAIR, "0"))
    lcqmc = tsv("text_a|text_b|label", FIRST, SECOND, BINARY)
    add("LCQMC, with header", "l.tsv", "pair", lcqmc, (*PAIR, "0"))
    quora = table(
        "id|qid1|qid2|question1|question2|is_duplicate", *[NUMBERS] * 3, FIRST, SECOND, BINARY
    )
    add("Quora", "q.csv", "pair", quora, (*PAIR, "0"))


def add_superglue():
    ids = list(range(ROWS))
    truth = [True, False] * 6
    boolq = lines(question=FIRST, passage=SECOND, idx=ids, label=truth)
    add("BoolQ", "b.jsonl", "pair", boolq, (*PAIR, "true"))
    boolq = lines(question=FIRST, title=TITLES, answer=truth, passage=SECOND)
    add("BoolQ, original", "b.jsonl", "pair", boolq, (*PAIR, "true"))
    cb = lines(premise=FIRST, hypothesis=SECOND, label=NLI, idx=ids)
    add("CB", "c.jsonl", "pair", cb, (*PAIR, "neutral"))
    wic = lines(word=["late"] * ROWS, sentence1=FIRST, sentence2=SECOND, idx=ids, label=truth)
    add("WiC", "w.jsonl", "pair", wic, (*PAIR, "true"))
    multirc = lines(idx=ids, passage=[{"text": text, "questions": []} for text in FIRST])
    add("MultiRC", "m.jsonl", "pair", multirc, CLEAR + "the second text; it has 'idx', 'passage'")


def add_topics():
    add("AG News", "a.csv", "classify", table("", NEWS, TITLES, FIRST), TWO_TEXTS)
    flags = {"text_column": "1", "text_pair_column": "2", "label_column": "0"}
    both = (TITLES[0], A, "3")
    add("AG News, both", "a.csv", "classify", table("", NEWS, TITLES, FIRST), both, **flags)
    news = table("Class Index|Title|Description", NEWS, TITLES, FIRST)
    add("AG News, with header", "a.csv", "classify", news, TWO_TEXTS)
    flags = {"text_column": "Description"}
    add("AG News, one", "a.csv", "classify", news, (A, None, "3"), **flags)
    add("THUCNews", "t.txt", "classify", tsv("", CHINESE, NEWS), (CHINESE[0], None, "3"))
    trec = "\n".join(["DESC:manner How did serfdom develop ?"] * ROWS)
    add("TREC", "t.txt", "classify", trec, ONE_COLUMN)
    trec = table("label-coarse|label-fine|text", NEWS, cycle("9", "7", "8"), FIRST)
    add("TREC of HF", "t.csv", "classify", trec, CLEAR + "the label")
    news = table("|text|target|title", NUMBERS, FIRST, cycle("7", "4"), cycle("rec.autos"))
    add("20 Newsgroups", "n.csv", "classify", news, (A, None, "7"))
    questions = table("", NEWS, TITLES, FIRST, SECOND)
    add("Yahoo! Answers", "y.csv", "classify", questions, TWO_TEXTS)
    banking = table("text|category", FIRST, cycle("card_arrival", "lost_card"))
    add("Banking77", "b.csv", "classify", banking, (A, None, "card_arrival"))
    atis = tsv("", cycle("atis_flight", "atis_airfare"), FIRST)
    add("ATIS", "a.tsv", "classify", atis, (A, None, "atis_flight"))


def add_sentiment():
    polarity = table("", cycle("2", "1"), FIRST)
    add("Yelp polarity", "y.csv", "classify", polarity, (A, None, "2"))
    add("Yelp reviews", "y.jsonl", "classify", lines(stars=STARS, text=FIRST), (A, None, "5"))
    imdb = table("review|sentiment", FIRST, cycle("positive", "negative"))
    add("IMDb", "i.csv", "classify", imdb, (A, None, "positive"))
    senti = tsv("label|text_a", BINARY, CHINESE)
    add("ChnSentiCorp", "c.tsv", "classify", senti, (CHINESE[0], None, "0"))
    add(
        "Amazon polarity", "a.csv", "classify", table("", cycle("2", "1"), TITLES, FIRST), TWO_TEXTS
    )
    header = "Id|ProductId|UserId|HelpfulnessNumerator|Score|Time|Summary|Text"
    columns = (NUMBERS, CODES, CODES, BINARY, STARS, NUMBERS, TITLES)
    amazon = table(header, *columns, FIRST)
    add("Amazon fine food", "a.csv", "classify", amazon, (A, None, "5"))
    header = "textID|text|selected_text|sentiment"
    tweets = table(header, CODES, FIRST, TITLES, cycle("neutral", "positive"))
    add("Tweet sentiment of Kaggle", "t.csv", "classify", tweets, (A, None, "neutral"))
    header = "tweet_id|airline_sentiment|airline_sentiment_confidence|airline|name|text"
    columns = (NUMBERS, cycle("neutral", "negative"), SCORES, cycle("United", "Delta"), CODES)
    add("Airline", "a.csv", "classify", table(header, *columns, FIRST), (A, None, "neutral"))
    disaster = table("id|keyword|location|text|target", NUMBERS, *[cycle("")] * 2, FIRST, BINARY)
    add("Disaster tweets", "d.csv", "classify", disaster, (A, None, "0"))
    columns = (cycle("4", "0"), NUMBERS, cycle("Mon Apr 06 22:19:45 PDT 2009"))
    sentiment140 = table("", *columns, cycle("NO_QUERY"), CODES, FIRST)
    add("Sentiment140", "s.csv", "classify", sentiment140, CLEAR + "the label")
    flags = {"text_column": "5", "label_column": "0"}
    add("Sentiment140, by number", "s.csv", "classify", sentiment140, (A, None, "4"), **flags)
    header = "PhraseId|SentenceId|Phrase|Sentiment"
    phrases = tsv(header, NUMBERS, cycle("1", "2", "3"), FIRST, STARS)
    add("SST of Kaggle", "s.tsv", "classify", phrases, (A, None, "5"))
    emotion = "\n".join(f"{text};sadness" for text in FIRST)
    add("emotion", "e.txt", "classify", emotion, ONE_COLUMN)
    add("emotion of HF", "e.jsonl", "classify", lines(text=FIRST, label=NEWS), (A, None, "3"))
    add("tweet_eval", "t.txt", "classify", "\n".join(FIRST), ONE_COLUMN)
    setfit = lines(text=FIRST, label=NEWS, label_text=cycle("joy", "anger"))
    add("SetFit", "s.jsonl", "classify", setfit, (A, None, "joy"))
    spam = table("v1|v2|", cycle("ham", "spam"), FIRST, cycle(""))
    add("SMS spam", "s.csv", "classify", spam, (A, None, "ham"))
    header = "|count|hate_speech|offensive_language|neither|class|tweet"
    columns = (NUMBERS, cycle("3"), *[cycle("0", "3")] * 3, cycle("2", "1"))
    hate = table(header, *columns, FIRST)
    add("Hate speech", "h.csv", "classify", hate, (A, None, "2"))


def add_multilabel():
    jigsaw = table(f"id|comment_text|{TOXIC}", CODES, FIRST, *ONE_HOT)
    add("Jigsaw", "j.csv", "multilabel", jigsaw, (A, None, ("insult",)))
    go = tsv("", FIRST, cycle("27", "3,4", "1"), CODES)
    add("GoEmotions", "g.tsv", "multilabel", go, (A, None, ("27",)))
    header = "text|id|author|rater_id|example_very_unclear|admiration|anger|joy"
    columns = (CODES, CODES, NUMBERS, cycle("False", "True"), *ONE_HOT[:3])
    go = table(header, FIRST, *columns)
    add("GoEmotions, raw", "g.csv", "multilabel", go, (A, None, ()))
    reuters = lines(title=TITLES, text=FIRST, topics=[["grain", "wheat"], []] * 6)
    add("Reuters", "r.jsonl", "multilabel", reuters, (A, None, ("grain", "wheat")))
    named = lines(text=FIRST, labels=[[0, 2]] * ROWS, label_names=[["grain", "wheat"]] * ROWS)
    add("Lists of names", "n.jsonl", "multilabel", named, (A, None, ("grain", "wheat")))
    papers = table("TITLE|ABSTRACT|Physics|Biology", TITLES, FIRST, *ONE_HOT[:2])
    add("Abstracts", "p.csv", "multilabel", papers, TWO_TEXTS.partition("; ")[0])


for add_layouts in (
    *(add_glue, add_inference, add_superglue, add_topics, add_sentiment, add_multilabel),
):
    add_layouts()


def test_layouts_of_public_datasets(read):
    wrong = []
    for name, file, task, content, expected, flags in LAYOUTS:
        try:
            found = read(file, content, task, report=lambda line: None, **flags)[0]
            found = (found.text, found.text_pair, found.label)
        except UserError as error:
            found = str(error)
        is_right = expected in found if isinstance(expected, str) else expected == found
        if not is_right:
            wrong.append(f"{name}: {found}")
    assert not wrong, "\n".join(wrong)
