"""Pretraining without next sentence prediction: its examples, its loss, and the runs."""

import numpy as np
import pytest
from test_model import randomize
from test_pretraining_batches import contains, original_ids
from test_sentence_pairs import FakeCorpus, document_of

from kbert.config import BertConfig
from kbert.corpus import prepare
from kbert.data import pretraining_dataset
from kbert.data.pretraining_batches import PretrainingExamples
from kbert.data.single_texts import TextSampler
from kbert.errors import UserError
from kbert.features import PACKED_FEATURES, PRETRAINING_FEATURES, feature_shapes
from kbert.model import BertForMaskedLM
from kbert.settings import PretrainConfig
from kbert.train.losses import MaskedLMObjective

L, M = 29, 5
ALONE = {"next_sentence": False, "short_seq_prob": 0.0}
PACKED = ALONE | {"packing": True}
SIZES = [1, 2, 3, 9, 10, 11, 30, 97, 40, 0, 5, 1, 64, 213, 17, 26, 27, 28]


def batches(corpus, B=6, steps=3, **settings):
    settings = {"max_predictions_per_seq": M, "seed": 4, "next_sentence": False} | settings
    dataset = pretraining_dataset(corpus, B, L, steps=steps, **settings)
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset]


def test_an_example_is_one_span_of_a_document(corpus):
    for batch in batches(corpus, steps=8):
        assert "next_sentence_labels" not in batch and not batch["token_type_ids"].any()
        ids, lengths = original_ids(batch), batch["attention_mask"].sum(axis=1)
        for row, length, count in zip(
            ids.tolist(), lengths, batch["masked_weights"].sum(axis=1), strict=True
        ):
            assert row[0] == 2 and row[length - 1] == 3 and not any(row[length:])
            assert contains(corpus, row[1 : length - 1])
            assert count == min(M, max(1, round(float(length) * 0.15)))
        masked = batch["masked_positions"][batch["masked_weights"] == 1]
        assert masked.min() >= 1


def spans_of_epoch(corpus, epoch=0, short_seq_prob=0.0, seed=0):
    sampler = TextSampler(corpus, L, short_seq_prob, seed)
    slots = np.arange(sampler.count)
    rows = sampler.rows(epoch * sampler.count + slots, np.full(sampler.count, epoch), slots)
    sizes = rows.is_text.sum(axis=1)
    assert (rows.spans[:, 1] - rows.spans[:, 0]).tolist() == sizes.tolist()
    for row, size in enumerate(sizes):  # [CLS] text [SEP]
        tokens = [rows.is_cls[row], rows.is_text[row], rows.is_sep[row]]
        expected = ["C", *"T" * size, "S", *"." * (L - 2 - size)]
        found = np.select(tokens, ["C", "T", "S"], ".").tolist()
        assert found == expected
    return rows.spans.tolist()


@pytest.mark.parametrize("sentence", [2, 60])
def test_every_token_is_in_a_window_of_every_epoch(sentence):
    corpus = FakeCorpus(SIZES, sentence)
    for epoch in range(3):
        seen = np.zeros(corpus.tokens, bool)
        for start, stop in spans_of_epoch(corpus, epoch):
            assert start < stop and document_of(corpus, start) == document_of(corpus, stop - 1)
            seen[start:stop] = True
        assert seen.all()


def packed_epoch(corpus, epoch=0, short_seq_prob=0.0, seed=0):
    """The rows of an epoch, each as a list of texts; a text is (start, stop) in the corpus."""
    sampler = TextSampler(corpus, L, short_seq_prob, seed, packing=True)
    slots = np.arange(sampler.count)
    rows = sampler.rows(epoch * sampler.count + slots, np.full(sampler.count, epoch), slots)
    spans, texts = iter(rows.spans.tolist()), []
    for row in range(sampler.count):
        ids = rows.features["sequence_ids"][row]
        sizes = np.bincount(ids, minlength=2)[1:].tolist()
        expected = [n + 1 for n, size in enumerate(sizes) for _ in range(size)]
        assert ids.tolist() == expected + [0] * (L - len(expected))  # from the left, without gaps
        positions = [place for size in sizes for place in range(size)]
        assert rows.features["position_ids"][row, : len(expected)].tolist() == positions
        kinds = "".join(["C" + "T" * (size - 2) + "S" for size in sizes]).ljust(L, ".")
        masks = [rows.is_cls[row], rows.is_text[row], rows.is_sep[row]]
        assert "".join(np.select(masks, ["C", "T", "S"], ".")) == kinds
        texts.append([tuple(next(spans)) for _ in sizes])
        assert [stop - start + 2 for start, stop in texts[-1]] == sizes
    assert next(spans, None) is None
    return texts


def test_short_documents_share_rows():
    corpus = FakeCorpus(SIZES)
    documents = {
        (int(start), int(start + size))
        for start, size in zip(corpus.document_starts, SIZES, strict=False)
        if 0 < size <= L - 2
    }
    for epoch in range(2):
        rows = packed_epoch(corpus, epoch)
        windows = [row for row in rows if not documents.issuperset(row)]
        whole = [text for row in rows for text in row if row not in windows]
        assert sorted(whole) == sorted(documents)  # each once, and whole
        assert all(len(row) == 1 for row in windows)
        # 29, 28, 19 + 7 + 3, 13 + 12 + 4 and 11 + 5 + 3 tokens
        assert len(rows) - len(windows) == 5
        seen = np.zeros(corpus.tokens, bool)
        for start, stop in (text for row in rows for text in row):
            seen[start:stop] = True
        assert seen.all()


def test_packing_depends_on_the_seed_only():
    """Documents of the same length are drawn; the rows of an epoch are those of the next."""
    corpus = FakeCorpus([4, 9, 4, 9, 4, 9, 4, 9, 4, 9, 4, 9])
    rows = [packed_epoch(corpus, epoch, seed=seed) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert rows[0] == rows[1] != rows[2]
    assert [sorted(b - a for a, b in row) for row in rows[0]] == [
        sorted(b - a for a, b in row) for row in rows[2]
    ]


def test_short_texts_have_every_length():
    corpus = FakeCorpus([40_000, 3])
    lengths = [stop - start for start, stop in spans_of_epoch(corpus, short_seq_prob=1.0)]
    assert set(lengths) == set(range(1, L - 1))


@pytest.mark.parametrize("packing", [False, True])
def test_examples_are_a_function_of_their_number(corpus, packing):
    settings = {"packing": packing}
    whole = batches(corpus, B=4, steps=10, **settings)
    later = batches(corpus, B=4, start_step=7, steps=3, **settings)
    larger = batches(corpus, B=8, steps=5, **settings)
    for name in whole[0]:
        everything = np.concatenate([batch[name] for batch in whole])
        np.testing.assert_array_equal(np.concatenate([b[name] for b in later]), everything[28:])
        np.testing.assert_array_equal(np.concatenate([b[name] for b in larger]), everything)
    assert (batches(corpus, seed=5)[0]["input_ids"] != batches(corpus)[0]["input_ids"]).any()


@pytest.fixture(scope="module")
def sentences(corpus, tmp_path_factory):
    """A corpus in which every sentence is a document."""
    folder, source = tmp_path_factory.mktemp("sentences"), corpus.folder.parent
    lines = (source / "a.text").read_text().split("\n")
    (folder / "t.txt").write_text("\n\n".join(line for line in lines if line))
    return prepare(str(folder / "t.txt"), folder / "corpus", source / "vocab.txt")


def test_features_of_packed_rows(sentences):
    """The texts of a row are documents of the corpus, and masks are counted by row."""
    seen = 0
    for batch in batches(sentences, packing=True):
        found = {name: (x.shape, x.dtype.name) for name, x in batch.items()}
        expected = {**PRETRAINING_FEATURES, **PACKED_FEATURES}
        del expected["next_sentence_labels"]
        assert found == feature_shapes(expected, B=6, L=L, M=M)
        assert (batch["attention_mask"] == (batch["sequence_ids"] > 0)).all()
        lengths = batch["attention_mask"].sum(axis=1)
        counts = np.clip(np.round(lengths * 0.15), 1, M)
        assert (batch["masked_weights"].sum(axis=1) == counts).all()
        for ids, numbers in zip(original_ids(batch), batch["sequence_ids"], strict=True):
            for number in range(1, numbers.max() + 1):
                text = ids[numbers == number].tolist()
                assert text[0] == 2 and text[-1] == 3 and contains(sentences, text[1:-1])
                seen += 1
    assert seen > 1.5 * 18
    shares = [PretrainingExamples(sentences, L, **packed).padding() for packed in (ALONE, PACKED)]
    assert shares[0] > 0.6 and shares[1] < 0.1


def test_pairs_are_not_packed(corpus):
    with pytest.raises(UserError, match=r"packing requires next_sentence=False"):
        PretrainingExamples(corpus, L, packing=True)
    with pytest.raises(UserError, match=r"--packing requires --next_sentence=false"):
        PretrainConfig(input="x", packing=True)


def test_a_single_document_is_enough(tmp_path, vocab_file):
    (tmp_path / "t.txt").write_text("the cat sat\n")
    one = prepare(str(tmp_path / "t.txt"), tmp_path / "corpus", vocab_file, single_document=True)
    (batch,) = batches(one, B=2, steps=1)
    assert original_ids(batch)[0, :6].tolist() == [2, 5, 6, 7, 3, 0]
    with pytest.raises(UserError, match=r"is a single document, .* Set --next_sentence=false\."):
        PretrainingExamples(one, L)


def hf_labels(features):
    """-100 where nothing is to be predicted, as in HF; an array."""
    labels = np.full(features["input_ids"].shape, -100)
    rows, columns = np.nonzero(features["masked_weights"])
    places = features["masked_positions"][rows, columns]
    labels[rows, places] = features["masked_ids"][rows, columns]
    return labels


@pytest.mark.slow
def test_the_loss_is_that_of_hf(corpus, tmp_path):
    import torch
    import transformers

    (features,) = batches(corpus, steps=1)
    model = randomize(
        BertForMaskedLM(
            BertConfig(
                **{"vocab_size": 400, "hidden_size": 15, "num_hidden_layers": 2},
                **{"num_attention_heads": 3, "intermediate_size": 37},
                **{"max_position_embeddings": L},
            )
        )
    )
    sums = MaskedLMObjective().sums(model(features), features)
    model.save_pretrained(tmp_path, format="hf")
    hf, report = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        expected = hf(
            **{name: torch.tensor(features[name]).long() for name in names},
            labels=torch.tensor(hf_labels(features)),
        )
    loss = float(MaskedLMObjective().loss(sums, sums["mlm_count"]))
    assert loss == pytest.approx(expected.loss.item(), rel=1e-6)
