"""A folder of weights is opened once, and what it holds is handed on."""

import json
import pathlib

import pytest

from kbert import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, Predictor
from kbert.errors import UserError
from kbert.model.conversion import convert
from kbert.model.folder import TASK_FILE, ModelFolder
from kbert.tasks.registry import read_task_settings
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

pytestmark = pytest.mark.smoke


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    config = BertConfig(
        vocab_size=8,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=10,
        max_position_embeddings=16,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    write_vocab([*SPECIAL_TOKENS, "the", "cat", "sat"], folder / "vocab.txt")
    return folder


def test_what_a_folder_holds(weights):
    folder = ModelFolder(str(weights))
    assert ModelFolder.of(folder) is folder and ModelFolder.of(weights).path == weights
    assert (str(folder), pathlib.Path(folder), folder.format) == (str(weights), weights, "kbert")
    assert folder.config.hidden_size == 6 and folder.task_settings is None
    assert folder.parts == {"bert/embeddings", "bert/encoder", "mlm"}
    assert folder.tokenizer.vocab_size == 8 and folder.tokenizer is folder.tokenizer
    with folder.open_weights(num_labels=3) as (config, tensors):
        assert config.num_labels == 3 and dict(tensors.shapes) == folder.shapes


def test_a_folder_is_opened_once(weights, monkeypatch):
    """Asked for config, tokenizer, parts and predictions, it is opened for what it holds once."""
    opened = []
    opens = ModelFolder.open_weights

    def open_weights(self, **arguments):
        opened.append(arguments)
        return opens(self, **arguments)

    monkeypatch.setattr(ModelFolder, "open_weights", open_weights)
    folder = ModelFolder(weights)
    predictor = Predictor.from_pretrained(folder, backend="keras")
    assert predictor.tokenizer is folder.tokenizer and predictor.folder is folder
    assert folder.config.num_hidden_layers == 1 and opened == [{}]
    predictor.fill_mask(["the [MASK]"])
    assert len(opened) == 2  # and once for the weights


def test_a_folder_goes_where_a_path_goes(weights, tmp_path):
    folder = ModelFolder(weights)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    model.load_pretrained(folder)
    assert BertTokenizer.from_pretrained(folder).vocab == folder.tokenizer.vocab
    convert(folder, tmp_path / "google", "google", report=lambda line: None)
    assert ModelFolder(tmp_path / "google").shapes == folder.shapes


def test_the_task_of_a_folder(weights):
    settings = {"task": "tag", "max_seq_length": 9, "takes_pairs": False}
    (weights / TASK_FILE).write_text(json.dumps(settings))
    folder = ModelFolder(weights)
    assert (
        folder.task_settings
        == settings
        == read_task_settings(folder)
        == read_task_settings(weights)
    )
    keras_hub = {"registered_name": "keras_hub>BertTextClassifier", "config": {}}
    (weights / TASK_FILE).write_text(json.dumps(keras_hub))
    assert read_task_settings(weights) is None


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        ModelFolder(tmp_path / "missing")
