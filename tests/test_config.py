"""Configs and flags: what they take, what they refuse, and in which words."""

import dataclasses
import json
import pathlib
import subprocess

import numpy as np
import pytest
from example_program import Example
from warm_python import PYTHON

from kbert.config import PRESETS, BertConfig
from kbert.errors import UserError
from kbert.model import BertForPreTraining
from kbert.model import BertForSequenceClassification as Classifier
from kbert.utils import program
from kbert.utils.flags import as_flagfile, flag_line

TESTS = pathlib.Path(__file__).parent
CONFIGS = TESTS.parent / "configs"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_those_of_the_files(name):
    config = BertConfig.from_file(CONFIGS / f"bert_{name}.yaml", vocab_size=30522)
    assert config == BertConfig.from_preset(name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"hidden_size": 10, "num_attention_heads": 3},
            r"divisible by num_attention_heads",
        ),
        ({"hidden_size": "768"}, r"hidden_size must be int; got '768' \(str\)"),
        ({"hidden_size": True}, r"hidden_size must be int; got True \(bool\)"),
        ({"hidden_size": 7.0}, r"hidden_size must be int; got 7.0 \(float\)"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be >= 1; got 0"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be >= 0 and < 1; got 1.0"),
        ({"hidden_act": "swish"}, r"hidden_act must be one of gelu, gelu_new; got 'swish'"),
        ({"vocab_size": 4}, r"vocab_size must be >= 5; got 4"),
        ({"vocab_size": 2**63}, r"vocab_size must fit into 64 bits; got 9223372036854775808\."),
        ({"vocab_size": 2**99999}, r"must fit into 64 bits; got a number of thousands of digits"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps must be > 0; got 0.0"),
        ({"label_names": ("a",)}, r"label_names must have num_labels = 2 names; got 1: \['a'\]"),
        ({"label_names": ["a", "a"]}, r"label_names must be distinct strings; got \['a', 'a'\]"),
        ({"label_names": ["a", 1]}, r"label_names must be distinct strings; got \['a', 1\]"),
        ({"label_names": "ab"}, r"label_names must be tuple; got 'ab'"),
        ({"problem_type": "ranking"}, r"problem_type must be one of regression, .*got 'ranking'"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        BertConfig(**values)


def test_whole_numbers_serve_as_floats():
    assert BertConfig(hidden_dropout_prob=0).hidden_dropout_prob == 0.0


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("name", ["c.json", "c.yaml"])
def test_files_round_trip(tmp_path, name):
    config = BertConfig.from_preset("tiny", layer_norm_eps=1e-7)
    config.save(tmp_path / name)  # JSON is YAML, too
    assert BertConfig.from_file(tmp_path / name) == config


def test_yaml_numbers_without_a_dot(tmp_path):
    path = write(tmp_path, "c.yaml", "layer_norm_eps: 1e-12\n")
    assert BertConfig.from_file(path).layer_norm_eps == 1e-12


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "c.json",
            '{"hiden_size": 8}',
            r"unknown key 'hiden_size' .* Did you mean hidden_",
        ),
        ("c.json", '{"qqq": 8}', r"unknown key 'qqq' .*Known keys: vocab_size, hidden_size"),
        ("c.json", "{", r"c.json is not valid JSON"),
        ("c.yaml", "a: [", r"c.yaml is not valid YAML"),
        ("c.yaml", "- 1", r"must be a mapping of names to values"),
        ("c.yaml", "hidden_size: big", r"c.yaml: hidden_size must be int; got 'big'"),
        ("c.yaml", "hidden_size: !!int ''", r"c.yaml is not valid YAML"),
        ("c.yaml", "hidden_size: !!timestamp x", r"c.yaml is not valid YAML"),
        ("c.yaml", "1: 2", r"unknown key 1 in .*c.yaml. Known keys: vocab_size"),
        (
            "c.yaml",
            f"num_labels: &a [x, x]\nhidden_size: &b [{'*a, ' * 99}]\nvocab_size: [{'*b, ' * 99}]",
            r"vocab_size must be int; got \[(\[\.\.\.\], ){20}\.\.\.\] \(list\)\.$",
        ),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        BertConfig.from_file(write(tmp_path, name, text))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the config .*No such file"):
        BertConfig.from_file(tmp_path / "c.json")


def test_load_takes_the_size_of_the_vocabulary(tmp_path):
    assert BertConfig.load("mini", 77).vocab_size == 77
    assert BertConfig.load(str(write(tmp_path, "c.yaml", "hidden_size: 24")), 77).vocab_size == 77
    padded = write(tmp_path, "d.yaml", "vocab_size: 80")
    assert BertConfig.load(str(padded), 77).vocab_size == 80
    with pytest.raises(UserError, match=r"has 81 entries but .*d.yaml has vocab_size 80"):
        BertConfig.load(str(padded), 81)
    with pytest.raises(UserError, match=r"must be one of tiny, .*got 'huge'"):
        BertConfig.load("huge", 77)
    with pytest.raises(UserError, match=r"unknown preset 'huge'; it must be one of tiny"):
        BertConfig.from_preset("huge")


SMALL = {
    **{"vocab_size": 19, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 20, "max_position_embeddings": 9},
}
CHANGES = {
    **{"vocab_size": 23, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 21, "hidden_act": "gelu_new", "hidden_dropout_prob": 0.9},
    **{"attention_probs_dropout_prob": 0.9, "max_position_embeddings": 10, "type_vocab_size": 3},
    **{"initializer_range": 0.5, "layer_norm_eps": 0.1, "tie_word_embeddings": False},
    **{"num_labels": 3, "classifier_dropout": 0.9, "attention_heads_per_layer": (3, 2)},
}
# For classifiers and encoders of sentences: see test_weights and test_embedding.
CARRIED = {"label_names", "problem_type", "embedding"}


@pytest.mark.slow
def test_every_field_changes_the_model():
    """Weights' shapes, their fresh values, or what comes out, in training."""
    fields = [f.name for f in dataclasses.fields(BertConfig) if f.name not in CARRIED]
    kinds = {field: (BertForPreTraining, "nsp_logits", False) for field in fields}
    kinds["initializer_range"] = (BertForPreTraining, "nsp_logits", True)
    kinds |= dict.fromkeys(("num_labels", "classifier_dropout"), (Classifier, "logits", False))
    usual = {kind: fingerprint(*kind) for kind in set(kinds.values())}
    assert usual == {kind: fingerprint(*kind) for kind in usual}
    without_effect = [
        field
        for field, kind in kinds.items()
        if fingerprint(*kind, **{field: CHANGES[field]}) == usual[kind]
    ]
    assert without_effect == []


def fingerprint(model_class, logits, fresh, **changes):
    """What is seen of a model of a config. fresh: keep the weights as they are made."""
    import keras

    keras.utils.set_random_seed(0)
    model = model_class(BertConfig(**{**SMALL, **changes}))
    rng = np.random.default_rng(0)
    shapes = {n: tuple(weight.shape) for n, weight in model.named_weights().items()}
    spread = float(np.std(model.named_weights()["bert/pooler/dense/kernel"])) > 0.1
    if not fresh:
        for weight in model.named_weights().values():
            weight.assign(rng.normal(size=weight.shape))
    outputs = model({"input_ids": rng.integers(0, 19, (2, 7))}, training=True)
    return json.dumps([shapes, spread, np.sum(outputs[logits], dtype=float).round(3)])


def run_program(*arguments):
    command = [PYTHON, str(TESTS / "example_program.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


HELP = """A program with a flag of each kind, which test_config.py runs.

Required:
  --name=x|y
      a name [default: x]

Common:
  --count=INTEGER
      a count (>= 1) [default: 3]

More:
  --rate=NUMBER
      a rate [default: 0.5]
  --[no]on
      a switch
  --file=TEXT
      a file
  --limit=INTEGER
      a limit

--flagfile=FILE reads flags from a file, one per line.
"""


def test_help_groups_flags_and_shows_types_ranges_and_defaults():
    done = run_program("--help")
    assert (done.returncode, done.stdout, done.stderr) == (0, HELP, "")


def test_flags_round_trip_through_a_flagfile(tmp_path):
    config = Example(count=1, rate=0.25, on=True, name="y", file="a b")
    path = write(tmp_path, "x.flags", as_flagfile(config, "two\nlines"))
    assert path.read_text().startswith("# two\n# lines\n--count=1\n")
    done = run_program(f"--flagfile={path}")
    assert done.stdout == f"{config!r}\n" and done.stderr == ""


@pytest.mark.parametrize("value", ["a\nb", "a ", "\ta\u3000", "caf\udce9", "a\r"])
def test_values_that_no_flagfile_can_hold(value):
    with pytest.raises(UserError, match=r"--file must be one line of UTF-8 without trailing white"):
        as_flagfile(Example(file=value), "")
    assert flag_line("file", " a\tb") == "--file= a\tb\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"--file=caf\xe9", "'utf-8' codec can't decode byte 0xe9"),
        (b"--" + b"long" * 999, "maximum recursion depth exceeded"),
        (b"--flagfile=\x00", "embedded null byte"),
    ],
)
def test_flagfiles_that_cannot_be_read(tmp_path, content, reason, capsys):
    (tmp_path / "x.flags").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        program.parse(["program", f"--flagfile={tmp_path / 'x.flags'}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(f"error: cannot read the flags: {reason}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        (
            "--cuont=1",
            2,
            "error: Unknown command line flag 'cuont'. Did you mean: count. --help lists",
        ),
        (
            "--name=z",
            2,
            "error: flag --name=z: value should be one of <x|y>. --help lists all flags.",
        ),
        ("--count=many", 2, "error: flag --count=many"),
        ("--flagfile=none.flags", 2, "error: Unable to open flagfile: "),
        ("--count=0", 2, "error: count must be >= 1; got 0.\n"),
        (
            "count",
            2,
            "error: unexpected argument 'count'; settings are flags: --name=value.\n",
        ),
    ],
)
def test_bad_flags_get_a_line_and_no_stack_trace(argument, code, message):
    done = run_program(argument)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_too_little_memory_is_one_line_with_what_helps():
    script = (
        "from kbert.utils import program\n"
        "import tensorflow as tf\n"
        "def main():\n"
        "    raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating\\nmore')\n"
        "program.run(main)\n"
    )
    done = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: out of memory (OOM when allocating). Use more --accumulation_steps, "
        "--remat or a smaller batch."
    )
