"""The task embed: files, losses against NumPy and sentence-transformers, ranks, runs."""

import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import slow
from run_files import stop_at
from warm_python import PYTHON

import kbert
from kbert import BertConfig, EmbeddingConfig, Predictor
from kbert.compression.head_pruning import prune
from kbert.data.examples import EmbeddingExample
from kbert.errors import UserError
from kbert.inference.evaluation import evaluate
from kbert.model.folder import ModelFolder
from kbert.settings import DistillConfig, EvaluateConfig, FinetuneConfig, PruneConfig
from kbert.tasks import embedding_losses, metrics
from kbert.tasks.embed import Embedding, positive_ranks
from kbert.tasks.registry import make_task, with_task_defaults
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.train import distill, finetune
from kbert.train.losses import ComparingObjective
from kbert.utils.flags import as_flagfile

COLOURS = ["red", "blue", "green", "pink", "grey", "white", "black", "brown"]
WORDS = ["the", "a", "cat", "dog", "sat", "ran", *COLOURS, *(f"un{name}" for name in COLOURS)]
BERT = {
    **{"vocab_size": 5 + len(WORDS), "hidden_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 3, "intermediate_size": 32, "max_position_embeddings": 16},
}


# Files


def read(path, text, **columns):
    path.write_text(text)
    return kbert.read_examples(path, "embed", **columns)


@pytest.mark.parametrize(
    ("name", "text", "columns", "texts", "label"),
    [
        ("a.tsv", "anchor\tpositive\na cat\ta dog\n", {}, ("a cat", "a dog"), None),
        ("a.csv", "positive,query,id\na dog,a cat,7\n", {}, ("a cat", "a dog"), None),
        ("a.tsv", "a cat\ta dog\n", {}, ("a cat", "a dog"), None),
        ("a.tsv", "a cat\ta dog\t2.5\n", {}, ("a cat", "a dog"), 2.5),
        ("a.tsv", "score\tsentence1\tsentence2\n4\ta cat\ta dog\n", {}, ("a cat", "a dog"), 4.0),
        (
            "a.jsonl",
            '{"Sentence1": "a cat", "Sentence2": "a dog", "label": 1}\n',
            {},
            ("a cat", "a dog"),
            1.0,
        ),
        (
            "a.jsonl",
            '{"query": "a", "positive": "b", "negative_10": "d", "negative_2": "c", "score": 1}\n',
            {},
            ("a", "b", "c", "d"),
            None,
        ),
        ("a.tsv", "anchor\tpositive\tnegative\na\tb\tc\n", {}, ("a", "b", "c"), None),
        (
            "a.tsv",
            "x\t2\ta cat\ta dog\n",
            {"text_column": 2, "text_pair_column": 3, "label_column": 1},
            ("a cat", "a dog"),
            2.0,
        ),
        (
            "a.csv",
            "premise,hypothesis\na cat,a dog\n",
            {"text_column": "premise", "text_pair_column": "hypothesis"},
            ("a cat", "a dog"),
            None,
        ),
    ],
)
def test_files(name, text, columns, texts, label, tmp_path):
    (example,) = read(tmp_path / name, text, **columns)
    assert (example.texts, example.label) == (texts, label)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("premise\thypothesis\ta\nb\tc\td\n", {"header": "yes"}, r"no two columns named anchor/po"),
        ("a\tb\tc\n", {}, r"has 3 columns and is read without a header, so .*--text_column=0"),
        ("a\tb\n", {"text_column": 0}, r"set both --text_column and --text_pair_column, or"),
        ("anchor\tpositive\na\t \n", {}, r"line 2: the second text is empty"),
        ("query\tpositive\tnegative\na\tb\t\n", {}, r"line 2: negative 1 is empty"),
        (
            "sentence1\tsentence2\tgold_label\na\tb\tentailment\n",
            {},
            r"line 2: the label must be a number; got 'entailment'",
        ),
    ],
)
def test_files_that_are_rejected(text, columns, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.tsv", text, **columns)


def test_notes_say_what_was_read(tmp_path, capsys):
    read(tmp_path / "a.tsv", "sentence1\tsentence2\tlabel\na\tb\t1\n")
    assert "reading pairs with the score 'label'" in capsys.readouterr().out
    read(tmp_path / "a.tsv", "query\tpositive\tnegative\tscore\na\tb\tc\t1\n")
    out = capsys.readouterr().out
    assert "not read: the score, because there are negatives" in out
    assert "reading pairs, each with 1 negative" in out


def test_plain_text(tmp_path, capsys):
    """Each line is paired with itself; tabs or flags make the file a table."""
    found = read(tmp_path / "a.txt", "a cat\n\n  the dog, red \n")
    assert [(e.texts, e.label) for e in found] == [
        (("a cat",) * 2, None),
        (("the dog, red",) * 2, None),
    ]
    assert found[1].where == "a.txt, line 3"
    assert "reading single texts; each is paired with itself" in capsys.readouterr().out
    assert read(tmp_path / "a.txt", "a cat\ta dog\n")[0].texts == ("a cat", "a dog")
    with pytest.raises(UserError, match=r"has 1 column in its first row, but 2 are needed"):
        read(tmp_path / "a.txt", "a cat\n", header="no", text_column=0)
    (tmp_path / "a.txt").write_bytes(b"a cat\n\xe4\n")
    with pytest.raises(UserError, match=r"^a.txt, line 2: .*UTF-8"):
        kbert.read_examples(tmp_path / "a.txt", "embed")


# Losses

rng = np.random.default_rng(0)
VECTORS = rng.normal(size=(4, 3, 6)).astype("float32")
TEXT_IDS = np.arange(12).reshape(4, 3).astype("int32")
ONES = np.ones(4, "float32")
SCORES = np.float32([0.5, 0.1, 0.9, 0.1])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(logits):
    """Of the diagonal; -inf is no candidate."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits)


def ranking_logits(vectors, scale=20.0):
    anchors, *others = unit(vectors).transpose(1, 0, 2)
    return scale * anchors @ np.concatenate(others).T


@pytest.mark.parametrize("T", [2, 3])
def test_ranking_losses(T):
    vectors, ids = VECTORS[:, :T], TEXT_IDS[:, :T]
    logits = ranking_logits(vectors)
    losses, right = embedding_losses.ranking_losses(vectors, ids, ONES, 20.0, False)
    np.testing.assert_allclose(losses, cross_entropy(logits), rtol=1e-5)
    np.testing.assert_array_equal(right, logits.argmax(axis=1) == range(4))
    both, _ = embedding_losses.ranking_losses(vectors, ids, ONES, 20.0, True)
    expected = (cross_entropy(logits) + cross_entropy(logits[:, :4].T)) / 2
    np.testing.assert_allclose(both, expected, rtol=1e-5)


def test_candidates_that_are_no_negatives():
    """Equal texts, and a row that pads the batch."""
    ids = np.int32([[0, 1, 2], [3, 1, 0], [0, 4, 5], [6, 7, 8]])
    logits = ranking_logits(VECTORS)
    losses, _ = embedding_losses.ranking_losses(VECTORS, ids, np.float32([1, 1, 1, 0]), 20.0, True)
    # Columns: the positives 1, 1, 4, 7, then the negatives 2, 0, 5, 8.
    out = {0: (1, 2, 3, 5, 7), 1: (0, 3, 7), 2: (0, 3, 5, 7)}
    forward = logits.copy()
    for row, columns in out.items():
        forward[row, list(columns)] = -np.inf
    back = logits[:, :4].T.copy()
    # Anchors of the positives 1, 1, 4: anchors 0, 3, 0, 6.
    for row, columns in {0: (1, 2, 3), 1: (0, 3), 2: (0, 3)}.items():
        back[row, list(columns)] = -np.inf
    expected = (cross_entropy(forward) + cross_entropy(back)) / 2
    np.testing.assert_allclose(losses[:3], expected[:3], rtol=1e-5)


def test_losses_of_scored_pairs():
    cosines = (unit(VECTORS[:, 0]) * unit(VECTORS[:, 1])).sum(axis=1)
    terms = [
        np.exp(20 * (cosines[i] - cosines[j]))
        for i in range(4)
        for j in range(4)
        if SCORES[i] < SCORES[j]
    ]
    losses, _ = embedding_losses.cosent_losses(VECTORS[:, :2], SCORES, ONES, 20.0)
    np.testing.assert_allclose(losses, [np.log(1 + sum(terms))] * 4, rtol=1e-5)
    three, _ = embedding_losses.cosent_losses(VECTORS[:3, :2], SCORES[:3], ONES[:3], 20.0)
    padded = embedding_losses.cosent_losses(VECTORS[:, :2], SCORES, np.float32([1, 1, 1, 0]), 20.0)
    np.testing.assert_allclose(padded[0][:3], three, rtol=1e-6)
    losses, _ = embedding_losses.cosine_losses(VECTORS[:, :2], SCORES)
    np.testing.assert_allclose(losses, (cosines - SCORES) ** 2, rtol=1e-4)


def test_triplet_losses():
    positive, negative = (np.linalg.norm(VECTORS[:, 0] - VECTORS[:, i], axis=1) for i in (1, 2))
    losses, right = embedding_losses.triplet_losses(VECTORS, 0.5)
    expected = np.maximum(0, positive - negative + 0.5)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    np.testing.assert_array_equal(right, positive < negative)
    assert 0 < np.count_nonzero(expected) < 4


def weights_of(folder):
    with ModelFolder(folder).open_weights() as (_, weights):
        return {name: weights[name] for name in weights}


def config(**settings):
    return FinetuneConfig(**{"task": "embed", "init_from": "x", "train_file": "y"} | settings)


def adapted(examples, bert=None, **settings):
    task = make_task(config(**settings), None)
    task.fields = task.adapt(bert or BertConfig(**BERT), {"train": examples})
    return task


PAIRS = [EmbeddingExample("a.tsv, line 1", ("a", "b"))]
NO_DROPOUT = BertConfig(**BERT, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
SINGLE = [EmbeddingExample("a.txt, line 1", ("a", "a"))]
SCORED = [EmbeddingExample("a.tsv, line 1", ("a", "b"), 4.0)]


def test_losses_follow_from_the_examples():
    assert adapted(PAIRS).loss == "multiple_negatives_ranking"
    assert adapted(SCORED).loss == "cosent" and adapted(SCORED).metric == "spearman"
    triplets = [EmbeddingExample("", ("a", "b", "c"))]
    assert adapted(triplets, loss="triplet").loss == "triplet"
    bert = BertConfig(**BERT, embedding=EmbeddingConfig(pooling="cls", prompt="q: "))
    expected = EmbeddingConfig(pooling="cls", prompt="q: ", max_seq_length=9)
    task = adapted(PAIRS, bert, max_seq_length=9)
    assert task.fields == {"embedding": expected} and task.metric == "accuracy@1"
    assert adapted(PAIRS, bert, pooling="max").settings.pooling == "max"


def test_matryoshka_adds_up_the_losses_of_truncated_vectors():
    task = adapted(PAIRS, matryoshka_dims="6,2")
    parts = [
        embedding_losses.ranking_losses(VECTORS[..., :d], TEXT_IDS, ONES, 20.0, False)[0]
        for d in (6, 2)
    ]
    losses, _ = task.losses({"embedding": tf.constant(VECTORS)}, TEXT_IDS, ONES)
    np.testing.assert_allclose(losses, parts[0] + parts[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("examples", "settings", "message"),
    [
        (
            PAIRS,
            {"loss": "cosent"},
            r"--loss=cosent needs a score for each pair; see a.tsv, line",
        ),
        (SCORED, {"loss": "triplet"}, r"--loss=triplet needs pairs or triplets without scores"),
        (PAIRS, {"loss": "triplet"}, r"needs a negative for each pair, in a column named negative"),
        (
            SCORED,
            {"loss": "cosine_similarity"},
            r"a.tsv, line 1: --loss=cosine_similarity needs scores from -1 to 1; got 4\. Divide",
        ),
        (SINGLE, {}, r"a.txt, line 1: training on single texts needs dropout, but hidden_dropout_"),
        (PAIRS, {"batch_size": 1}, r"compares examples, so batch_size must be at least 2"),
        (
            PAIRS,
            {"matryoshka_dims": "32,8"},
            r"must be at most 24, the size of the embeddings",
        ),
        (PAIRS, {"matryoshka_dims": "8,x"}, r"must be positive integers, such as .*; got '8,x'"),
    ],
)
def test_settings_that_do_not_fit_the_examples(examples, settings, message):
    with pytest.raises(UserError, match=message):
        adapted(examples, NO_DROPOUT, **settings)


def test_single_texts_are_trained_on_but_not_scored():
    assert adapted(SINGLE).loss == "multiple_negatives_ranking"
    task, examples = make_task(config(), None), {"train": SINGLE, "eval": SINGLE}
    with pytest.raises(UserError, match=r"^a.txt, line 1: the eval examples are .*--eval_file"):
        task.adapt(BertConfig(**BERT), examples)
    task.adapt(BertConfig(**BERT), examples | {"eval": SCORED})
    assert task.metric == "spearman"


def test_dropout_differs_between_the_vectors_of_a_text():
    keras.utils.set_random_seed(0)
    model = kbert.BertForEmbedding(BertConfig(**BERT))
    features = {"input_ids": np.int32([[[2, 7, 8, 3]] * 2])}
    one, two = model(features, training=True)["embedding"][0].numpy()
    assert np.abs(one - two).max() > 1e-3
    one, two = model(features, training=False)["embedding"][0].numpy()
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_settings_of_other_tasks():
    with pytest.raises(UserError, match=r"--loss is for embed; the task is classify\."):
        with_task_defaults(config(task="classify", loss="cosent"))
    with pytest.raises(
        UserError, match=r"^c: .* same number of texts, and either all or none .* as b does"
    ):
        Embedding(None).encode(
            [EmbeddingExample("b", ("a", "b")), EmbeddingExample("c", ("a", "b"), 1.0)]
        )


@pytest.mark.slow
@pytest.mark.parametrize("dims", [None, (6, 3)])
@pytest.mark.parametrize("loss", ["ranking", "symmetric", "cosent", "cosine_similarity", "triplet"])
def test_losses_of_sentence_transformers(loss, dims):
    """Values and gradients."""
    import torch
    from sentence_transformers import losses as peers

    class Model(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["sentence_embedding"]}

        def get_embedding_dimension(self):
            return 6

    model, x = Model(), torch.tensor(VECTORS, requires_grad=True)
    model.similarity_fn_name = "cosine"
    T = 3 if loss in ("ranking", "symmetric", "triplet") else 2
    make = {
        "ranking": peers.MultipleNegativesRankingLoss,
        "symmetric": peers.MultipleNegativesSymmetricRankingLoss,
        "cosent": peers.CoSENTLoss,
        "cosine_similarity": peers.CosineSimilarityLoss,
        "triplet": peers.TripletLoss,
    }[loss]
    peer = make(model)
    if dims:
        peer = peers.MatryoshkaLoss(model, peer, list(dims))
    columns = [{"sentence_embedding": x[:, i]} for i in range(T)]
    labels = torch.tensor(SCORES)
    expected = peer(columns, labels)
    expected.backward()
    name = "multiple_negatives_ranking" if loss in ("ranking", "symmetric") else loss
    task = Embedding(None)
    text = ",".join(map(str, dims)) if dims else None
    task._config = config(symmetric=loss == "symmetric", matryoshka_dims=text)
    task.loss = name
    vectors = tf.constant(VECTORS)
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        targets = SCORES if T == 2 else TEXT_IDS
        found, _ = task.losses({"embedding": vectors[:, :T]}, tf.constant(targets), tf.ones(4))
        mean = tf.reduce_mean(found)
    np.testing.assert_allclose(mean, expected.detach().numpy(), rtol=1e-5)
    gradient = tape.gradient(mean, vectors)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_parts_of_a_batch_have_its_loss_and_its_gradients():
    """Of a linear model, with the negatives of the whole batch and a row that pads it."""
    task = adapted(PAIRS, symmetric=True)
    objective, x = ComparingObjective(task), tf.constant(VECTORS)
    kernel = tf.Variable(rng.normal(size=(6, 5)).astype("float32"))
    features = {"labels": tf.constant(TEXT_IDS), "attention_mask": tf.ones((4, 2), tf.int32)}
    features["label_weights"] = tf.constant([1.0, 1, 1, 0])

    def step(rows, features):
        with tf.GradientTape() as tape:
            sums = objective.sums({"embedding": x[rows] @ kernel}, features)
            loss = objective.loss(sums, tf.constant(3.0))
        return np.array(loss), np.array(tape.gradient(loss, kernel))

    loss, gradient = step(slice(None), features)
    whole = features | objective.label_features(x @ kernel, features)
    cuts = (slice(0, 2), slice(2, 4))
    parts = [step(rows, {name: value[rows] for name, value in whole.items()}) for rows in cuts]
    np.testing.assert_allclose(sum(part[0] for part in parts), loss, rtol=1e-6)
    np.testing.assert_allclose(sum(part[1] for part in parts), gradient, atol=1e-6)


# Ranks


def test_ranking_scores():
    """Three queries: the best text first; two relevant texts at 2 and 12; one at 11."""
    scores = metrics.ranking_scores([[1], [12, 2], [11]])
    assert scores["accuracy@1"] == pytest.approx(1 / 3)
    assert scores["mrr@10"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores["recall@10"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    second = (1 / np.log2(3)) / (1 + 1 / np.log2(3))
    assert scores["ndcg@10"] == pytest.approx((1 + second + 0) / 3)


def test_ranks_of_positives():
    def at(degrees):
        return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]

    rows = [
        ("q1", "p1", "n1", 0, 20, 10),  # n1, p2 and q3 are nearer; q1 is no candidate
        ("q1", "p2", "n2", 0, 5, 100),
        ("q2", "q1", "n1", 45, 0, 10),  # all but n2 are nearer
        ("q3", "p3", "q3", 12, 20, 12),  # n1 and p2 are nearer; p1 ties and comes first
    ]
    examples = [EmbeddingExample("", row[:3]) for row in rows]
    vectors = np.array([[at(degrees) for degrees in row[3:]] for row in rows], np.float32)
    assert positive_ranks(examples, vectors) == [4, 1, 6, 4]
    task = Embedding(None)
    found = task.predictions(examples, None, [{"embedding": row} for row in vectors])
    assert [row["rank"] for row in found] == [4, 1, 6, 4]
    assert found[0]["similarity"] == pytest.approx(np.cos(np.radians(20)))
    # q1 has two relevant texts, at 1 and 4.
    assert task.scores(examples, found)["accuracy@1"] == pytest.approx(1 / 3)


# Runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a BERT that knows nothing, and files of pairs: of a colour with "un"."""
    root = tmp_path_factory.mktemp("embed")
    write_vocab([*SPECIAL_TOKENS, *WORDS], root / "vocab.txt")
    tokenizer = kbert.BertTokenizer(root / "vocab.txt")
    keras.utils.set_random_seed(0)
    bert = BertConfig(**BERT, initializer_range=0.2)
    kbert.BertForPreTraining(bert).save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    rng = np.random.default_rng(0)

    def text(word):
        return " ".join([*rng.choice(WORDS[:6], rng.integers(1, 4)), word])

    def write(name, rows):
        (root / name).write_text("".join("\t".join(row) + "\n" for row in rows))

    pairs = [(text(name), text(f"un{name}")) for name in COLOURS * 5]
    write("pairs.tsv", [("anchor", "positive"), *pairs])
    others = [text(f"un{COLOURS[(i + 3) % 8]}") for i in range(40)]
    rows = [(*pair, other) for pair, other in zip(pairs, others, strict=True)]
    write("triplets.tsv", [("anchor", "positive", "negative"), *rows])
    scored = [(text(a), text(b), f"{float(a == b)}") for a in COLOURS[:4] for b in COLOURS[:4] * 2]
    write("scored.tsv", [("sentence1", "sentence2", "score"), *scored])
    return root


def settings(root, file, **changes):
    values = {"init_from": str(root / "bert"), "batch_size": 8, "epochs": 1.0, "log_every_steps": 5}
    values |= {"max_seq_length": 12, "learning_rate": 1e-2, "train_file": str(root / file)}
    return config(**values | changes)


def test_a_run(root, tmp_path):
    """Learns, scores, and writes folders of sentence-transformers that can be trained on."""
    file = str(root / "pairs.tsv")
    fixed = {"eval_file": file, "epochs": 8.0, "accumulation_steps": 2}
    results = finetune(settings(root, "pairs.tsv", **fixed), tmp_path / "run")
    assert list(results["eval"]) == ["accuracy@1", "mrr@10", "recall@10", "ndcg@10"]
    best = tmp_path / "run/finetuning/best"
    names = {"modules.json", "1_Pooling", "sentence_bert_config.json", "model.safetensors"}
    assert names < {path.name for path in best.iterdir()}
    predictor = Predictor.from_pretrained(best, backend="keras")
    assert (predictor.method, predictor.max_seq_length) == ("embed", 12)
    right = predictor.similarity("a cat red", "the dog unred")[0]["similarity"]
    wrong = predictor.similarity("a cat red", "the dog ungrey")[0]["similarity"]
    assert right > wrong
    np.testing.assert_array_equal(predictor("a cat")[0], predictor.embed("a cat")[0])
    again = evaluate(EvaluateConfig(model=str(best), eval_file=file), lambda line: None)
    assert again == pytest.approx(results["eval"])
    more = settings(root, "scored.tsv", init_from=str(best), eval_file=str(root / "scored.tsv"))
    scored = finetune(more, tmp_path / "more")["eval"]
    assert list(scored) == ["spearman", "pearson"]
    for name in ("final", "checkpoint/step_00000004"):
        folder = ModelFolder(tmp_path / "more/finetuning" / name)
        assert folder.config.embedding == EmbeddingConfig(max_seq_length=12)
        assert folder.format == ("hf" if name == "final" else "kbert")


@pytest.mark.parametrize(
    ("file", "changes"),
    slow(
        ("pairs.tsv", {}),
        ("scored.tsv", {}),
        ("scored.tsv", {"loss": "cosine_similarity"}),
        ("triplets.tsv", {"loss": "triplet"}),
        ("triplets.tsv", {"symmetric": True, "matryoshka_dims": "24,8", "jit": "on"}),
    ),
)
def test_slices_make_no_difference(file, changes, root, tmp_path):
    """The in-batch negatives are those of the whole batch, with dropout."""
    found = {}
    for slices in (1, 4):
        run = tmp_path / str(slices)
        fixed = {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 0.6, **changes}
        finetune(settings(root, file, accumulation_steps=slices, **fixed), run)
        found[slices] = weights_of(tmp_path / str(slices) / "finetuning/final")
    before = weights_of(root / "bert")
    moved = max(np.abs(found[1][n] - before[n]).max() for n in found[1] if n in before)
    assert moved > 1e-3
    for name, value in found[1].items():
        np.testing.assert_allclose(found[4][name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("file", slow("pairs.tsv", "scored.tsv"))
def test_replicas_make_no_difference(file, root, tmp_path):
    fixed = {"optimizer": "sgd", "learning_rate": 0.1}
    finetune(settings(root, file, **fixed), tmp_path / "one")
    mirrored = settings(root, file, cpu_devices=2, accumulation_steps=2, **fixed)
    (tmp_path / "x.flags").write_text(as_flagfile(mirrored, ""))
    command = [PYTHON, "-m", "kbert.finetune", f"--flagfile={tmp_path}/x.flags"]
    done = subprocess.run(
        [*command, f"--output_dir={tmp_path}/two"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    one, two = (weights_of(tmp_path / name / "finetuning/final") for name in ("one", "two"))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_run_on_plain_text(root, tmp_path):
    words = [f"{a} {b}\n" for a in COLOURS for b in COLOURS if a != b]
    (root / "text.txt").write_text("".join(words))
    run = settings(root, "text.txt", eval_file=str(root / "scored.tsv"), learning_rate=1e-3)
    results = finetune(run, tmp_path / "run")
    assert list(results["eval"]) == ["spearman", "pearson"]


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(root, tmp_path, monkeypatch):
    changes = {"accumulation_steps": 2, "epochs": 2.0, "save_every_steps": 3}
    finetune(settings(root, "pairs.tsv", **changes), tmp_path / "whole")
    stop_at(monkeypatch, 6)
    finetune(settings(root, "pairs.tsv", **changes), tmp_path / "cut")
    assert not (tmp_path / "cut/finetuning/final").exists()
    monkeypatch.undo()
    finetune(settings(root, "pairs.tsv", **changes), tmp_path / "cut")
    whole, cut = (weights_of(tmp_path / name / "finetuning/final") for name in ("whole", "cut"))
    for name, value in whole.items():
        np.testing.assert_array_equal(cut[name], value, err_msg=name)


@pytest.mark.slow
def test_other_programs_embed_as_the_predictor_does(root, tmp_path):
    """sentence-transformers, and a SavedModel."""
    import sentence_transformers

    from kbert.serving.export import export

    finetune(settings(root, "pairs.tsv", pooling="cls"), tmp_path / "run")
    final, texts = tmp_path / "run/finetuning/final", ["the cat red", "a dog ran", "unblue " * 30]
    expected = Predictor.from_pretrained(final, backend="tensorflow").embed(texts)
    peer = sentence_transformers.SentenceTransformer(str(final), device="cpu")
    assert peer.max_seq_length == 12
    np.testing.assert_allclose(peer.encode(texts), expected, atol=1e-6)
    export(final, tmp_path / "export", report=lambda line: None)
    function = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    outputs = function(text=tf.constant(texts))["embedding"]
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_programs_that_do_not_support_the_task(root, tmp_path):
    folder, file = str(root / "bert"), str(root / "pairs.tsv")
    student = DistillConfig(task="embed", teacher=folder, train_file=file)
    with pytest.raises(UserError, match=r"kbert.distill does not support the task embed, whose lo"):
        distill(student, tmp_path / "student")
    pruned = PruneConfig(
        task="embed", model=folder, data_file=file, output_dir=str(tmp_path / "pruned")
    )
    with pytest.raises(UserError, match=r"kbert.prune does not support the task embed, whose loss"):
        prune(pruned)
