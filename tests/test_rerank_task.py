"""The task rerank: files, losses and metrics against NumPy, runs, and the folders they write."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import kbert
from kbert import BertConfig, Predictor
from kbert.data.examples import ChoiceExample, TextExample
from kbert.errors import UserError
from kbert.inference.evaluation import evaluate
from kbert.inference.prediction import predict
from kbert.model.folder import ModelFolder
from kbert.serving.comparison import read_labeled
from kbert.settings import DistillConfig, EvaluateConfig, FinetuneConfig, PredictConfig
from kbert.tasks import metrics
from kbert.tasks.labels import label_conflicts
from kbert.tasks.registry import read_task_settings
from kbert.tasks.rerank import Reranking
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.train import distill, finetune

WORDS = ["bees", "find", "flowers", "by", "scent", "ships", "sail", "at", "night", "the"]
BERT = {
    **{"vocab_size": 5 + len(WORDS), "hidden_size": 12, "num_hidden_layers": 1},
    **{"num_attention_heads": 3, "intermediate_size": 16, "max_position_embeddings": 24},
    **{"initializer_range": 0.5, "num_labels": 1},
}


# Files


def read(path, text, **columns):
    path.write_text(text)
    return kbert.read_examples(path, "rerank", **columns)


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("query\ttext\tlabel\nq\ta\t1\nq\tb\t0\n", {}, [("q", "a", 1.0), ("q", "b", 0.0)]),
        ("label\tpassage\tquery\n0.25\ta\tq\n", {}, [("q", "a", 0.25)]),
        ("query\tdocument\tscore\nq\ta\t1\n", {}, [("q", "a", 1.0)]),
        ("q\ta\t0.5\n", {}, [("q", "a", 0.5)]),
        (
            "x\ty\tz\n1\ta\tq\n",
            {"text_column": "z", "text_pair_column": "y", "label_column": "x"},
            [("q", "a", 1.0)],
        ),
        ("query\tpositive\tnegative\nq\ta\tb\n", {}, [("q", ("a", "b"), 0)]),
        (
            "negative_2\tnegative_1\tpositive\tquery\tscore\nc\tb\ta\tq\t9\n",
            {},
            [("q", ("a", "b", "c"), 0)],
        ),
    ],
)
def test_files(text, columns, expected, tmp_path):
    kinds = {str: TextExample, tuple: ChoiceExample}
    found = read(tmp_path / "a.tsv", text, **columns)
    path = tmp_path / "a.tsv"
    wanted = [
        kinds[type(row[1])](example.where, *row)
        for row, example in zip(expected, found, strict=True)
    ]
    assert found == wanted and path.name in found[0].where


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query\ttext\nq\ta\n", r"pairs of texts, but neither labels nor negatives\. Add a column"),
        ("query\tanswers\nq\ta\n", r"no two columns named anchor/positive"),
        (
            "query\ttext\tlabel\nq\ta\t1\nq\tb\t4.5\n",
            r"line 3: the label must be from 0 to 1; got 4\.5\. Scale the labels of the file",
        ),
        ("query\ttext\tlabel\nq\ta\tyes\n", r"line 2: the label must be a number; got 'yes'"),
        (
            "query\tpositive\tneg_1\tneg_2\nq\ta\tb\ta\n",
            r"line 2: negative 2 is the same text as the positive",
        ),
    ],
)
def test_files_that_are_rejected(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.tsv", text, header="yes")


# Losses and metrics

rng = np.random.default_rng(0)
LOGITS, TEACHER = rng.normal(size=(2, 4, 1)).astype("float32")
GROUPS, GROUP_TEACHER = rng.normal(size=(2, 4, 3, 1)).astype("float32")


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_losses_of_pairs_and_of_queries_with_negatives():
    task, labels = Reranking(None), np.float32([1, 0, 0.25, 1])
    losses, right = task.losses({"logits": tf.constant(LOGITS)}, tf.constant(labels))
    p = 1 / (1 + np.exp(-LOGITS[:, 0]))
    expected = -labels * np.log(p) - (1 - labels) * np.log(1 - p)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(right, (p > 0.5) == (labels > 0.5))
    losses, right = task.losses({"logits": tf.constant(GROUPS)}, tf.zeros(4, tf.int32))
    np.testing.assert_allclose(losses, -log_softmax(GROUPS[..., 0])[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(right, GROUPS[..., 0].argmax(axis=1) == 0)


def test_losses_of_distillation():
    def losses(student, teacher):
        outputs = ({"logits": tf.constant(x)} for x in (student, teacher))
        return Reranking(None).soft_losses(*outputs, 2.0)

    np.testing.assert_allclose(losses(LOGITS, TEACHER), (LOGITS - TEACHER)[:, 0] ** 2, rtol=1e-5)
    student, teacher = (log_softmax(x[..., 0] / 2) for x in (GROUPS, GROUP_TEACHER))
    expected = 4 * (np.exp(teacher) * (teacher - student)).sum(axis=1)
    np.testing.assert_allclose(losses(GROUPS, GROUP_TEACHER), expected, rtol=1e-4)


def test_scores():
    task = Reranking(None)
    # Ranked 1, 2 and 3, the second is not relevant: (1 / 1 + 2 / 3) / 2.
    found = metrics.relevance_scores([1, 0, 1], [0.9, 0.8, 0.1])
    assert found == pytest.approx({"average_precision": 5 / 6, "accuracy": 1 / 3})
    assert metrics.relevance_scores([0, 0], [0.9, 0.1])["average_precision"] == 0
    pairs = [TextExample("", "q", str(i), label) for i, label in enumerate((0.0, 0.5, 1.0))]
    rows = [{"score": score} for score in (0.3, 0.2, 0.9)]
    assert task.scores(pairs, rows) == pytest.approx({"spearman": 0.5, "pearson": 0.7924059}, 1e-3)
    queries = [ChoiceExample("", "q", ("a", "b", "c"), 0)] * 3
    rows = [{"scores": s} for s in ([0.9, 0.1, 0.2], [0.5, 0.6, 0.1], [0.5, 0.5, 0.5])]
    found = task.scores(queries, rows)  # ranks 1, 2 and 3: equal scores count as better
    assert found["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / 2) / 3)


def test_heads_with_one_output_are_used():
    """Whatever its name, but not the head of a regression, whose output is no logit."""
    task, fields = Reranking(None), BERT | {"num_labels": 1}
    assert label_conflicts(BertConfig(**fields, label_names=("relevance",)), task) == {}
    assert label_conflicts(BertConfig(**BERT | {"num_labels": 2}), task).keys() == {"num_labels"}
    regression = BertConfig(**fields, problem_type="regression")
    assert label_conflicts(regression, task).keys() == {"problem_type"}
    pairs = [TextExample("", "q", "a", 1.0)]
    assert task.adapt(regression, {"train": pairs}) == {"label_names": None}
    assert task.metric == "average_precision"


def test_examples_of_a_split_must_be_alike():
    some = [
        ChoiceExample("a.tsv, line 2", "q", ("a", "b"), 0),
        ChoiceExample("b.tsv, line 2", "q", ("a", "b", "c"), 0),
    ]
    with pytest.raises(UserError, match=r"^b.tsv, line 2: .* same number of negatives; .* a.tsv"):
        Reranking(None).encode(some)


# Models


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a cross-encoder of random weights, and files."""
    root = tmp_path_factory.mktemp("rerank")
    write_vocab([*SPECIAL_TOKENS, *WORDS], root / "vocab.txt")
    keras.utils.set_random_seed(0)
    model = kbert.BertForSequenceClassification(BertConfig(**BERT))
    model.save_pretrained(root / "bert")
    kbert.BertTokenizer(root / "vocab.txt").save_pretrained(root / "bert")
    rows = [("bees find", "flowers by scent", "the ships"), ("ships sail", "at night", "by scent")]
    header = ("query", "positive", "negative_1", "negative_2")
    groups = [header, *((q, p, n, f"{n} the") for q, p, n in rows * 4)]
    pairs = [("query", "text", "label")]
    pairs += [(q, text, label) for q, p, n in rows * 4 for text, label in ((p, "1"), (n, "0"))]
    for name, lines in {"groups": groups, "pairs": pairs}.items():
        (root / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in lines))
    return root


def test_a_group_has_the_logits_of_its_pairs(root):
    """Shorter pairs are padded; a model without a head of kbert is used as a classifier."""
    predictor = Predictor.from_pretrained(root / "bert", backend="keras")
    texts = ["flowers by scent", "ships", "the ships sail at night"]
    task = predictor.task("rerank")
    (group,) = predictor.predictions(task, [ChoiceExample("", "bees find", tuple(texts))])
    rows = predictor.predict("rerank", ["bees find"] * 3, texts)
    np.testing.assert_allclose(group["scores"], [row["score"] for row in rows], atol=1e-6)
    assert predictor.method == "classify"
    logits = [row["score"] for row in predictor.classify(["bees find"] * 3, texts)]
    np.testing.assert_allclose(group["scores"], 1 / (1 + np.exp(-np.array(logits))), atol=1e-6)
    found = predictor.rerank("bees find", texts)
    order = sorted(range(3), key=lambda i: -rows[i]["score"])
    assert found == [{"index": i, **rows[i], "text": texts[i]} for i in order]
    assert predictor.rerank("bees find", texts, top_k=1) == found[:1]
    assert predictor.rerank("bees find", []) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["bees"], ["ships"]), r"^query must be a str; got list\."),
        (("bees", ["ships"], 0), r"^top_k must be at least 1; got 0\."),
        (("bees", [1]), r"texts must be a str or a list of str; got int"),
    ],
)
def test_arguments_that_are_rejected(arguments, message, root):
    with pytest.raises(UserError, match=message):
        Predictor.from_pretrained(root / "bert").rerank(*arguments)


def test_models_with_several_outputs_are_rejected(root):
    model = kbert.BertForSequenceClassification(BertConfig(**BERT | {"num_labels": 3}))
    predictor = Predictor(model, kbert.BertTokenizer(root / "vocab.txt"), backend="keras")
    with pytest.raises(UserError, match=r"rerank requires a model with one output; this .* has 3"):
        predictor.rerank("bees", ["ships"])


def settings(root, file, **changes):
    values = {"task": "rerank", "init_from": str(root / "bert"), "train_file": str(root / file)}
    values |= {"batch_size": 4, "epochs": 1.0, "learning_rate": 1e-3, "max_seq_length": 16}
    return values | changes


def test_a_run(root, tmp_path):
    """On queries with negatives; the folder is one of Hugging Face, with the task."""
    file = str(root / "groups.tsv")
    run = FinetuneConfig(**settings(root, "groups.tsv", eval_file=file))
    results = finetune(run, tmp_path / "run")
    assert list(results["eval"]) == ["accuracy@1", "mrr@10", "recall@10", "ndcg@10"]
    best = tmp_path / "run/finetuning/best"
    folder = ModelFolder(best)
    assert (folder.format, folder.config.num_labels) == ("hf", 1)
    assert read_task_settings(folder) == {
        "task": "rerank",
        "max_seq_length": 16,
        "takes_pairs": True,
    }
    again = evaluate(EvaluateConfig(model=str(best), eval_file=file), lambda line: None)
    assert again == pytest.approx(results["eval"])
    pairs = EvaluateConfig(model=str(best), eval_file=str(root / "pairs.tsv"))
    assert list(evaluate(pairs, lambda line: None)) == ["average_precision", "accuracy"]
    # kbert.predict reads columns by name, or lines of two texts.
    (tmp_path / "a.txt").write_text("bees find\tflowers\nbees find\tships\n")
    (tmp_path / "a.tsv").write_text("text\tquery\nflowers\tbees find\nships\tbees find\n")
    for name in ("a.txt", "a.tsv"):
        output = tmp_path / f"{name}.jsonl"
        files = {"input_file": str(tmp_path / name), "output_file": str(output)}
        predict(PredictConfig(model=str(best), backend="keras", **files), lambda line: None)
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        expected = Predictor.from_pretrained(best, backend="keras")(
            ["bees find"] * 2, ["flowers", "ships"]
        )
        assert rows == [pytest.approx(row) for row in expected]


@pytest.mark.slow
def test_pairs_distillation_and_other_programs(root, tmp_path):
    """HF transformers and sentence-transformers compute the same scores; so does a SavedModel."""
    import sentence_transformers
    import torch
    import transformers

    from kbert.serving import saved_model
    from kbert.serving.export import export

    file = str(root / "pairs.tsv")
    finetune(FinetuneConfig(**settings(root, "pairs.tsv", eval_file=file)), tmp_path / "run")
    final = tmp_path / "run/finetuning/final"
    queries, texts = ["bees find", "ships"] * 2, ["flowers", "sail", "the night", "scent " * 30]
    expected = [row["score"] for row in Predictor.from_pretrained(final)(queries, texts)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(final)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(final)
    assert model.config.num_labels == 1
    encoded = tokenizer(
        queries, texts, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        scores = torch.sigmoid(model(**encoded).logits[:, 0])
    np.testing.assert_allclose(expected, scores.numpy(), atol=1e-6)
    peer = sentence_transformers.CrossEncoder(str(final), max_length=16, device="cpu")
    pairs = list(zip(queries, texts, strict=True))
    np.testing.assert_allclose(expected, peer.predict(pairs), atol=1e-6)
    peer.save_pretrained(str(tmp_path / "peer"))
    again = Predictor.from_pretrained(tmp_path / "peer", max_seq_length=16)
    found = [again.rerank(q, [t])[0]["score"] for q, t in pairs]
    np.testing.assert_allclose(expected, found, atol=1e-6)
    for folder, method in ((final, None), (tmp_path / "peer", "rerank")):
        output = tmp_path / f"export of {method}"
        options = {"method": method, "max_seq_length": 16, "eval_file": file}
        export(folder, output, **options, report=lambda line: None)
        function = tf.saved_model.load(str(output)).signatures["serving_default"]
        outputs = function(text=tf.constant(queries), text_pair=tf.constant(texts))
        np.testing.assert_allclose(outputs["score"], expected, atol=1e-5)
    endpoint = saved_model.load_endpoint(final)
    with pytest.raises(UserError, match=r"the example has negatives, but an export scores one te"):
        read_labeled(endpoint, str(root / "groups.tsv"), None)
    for name in ("pairs.tsv", "groups.tsv"):
        student = DistillConfig(**settings(root, name, teacher=str(final), init_from=None))
        distill(student, tmp_path / f"student of {name}")
    init = settings(root, "pairs.tsv", init_from=str(tmp_path / "peer"), epochs=0.25)
    finetune(FinetuneConfig(**init), tmp_path / "more")
