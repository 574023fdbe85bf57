"""What is refused of a folder of weights, in which words, and without taking memory for it."""

import json
import resource
import shlex
import struct
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from test_weights import GOOGLE, config_of, hf_made, made, respell, saved_hf, write_google
from warm_python import PYTHON

from kbert import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel
from kbert.errors import UserError, one_line
from kbert.model.conversion import convert
from kbert.model.weights import open_weights
from kbert.utils.formats import export_checksum, find_folder, folder_format, read_export, read_json


def save(folder, format):
    """A BertModel in a format, of which every code computes the same."""
    made("BertModel", config_of(hidden_act="gelu_new")).save_pretrained(folder, format=format)


def refuses(message, folder, cls=BertModel, **kwargs):
    with pytest.raises(UserError, match=message) as caught:
        cls.from_pretrained(folder, **kwargs)
    assert "\n" not in str(caught.value)


def change_json(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "drop"}))


# Which folder


def test_folders_that_are_none(tmp_path):
    refuses(r"there is no folder .*a/b/c\.$", str(tmp_path / "a/b/c"))
    (tmp_path / "file").write_text("")
    refuses(r"file is a file; give the folder that contains it", tmp_path / "file")
    (tmp_path / "empty").mkdir()
    refuses(
        r"contains no weights: found nothing; kbert reads config.json and weights.h5 \(kbert\);",
        tmp_path / "empty",
    )
    (tmp_path / "empty/readme.md").write_text("")
    refuses(r"contains no weights: found readme.md; kbert", tmp_path / "empty")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"]
)
def test_pickles_are_never_read(name, tmp_path):
    mark = tmp_path / "was_read"
    (tmp_path / name).write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    refuses(
        rf"{name} is a pickle, which may execute arbitrary code .* import BertForMaskedLM", tmp_path
    )
    for hostile in (["BertModel as M; import os; os.system('id') #\n$(id)"], [5], "x", None):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": hostile}))
        refuses(r"python -c 'from transformers import BertForPreTraining as M; ", tmp_path)
    assert not mark.exists()


@pytest.mark.slow
def test_the_way_out_of_a_pickle_works(tmp_path):
    """The command of the message, on a folder that HF's older releases wrote."""
    import torch

    folder = tmp_path / "it's $(old)"
    hf, tensors = saved_hf(folder, "BertForMaskedLM")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        folder_format(folder)
    command = "python -c " + str(caught.value).split("python -c ")[1]
    command = command.replace("python", shlex.quote(PYTHON), 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = BertForMaskedLM.from_pretrained(tmp_path / "it's $(old)-safe")
    np.testing.assert_array_equal(
        model.named_weights()["mlm/output_bias"], hf.state_dict()["cls.predictions.bias"]
    )


# The Hugging Face hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local cache of the hub with the model org/bert-odd, and no network."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name in ("org/bert-odd", "bert-odd"):
        repo = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        hf_made("BertModel").save_pretrained(repo / "snapshots" / commit)
        (repo / "refs").mkdir()
        (repo / "refs/main").write_text(commit)


@pytest.mark.parametrize("name", ["org/bert-odd", "bert-odd"])
def test_hub_names_from_the_cache(hub, name):
    assert find_folder(name).name.startswith("0123456789abcdef")
    assert BertModel.from_pretrained(name).config.hidden_size == 15


def test_hub_names_that_are_not_there(hub):
    refuses(
        r"no folder org/none, and no model of this name could be loaded from .* hub: \w+",
        "org/none",
    )


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refuses(
        r"no folder org/none. If it is a model on .* hub: pip install huggingface_hub", "org/none"
    )


# Configs


def hf_folder(tmp_path, name="BertModel", **changes):
    hf_made(name).save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", **changes)
    return tmp_path


@pytest.mark.parametrize("other", ["albert", "roberta", "distilbert", "electra", "xlm-roberta"])
def test_other_architectures_by_name(other, tmp_path):
    folder = hf_folder(tmp_path, model_type=other)
    refuses(rf"config.json has model_type '{other}'; kbert supports only 'bert'", folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, r"hidden_act 'relu'; kbert supports gelu, "),
        ({"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\]; kbert supports gelu, "),
        ({"position_embedding_type": "relative_key"}, r"position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, r"is_decoder True; kbert supports only False"),
        (
            {"quantization_config": {"bits": 4}},
            r"quantization_config {'bits': 4}.* Use the unquanti",
        ),
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads {'0': \[1\]}"),
        ({"vocab_size": "big"}, r"vocab_size must be int; got 'big'"),
        ({"num_attention_heads": 4}, r"hidden_size must be divisible by num_attention_heads"),
        ({"id2label": 7}, r"config.json: expected a JSON object; got a value of type int"),
        ({"architectures": 7}, r"architectures must be a list of names; got 7"),
    ],
)
def test_hf_configs_that_mean_something_else(changes, message, tmp_path):
    refuses(message, hf_folder(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "{", "[1]", "nan", "[" * 100_000, '"x"'])
def test_config_that_is_no_json_object(text, tmp_path):
    hf_folder(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refuses(r"config.json (is not valid JSON|must contain a JSON object)", tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    refuses(r"config.json is not valid JSON", tmp_path)
    (tmp_path / "config.json").unlink()
    refuses(r"cannot read .*config.json: No such file", tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_json(tmp_path)


def test_google_configs(tmp_path):
    write_google(tmp_path)
    change_json(tmp_path / "bert_config.json", hidden_act="relu")
    refuses(r"bert_config.json has hidden_act 'relu'; kbert supports 'gelu' and 'gelu_n", tmp_path)
    change_json(tmp_path / "bert_config.json", hidden_act="drop", hidden_size="drop")
    refuses(r"bert_config.json lacks 'hidden_size'", tmp_path)


# Tensors that do not fit


def test_unknown_tensors(tmp_path):
    _, tensors = saved_hf(tmp_path)
    tensors["bert.adapter.weight"] = tensors["bert.pooler.dense.bias"].clone()
    tensors["projector.weight"] = tensors["bert.pooler.dense.bias"].clone()
    respell(tmp_path, tensors)
    message = (
        r"has tensors that BERT does not have: bert.adapter.weight, bert.projector.weight\. To "
    )
    refuses(message, tmp_path)
    BertModel.from_pretrained(tmp_path, allow_missing=["bert.adapter", "bert.proj*"])


def test_missing_tensors(tmp_path):
    _, tensors = saved_hf(tmp_path)
    whole = dict(tensors)
    del tensors["bert.encoder.layer.1.output.dense.bias"], tensors["cls.predictions.bias"]
    respell(tmp_path, tensors)
    refuses(
        r"lacks bert.encoder.layer.1.output.dense.bias, cls.predictions.bias\. To skip", tmp_path
    )
    with pytest.warns(UserWarning, match="no weights for bert/encoder/layer_1/output/bias, ml"):
        BertForPreTraining.from_pretrained(
            tmp_path, allow_missing=["bert/encoder/layer_1/output/bias", "mlm"]
        )
    only_head = {name: value for name, value in whole.items() if name.startswith("cls")}
    respell(tmp_path, only_head)
    refuses(r"lacks bert.embeddings.LayerNorm.bias, .* and \d+ more", tmp_path)


def test_too_many_layers_for_the_tensors(tmp_path):
    refuses(
        r"has 2000000000 layers, but there are only 39 tensors",
        hf_folder(tmp_path, num_hidden_layers=2_000_000_000),
    )


@pytest.mark.parametrize("format", ["kbert", "google", "hf", "keras_hub"])
def test_shapes_that_do_not_fit(format, tmp_path):
    """A config that asks for a table of 400 GB is refused before memory is taken."""
    save(tmp_path, format)
    path = tmp_path / ("bert_config.json" if format == "google" else "config.json")
    values = json.loads(path.read_text())
    sizes = values["config"] if format == "keras_hub" else values
    sizes["vocabulary_size" if format == "keras_hub" else "vocab_size"] = 7_000_000_000
    path.write_text(json.dumps(values))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses(r"has the shape \(53, 15\), but the config requires \(7000000000, 15\)", tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_decoder_that_differs_from_the_words_it_is_tied_to(tmp_path):
    _, tensors = saved_hf(tmp_path)
    words = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = words + 1
    respell(tmp_path, tensors)
    message = r"decoder.weight differs from bert.embeddings.word_embeddings.weight, but"
    refuses(message, tmp_path)
    change_json(tmp_path / "config.json", tie_word_embeddings=False)
    model = BertForPreTraining.from_pretrained(tmp_path)
    np.testing.assert_array_equal(model.named_weights()["mlm/decoder"], words + 1)


def test_the_same_tensor_under_two_names(tmp_path):
    _, tensors = saved_hf(tmp_path)
    tensors["pooler.dense.bias"] = tensors["bert.pooler.dense.bias"].clone()
    respell(tmp_path, tensors)
    refuses(r"model.safetensors has bert.pooler.dense.bias twice, once as pooler", tmp_path)


def test_quantised_tensors(tmp_path):
    _, tensors = saved_hf(tmp_path)
    tensors["bert.pooler.dense.bias"] = tensors["bert.pooler.dense.bias"].char()
    respell(tmp_path, tensors)
    refuses(
        r"bert.pooler.dense.bias has the dtype I8; kbert reads F32, F16, BF16 and F64", tmp_path
    )


# Damaged files


def header(values, length=None):
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        header({"a": ONE}),  # no data
        header({"a": ONE}, 2**62) + b"0000",
        header({"a": ONE}, 90_000_000) + b"0000",
        header({"a": ONE | {"shape": [2**40, 2**40]}}) + b"0000",
        header({"a": ONE | {"shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 1]}}) + b"0000",
        header({"a": ONE | {"shape": [-1]}}) + b"0000",
        header({"a": ONE, "b": ONE}) + b"0000",  # one lies upon the other
        header({"a": {"dtype": "F32"}}) + b"0000",
        header([1]),
        b"<!DOCTYPE html><html><body>Not found</body></html>",
    ],
)
def test_damaged_safetensors(content, tmp_path):
    hf_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses(r"cannot read .*model.safetensors: .*Copy it again", tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_truncated_safetensors(tmp_path):
    hf_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuses(r"cannot read .*model.safetensors: .*file not fully covered. Copy it again", tmp_path)


@pytest.mark.parametrize("format", ["kbert", "keras_hub"])
def test_damaged_hdf5(format, tmp_path):
    save(tmp_path, format)
    path = tmp_path / ("weights.h5" if format == "kbert" else "model.weights.h5")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refuses(r"cannot read the weights .*truncated file", tmp_path)
    path.write_bytes(b"version 1 of something else")
    refuses(r"cannot read the weights .*file signature not found", tmp_path)


def test_hdf5_that_claims_more_than_it_holds(tmp_path):
    """The config and the file agree on a table of 400 GB that was never written."""
    save(tmp_path, "kbert")
    change_json(tmp_path / "config.json", vocab_size=7_000_000_000)
    name = "bert/embeddings/word_embeddings/embeddings"
    with h5py.File(tmp_path / "weights.h5", "a") as file:
        del file[name]
        file.create_dataset(name, (7_000_000_000, 15), "f4", chunks=(1000, 15))
    refuses(r"weights.h5 is damaged: its tensors need 420,0\d\d,\d\d\d,\d\d\d bytes", tmp_path)


def test_damaged_google_checkpoints(tmp_path):
    write_google(tmp_path)
    data = tmp_path / "bert_model.ckpt.data-00000-of-00001"
    content = data.read_bytes()
    data.write_bytes(content[:1000])
    refuses(r"bert_model.ckpt is damaged: its tensors need [\d,]+ bytes, but it has only", tmp_path)
    data.write_bytes(bytes(len(content)))
    with (
        open_weights(tmp_path) as (_, weights),
        pytest.raises(UserError, match=r"cannot read .* of .*: Checksum does not"),
    ):
        dict(weights)
    data.unlink()
    refuses(r"bert_model.ckpt is damaged: .* but it has only 0", tmp_path)
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"no index")
    refuses(r"cannot read the checkpoint .*bert_model.ckpt: ", tmp_path)


def test_a_google_checkpoint_that_is_cut_off_behind_the_weights(tmp_path):
    """As many bytes are there as the weights take, with an optimizer's among them."""
    write_google(tmp_path)
    data = tmp_path / "bert_model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-400])
    with (
        open_weights(tmp_path) as (_, weights),
        pytest.raises(UserError, match=r"cannot read cls.* of .*: Read less bytes than requested"),
    ):
        dict(weights)


def test_google_folders_of_something_else(tmp_path):
    write_google(tmp_path / "a", GOOGLE | {"bert/encoder/transformer/group_0/bias": (3,)})
    refuses(r"is a checkpoint of ALBERT; kbert reads only BERT", tmp_path / "a")
    write_google(tmp_path / "e", {"electra/embeddings/word_embeddings": (3,)})
    refuses(r"is a checkpoint of ELECTRA; kbert reads only BERT", tmp_path / "e")
    write_google(tmp_path / "b")
    for path in list((tmp_path / "b").glob("bert_model.ckpt.*")):
        for step in (1, 2):
            name = path.name.replace("bert_model.ckpt", f"model.ckpt-{step}")
            (tmp_path / "b" / name).write_bytes(path.read_bytes())
        path.unlink()
    refuses(
        r"2 checkpoints, none named bert_model.ckpt: model.ckpt-1, model.ckpt-2\. Copy",
        tmp_path / "b",
    )
    for path in list((tmp_path / "b").glob("model.ckpt-1*")):
        path.unlink()
    BertForPreTraining.from_pretrained(tmp_path / "b")


def test_keras_hub_presets_of_something_else(tmp_path):
    save(tmp_path, "keras_hub")
    change_json(tmp_path / "config.json", class_name="RobertaBackbone")
    refuses(r"is a preset of RobertaBackbone; kbert reads only BertBackbone", tmp_path)
    change_json(tmp_path / "config.json", class_name="BertBackbone", config={"num_layers": 2})
    refuses(r"config.json lacks 'vocabulary_size'", tmp_path)


def test_keras_hub_tasks_of_something_else(tmp_path):
    model = made("BertForSequenceClassification")
    with pytest.warns(UserWarning, match="hidden_act"):
        model.save_pretrained(tmp_path, format="keras_hub")
    task = json.loads((tmp_path / "task.json").read_text())
    task["config"]["activation"] = "softmax"
    (tmp_path / "task.json").write_text(json.dumps(task))
    refuses(
        r"task.json has the activation 'softmax'; kbert's classifier returns logits",
        tmp_path,
        BertForSequenceClassification,
    )
    change_json(tmp_path / "task.json", class_name="BertRegressor")
    refuses(
        r"is of the class BertRegressor; kbert reads BertTextClassifier and BertMaskedLM", tmp_path
    )
    change_json(tmp_path / "task.json", class_name="BertTextClassifier", config={})
    refuses(r"task.json lacks 'num_classes'", tmp_path)


def test_hdf5_that_points_to_other_files(tmp_path):
    """What lies there would be read as weights, and written out again."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(60))
    save(tmp_path, "kbert")
    name = "bert/pooler/dense/bias"
    layout = h5py.VirtualLayout((15,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (15,))
    for kind in ("external", "virtual"):
        with h5py.File(tmp_path / "weights.h5", "a") as file:
            del file[name]
            if kind == "external":
                file.create_dataset(name, (15,), "f4", external=[(str(secret), 0, 60)])
            else:
                file.create_virtual_dataset(name, layout)
        refuses(r"bert/pooler/dense/bias is in another file, which kbert does not open", tmp_path)


def test_hdf5_of_other_kinds(tmp_path):
    save(tmp_path, "kbert")
    with h5py.File(tmp_path / "weights.h5", "a") as file:
        for name, value in {"a": np.ones(15, "c8"), "b": h5py.Empty("f4"), "c": "text"}.items():
            file[f"x/{name}"] = value
        del file["bert/pooler/dense/bias"]
        file["bert/pooler/dense/bias"] = np.ones(15, "c8")
    refuses(r"lacks bert/pooler/dense/bias\.", tmp_path)


def test_bits_that_flip_in_hdf5(tmp_path):
    """One line, or weights, but never another error."""
    save(tmp_path, "kbert")
    path = tmp_path / "weights.h5"
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 40):
            damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            with open_weights(tmp_path) as (_, weights):
                dict(weights)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


HOSTILE = [None, [], 7, "x", {}, {"x": 1}, [[]], 1e999, {"type": 5}]


@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("kbert", "config.json"),
        ("google", "bert_config.json"),
        ("hf", "config.json"),
        ("keras_hub", "config.json"),
        ("keras_hub", "task.json"),
    ],
)
def test_any_value_in_any_place_of_a_config(format, file, tmp_path):
    """Read or refused in one line, whatever stands there."""
    changes = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6, "num_labels": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made("BertForSequenceClassification", config_of(**changes)).save_pretrained(
            tmp_path, format=format
        )
    whole = json.loads((tmp_path / file).read_text())

    def places_in(values, path=()):
        for name, value in values.items():
            yield (*path, name)
            if isinstance(value, dict):
                yield from places_in(value, (*path, name))

    refused = 0
    for place in [*places_in(whole), ("kbert",), ("kbert", "lower_case"), ("new",)]:
        for hostile in [*HOSTILE, 10**400, "\ud800", "a\nb"]:
            values = json.loads(json.dumps(whole))
            inner = values
            for name in place[:-1]:
                inner = inner.setdefault(name, {})
            inner[place[-1]] = hostile
            (tmp_path / file).write_text(json.dumps(values))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    with open_weights(tmp_path, allow_missing=["*classifier*"]):
                        pass
            except UserError as error:
                assert str(error).isprintable()
                refused += 1
    assert refused > 20


EXPORT = {"method": "tag", "inputs": ["text"], "max_seq_length": 9, "padded": {"a": ""}}
EXPORT |= {"token_outputs": ["b"], "pad_id": 0, "batch_timeout_ms": 0}
EXPORT |= {"limits": {"max_text_tokens": 9, "max_windows": 2, "max_choices": 3}}
EXPORT |= {"weights": ["a", None], "files": {}}
EXPORT["checksum"] = export_checksum(EXPORT)


def test_files_of_exports_that_are_none(tmp_path):
    (tmp_path / "kbert.json").write_text(json.dumps(EXPORT))
    assert read_export(tmp_path)["weights"] == ["a", None]
    change_json(tmp_path / "kbert.json", max_seq_length=10)
    message = r"kbert.json is damaged: its checksum differs\. Export the model again\."
    with pytest.raises(UserError, match=message):
        read_export(tmp_path)
    with pytest.raises(UserError, match=message), open_weights(tmp_path):
        pass
    del (rest := dict(EXPORT))["weights"]
    (tmp_path / "kbert.json").write_text(json.dumps(rest))
    with pytest.raises(UserError, match=r"kbert.json lacks 'weights'"):
        read_export(tmp_path)


# Writing


def test_a_folder_has_one_format(tmp_path):
    save(tmp_path, "hf")
    message = r"already has weights in the format hf. Use another folder"
    with pytest.raises(UserError, match=message):
        save(tmp_path, "kbert")
    save(tmp_path, "hf")  # again is fine


def test_a_preset_keeps_no_task_of_another_model(tmp_path):
    config = config_of(hidden_act="gelu_new")
    made("BertForSequenceClassification", config).save_pretrained(tmp_path, format="keras_hub")
    assert (tmp_path / "task.json").exists()
    save(tmp_path, "keras_hub")
    assert not list(tmp_path.glob("task*"))


def test_two_classifiers_have_no_place_in_one_hf_folder(tmp_path):
    made("BertForSequenceClassification").save_pretrained(tmp_path / "a")
    with h5py.File(tmp_path / "a/weights.h5", "a") as file:
        file.copy("sequence_classifier", "token_classifier")
    message = r"format hf does not support token_classifier/dense/bias, token_classifier/dense/ker"
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "a", tmp_path / "b", "hf", report=print)


def test_messages_are_one_line():
    assert str(UserError("a\nb\x1b[2J\ud800 é中")) == r"a\nb\x1b[2J\ud800 é中"


def test_messages_are_not_long():
    message = str(UserError("begin " + "x" * 10**6 + " end"))
    assert len(message) <= 1000 and message.startswith("begin xx") and message.endswith("xx end")
    assert " [...] " in message and str(UserError("x" * 1000)) == "x" * 1000
    escaped = one_line("\n" * 700 + "end", 500)
    assert len(escaped) <= 500 and escaped.endswith(r"\n\nend") and escaped.isprintable()


def test_formats_and_names_that_cannot_be_written(tmp_path):
    model = made("BertForTokenClassification")
    with pytest.raises(UserError, match=r"format must be one of kbert, google, hf, .*got 'onnx'"):
        model.save_pretrained(tmp_path, format="onnx")
    message = r"format google does not support token_classifier/dense/bias, .*=token_classifier"
    with pytest.raises(UserError, match=message):
        model.save_pretrained(tmp_path, format="google")
