"""What an export costs: scores, size and speed of it beside those of its model."""

import json
import os
import types

import numpy as np
import pytest
import tensorflow as tf
from exports import KINDS, OPS_FILE, ops_of, some_words, write_folders
from marks import slow

import kbert
from kbert.data.examples import TextExample
from kbert.errors import UserError
from kbert.inference.evaluation import evaluate
from kbert.server.servable import Servable
from kbert.serving import comparison, openvino_ir, saved_model
from kbert.serving.export import export
from kbert.settings import ColumnConfig, EvaluateConfig

EXAMPLES = 23


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> folder of weights as `finetune` leaves it, and "files": kind -> labeled examples."""
    root = tmp_path_factory.mktemp("weights")
    kinds = [kind for kind in KINDS if KINDS[kind][2]]
    found, rng = write_folders(root, [*kinds, "fill_mask"]), np.random.default_rng(0)
    found["files"] = {kind: root / f"{kind}.jsonl" for kind in kinds}
    for kind, path in found["files"].items():
        rows = [example_of(kind, rng, number) for number in range(EXAMPLES)]
        if kind.startswith("answer"):
            path = found["files"][kind] = path.with_suffix(".json")
            paragraphs = [{"context": context, "qas": [asked]} for context, asked in rows]
            text = json.dumps({"data": [{"paragraphs": paragraphs}]})
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text)
    return found


def example_of(kind, rng, number):
    """A labeled example, as it stands in a file."""
    names = ("no", "yes", "perhaps")
    text, label = some_words(rng, 2, 30), names[rng.integers(3)]
    if kind.startswith("answer"):
        first = text.split()[0]
        answers = [{"text": first, "answer_start": 0}] if number % 2 or kind == "answer" else []
        asked = {"id": str(number), "question": some_words(rng, 2, 5), "answers": answers}
        return text, asked | ({} if answers else {"is_impossible": True})
    if kind == "choose":
        choices = {f"choice{n}": some_words(rng, 1, 9) for n in range(3)}
        return {"text": text, **choices, "label": int(rng.integers(3))}
    if kind in ("tags", "entities"):
        words = text.split()
        tags = ("O", "B-X", "B-Y") if kind == "entities" else names
        return {"words": words, "tags": [tags[rng.integers(3)] for _ in words]}
    if kind == "multilabel":
        return {"text": text, "labels": [name for name in names if rng.integers(2)]}
    label = float(rng.normal()) if kind == "regress" else label
    pair = {"text_pair": some_words(rng, 1, 9)} if kind in ("pair", "regress") else {}
    return {"text": text, **pair, "label": label}


def evaluated(folders, kind):
    """The scores that kbert.evaluate gives."""
    config = EvaluateConfig(model=str(folders[kind]), eval_file=str(folders["files"][kind]))
    return numbers(evaluate(config, lambda line: None))


def numbers(scores):
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def threads():
    """That TensorFlow uses here, and the runtimes beside it."""
    return tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()


def rows_of(folder):
    metadata = json.loads((folder / "compression.json").read_text())
    assert metadata["threads"] == threads()
    return {row["model"]: row for row in metadata["rows"]}


@pytest.mark.parametrize(
    ("kind", "quantize"),
    [("pair", "float16"), *slow(("answer_or_none", None), ("entities", None), ("choose", None))],
)
def test_scores_of_openvino(kind, quantize, folders, tmp_path):
    """float32 has the scores that kbert.evaluate gives; so has what is quantized before it is."""
    pytest.importorskip("openvino")
    file = folders["files"][kind]
    method = saved_model.load_endpoint(folders[kind])
    labeled = comparison.ExportComparison(method, file, None)
    openvino_ir.save_openvino(method, tmp_path, quantize)
    lines = labeled.with_openvino(tmp_path, quantize or "float32")
    rows = rows_of(tmp_path)
    forms = ["float32", *([quantize] if quantize else [])]
    assert list(rows) == ["kbert float32", *(f"openvino {form}" for form in forms)]
    wanted = evaluated(folders, kind)
    for row in list(rows.values())[:2]:
        assert numbers(row["scores"]) == pytest.approx(wanted, abs=1e-5)
        assert row["megabytes"] > 0.01 and 0.01 < row["milliseconds"] < 1e4
    assert lines[0].startswith(
        f"{EXAMPLES} examples of {file}, one at a time on {threads()} thread"
    )
    first, *_, megabytes, milliseconds = lines[1].split()
    assert (first, megabytes, milliseconds) == (method.task.metric, "MB", "ms")
    for line, (model, row) in zip(lines[2:], rows.items(), strict=True):
        assert line.startswith(f"  {model} ") and f" {row['scores'][first]:.4f} " in line


@pytest.mark.slow
def test_tags_of_a_saved_model_are_asked_by_ids(folders, tmp_path):
    """Since they are scored by the word."""
    method, file = saved_model.load_endpoint(folders["tags"]), folders["files"]["tags"]
    labeled = comparison.ExportComparison(method, file, None)
    functions = saved_model.save_endpoint(method, tmp_path / "1")
    labeled.with_saved_model(functions, tmp_path / "1", "float32")
    rows = rows_of(tmp_path / "1" / "assets.extra")
    assert list(rows) == ["kbert float32", "SavedModel float32"]
    for row in rows.values():
        assert numbers(row["scores"]) == pytest.approx(evaluated(folders, "tags"), abs=1e-5)


def test_contenders_take_turns(monkeypatch):
    """So that a machine that becomes slower does so for all of them."""
    monkeypatch.setattr(comparison, "WARM_UP_CALLS", 0)
    monkeypatch.setattr(comparison, "CALLS_PER_TURN", 2)
    order = []

    def contender(name):
        return 8, lambda question: order.append((name, question))

    asked = types.SimpleNamespace(inputs=range(5), scores=len)
    rows = comparison.compare_models(asked, {name: contender(name) for name in "ab"})
    assert [row["scores"] for row in rows] == [5, 5]
    assert "".join(f"{name}{question}" for name, question in order) == "a0a1b0b1a2a3b2b3a4b4"


@pytest.mark.slow
def test_the_model_is_timed_without_waiting_for_a_batch(folders, tmp_path):
    """What is written waits for others to share a batch."""
    export(
        *(folders["pair"], tmp_path / "1"),
        **{"batch_timeout_ms": 200, "eval_file": folders["files"]["pair"]},
        report=lambda line: None,
    )
    rows = rows_of(tmp_path / "1" / "assets.extra")
    ours, theirs = (rows[name]["milliseconds"] for name in ("kbert float32", "SavedModel float32"))
    assert theirs > 150 and ours < theirs - 100


@pytest.mark.parametrize("kind", [*slow("multilabel", "choose"), "answer"])
def test_answers_to_texts_are_scored(kind, folders):
    """As kbert.evaluate scores the model's predictions."""
    method, file = saved_model.load_endpoint(folders[kind]), folders["files"][kind]
    asked = comparison.TextInputs(method, comparison.read_labeled(method, file, None))
    (row,) = comparison.compare_models(asked, {"": (0, lambda texts: method.from_texts(**texts))})
    assert numbers(row["scores"]) == pytest.approx(evaluated(folders, kind), abs=1e-5)


def test_methods_that_no_task_scores(tmp_path):
    method = type("Endpoint", (), {"name": "embed", "task": None})()
    with pytest.raises(UserError, match="requires a method with labeled examples: classify, tag,"):
        comparison.ExportComparison(method, "dev.tsv", ColumnConfig())


@pytest.mark.slow
def test_a_saved_model_of_int8(folders, tmp_path):
    """A quarter of the weights' bytes, the int8 model's answers, and no folder of weights."""
    target, lines = tmp_path / "to" / "1", []
    file = folders["files"]["classify"]
    export(folders["classify"], target, report=lines.append, eval_file=file, quantize="int8")
    text = "\n".join(lines)
    assert "checked in a process without kbert: 5 texts, same outputs as the int8 model" in text
    rows = rows_of(target / "assets.extra")
    assert list(rows) == ["kbert float32", "SavedModel int8"]
    wanted = evaluated(folders, "classify")
    assert numbers(rows["kbert float32"]["scores"]) == pytest.approx(wanted, abs=1e-5)
    assert ops_of(target) <= set(OPS_FILE.read_text().split())
    kinds = [dtype for _, _, dtype in variables_of(target)]
    assert kinds.count("int8") == 3 + 2 * 6 + 2  # tables; layers; pooler and head
    with pytest.raises(UserError, match="has 8-bit weights, which can only be served"):
        kbert.BertForSequenceClassification.from_pretrained(target)
    with pytest.raises(UserError, match="is not a float32 export of kbert; backend=openvino req"):
        Servable(target, "openvino")
    assert Servable(target).backend == "tensorflow"


def variables_of(folder):
    """(name, shape, dtype) of what a SavedModel keeps."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    dtypes = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()
    return [(name, shape, dtypes[name].name) for name, shape in shapes.items()]


def test_int8_is_near(folders):
    """Also where a head scores words with their table."""
    method = saved_model.load_endpoint(folders["fill_mask"])
    features = openvino_ir.sample_features(method)
    before = {name: x.numpy() for name, x in method.forward(features).items()}
    saved_model.quantize_int8(method)
    for name, value in method.forward(features).items():
        spread = before[name].max() - before[name].min()
        assert 1e-6 < np.abs(value - before[name]).max() < 0.05 * spread


@pytest.mark.parametrize(
    ("texts", "text_pair", "said"),
    [
        (
            {"text": 1},
            "b",
            "the model takes one text, but the example has two. Select the columns with --text",
        ),
        ({"text": 1, "text_pair": 1}, None, "the model takes two texts, but the example has one."),
    ],
)
def test_texts_that_are_as_many_as_the_model_takes(texts, text_pair, said):
    example = TextExample("a.tsv, line 2", "a", text_pair)
    with pytest.raises(UserError, match=f"a.tsv, line 2: {said}"):
        comparison._check_pairs(types.SimpleNamespace(texts=texts), [example])
