"""Properties of settings and files: what is written is read again, and damage is noticed."""

import contextlib
import dataclasses
import math
import pathlib
import tempfile

import numpy as np
import pytest
import yaml
from fuzz.flag_values import defined_flags
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from profiles import fewer
from test_corpus import flat, starts_of, write_corpus

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.fields import setting_type
from kbert.model.weights.native import read_arrays, write_arrays
from kbert.settings import (
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    PretrainConfig,
    PruneConfig,
)
from kbert.settings.serving import ServeConfig
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.train.checkpoint import Checkpoints, restore_arrays
from kbert.utils import flags, program


@pytest.fixture(scope="module")
def vocab_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    write_vocab([*SPECIAL_TOKENS, *(f"w{i}" for i in range(20))], path)
    return path


# Settings


def values_of(field):
    """Strategy of the values that a setting may have."""
    kind, optional = setting_type(field)
    limits, choices = field.metadata["limits"], field.metadata["choices"]
    if choices:
        found = st.sampled_from(choices)
    elif dataclasses.is_dataclass(kind):
        found = st.builds(kind, **{part.name: values_of(part) for part in dataclasses.fields(kind)})
    elif kind is bool:
        found = st.booleans()
    elif kind is int:
        low = limits.get("at_least") if limits.get("at_least") is not None else -(2**63)
        found = st.integers(low, limits.get("at_most") or 2**63 - 1)
    elif kind is float:
        low = [x for x in (limits.get("at_least"), limits.get("above")) if x is not None]
        high = [x for x in (limits.get("at_most"), limits.get("below")) if x is not None]
        found = st.floats(
            *(low or [None]),
            *(high or [None]),
            exclude_min=limits.get("above") is not None,
            exclude_max=limits.get("below") is not None,
            allow_nan=False,
            allow_infinity=False,
        )
    else:
        found = st.text(st.characters(codec="utf-8"), max_size=12)
        if kind is dict:
            found = st.dictionaries(found, found, max_size=3)
    return st.none() | found if optional else found


# What each cannot do without.
CONFIGS = {
    PretrainConfig: {"input": "text/*.txt"},
    FinetuneConfig: {"task": "tag", "init_from": "a", "train_file": "b", "eval_file": "c"},
    EvaluateConfig: {"model": "a", "eval_file": "b"},
    PredictConfig: {"model": "a"},
    PruneConfig: {"model": "a", "data_file": "b", "output_dir": "c"},
    ServeConfig: {"model_base_path": "a"},
}


@st.composite
def configs(draw, config_class):
    """A config with some settings changed, or None where they contradict each other."""
    fields = draw(st.lists(st.sampled_from(dataclasses.fields(config_class)), max_size=6))
    changes = {field.name: draw(values_of(field)) for field in fields}
    with contextlib.suppress(UserError):
        return config_class(**CONFIGS[config_class] | changes)


@st.composite
def bert_configs(draw):
    heads = draw(st.integers(1, 2**40))
    names = draw(st.none() | st.lists(st.text(st.characters(codec="utf-8")), unique=True))
    values = {"num_attention_heads": heads, "hidden_size": heads * draw(st.integers(1, 9))}
    if names:
        values |= {"label_names": tuple(names), "num_labels": len(names)}
    left = draw(st.none() | st.lists(st.integers(1, heads), min_size=1, max_size=5))
    if left:
        values |= {"attention_heads_per_layer": tuple(left), "num_hidden_layers": len(left)}
    for field in dataclasses.fields(BertConfig):
        if field.name not in (*values, "label_names", "attention_heads_per_layer"):
            values[field.name] = draw(values_of(field))
    return BertConfig(**values)


@given(bert_configs())
def test_a_config_comes_back_from_files(config):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "config.json"
        config.save(path)
        assert BertConfig.from_file(path) == config == BertConfig(**config.to_dict())
        path = path.with_suffix(".yaml")
        tuples = {
            "label_names": config.label_names,
            "attention_heads_per_layer": config.attention_heads_per_layer,
        }
        lists = {name: value and list(value) for name, value in tuples.items()}
        values = config.to_dict() | lists
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        assert BertConfig.from_file(path) == config


@pytest.mark.parametrize("config_class", CONFIGS)
@fewer(2)
@given(st.data())
def test_settings_come_back_from_a_flagfile(config_class, data):
    config = data.draw(configs(config_class))
    assume(config is not None)
    with tempfile.TemporaryDirectory() as folder, defined_flags(config_class):
        path = pathlib.Path(folder) / "run.flags"
        try:
            path.write_text(flags.as_flagfile(config, "a run"), encoding="utf-8")
        except UserError:
            values = [value for value in vars(config).values() if isinstance(value, str)]
            assert any(value != value.rstrip() or {*value} & {*"\r\n"} for value in values)
            return
        program.parse(["program", f"--flagfile={path}"])
        assert flags.read(config_class) == config


# Files


SENTENCES = st.lists(st.integers(5, 24), max_size=6)
DOCUMENTS = st.lists(SENTENCES, min_size=1, max_size=4)
SHARDS = st.lists(st.lists(DOCUMENTS, min_size=1, max_size=4), min_size=1, max_size=3)


@fewer(5)
@given(SHARDS, st.integers(1, 5))
def test_a_corpus_comes_back(vocab_path, shards, sentences_a_batch):
    """Without sentences and documents that have no token."""
    assume(all(flat(flat(documents)) for documents in shards))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder) / "corpus"
        found = write_corpus(folder, vocab_path, shards, sentences_a_batch)
        documents = [flat(document) for document in flat(shards) if flat(document)]
        assert found.document_starts.tolist() == starts_of(documents)
        assert found.tokens == len(flat(documents)) and found.documents == len(documents)
        spans = np.stack([found.document_starts[:-1], found.document_starts[1:]], axis=1)
        assert found.read_all(spans).tolist() == flat(documents)
        number = 0
        for shard, parts, start in zip(found.shards, shards, found.shard_starts, strict=False):
            assert shard.ids.tolist() == flat(flat(parts))
            assert shard.sentences.tolist() == starts_of(filter(None, flat(parts)))[:-1]
            assert (shard.documents + start).tolist() == starts_of(documents)[number:][
                : len(shard.documents)
            ]
            number += len(shard.documents)


DTYPES = st.sampled_from(("<f4", "<f8", "<f2", "<i4", "<i8", "|u1", "|b1"))
ARRAYS = arrays_of.arrays(DTYPES, arrays_of.array_shapes(min_dims=0, min_side=0, max_side=4))


class Kept:
    """A variable that keeps what it is assigned, bit by bit."""

    def __init__(self, shape):
        self.shape = shape

    def assign(self, value):
        self.value = value


@given(st.lists(ARRAYS, max_size=5))
def test_arrays_come_back_bit_by_bit(values):
    arrays = {f"a/{i}/é": value for i, value in enumerate(values)}
    arrays["bad"] = np.array([math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324], "<f4")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.h5"
        write_arrays(path, arrays)
        variables = {name: Kept(value.shape) for name, value in arrays.items()}
        restore_arrays(path, variables)
        with read_arrays(path) as floats:
            for name, value in arrays.items():
                back = variables[name].value
                assert back.dtype == value.dtype and back.shape == value.shape
                assert back.tobytes() == value.tobytes()
                assert (name in floats) == (value.dtype.kind == "f")
                if name in floats:
                    assert floats[name].tobytes() == value.tobytes()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints, of steps 1 and 2."""
    made = Checkpoints(tmp_path_factory.mktemp("run"), 9)
    for step in (1, 2):
        arrays = {"a/b": np.full(9, step / 7, np.float32), "iterations": np.int64(step)}
        state = {"note": step / 3, "text": "é\n", "rows": [1, None, True, -0.0, 1e-5]}
        made.save(step, state, lambda folder, arrays=arrays: write_arrays(folder / "x.h5", arrays))
    return made


@given(
    st.sampled_from(("state.json", "x.h5")), st.integers(0, 10**6), st.none() | st.integers(0, 7)
)
def test_damage_to_a_checkpoint_is_noticed(checkpoints, name, place, bit):
    """A bit that is flipped, or a file that is cut off: then the checkpoint before is taken.

    What a flipped bit leaves as it is, such as 1E-05 for 1e-05, is no damage.
    """
    path = checkpoints.path(2) / name
    whole = path.read_bytes()
    place, lines = place % len(whole), []
    state = checkpoints.newest(lines.append)
    assert state["step"] == 2 and not lines
    damaged = bytearray(whole)
    if bit is None:
        del damaged[place:]
    else:
        damaged[place] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        found = checkpoints.newest(lines.append)
    finally:
        path.write_bytes(whole)
    if name == "x.h5" or repr(found) != repr(state):
        assert found["step"] == 1 and len(lines) == 1 and "step_00000002 is damaged" in lines[0]
