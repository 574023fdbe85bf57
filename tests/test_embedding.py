"""How a model embeds texts: read from sentence-transformers, kept by every format, and computed."""

import functools
import json
import shutil
import sys
import tempfile
import warnings

import keras
import numpy as np
import pytest
from marks import slow

import kbert
from kbert import BertConfig, BertForEmbedding, BertModel, EmbeddingConfig, Predictor
from kbert.errors import UserError
from kbert.model.conversion import convert
from kbert.model.folder import ModelFolder
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "##s", "query", ":", "é", "e"]
TEXTS = ["the cat sat on a mat", "dogs ran", "", "The Cats é ran on on on on on on on on on on"]


def config_of(**embedding):
    return BertConfig(
        vocab_size=18,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        initializer_range=0.5,
        embedding=EmbeddingConfig(**embedding),
    )


@functools.cache
def made(format, settings):
    """A folder with random weights, and its model."""
    keras.utils.set_random_seed(3)
    warnings.filterwarnings("ignore", "HF's BertModel has a pooler")
    model = BertForEmbedding(config_of(**dict(settings)))
    tokenizer = kbert.BertTokenizer([*SPECIAL_TOKENS, *WORDS])
    folder = tempfile.TemporaryDirectory()
    model.save_pretrained(folder.name, format=format)
    tokenizer.save_pretrained(folder.name, format=format)
    return folder, model


def saved(target, format="hf", **embedding):
    """Writes such a folder, and returns its model."""
    folder, model = made(format, tuple(embedding.items()))
    shutil.copytree(folder.name, target, dirs_exist_ok=True)
    return model


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FULL = {"pooling": "cls", "dense_size": 7, "dense_activation": "linear", "normalize": False}
FULL |= {"similarity": "dot", "max_seq_length": 9, "prompt": "query : "}
PROMPTS = {"query": "query : ", "document": "", "cat": "the cat "}


def test_settings_are_checked():
    with pytest.raises(UserError, match=r"pooling must be one of mean, cls, max; got 'min'"):
        EmbeddingConfig(pooling="min")
    with pytest.raises(UserError, match=r"embedding: dense_size must be >= 1; got 0"):
        BertConfig(embedding={"dense_size": 0})
    with pytest.raises(UserError, match=r"embedding has the unknown keys \['pool'\]"):
        BertConfig(embedding={"pool": "cls"})
    assert BertConfig(embedding={"pooling": "max"}).embedding == EmbeddingConfig(pooling="max")
    with pytest.raises(UserError, match=r"prompts must be a dict of name -> text; got {'query': 3"):
        EmbeddingConfig(prompts={"query": 3})
    config = config_of(**FULL, prompts=PROMPTS)
    assert BertConfig(**config.to_dict()) == config


@pytest.mark.parametrize("format", ["hf", *slow("kbert")])
def test_formats_keep_settings_and_dense_layer(format, tmp_path):
    model = saved(tmp_path / "a", format, **FULL)
    folder = ModelFolder(tmp_path / "a")
    assert folder.config.embedding == EmbeddingConfig(**FULL) and "embedding" in folder.parts
    convert(folder, tmp_path / "b", "hf" if format == "kbert" else "kbert", report=lambda _: None)
    again = BertForEmbedding.from_pretrained(tmp_path / "b")
    assert again.config == model.config
    for name, weight in model.named_weights().items():
        np.testing.assert_array_equal(weight, again.named_weights()[name])


def test_what_cannot_keep_a_dense_layer(tmp_path):
    with pytest.raises(UserError, match=r"google does not support embedding/dense/bias, embedding"):
        saved(tmp_path / "google", "google", dense_size=7)
    saved(tmp_path / "hf", dense_size=7)
    encoder = BertModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False)
    with pytest.warns(UserWarning, match=r"lacks the dense layer of its embeddings, so modules"):
        encoder.save_pretrained(tmp_path / "bare", format="hf")
    assert ModelFolder(tmp_path / "bare").config.embedding is None
    encoder.save_pretrained(tmp_path / "native")
    write_vocab([*SPECIAL_TOKENS, *WORDS], tmp_path / "native/vocab.txt")
    with pytest.raises(UserError, match=r"has no embedding, which BertForEmbedding requires"):
        Predictor.from_pretrained(tmp_path / "native", backend="keras").embed(["a cat"])


def pooled(model, tokenizer, text, pooling):
    """The vector of a text alone, without padding, by numpy."""
    features = tokenizer([text], max_length=16, padding="longest")
    x = np.array(model.bert(features)["last_hidden_state"])[0]
    return {"mean": x.mean(axis=0), "cls": x[0], "max": x.max(axis=0)}[pooling]


@pytest.mark.parametrize("pooling", ["max", *slow("mean", "cls")])
def test_vectors(pooling, tmp_path):
    """Of the Predictor and of the model, with padding, against numpy."""
    model = saved(tmp_path, pooling=pooling, dense_size=7)
    predictor = Predictor.from_pretrained(tmp_path, backend="keras")
    assert predictor.method == "embed"
    kernel, bias = (np.array(w) for w in model.embedding.output_dense.weights)
    rows = [pooled(model, predictor.tokenizer, text, pooling) for text in TEXTS]
    expected = np.tanh(np.stack(rows) @ kernel + bias)
    found = predictor.embed(TEXTS, normalize=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(predictor.embed(TEXTS), expected, atol=1e-5)
    features = predictor.tokenizer(TEXTS, max_length=16)
    np.testing.assert_allclose(model(features)["embedding"], expected, atol=1e-5)
    assert predictor.embed([]).shape == (0, 7)


def test_length_prompt_and_similarity_are_of_the_folder(tmp_path):
    model = saved(tmp_path, normalize=False, max_seq_length=5, prompt="query : ", similarity="dot")
    predictor = Predictor.from_pretrained(tmp_path, backend="keras")
    assert predictor.max_seq_length == 5
    expected = pooled(model, predictor.tokenizer, "query : the", "mean")
    np.testing.assert_allclose(predictor.embed("the cat sat")[0], expected, atol=1e-5)
    (found,) = predictor.similarity("the cat", "the mat")
    assert found["similarity"] == pytest.approx(float(expected @ expected), abs=1e-4)


@pytest.mark.parametrize(("kind", "value"), [("euclidean", -5), ("manhattan", -7), ("dot", 12)])
def test_similarities(kind, value):
    from kbert.tasks.outputs import similarities

    a, b = np.array([[1.0, 2]]), np.array([[4.0, 6]]) if kind != "dot" else np.array([[4.0, 4]])
    assert similarities(a, b, kind) == pytest.approx(value)


# Folders of sentence-transformers


def files_of(folder):
    """The bytes of the files of a folder by name, without those of the tokenizer."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path: str(path.relative_to(folder)) for path in paths}
    return {name: p.read_bytes() for p, name in names.items() if not name.startswith("tok")}


def test_a_round_trip_keeps_every_file(tmp_path):
    saved(tmp_path / "a", **FULL)
    values = {"prompts": PROMPTS, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    (tmp_path / "a/config_sentence_transformers.json").write_text(json.dumps(values, indent=2))
    convert(tmp_path / "a", tmp_path / "b", "hf", report=lambda _: None)
    again = ModelFolder(tmp_path / "b")
    assert again.config.embedding == EmbeddingConfig(**FULL, prompts=PROMPTS)
    written = json.loads((tmp_path / "b/config_sentence_transformers.json").read_text())
    assert written == values
    convert(again, tmp_path / "c", "hf", report=lambda _: None)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")
    names = ("1_Pooling/config.json", "2_Dense/model.safetensors", "model.safetensors")
    before, after = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert all(before[name] == after[name] for name in (*names, "modules.json"))


def test_prompts_are_used_on_request(tmp_path):
    saved(tmp_path)
    change(tmp_path / "config_sentence_transformers.json", prompts={**PROMPTS, "none": None})
    predictor = Predictor.from_pretrained(tmp_path, backend="keras")
    found = predictor.embed("sat", prompt_name="cat")
    np.testing.assert_array_equal(found, predictor.embed("the cat sat"))
    with pytest.raises(UserError, match=r"no prompt named 'dog'; its prompts: query, document, c"):
        predictor.embed("sat", prompt_name="dog")
    change(tmp_path / "1_Pooling/config.json", include_prompt=False)
    with pytest.raises(UserError, match=r"no prompt named 'cat'; its prompts: none\."):
        Predictor.from_pretrained(tmp_path, backend="keras").embed("sat", prompt_name="cat")


def test_a_transformer_in_a_folder_of_its_own(tmp_path):
    """The layout of older folders: 0_Transformer, flags for the pooling, no Normalize."""
    saved(tmp_path / "0_Transformer", pooling="cls", normalize=False)
    inner = tmp_path / "0_Transformer"
    for name in ("1_Pooling", "modules.json", "config_sentence_transformers.json"):
        (inner / name).rename(tmp_path / name)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    modules.append({"idx": 2, "name": "2", "path": "2_Dropout", "type": "x.models.Dropout"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    folder = ModelFolder(tmp_path)
    assert folder.path == inner and folder.tokenizer.vocab_size == 18
    expected = EmbeddingConfig(pooling="cls", normalize=False, max_seq_length=16)
    assert folder.config.embedding == expected


@pytest.mark.parametrize("mode", [{"pooling_mode": "max"}, {"pooling_mode_max_tokens": True}, {}])
def test_spellings_of_the_pooling(mode, tmp_path):
    saved(tmp_path)
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"embedding_dimension": 12} | mode))
    assert ModelFolder(tmp_path).config.embedding.pooling == ("max" if mode else "mean")


def test_length_of_the_tokenizer(tmp_path):
    saved(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": false}')
    change(tmp_path / "tokenizer_config.json", model_max_length=8)
    assert ModelFolder(tmp_path).config.embedding.max_seq_length == 8
    change(tmp_path / "tokenizer_config.json", model_max_length=10**30)
    assert ModelFolder(tmp_path).config.embedding.max_seq_length == 16


def test_texts_are_lower_cased_first(tmp_path):
    """By a folder with a cased tokenizer; the accents stay."""
    saved(tmp_path)
    kbert.BertTokenizer([*SPECIAL_TOKENS, *WORDS], lower_case=False).save_pretrained(
        tmp_path, format="hf"
    )
    assert ModelFolder(tmp_path).tokenizer.lower_case is False
    change(tmp_path / "sentence_bert_config.json", do_lower_case=True)
    tokenizer = ModelFolder(tmp_path).tokenizer
    assert tokenizer.decode(tokenizer.tokenize(["The É"])) == ["the é"]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1_Pooling", {"pooling_mode": ["cls", "mean"]}, r"mode \['cls', 'mean'\]; kbert supports"),
        ("1_Pooling", {"pooling_mode": "lasttoken"}, r"mode \['lasttoken'\]; kbert supports one"),
        ("1_Pooling", {"include_prompt": False}, r"include_prompt false, .* prompt 'query : '"),
        ("2_Dense", {"activation_function": "torch.nn.modules.activation.GELU"}, r"activation GE"),
        ("2_Dense", {"use_residual": True}, r"has use_residual true; kbert supports Tanh and Id"),
        ("2_Dense", {"module_input_name": "tokens"}, "has module_input_name 'tokens'; kbert supp"),
        ("2_Dense", {"module_output_name": "other"}, "has module_output_name 'other'; kbert supp"),
        ("2_Dense", {"out_features": 8}, r"2_Dense.linear.\w+ has the shape \(7.*requires \(8"),
        ("2_Dense", {"out_features": "7"}, r"embedding: dense_size must be int; got '7'"),
        (".", {"default_prompt_name": "q"}, r"the default prompt 'q', but no prompt of this name"),
        (".", {"default_prompt_name": ["q"]}, r"the default prompt \['q'\], but no prompt"),
        (".", {"similarity_fn_name": "x"}, r"similarity must be one of cosine, dot, .* got 'x'"),
    ],
)
def test_settings_that_are_rejected(file, changes, message, tmp_path):
    saved(tmp_path, dense_size=7, prompt="query : ")
    name = "config_sentence_transformers.json" if file == "." else f"{file}/config.json"
    change(tmp_path / name, **changes)
    with pytest.raises(UserError, match=message):
        BertForEmbedding.from_pretrained(tmp_path)


def test_modules_that_are_rejected(tmp_path):
    saved(tmp_path)
    path = tmp_path / "modules.json"
    modules = json.loads(path.read_text())
    for other, message in (
        ([{**modules[0], "type": "x.models.LSTM"}], r"has the modules LSTM; kbert supports Trans"),
        ([modules[0], modules[2], modules[1]], r"modules Transformer, Normalize, Pooling; kbert"),
        ([{"type": "x.Transformer", "path": "../up"}], r"must list modules with a type and a path"),
    ):
        path.write_text(json.dumps(other))
        with pytest.raises(UserError, match=message):
            BertModel.from_pretrained(tmp_path)
    path.unlink()
    assert ModelFolder(tmp_path).config.embedding is None


def test_cross_encoders_embed_nothing(tmp_path):
    saved(tmp_path)
    change(tmp_path / "config_sentence_transformers.json", model_type="CrossEncoder")
    assert ModelFolder(tmp_path).config.embedding is None


def test_a_dense_layer_in_a_pickle(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")

    model = saved(tmp_path, dense_size=7)
    kernel, _ = (np.array(w) for w in model.embedding.output_dense.weights)
    tensors = {"linear.weight": torch.tensor(kernel.T.copy())}  # and no bias
    torch.save(tensors, tmp_path / "2_Dense/pytorch_model.bin")
    (tmp_path / "2_Dense/model.safetensors").unlink()
    again = BertForEmbedding.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.embedding.output_dense.kernel, kernel)
    assert not np.array(again.embedding.output_dense.bias).any()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"has no model.safetensors, and reading .* python -c "):
        BertForEmbedding.from_pretrained(tmp_path)
    (tmp_path / "2_Dense/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"cannot read .*pytorch_model.bin: "):
        BertForEmbedding.from_pretrained(tmp_path)


# The peer


def transformer_of(folder):
    """A folder with a BertModel of random weights, written by HF."""
    import torch
    import transformers

    folder.mkdir()
    write_vocab([*SPECIAL_TOKENS, *WORDS], folder / "vocab.txt")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(5)
    fields = config_of().to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    names += ("intermediate_size", "max_position_embeddings", "initializer_range")
    config = transformers.BertConfig(**{name: fields[name] for name in names})
    transformers.BertModel(config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("dense", [None, "Tanh", "Identity"])
@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_of_sentence_transformers(pooling, dense, normalize, tmp_path):
    import sentence_transformers
    import torch
    from sentence_transformers.sentence_transformer import modules

    transformer_of(tmp_path / "bert")
    parts = [modules.Transformer(str(tmp_path / "bert"), max_seq_length=9)]
    parts.append(modules.Pooling(12, pooling))
    if dense:
        parts.append(modules.Dense(12, 7, activation_function=getattr(torch.nn, dense)()))
    if normalize:
        parts.append(modules.Normalize())
    peer = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    peer.save(str(tmp_path / "st"))
    expected = peer.encode(TEXTS)
    predictor = Predictor.from_pretrained(tmp_path / "st", backend="tensorflow")
    assert predictor.max_seq_length == 9
    np.testing.assert_allclose(predictor.embed(TEXTS), expected, atol=1e-6, rtol=1e-6)
    pairs = predictor.similarity(TEXTS[:1] * 3, TEXTS[1:])
    cosines = peer.similarity(expected[:1], expected[1:])[0].numpy()
    np.testing.assert_allclose([p["similarity"] for p in pairs], cosines, atol=1e-6)
    # and the other way: kbert writes what sentence-transformers reads
    BertForEmbedding.from_pretrained(tmp_path / "st").save_pretrained(tmp_path / "hf", format="hf")
    predictor.tokenizer.save_pretrained(tmp_path / "hf", format="hf")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "hf"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("runtime", [*slow("serving", "openvino")])
def test_exports(runtime, tmp_path):
    """The SavedModel and OpenVINO give the vectors of the folder."""
    import tensorflow as tf

    from kbert.serving.export import export, export_openvino

    saved(tmp_path / "model", **{**FULL, "dense_activation": "tanh", "pooling": "max"})
    lines = []
    if runtime == "openvino":
        export_openvino(tmp_path / "model", tmp_path / "to", "embed", report=lines.append)
        assert any("embedding (B, 7)" in line for line in lines)
        return
    export(tmp_path / "model", tmp_path / "to", report=lines.append)
    assert any("(B, E) float32, max pooling, not normalized" in line for line in lines)
    function = tf.saved_model.load(str(tmp_path / "to")).signatures["serving_default"]
    expected = Predictor.from_pretrained(tmp_path / "model", backend="keras").embed(TEXTS)
    found = function(text=tf.constant(TEXTS))["embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = Predictor.from_pretrained(tmp_path / "to", backend="keras")
    np.testing.assert_allclose(again.embed(TEXTS), expected, atol=1e-5)
