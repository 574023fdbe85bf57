"""One version of a model: engines, warm-up, SavedModels of others, what cannot be served."""

import gc
import re
import weakref

import event_loop
import numpy as np
import pytest
import tensorflow as tf
from exports import KINDS, texts_of
from marks import slow
from tensorflow_serving.apis import prediction_log_pb2

from kbert.errors import UserError
from kbert.inference.backends import frozen_backend
from kbert.server import openvino_functions
from kbert.server.batching import Batcher
from kbert.server.errors import RequestError
from kbert.server.servable import Servable
from kbert.serving import saved_model
from kbert.serving.signatures import INTERNAL
from kbert.serving.warmup import write_warmup


def asked(texts):
    return {
        name: np.array([np.char.encode(np.array(row), "utf-8").tolist() for row in rows], object)
        for name, rows in texts.items()
    }


@pytest.mark.parametrize(
    "kind", ["classify", *slow(*(kind for kind in KINDS if kind != "classify"))]
)
def test_openvino_gives_what_kbert_predict_says(folders, kind, tmp_path):
    """Through shared batches, with every signature; 3e-5: OpenVINO has its own exp and erf."""
    pytest.importorskip("openvino")
    method = saved_model.load_endpoint(folders[kind], KINDS[kind][3])
    functions = saved_model.save_endpoint(method, tmp_path)
    texts = texts_of(method, 23)
    warmed = write_warmup(tmp_path, functions, texts, kind)
    servable = Servable(tmp_path, "openvino")
    assert servable.backend == "openvino" and servable.warm_up() == warmed
    assert set(servable.signatures) == set(functions) - set(INTERNAL)
    batcher, signature = Batcher(max_batch_size=8), servable.signature("")
    found = event_loop.run(batcher.compute(servable, signature, asked(texts)))
    assert saved_model.largest_difference(found, method.reference_outputs(**texts)) < 3e-5


def test_openvino_lets_go_of_a_version(classifier, monkeypatch):
    """TensorFlow does not: what a graph calls stays as long as the thread that made the graph."""
    pytest.importorskip("openvino")
    made = []

    def noted(*arguments):
        backend = frozen_backend(*arguments)

        def compute(function, features):
            computed = backend(function, features)
            made.append(weakref.ref(computed))
            return computed

        return compute

    monkeypatch.setattr(openvino_functions, "frozen_backend", noted)
    servable = Servable(classifier, "openvino")
    inputs = asked({"text": ["the cat"]})
    assert len(servable.compute(servable.signature(""), inputs)["label"]) == 1
    assert len(made) == 1 and made[0]() is not None
    del servable
    gc.collect()
    assert made[0]() is None


@pytest.fixture
def classifier(exported):
    return exported("classify")[0] / "7"


def features(ids, **changes):
    ids = np.array(ids, np.int32)
    found = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found["token_type_ids"] = np.zeros_like(ids)
    return found | {name: np.array(value, np.int32) for name, value in changes.items()}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (features([[2, 26, 3]]), "input_ids must be 0 to 25; got 2 to 26"),
        (features([[2, -1, 3]]), "input_ids must be 0 to 25; got -1 to 3"),
        (features([[2, 3]], token_type_ids=[[0, 2]]), "token_type_ids must be 0 to 1"),
        (features([[2, 3]], attention_mask=[[1, 2]]), "attention_mask must be 0 to 1"),
        (features([[2, 3]], attention_mask=[[1]]), "the same shape; got input_ids [1, 2]"),
        (features([[]]), "1 to 32 tokens; got 0"),
        (features([[2] * 33]), "1 to 32 tokens; got 33"),
        (features([[2, 3]], attention_mask=[[1, 1], [1, 1]]), "must have the same number of rows"),
    ],
)
def test_features_that_the_model_has_no_embeddings_for(classifier, inputs, message):
    """A backend may answer them all the same."""
    servable = Servable(classifier, "tensorflow")
    with pytest.raises(RequestError, match=re.escape(message)):
        servable.check(servable.signature("from_ids"), inputs)
    assert servable.check(servable.signature("from_ids"), features([[2, 5, 3]])) == 1


def test_warm_ups(classifier):
    """Those that nobody here knows are passed over; one that cannot be answered is an error."""
    path = classifier / "assets.extra" / "tf_serving_warmup_requests"
    servable = Servable(classifier, "tensorflow")
    assert servable.warm_up() == 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"")
    assert servable.warm_up() == 0
    record = prediction_log_pb2.PredictionLog()
    record.predict_log.request.inputs["texts"].CopyFrom(tf.make_tensor_proto(["a"]))
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(record.SerializeToString())
    with pytest.raises(RequestError, match="takes text; got texts"):
        servable.warm_up()
    path.unlink()


def test_savedmodels_of_others(tmp_path):
    class Other(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "x")])
        def half(self, x):
            return {"y": x / 2}

    other = Other()
    tf.saved_model.save(other, str(tmp_path), signatures={"serving_default": other.half})
    servable = Servable(tmp_path, "auto")
    assert servable.backend == "tensorflow" and str(servable).startswith("signatures serving_def")
    signature = servable.signature("")
    found = event_loop.run(Batcher().compute(servable, signature, {"x": np.float32(5)}))
    assert found["y"] == 2.5
    with pytest.raises(RequestError, match=r"there is no signature 'x'; there are serving_default"):
        servable.signature("x")
    with pytest.raises(
        UserError, match="is not a float32 export of kbert; backend=openvino requires one"
    ):
        Servable(tmp_path, "openvino")


def test_folders_that_cannot_be_served(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Servable(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x12\xff not one")
    with pytest.raises(UserError, match="cannot read"):
        Servable(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read"):
        Servable(tmp_path)
