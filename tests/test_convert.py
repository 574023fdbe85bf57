"""`python -m kbert.convert`: every way between the formats, from and to folders on disk."""

import json
import pathlib
import subprocess

import h5py
import numpy as np
import pytest
import transformers
from test_weights import assert_same_weights, config_of, made, write_google
from warm_python import PYTHON

import kbert
from kbert import BertTokenizer
from kbert.errors import UserError
from kbert.model.conversion import convert
from kbert.model.folder import ModelFolder
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.utils.locks import target_lock

FORMATS = ("kbert", "google", "hf", "keras_hub")
VOCAB = [*SPECIAL_TOKENS, "the", "Cat", "##s", "[unused1]"]  # the table of 53 rows is padded


def saved(folder, name="BertModel", format="kbert", **changes):
    """A folder with a tokenizer, and its model."""
    model = made(name, config_of(hidden_act="gelu_new", **changes))
    model.save_pretrained(folder, format=format)
    write_vocab(VOCAB, folder / "vocab.txt")
    tokenizer = BertTokenizer(folder / "vocab.txt", lower_case=False)
    (folder / "vocab.txt").unlink()
    tokenizer.save_pretrained(folder, format=format)
    return model


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_every_way(source, target, tmp_path):
    model = saved(tmp_path / "a", format=source)
    lines = []
    convert(tmp_path / "a", tmp_path / "b", target, report=lines.append)
    again = kbert.BertModel.from_pretrained(tmp_path / "b")
    assert again.config == model.config
    assert_same_weights(again, model)
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "b")
    assert tokenizer.vocab == VOCAB and not tokenizer.lower_case
    parameters = (
        "2 layers, width 15, 5,669 parameters in bert/embeddings, bert/encoder, bert/pooler"
    )
    assert lines[0] == f"from {tmp_path / 'a'} ({source}): {parameters}"
    assert lines[1] == "vocabulary: 9 entries, cased"
    assert lines[2].startswith(f"to {tmp_path / 'b'} ({target}): 0.") and len(lines) == 3


def test_google_to_hf_and_back_is_bit_equal(tmp_path):
    values = write_google(tmp_path / "google")
    convert(tmp_path / "google", tmp_path / "hf", "hf")
    hf, report = transformers.BertForPreTraining.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report.values()) and hf.config.hidden_act == "gelu_new"
    np.testing.assert_array_equal(
        hf.cls.seq_relationship.weight.detach(), values["cls/seq_relationship/output_weights"]
    )
    convert(tmp_path / "hf", tmp_path / "again", "google")
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(tmp_path / "again/bert_model.ckpt"))
    assert reader.get_variable_to_shape_map().keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(reader.get_tensor(name), value, err_msg=name)


def run(*arguments):
    command = [PYTHON, "-m", "kbert.convert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_program(tmp_path):
    saved(tmp_path / "a", "BertForPreTraining", layer_norm_eps=1e-6)
    done = run(f"--model={tmp_path}/a", f"--output_dir={tmp_path}/b", "--format=keras_hub")
    assert (done.returncode, done.stdout.count("\n")) == (2, 2)
    assert done.stderr == (
        "error: the format keras_hub does not support nsp/classifier/bias, nsp/classifier/kernel. "
        "To omit them: allow_missing=[...], --allow_missing=nsp\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    done = run(
        *(f"--model={tmp_path}/a", f"--output_dir={tmp_path}/b", "--format=keras_hub"),
        *("--allow_missing=nsp,x", "--lower_case"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:-1] == [
        "vocabulary: 9 entries, uncased",
        "note: KerasHub always computes with layer_norm_eps 1e-12; this model has 1e-06, so the "
        "outputs differ from kbert's.",
        "note: KerasHub's BertMaskedLM computes its head with the exact GELU and an epsilon of "
        "1e-5, unlike BERT, so its logits differ from kbert's.",
    ]
    # and reading it says so, too
    done = run(f"--model={tmp_path}/b", f"--output_dir={tmp_path}/c")
    assert (done.returncode, done.stderr) == (0, "")
    assert "note: KerasHub's BertMaskedLM computes its head" in done.stdout
    assert kbert.BertForMaskedLM.from_pretrained(tmp_path / "c").config.layer_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: --model is missing: python -m kbert.convert --model=A --output_dir=B"),
        (
            ("--model=x",),
            "error: --output_dir is missing: python -m kbert.convert --model=A --output_dir=B",
        ),
        (("--model=/no/such", "--output_dir=y"), "error: there is no folder /no/such."),
    ],
)
def test_the_program_with_bad_flags(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (2, f"{message}\n")


def test_what_is_refused(tmp_path):
    saved(tmp_path / "a")
    with pytest.raises(UserError, match=r"a exists and is not empty. Remove it, or choose another"):
        convert(tmp_path / "a", tmp_path / "a", "hf")
    with (
        target_lock(tmp_path / "b"),
        pytest.raises(UserError, match="b is in use by"),
    ):
        convert(tmp_path / "a", tmp_path / "b", "hf")


def test_a_vocabulary_without_rows(tmp_path):
    saved(tmp_path / "a")
    vocab, lines = tmp_path / "a/vocab.txt", []
    vocab.write_text(vocab.read_text() + "\n".join(f"w{i}" for i in range(45)))
    convert(tmp_path / "a", tmp_path / "b", "hf", report=lines.append)
    assert any("has 54 entries, the word embeddings only 53 rows; add" in line for line in lines)
    assert ModelFolder(tmp_path / "b").config.vocab_size == 54


def test_unknown_and_missing_weights(tmp_path):
    saved(tmp_path / "a", "BertForPreTraining")
    with h5py.File(tmp_path / "a/weights.h5", "a") as file:
        file["extra/kernel"] = np.zeros(3, "f4")
        del file["mlm/output_bias"]
    with pytest.raises(UserError, match=r"has tensors that BERT does not have: extra/kernel\."):
        convert(tmp_path / "a", tmp_path / "b", "hf")
    with pytest.raises(UserError, match=r"a lacks mlm/output_bias\."):
        convert(tmp_path / "a", tmp_path / "b", "hf", allow_missing=["extra"])
    convert(tmp_path / "a", tmp_path / "b", "kbert", allow_missing=["extra", "mlm/output_bias"])
    with h5py.File(tmp_path / "b/weights.h5") as file:
        assert "extra" not in file and "output_bias" not in file["mlm"]


def test_a_folder_without_a_vocabulary(tmp_path):
    made("BertModel").save_pretrained(tmp_path / "a")
    lines = []
    convert(tmp_path / "a", tmp_path / "b", "hf", report=lines.append)
    assert lines[1] == f"note: {tmp_path / 'a'} has no vocabulary; writing none"
    written = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert written == ["config.json", "model.safetensors"]


def test_a_tokenizer_of_another_kind(tmp_path):
    saved(tmp_path / "a", format="hf")
    path = tmp_path / "a/tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    with pytest.raises(UserError, match=r"BertJapaneseTokenizer; .*--allow_missing=tokenizer"):
        convert(tmp_path / "a", tmp_path / "b", "kbert")
    convert(tmp_path / "a", tmp_path / "b", "kbert", allow_missing=["tokenizer"])
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.json", "weights.h5"]


def test_a_full_disk_leaves_nothing(tmp_path):
    """The limit on file sizes stands for a full disk: the writes fail half-way."""
    saved(tmp_path / "a", vocab_size=30_000)
    script = (
        "import resource, signal, sys\n"
        "from kbert.utils import program\n"
        "program.import_tensorflow()\n"
        "from kbert.model.conversion import convert\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try:\n"
        "    convert(*sys.argv[1:])\n"
        "except ValueError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    for format in FORMATS:
        command = [PYTHON, "-c", script, str(tmp_path / "a"), str(tmp_path / "b"), format]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        last = done.stdout.splitlines()[-1]
        assert last.startswith("UserError cannot write ") and "File too large" in last, last
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.slow
def test_pretraining_goes_on_from_a_google_folder(tmp_path):
    """`--init_from` takes any format; the vocabulary and its casing come along."""
    from kbert.settings import PretrainConfig
    from kbert.train import pretrain

    shapes_vocab = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(48))]
    values = write_google(tmp_path / "google")
    write_vocab(shapes_vocab, tmp_path / "google/vocab.txt")
    text = "\n\n".join("\n".join("w1 w2 w3 w4 w5" for _ in range(4)) for _ in range(5))
    (tmp_path / "text.txt").write_text(text)
    config = PretrainConfig(
        input=str(tmp_path / "text.txt"),
        init_from=str(tmp_path / "google"),
        max_seq_length=12,
        global_batch_size=2,
        train_steps=1,
        warmup_steps=0,
        learning_rate=1e-12,
    )
    pretrain(config, tmp_path / "run")
    final = pathlib.Path(tmp_path / "run/pretrain/final")
    model = kbert.BertForPreTraining.from_pretrained(final)
    assert model.config.hidden_act == "gelu_new"
    np.testing.assert_allclose(
        model.named_weights()["nsp/classifier/kernel"],
        values["cls/seq_relationship/output_weights"].T,
        atol=1e-9,
    )
    assert json.loads((final / "tokenizer_config.json").read_text())["do_lower_case"] is True
