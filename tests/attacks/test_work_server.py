"""A server under requests that ask for much work: its memory, its CPU time, and other clients."""

import pathlib
import random
import time

import grpc
import pytest
import tensorflow as tf
from server_process import arrays, predict_request, refused, serving, wait_for, waiting
from tensorflow_serving.apis import prediction_service_pb2_grpc
from warm_python import pid_of

pytestmark = pytest.mark.slow
KINDS = ("tags", "answer", "choose", "classify", "encode")


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    lines = [f'config {{ name: "{kind}" base_path: "{exported(kind)[0]}" }}' for kind in KINDS]
    path = tmp_path_factory.mktemp("config") / "models.config"
    path.write_text("model_config_list {\n" + "\n".join(lines) + "\n}\n")
    with serving(f"model_config_file={path}", "backend=tensorflow") as server:
        for kind in KINDS:  # what a first request takes, it keeps
            server.ask("Predict", request_of(kind, b"the cat " * 50, 20))
        yield server
        assert "Traceback" not in server.said


def request_of(kind, text, count):
    """Many texts or, for choose, one text with many choices."""
    inputs = {"text": [text] * count}
    if kind == "choose":
        inputs = {"text": [text], "choices": [[b"a mat"] * count]}
    if kind == "answer":
        inputs = {"question": [b"the cat"] * count, "context": [text] * count}
    return predict_request(kind, inputs)


def status(server, name):
    """A number of /proc, such as the peak of the memory in KB since `forget_peak`."""
    text = pathlib.Path(f"/proc/{pid_of(server.process)}/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0])


def growth(server, ask):
    """MB by which the peak of the memory exceeds the memory before."""
    pathlib.Path(f"/proc/{pid_of(server.process)}/clear_refs").write_text("5")
    before = status(server, "VmRSS")
    ask()
    return (status(server, "VmHWM") - before) / 1e3


def cpu_seconds(server):
    times = pathlib.Path(f"/proc/{pid_of(server.process)}/stat").read_text().rpartition(")")[2]
    return sum(map(int, times.split()[11:13])) / 100


def stub_of(server):
    return prediction_service_pb2_grpc.PredictionServiceStub(server.channel)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("choose", b"a " * 400_000, "more tokens than --max_text_tokens=65536 of kbert.export"),
        ("choose", b"a" * 1_100_000, "longer, at 16 bytes per token, than --max_text_tokens"),
        ("tags", b"." * 204_800, "more tokens than --max_text_tokens=65536 of kbert.export"),
        ("answer", b"." * 60_000, "more windows than --max_windows=8192 of kbert.export"),
        ("classify", b"." * 204_800, "more tokens than --max_text_tokens=65536"),
    ],
)
def test_texts_over_the_limits(server, kind, text, message):
    asked = request_of(kind, text, 128 if kind == "choose" else 1)

    def ask():
        refused("INVALID_ARGUMENT", message, server.ask, "Predict", asked)

    before = cpu_seconds(server)
    assert growth(server, ask) < 400
    assert cpu_seconds(server) - before < 10


def test_a_long_text_with_many_choices(server):
    """The text took 4.2 MB for each of its KB, once for each choice."""
    asked = request_of("choose", b"a " * 65_000, 128)
    assert growth(server, lambda: server.ask("Predict", asked)) < 200


def test_a_tensor_that_repeats_its_value(server):
    asked = predict_request("classify", {"text": [b"a" * 40_000]})
    asked.inputs["text"].tensor_shape.dim[0].size = 1024
    before = cpu_seconds(server)
    refused("INVALID_ARGUMENT", "more elements than were sent", server.ask, "Predict", asked)
    assert cpu_seconds(server) - before < 1


def test_others_are_answered_and_who_leaves_is_forgotten(server):
    """As many windows as are allowed, twice; a text of one window; and nobody waits any more."""
    stub = stub_of(server)
    attacks = [stub.Predict.future(request_of("tags", b"." * 14_000, 8)) for _ in range(2)]
    wait_for(lambda: waiting(server) > 100_000 or all(call.done() for call in attacks))
    for _ in range(5):
        asked = predict_request("tags", {"text": [b"the cat"]})
        assert arrays(server.ask("Predict", asked))["count"].shape == (1,)
    for call in attacks:
        call.cancel()
    wait_for(lambda: waiting(server) == 0)
    time.sleep(1)  # the batches that had begun
    before = cpu_seconds(server)
    time.sleep(3)
    assert cpu_seconds(server) - before < 1
    assert server.get("/readyz")[0] == 200


def test_one_request_does_not_fill_the_queue(server):
    stub = stub_of(server)
    attacks = [stub.Predict.future(request_of("tags", b"." * 14_000, 8)) for _ in range(9)]
    asked = [
        stub.Predict.future(predict_request("classify", {"text": [b"the cat"]})) for _ in range(60)
    ]
    assert {call.code() for call in asked} == {grpc.StatusCode.OK}
    for call in attacks:
        call.cancel()
    wait_for(lambda: waiting(server) == 0)


def test_requests_of_any_shape(server):
    """Answered or rejected, in bounded memory; some clients leave."""
    rng, stub = random.Random(0), stub_of(server)
    codes = ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED")
    pieces = [b"a ", b".", b"the cat sat ", b"\xff", "猫".encode(), b"un" * 150, b"[SEP]", b"\n"]

    def asks():
        for _ in range(60):
            calls = []
            for _ in range(rng.randrange(1, 6)):
                size = int(10 ** rng.uniform(0, 5.8))
                text = (rng.choice(pieces) * size)[:size]
                count = min(int(10 ** rng.uniform(0, 4.5)), max(3_000_000 // size, 1))
                asked = request_of(rng.choice(KINDS), text, count)
                if rng.random() < 0.2:
                    name = "text" if "text" in asked.inputs else "context"
                    asked.inputs[name].tensor_shape.dim[0].size = rng.randrange(1 << 20)
                calls.append(stub.Predict.future(asked, timeout=rng.choice([0.05, 1, 60])))
            for call in calls:
                if rng.random() < 0.2:
                    call.cancel()
                assert call.code() in [grpc.StatusCode[code] for code in codes], call

    assert growth(server, asks) < 1500
    wait_for(lambda: waiting(server) == 0)
    before = cpu_seconds(server)
    time.sleep(2)
    assert cpu_seconds(server) - before < 1
    assert server.get("/readyz")[0] == 200
    assert tf.make_ndarray(
        server.ask("Predict", request_of("classify", b"the cat", 1)).outputs["score"]
    ).shape == (1,)
