"""Folders that others wrote: read as their authors meant it, or rejected with the way out."""

import json

import numpy as np
import pytest
from marks import slow
from test_weights import arrays, assert_same_weights, config_of, hf_made, made, respell, saved_hf

import kbert
from kbert import BertModel, BertTokenizer, Predictor
from kbert.data.examples import TextExample
from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.tokenizer.vocab import SPECIAL_TOKENS, read_vocab, write_vocab
from kbert.utils.formats import folder_format, read_json

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"
VOCAB = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(48))]


def refuses(message, folder, cls=BertModel):
    with pytest.raises(UserError, match=message) as caught:
        cls.from_pretrained(folder)
    assert "\n" not in str(caught.value)


# Folders without weights that kbert reads


def test_only_an_adapter(tmp_path):
    values = {"base_model_name_or_path": "google-bert/bert-base-uncased", "task_type": "SEQ_CLS"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    message = (
        r"has only an adapter for google-bert/bert-base-uncased .* Merge the adapter .*: python "
    )
    refuses(
        message + r"-c 'from peft import AutoPeftModelForSequenceClassification as M; ", tmp_path
    )
    (tmp_path / "adapter_config.json").write_text("[]")
    refuses(r"has only an adapter for another model .* import AutoPeftModelForFeature", tmp_path)


@pytest.mark.parametrize(
    ("name", "argument"), [("tf_model.h5", "from_tf"), ("flax_model.msgpack", "from_flax")]
)
def test_old_weights_of_hf(name, argument, tmp_path):
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text('{"architectures": ["BertForTokenClassification"]}')
    refuses(
        rf"{name} contains weights for HF's .* Convert them with .transformers<5., .* "
        rf"import BertForTokenClassification as M; M.from_pretrained\(.*, {argument}=True\)",
        tmp_path,
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("saved_model.pb", "a SavedModel that was not written by kbert.export, .* exported from"),
        ("model.xml", "an OpenVINO model, a format for serving only. Use the folder"),
        ("openvino_model.xml", "an OpenVINO model"),
        ("model.tflite", "a LiteRT model"),
        ("bert.onnx", "an ONNX model, a format for serving only. Use the folder"),
        ("bert-q4.gguf", "a model for llama.cpp, usually quantized. Use the model"),
        ("rust_model.ot", "weights of rust-bert. Use the model"),
        ("epoch=3.ckpt", "a pickle, which may execute arbitrary code"),
    ],
)
def test_other_files(name, what, tmp_path):
    (tmp_path / name).write_bytes(b"")
    refuses(rf"{name} is {what}", tmp_path)


def test_a_pickle_of_sentence_transformers(tmp_path):
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refuses(r"import SentenceTransformer as M; M\(.*\).save_pretrained\(", tmp_path)


@pytest.mark.parametrize("format", ["google", "hf", *slow("kbert", "keras_hub")])
def test_git_lfs_pointers(format, tmp_path):
    made("BertModel", config_of(hidden_act="gelu_new")).save_pretrained(tmp_path, format=format)
    names = {"kbert": "weights.h5", "google": "bert_model.ckpt.data-00000-of-00001"}
    names |= {"hf": "model.safetensors", "keras_hub": "model.weights.h5"}
    (tmp_path / names[format]).write_text(POINTER)
    refuses(rf"{names[format]} is a Git LFS pointer, not the file itself. .*git lfs pull", tmp_path)
    for name in ("vocab.txt", "tokenizer.json"):
        (tmp_path / name).write_text(POINTER)
        refuses(rf"{name} .*Git LFS.*git lfs pull", tmp_path, BertTokenizer)
        (tmp_path / name).unlink()


# Names and files that mean the same


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", *slow("module.", "model.")])
def test_prefixes_of_wrappers(prefix, tmp_path):
    _, tensors = saved_hf(tmp_path)
    expected = kbert.BertForPreTraining.from_pretrained(tmp_path)
    respell(tmp_path, {prefix + name: tensor for name, tensor in tensors.items()})
    assert_same_weights(kbert.BertForPreTraining.from_pretrained(tmp_path), expected)
    tensors[f"{prefix}cls.predictions.bias"] = tensors.pop("cls.predictions.bias")
    respell(tmp_path, tensors)
    message = rf"some names of tensors begin with '{prefix.split('.')[0]}.', others do not: bert"
    refuses(message, tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n\r\n", "\n  \n", ""])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_spellings_of_a_vocabulary(mark, end, tmp_path):
    line = "\r\n" if "\r" in end else "\n"
    text = mark + line.join(VOCAB) + end
    (tmp_path / "vocab.txt").write_bytes(text.encode())
    assert read_vocab(tmp_path / "vocab.txt") == VOCAB
    (tmp_path / "config.json").write_text(mark + '{"model_type": "bert"}', encoding="utf-8")
    assert read_json(tmp_path / "config.json") == {"model_type": "bert"}


def test_other_architectures_without_a_model_type(tmp_path):
    hf_made("BertModel").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["RobertaForMaskedLM"]}')
    refuses(
        r"config.json has the architecture RobertaForMaskedLM; kbert supports only BERT", tmp_path
    )
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    refuses(r"model_type 'distilbert'; kbert supports only 'bert'. Choose a BERT, or use", tmp_path)


# The method by the head


@pytest.mark.parametrize("architectures", [False, *slow(True, "BertForMyTask")])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("BertForSequenceClassification", "classify"),
        ("BertForTokenClassification", "tag"),
        ("BertForQuestionAnswering", "answer"),
        ("BertForMaskedLM", "fill_mask"),
        ("BertModel", "embed"),
    ],
)
def test_method_of_an_hf_folder(name, method, architectures, tmp_path):
    """By the class in the config, or else by the weights of the head."""
    hf_made(name, num_labels=2).save_pretrained(tmp_path)
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    if architectures is not True:
        values = json.loads((tmp_path / "config.json").read_text())
        del values["architectures"]
        values |= {"architectures": [architectures]} if architectures else {}
        (tmp_path / "config.json").write_text(json.dumps(values))
    assert Predictor.from_pretrained(tmp_path, backend="keras").method == method


def test_regression_with_several_outputs(tmp_path):
    import torch

    hf = hf_made("BertForSequenceClassification", num_labels=3, problem_type="regression")
    hf.config.id2label = {0: "joy", 1: "anger", 2: "fear"}
    hf.save_pretrained(tmp_path)
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    predictor = Predictor.from_pretrained(tmp_path, backend="keras")
    (found,) = predictor("w1 w2 w3")
    ids = torch.tensor([[2, 6, 7, 8, 3]])
    with torch.no_grad():
        expected = hf(input_ids=ids).logits[0].tolist()
    expected = dict(zip(("joy", "anger", "fear"), expected, strict=True))
    assert found["scores"] == pytest.approx(expected, abs=1e-5)
    task = predictor.task("regress")
    with pytest.raises(UserError, match=r"predicts 3 numbers for a text, but kbert trains"):
        task.targets([TextExample("", "a", None, 1.0)])


@pytest.mark.slow
def test_exported_regression_with_several_outputs(tmp_path):
    model = made("BertForSequenceClassification", config_of(problem_type="regression"))
    model.save_pretrained(tmp_path)
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    from kbert.serving.saved_model import load_endpoint

    endpoint = load_endpoint(tmp_path)
    served = {name: np.array(x) for name, x in endpoint.from_texts(text=["w1 w2 w3"]).items()}
    assert served["scores"].shape == (1, 5)
    wanted = endpoint.reference_outputs(["w1 w2 w3"])
    np.testing.assert_allclose(served["scores"], wanted["scores"], atol=1e-6)
    assert endpoint.standard_api is None


# Vocabularies


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("BertForMaskedLM", False),
        *slow(("BertModel", True), ("BertForMaskedLM", True), ("BertForPreTraining", True)),
    ],
)
def test_resizing_keeps_the_learned_rows(name, tied, tmp_path):
    model = made(name, config_of(tie_word_embeddings=tied))
    before = arrays(model)
    model.bert.freeze_encoder(0) if name == "BertForMaskedLM" else None
    model.resize_token_embeddings(60)
    after = arrays(model)
    assert before.keys() == after.keys() and model.config.vocab_size == 60
    for key, value in before.items():
        np.testing.assert_array_equal(after[key][: len(value)], value, err_msg=key)
        is_of_words = key.endswith(("word_embeddings/embeddings", "mlm/output_bias", "mlm/decoder"))
        assert len(after[key]) == (60 if is_of_words else len(value))
    fresh = after["bert/embeddings/word_embeddings/embeddings"][53:]
    assert 0.005 < fresh.std() < 0.04  # initializer_range 0.02
    outputs = model({"input_ids": np.array([[2, 59, 3]], "int32")})
    assert outputs[next(iter(outputs))].shape[-1] == (15 if name == "BertModel" else 60)
    trainable = [w.path for w in model.trainable_weights if "word_embeddings" in w.path]
    assert len(trainable) == (name != "BertForMaskedLM")
    model.save_pretrained(tmp_path)
    assert_same_weights(type(model).from_pretrained(tmp_path), model)
    model.resize_token_embeddings(50)
    words = arrays(model)["bert/embeddings/word_embeddings/embeddings"]
    np.testing.assert_array_equal(words, after["bert/embeddings/word_embeddings/embeddings"][:50])


def test_a_resized_model_as_a_keras_file(tmp_path):
    import keras

    model = made("BertForMaskedLM")
    model.resize_token_embeddings(60)
    model.save(tmp_path / "m.keras")
    assert_same_weights(keras.models.load_model(tmp_path / "m.keras"), model)


def test_a_larger_vocabulary_in_from_pretrained(tmp_path):
    model = made("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    again = kbert.BertForMaskedLM.from_pretrained(tmp_path, vocab_size=60)
    assert again.config.vocab_size == 60
    for key, value in arrays(model).items():
        np.testing.assert_array_equal(arrays(again)[key][: len(value)], value)
    assert not arrays(again)["mlm/output_bias"][53:].any()


def test_new_entries_start_as_the_mean_of_their_pieces(tmp_path):
    model = made("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    old = [*SPECIAL_TOKENS, "car", "##dio", "##my", *(f"w{i}" for i in range(45))]
    new = [*old, "cardiomy", "心", "##diomy"]
    write_vocab(old, tmp_path / "vocab.txt")
    before = arrays(model)

    def check(again):
        for name in ("bert/embeddings/word_embeddings/embeddings", "mlm/output_bias"):
            rows = arrays(again)[name]
            np.testing.assert_array_equal(rows[:53], before[name])
            np.testing.assert_allclose(rows[53], before[name][[5, 6, 7]].mean(axis=0), atol=1e-6)
            np.testing.assert_allclose(rows[55], before[name][[6, 7]].mean(axis=0), atol=1e-6)

    check(kbert.BertForMaskedLM.from_pretrained(ModelFolder(tmp_path, vocab=new)))
    with pytest.raises(UserError, match=r"the vocabulary does not begin with the vocabulary of"):
        kbert.BertForMaskedLM.from_pretrained(ModelFolder(tmp_path, vocab=new[1:]))
    write_vocab(new, tmp_path / "vocab.txt")
    with pytest.warns(UserWarning, match=r"has 56 entries, the word embeddings only 53 rows; add"):
        again = kbert.BertForMaskedLM.from_pretrained(tmp_path)
    check(again)
    assert folder_format(tmp_path) == "kbert" and ModelFolder(tmp_path).tokenizer.vocab_size == 56
