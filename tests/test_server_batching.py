"""Requests that share batches: answers as if each were alone, limits, and who is to blame."""

import asyncio
import threading
import time
import types

import event_loop
import numpy as np
import pytest

from kbert.features import ENCODER_FEATURES
from kbert.server import batching
from kbert.server.batching import Batcher
from kbert.server.errors import RequestError, invalid
from kbert.server.scheduler import BATCH_TOKENS

pytestmark = pytest.mark.smoke


SIGNATURE = types.SimpleNamespace(name="s", inputs={"text": None})


class Words:
    """Splits texts into words, padded to the most words of a batch. Its tokens are bytes."""

    metadata = {"padded": {"words": "", "sizes": -1}, "token_outputs": [], "pad_id": 0}
    decodes, rows = False, types.SimpleNamespace(name="from_ids")

    def __init__(self, wait=None):
        self.batches, self.wait = [], wait

    def check(self, signature, inputs):
        return len(inputs["text"])

    def encode(self, texts):
        ids = [np.frombuffer(text, np.uint8) for text in texts["text"]]
        features = np.zeros((3, len(ids), max(map(len, ids))), np.int32)
        for i, row in enumerate(ids):
            features[:2, i, : len(row)] = row, np.ones_like(row)
        return dict(zip(ENCODER_FEATURES, features, strict=True)), {}

    def select(self, signature, results):
        return results

    def compute(self, signature, features):
        if self.wait:
            self.wait.wait(60)
        lengths = features["attention_mask"].sum(axis=1)
        rows = zip(features["input_ids"], lengths, strict=True)
        texts = [bytes(ids[:length].astype(np.uint8)) for ids, length in rows]
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
        return {"words": words, "sizes": sizes, "all": np.array(texts, object)}


def asked(*texts):
    return {"text": np.array([text.encode() for text in texts], object)}


def ask(batcher, servable, *texts):
    return batcher.compute(servable, SIGNATURE, asked(*texts))


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def run(coroutine):
    return event_loop.run(coroutine)


def test_answers_are_those_of_a_request_alone():
    texts = [["a bc", "d"], ["x " * 30], ["one"], ["e f g", "h" * 50, "", "i j"], ["a b c d e f"]]

    async def together(servable):
        batcher = Batcher()
        return await asyncio.gather(*(ask(batcher, servable, *rows) for rows in texts))

    servable = Words()
    found = run(together(servable))
    assert len(servable.batches) < sum(map(len, texts))  # some were shared
    for rows, answer in zip(texts, found, strict=True):
        alone = Words().compute(Words.rows, Words().encode(asked(*rows))[0])
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
        await until(lambda: batcher.waiting == 2 and batcher.idle)
        asks = [asyncio.create_task(ask(batcher, servable, "x" * n)) for n in sizes]
        await until(lambda: batcher.waiting == sum(sizes) + 2)
        gate.set()
        await asyncio.gather(*blocked, *asks)
        assert batcher.waiting == 0

    run(many())
    assert sum(map(len, servable.batches)) == len(sizes)
    for batch in servable.batches:
        lengths = [len(text) for text in batch]
        assert max(lengths) < 2 * max(min(lengths), 2) and len(batch) <= 8
        assert len(batch) == 1 or max(lengths) * len(batch) <= BATCH_TOKENS
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
        await until(lambda: batcher.waiting == 2 and batcher.idle)
        asks = [ask(batcher, servable, text) for text in ("good", "evil", "fine", "worse", "okay")]
        asks = asyncio.gather(*asks, return_exceptions=True)
        await until(lambda: batcher.waiting == 2 + len("goodevilfineworseokay"))
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
    """A request may take half of the tokens that are free."""

    async def many():
        batcher, gate = Batcher(max_queue_tokens=10), threading.Event()
        servable = Words(gate)
        asks = (ask(batcher, servable, "a"), ask(batcher, servable, "c"))
        first = asyncio.gather(*asks)  # of two threads
        await until(lambda: batcher.waiting == 2 and batcher.idle)
        busy = (
            r"the request has 5 tokens, but only 4 are allowed now: half of what other requests "
            r"\(2 tokens\) leave of --max_queue_tokens=10\. Try again later\."
        )
        with pytest.raises(RequestError, match=busy):
            await ask(batcher, servable, "defgh")
        with pytest.raises(RequestError, match=r"at least 6 tokens.*at most 5 are allowed, half"):
            await ask(batcher, servable, "defghi")
        given_up = asyncio.create_task(ask(batcher, servable, "gh"))
        await until(lambda: batcher.waiting == 4 and not batcher.idle)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert batcher.waiting == 2 and batcher.idle  # nor does it keep the texts
        gate.set()
        await first
        later = await ask(batcher, servable, "i")
        assert later["all"].tolist() == [b"i"] and batcher.waiting == 0
        return servable.batches

    assert [b"gh"] not in run(many())  # nobody wanted it any more


def test_an_empty_request_and_models_of_others_are_computed_as_they_are():
    class Other:
        metadata, check, batches = None, Words.check, []

        def compute(self, signature, inputs):
            self.batches.append(inputs["text"].tolist())
            return inputs

    async def many(servable):
        batcher = Batcher()
        return await asyncio.gather(
            *(ask(batcher, servable, *rows) for rows in (["a"], ["b", "c"]))
        )

    other = Other()
    run(many(other))
    assert sorted(other.batches) == [[b"a"], [b"b", b"c"]]

    class Empty(Words):
        def compute(self, signature, inputs):
            return {"signature": signature.name, **inputs}

    found = run(ask(Batcher(), Empty()))
    assert found["signature"] == "s" and found["text"].shape == (0,)


def test_outputs_of_tokens_are_as_long_as_the_features():
    class Tokens(Words):
        metadata = {"padded": {}, "token_outputs": ["ids"], "pad_id": 9}

        def check(self, signature, inputs):
            return len(next(iter(inputs.values())))

        def compute(self, signature, features):
            self.batches.append(features["input_ids"])
            return {"ids": features["input_ids"][:, :, None], "flat": features["input_ids"][:, 0]}

    async def many(*asks):
        batcher = Batcher()
        return await asyncio.gather(*(batcher.compute(servable, SIGNATURE, x) for x in asks))

    servable = Tokens()
    features = [dict.fromkeys(ENCODER_FEATURES, np.full((1, L), L)) for L in (1, 1, 6, 7)]
    found = run(many(*features, asked("abc", "d" * 40)))
    for L, answer in zip((1, 1, 6, 7), found[:-1], strict=True):
        assert answer["ids"].shape == (1, L, 1) and (answer["ids"] == L).all()
    assert found[-1]["ids"].shape == (2, 40, 1)
    assert found[-1]["ids"][0, :, 0].tolist() == [*b"abc"] + [0] * 37
    shared = [batch for batch in servable.batches if len(batch) > 1]
    assert [batch.tolist() for batch in shared] == [[[6] * 6 + [9], [7] * 7]]


def test_choices_are_rows():
    class Choices(Words):
        metadata = {"padded": {}, "token_outputs": [], "pad_id": 0}

        def check(self, signature, inputs):
            return 2

        def compute(self, signature, features):
            self.batches.append(len(features["input_ids"]))
            return {"logits": features["input_ids"].sum(axis=-1)}

    ids, servable = np.arange(2 * 50 * 3).reshape(2, 50, 3), Choices()
    features = dict.fromkeys(ENCODER_FEATURES, ids)
    found = run(Batcher().compute(servable, SIGNATURE, features))["logits"]
    assert (found == ids.sum(axis=-1)).all() and max(servable.batches) == 32


def test_answers_have_a_largest_size(monkeypatch):
    monkeypatch.setattr(batching, "MAX_BYTES", 100)
    batcher = Batcher(max_batch_size=1)
    with pytest.raises(RequestError, match="the response is larger than 100 bytes"):
        run(ask(batcher, Words(), *"abcdefgh"))
    assert batcher.waiting == 0 and batcher.idle


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


def test_tokens_are_reported():
    tokens = []
    run(Batcher().compute(Words(), SIGNATURE, asked("abc", "de"), tokens.append))
    assert tokens == [5]


def test_short_requests_share_a_call_that_encodes():
    class Counted(Words):
        calls = []

        def encode(self, texts):
            self.calls.append(len(texts["text"]))
            time.sleep(0.05)
            return super().encode(texts)

    async def many():
        batcher = Batcher()
        return await asyncio.gather(*(ask(batcher, counted, f"a{i}") for i in range(20)))

    counted = Counted()
    found = run(many())
    assert counted.calls == [1, 1, 18]  # of two threads
    assert [answer["words"][0].tolist() for answer in found] == [[b"a%d" % i] for i in range(20)]
