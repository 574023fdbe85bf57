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
from kbert.data.single_texts import TextCutter
from kbert.errors import UserError
from kbert.model import BertForMaskedLM
from kbert.train.losses import MaskedLMObjective

L, M = 29, 5
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
    cutter = TextCutter(corpus, L, short_seq_prob, seed)
    slots = np.arange(cutter.count)
    rows = cutter.rows(epoch * cutter.count + slots, np.full(cutter.count, epoch), slots)
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


def test_short_texts_have_every_length():
    corpus = FakeCorpus([40_000, 3])
    lengths = [stop - start for start, stop in spans_of_epoch(corpus, short_seq_prob=1.0)]
    assert set(lengths) == set(range(1, L - 1))


def test_examples_are_a_function_of_their_number(corpus):
    whole = batches(corpus, B=4, steps=10)
    later, larger = batches(corpus, B=4, start_step=7, steps=3), batches(corpus, B=8, steps=5)
    for name in whole[0]:
        everything = np.concatenate([batch[name] for batch in whole])
        np.testing.assert_array_equal(np.concatenate([b[name] for b in later]), everything[28:])
        np.testing.assert_array_equal(np.concatenate([b[name] for b in larger]), everything)
    assert (batches(corpus, seed=5)[0]["input_ids"] != batches(corpus)[0]["input_ids"]).any()


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
