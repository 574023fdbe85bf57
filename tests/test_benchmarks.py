"""The arithmetic, the tables and the workers of benchmarks/; no peer is needed."""

import flops
import numpy as np
import pytest
from measurement import Row, Worker, WorkerError, measure
from report import format_number, notes, summaries, table
from warm_python import PYTHON

WORKER = """
from benchmarks.worker import Work, serve

def area(settings):
    print("libraries print")  # must not reach the parent
    if settings["lives"] == 0:
        raise ValueError("no such thing")
    def run(steps):
        settings["lives"] -= 1
        if settings["lives"] == 0:
            raise SystemExit(3)
        return {"units": 6 * steps, "seconds": steps / settings["speed"]}
    return Work(run, "in its own way", lambda path: open(path, "w").write("saved"))

serve({"test": area}, ["numpy"])
"""
COMMAND = [PYTHON, "-c", WORKER]
MODEL = {
    "num_hidden_layers": 2,
    "hidden_size": 6,
    "num_attention_heads": 3,
    "intermediate_size": 10,
    "vocab_size": 50,
}


def row(libraries=("kbert", "hf"), **values):
    settings = {"area": "test", "warmup_steps": 2, "speed": 4, "lives": 99}
    return Row("small", "2 x 7", settings, libraries, "texts", **values)


def test_flops_counted_by_hand():
    # B=5, L=7: 35 tokens. 4 products 6x6, 2 with 6x10, per layer; 15 heads with 7x2x7 and 7x7x2.
    layer = 2 * (4 * 35 * 6 * 6 + 2 * 35 * 6 * 10 + 15 * 7 * 2 * 7 + 15 * 7 * 7 * 2)
    assert flops.count_flops(flops.encoder(MODEL, B=5, L=7)) == 2 * layer
    # M=4: 20 slots with 6x6 and 6x50; pooler 6x6 and NSP 6x2 for 5.
    heads = 2 * (20 * 6 * 6 + 20 * 6 * 50 + 5 * 6 * 6 + 5 * 6 * 2)
    assert flops.count_flops(flops.pretraining_heads(MODEL, B=5, M=4)) == heads
    assert flops.count_flops(flops.pretraining_step(MODEL, 5, 7, 4)) == 3 * (2 * layer + heads)
    classifier = 2 * layer + 2 * (5 * 6 * 6 + 5 * 6 * 2)
    assert flops.count_flops(flops.classification(MODEL, 5, 7)) == classifier


def test_flops_of_bert_base():
    # 6 operations for each of the 84.9 M weights of the blocks and each token are most of it.
    base = flops.model_of(12, 768)
    found = flops.count_flops(flops.with_backward(flops.encoder(base, 16, 128)))
    blocks = 12 * (4 * 768**2 + 2 * 768 * 3072)
    attention = 12 * 12 * 128 * 768  # per token: scores and context, backward twice
    assert found == (6 * blocks + attention) * 16 * 128


@pytest.mark.parametrize("transpose_b", [False, True])
def test_backward_products_have_the_shapes_of_the_gradients(transpose_b):
    def result(p, a, b):
        a, b = a.T if p.transpose_a else a, b.T if p.transpose_b else b
        assert (a.shape, b.shape) == ((p.m, p.k), (p.k, p.n))
        return a @ b

    rng = np.random.default_rng(0)
    product = flops.Product(1, 1, 2, 3, 5, transpose_b=transpose_b)
    a, b = rng.random((2, 3)), rng.random((5, 3) if transpose_b else (3, 5))
    dc = rng.random((2, 5))
    _, of_a, of_b = flops.with_backward([product])
    assert result(of_a, dc, b).shape == a.shape
    assert result(of_b, *((dc, a) if transpose_b else (a, dc))).shape == b.shape


FOUND = {
    "kbert": {"rates": [20.0, 30.0, 10.0], "foreign_share": [0.0], "peak_bytes": 2_500_000_000},
    "hf": {"rates": [10.0, 10.0, 20.0], "idle_share": 0.2},
    "openvino": {"failed": "no | such file"},
    "gemm": {"rates": [200.0, 600.0, 400.0]},
}
READY = {"import_s": 1.25, "build_s": 2.0, "first_step_s": 3.0, "notes": "sorted"}
FOUND["kbert"]["ready"] = FOUND["hf"]["ready"] = READY


def test_summaries():
    kbert, hf, openvino, gemm = summaries(row(flops=8.0), FOUND)
    assert (kbert["rate"], kbert["lowest"], kbert["highest"]) == (20.0, 10.0, 30.0)
    assert "speedup" not in kbert
    assert hf["speedup"] == [2.0, 0.5, 3.0]  # of the rounds, not of the medians
    assert kbert["flops"] == 160.0
    assert kbert["share_of_peak"] == pytest.approx(0.4)  # of 0.8, 0.4, 0.2
    assert gemm["rate"] == 400.0
    assert openvino["failed"] and "rate" not in openvino


def test_summaries_without_kbert():
    (hf,) = summaries(row(), {"hf": FOUND["hf"]})
    assert "speedup" not in hf and "flops" not in hf


def test_table():
    compared = [(row(flops=8e9), summaries(row(flops=8e9), FOUND))]
    assert table(compared).splitlines() == [
        "|  |  | median (lowest to highest) | kbert is faster by | GFLOP/s | of the peak "
        "| peak memory | import + build + first step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| small: 2 x 7 | kbert | 20.0 texts/s (10.0 to 30.0) |  | 160 | 400000000.00 | 2.50 GB "
        "| 1.2 + 2.0 + 3.0 s |",
        "|  | HF transformers | 10.0 texts/s (10.0 to 20.0) | 2.00 (0.50 to 3.00) | 80 "
        "| 400000000.00 |  | 1.2 + 2.0 + 3.0 s |",
        "|  | OpenVINO | failed: no / such file |  |  |  |  |  |",
        "|  | matrix products alone |  |  | 0 |  |  |  |",
    ]


def test_table_of_latencies_leaves_empty_columns_out():
    small = row(latency=True)
    text = table([(small, summaries(small, {"hf": FOUND["hf"]}))])
    assert text.splitlines()[2] == (
        "| small: 2 x 7 | HF transformers | 100 ms (50.0 to 100) | 1.2 + 2.0 + 3.0 s |"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123")],
)
def test_format_number(value, text):
    assert format_number(value) == text


def test_notes_name_who_is_not_idle():
    lines = list(notes(summaries(row(), {"kbert": FOUND["kbert"], "hf": FOUND["hf"]})))
    assert lines[0] == "note: hf used 20% of a core while it waited (small)"
    assert lines[1:] == ["- kbert, small: sorted", "- HF transformers, small: sorted"]


def test_worker_answers():
    with Worker(COMMAND, row().settings, threads=1) as worker:
        ready = worker.ready
        assert (ready["first_step_s"], ready["step_s"]) == (0.25, 0.25)
        assert ready["notes"] == "in its own way" and set(ready["versions"]) == {"numpy"}
        assert worker.request(run=3) == {"units": 18, "seconds": 0.75}
        answer = worker.round(seconds=2.0)  # 8 steps of 0.25 s
        assert (answer["units"], answer["rate"]) == (48, 24.0)
        assert worker.request(memory=True)["peak_bytes"] > 10**6


def test_sides_take_turns_and_failures_leave_the_others_alone(tmp_path):
    lines = []
    changes = {
        "kbert": "",
        "hf": "settings['speed'] = 1",
        "keras_hub": "settings['lives'] = 0",  # fails while it gets ready
        "other": "settings['lives'] = 4",  # two steps of warm-up, a round, the end
    }
    commands = {"openvino": ["/none/python"]}
    for library, change in changes.items():
        program = WORKER.replace("def area(settings):", f"def area(settings):\n    {change}")
        commands[library] = [PYTHON, "-c", program]
    found = measure(
        row(tuple(commands)), commands, 1, 3, 0.5, log=lines.append, folder=str(tmp_path)
    )
    assert found["kbert"]["rates"] == [24.0] * 3 and found["hf"]["rates"] == [6.0] * 3
    assert found["keras_hub"]["failed"].startswith("exited with 1; ")
    assert found["keras_hub"]["failed"].endswith("ValueError: no such thing")
    assert found["openvino"] == {
        "failed": "/none/python does not exist; create it with benchmarks/peers.sh"
    }
    assert found["other"] == {"failed": "exited with 3; libraries print"}
    assert (tmp_path / "hf.npy").read_text() == "saved"
    assert lines[-1] == "small: round 3/3: kbert 24, hf 6 per second"


def test_worker_that_cannot_start():
    with pytest.raises(WorkerError, match=r"exited with 1; .*ValueError: no such thing"):
        Worker(COMMAND, row().settings | {"lives": 0}, threads=1)
