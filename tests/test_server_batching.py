"""Requests that share batches: answers as if each were alone, limits, and who is to blame."""

import asyncio
import threading
import types

import numpy as np
import pytest

from kbert.server import batching
from kbert.server.batching import Batcher
from kbert.server.errors import RequestError, invalid

pytestmark = pytest.mark.smoke


SIGNATURE = types.SimpleNamespace(name="s", inputs={"text": None})


class Words:
    """Splits texts into words, padded to the most words of a batch, as an export pads."""

    metadata = {"padded": {"words": "", "sizes": -1}}

    def __init__(self, wait=None):
        self.batches, self.wait = [], wait

    def check(self, signature, inputs):
        return len(inputs["text"])

    def lengths(self, inputs):
        return np.array([len(text) for text in inputs["text"]])

    def compute(self, signature, inputs):
        if self.wait:
            self.wait.wait(60)
        texts = inputs["text"].tolist()
        self.batches.append(texts)
        if b"evil" in texts:
            raise invalid("bad is bad")
        if b"worse" in texts:
            raise RuntimeError("secret")
        rows = [text.split() for text in texts]
        S = max(map(len, rows), default=0)
        words, sizes = np.full((len(rows), S), b"", object), np.full((len(rows), S), -1, np.int32)
        for i, row in enumerate(rows):
            words[i, : len(row)], sizes[i, : len(row)] = row, [len(word) for word in row]
        return {"words": words, "sizes": sizes, "all": inputs["text"]}


def asked(*texts):
    return {"text": np.array([text.encode() for text in texts], object)}


def ask(batcher, servable, *texts):
    return batcher.compute(servable, SIGNATURE, asked(*texts))


def run(coroutine):
    return asyncio.run(coroutine)


def test_answers_are_those_of_a_request_alone():
    texts = [["a bc", "d"], ["x " * 30], ["one"], ["e f g", "h" * 50, "", "i j"], ["a b c d e f"]]

    async def together(servable):
        batcher = Batcher()
        return await asyncio.gather(*(ask(batcher, servable, *rows) for rows in texts))

    servable = Words()
    found = run(together(servable))
    assert len(servable.batches) < sum(map(len, texts))  # some were shared
    for rows, answer in zip(texts, found, strict=True):
        alone = Words().compute(SIGNATURE, asked(*rows))
        for name, array in alone.items():
            assert answer[name].shape == array.shape and (answer[name] == array).all(), name
            assert answer[name].dtype == array.dtype


def test_batches_hold_rows_of_about_one_length():
    servable, gate = Words(), threading.Event()
    blocker = Words(gate)
    sizes = [1, 100, 2, 90, 3, 400, 2, 60, 350] * 5

    async def many():
        batcher = Batcher(max_batch_size=8)
        blocked = [asyncio.create_task(ask(batcher, blocker, "a")) for _ in range(2)]
        await asyncio.sleep(0.05)
        asks = [asyncio.create_task(ask(batcher, servable, "x" * n)) for n in sizes]
        await asyncio.sleep(0.05)
        assert batcher.waiting == sum(sizes) + 2
        gate.set()
        await asyncio.gather(*blocked, *asks)
        assert batcher.waiting == 0

    run(many())
    assert sum(map(len, servable.batches)) == len(sizes)
    for batch in servable.batches:
        lengths = [len(text) for text in batch]
        assert max(lengths) < 2 * max(min(lengths), 2) and len(batch) <= 8
        assert len(batch) == 1 or max(lengths) * len(batch) <= batching.BATCH_TOKENS
    assert len(servable.batches) < len(sizes) / 2


def test_a_long_request_is_cut_and_put_together_again():
    servable = Words()
    rows = [f"{'w' * (i * 7 % 60)} {i}" for i in range(100)]
    found = run(ask(Batcher(max_batch_size=8), servable, *rows))
    assert max(map(len, servable.batches)) == 8
    assert [text.decode() for text in found["all"]] == rows
    assert [row[row != b""][-1].decode() for row in found["words"]] == list(map(str, range(100)))


def test_only_those_at_fault_are_refused():
    async def many():
        batcher, gate = Batcher(), threading.Event()
        blocked = [asyncio.create_task(ask(batcher, Words(gate), "a")) for _ in range(2)]
        await asyncio.sleep(0.05)
        asks = [ask(batcher, servable, text) for text in ("good", "evil", "fine", "worse", "okay")]
        asks = asyncio.gather(*asks, return_exceptions=True)
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*blocked)
        return await asks

    servable = Words()
    good, bad, fine, worse, okay = run(many())
    assert [x["all"][0] for x in (good, fine, okay)] == [b"good", b"fine", b"okay"]
    assert len(servable.batches[0]) == 5
    assert bad.code == "INVALID_ARGUMENT" and "bad is bad" in str(bad)
    assert worse.code == "INTERNAL" and "secret" not in str(worse)


def test_what_waits_is_bounded_and_freed():
    async def many():
        batcher, gate = Batcher(max_queue_tokens=5), threading.Event()
        servable = Words(gate)
        asks = (ask(batcher, servable, "a", "b"), ask(batcher, servable, "c"))
        first = asyncio.gather(*asks)  # of two threads
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError, match="3 tokens are waiting") as error:
            await ask(batcher, servable, "d", "e", "f")
        assert error.value.code == "RESOURCE_EXHAUSTED"
        with pytest.raises(
            RequestError, match=r"6 texts in one request.*at most 5 are allowed"
        ) as error:
            await ask(batcher, servable, *"abcdef")
        assert error.value.code == "INVALID_ARGUMENT"
        given_up = asyncio.create_task(ask(batcher, servable, "g", "h"))
        await asyncio.sleep(0.05)
        assert batcher.waiting == 5 and batcher._queues
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert batcher.waiting == 3 and not batcher._queues  # nor does it keep the texts
        gate.set()
        await first
        later = await ask(batcher, servable, "i")
        assert later["all"].tolist() == [b"i"]
        return servable.batches

    batches = run(many())
    assert [b"g"] not in batches and [b"g", b"h"] not in batches  # nobody wanted it any more


def test_an_empty_request_and_models_of_others_are_computed_as_they_are():
    class Other(Words):
        metadata = None

    async def many(servable):
        batcher = Batcher()
        return await asyncio.gather(
            *(ask(batcher, servable, *rows) for rows in (["a"], ["b", "c"]))
        )

    other = Other()
    run(many(other))
    assert sorted(other.batches) == [[b"a"], [b"b", b"c"]]
    assert run(ask(Batcher(), Words()))["words"].shape == (0, 0)


def test_a_column_of_the_inputs_keeps_its_width():
    class Masks(Words):
        metadata = {"padded": {"mask": 0, "states": 0.0}}

        def lengths(self, inputs):
            return np.full(len(inputs["mask"]), 8)

        def check(self, signature, inputs):
            return len(inputs["mask"])

        def compute(self, signature, inputs):
            return {"mask": inputs["mask"], "states": inputs["mask"] * 0.5}

    mask = np.array([[1, 1, 0, 0]])
    found = run(Batcher().compute(Masks(), SIGNATURE, {"mask": mask}))
    assert (found["mask"] == mask).all() and found["states"].shape == (1, 4)


def test_answers_have_a_largest_size(monkeypatch):
    monkeypatch.setattr(batching, "MOST_BYTES", 100)
    batcher = Batcher(max_batch_size=1)
    with pytest.raises(RequestError, match="the response is larger than 100 bytes"):
        run(ask(batcher, Words(), *"abcdefgh"))
    assert batcher.waiting == 0 and not batcher._queues


def test_threads_are_used_at_once():
    barrier = threading.Barrier(2, timeout=60)

    class Meets(Words):
        def compute(self, signature, inputs):
            barrier.wait()
            return super().compute(signature, inputs)

    async def many():
        batcher, servable = Batcher(), Meets()
        await asyncio.gather(ask(batcher, servable, "a"), ask(batcher, servable, "b"))

    run(many())
