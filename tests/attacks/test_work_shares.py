"""What a request may take of the server: tokens of the queue, and turns of the threads."""

import asyncio
import random
import threading
import time

import event_loop
import numpy as np
import pytest
from work import TEXTS, Rows, ask, sums

from kbert.inference.backends import PARALLEL
from kbert.inference.batch_runner import BATCH_TOKENS
from kbert.server.batching import Batcher
from kbert.server.errors import RequestError, invalid

pytestmark = pytest.mark.smoke


async def computing(servable, count=1):
    """Waits until some batches have begun."""
    while len(servable.batches) < count:
        await asyncio.sleep(0.001)


def test_many_rows_do_not_stand_before_one():
    async def many():
        batcher, servable = Batcher(), Rows(0.005)
        large = asyncio.create_task(ask(batcher, servable, *[b"L" * 100] * 1000))
        await computing(servable)
        before = len(servable.batches)
        await ask(batcher, servable, b"s")
        during = servable.batches[before:]
        large.cancel()
        return during

    during = event_loop.run(many())
    assert during[-1][0] == b"s" or b"s" in b"".join(first for first, _ in during)
    # While its text is encoded and decoded, the threads go on; each of the two steps is short.
    assert [first for first, _ in during].index(b"s") <= 3 * PARALLEL


def test_windows_are_computed_by_turns_too():
    """Two texts of 800 windows stalled all other requests for 180 seconds."""

    async def many():
        batcher, servable = Batcher(1 << 5, 1 << 23), Rows(0.002)
        attacks = [asyncio.create_task(ask(batcher, servable, b"W" * 800)) for _ in range(PARALLEL)]
        await computing(servable)
        for _ in range(5):
            assert (await ask(batcher, servable, b"s" * 100))["sum"].tolist() == [100]
        done = len(servable.batches)
        for attack in attacks:
            attack.cancel()
        return done

    assert event_loop.run(many()) < 100  # of 1,600


def test_few_rows_at_a_time_do_not_starve_many():
    async def many():
        batcher, servable = Batcher(), Rows(0.001)
        large = asyncio.create_task(ask(batcher, servable, *[b"L" * 400] * 100))

        async def client():
            while not large.done():
                await ask(batcher, servable, b"s" * 400)

        await asyncio.gather(*(client() for _ in range(9)))
        await large
        return servable.batches

    batches = event_loop.run(many())
    small = sum(first.count(b"s") for first, _ in batches)
    assert 100 < small < 20 * 100  # about 9 turns for each of the 100 rows


def test_no_batch_begins_for_a_client_who_left():
    """A batch begins when it is handed to a thread, which then computes it to its end."""
    begun = []

    async def many():
        batcher, servable = Batcher(observe=begun.append), Rows(0.005)
        asks = [ask(batcher, servable, *[b"a" * 300] * 200, b"W" * 40) for _ in range(3)]
        tasks = [asyncio.create_task(one) for one in asks]
        await computing(servable, 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        before = len(begun)
        assert batcher.waiting == 0 and batcher.idle
        await asyncio.sleep(0.1)
        assert len(servable.batches) <= len(begun) == before
        return servable.batches

    assert all(size <= BATCH_TOKENS for _, size in event_loop.run(many()))


def test_large_requests_leave_room_for_others():
    """One filled the queue, so that 42 of 60 single texts were rejected."""

    async def many():
        batcher, servable = Batcher(32, 1 << 14), Rows(0.001)
        large = [b"L" * 100] * 81
        attacks = [asyncio.create_task(ask(batcher, servable, *large)) for _ in range(20)]
        await computing(servable)
        found = await asyncio.gather(*(ask(batcher, servable, b"s" * 8) for _ in range(60)))
        return found, await asyncio.gather(*attacks, return_exceptions=True)

    found, attacks = event_loop.run(many())
    assert [one["sum"].tolist() for one in found] == [[8]] * 60
    codes = [getattr(one, "code", "OK") for one in attacks]
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}


def test_short_texts_count_what_they_have():
    found = event_loop.run(ask(Batcher(32, 1 << 14), Rows(), *[b"a"] * 1025))
    assert found["sum"].tolist() == [1] * 1025


def test_a_request_that_never_fits_is_rejected_for_good():
    batcher = Batcher(32, 1 << 14)
    for texts in ([b"a" * 100] * 82, [b"W" * 100], [b"a" * (1 << 19)], [b""] * 4097):
        with pytest.raises(RequestError, match="at most 8,192 are allowed, half of") as error:
            event_loop.run(ask(batcher, Rows(), *texts))
        assert error.value.code == "INVALID_ARGUMENT" and batcher.waiting == 0


@pytest.mark.parametrize("seed", range(8))
def test_requests_of_any_shape(seed):
    """Right or rejected; never more tokens than the limits say, and nothing stays behind."""
    rng = random.Random(seed)

    def text():
        size = rng.choice([0, 1, 2, 15, 16, 17, 500, 512, rng.randrange(3000)])
        return b"W" * rng.randrange(1, 20) if rng.random() < 0.1 else b"a" * size

    async def one(batcher, servable):
        await asyncio.sleep(rng.random() * 0.05)
        texts = [text() for _ in range(rng.choice([1, 1, 2, 33, rng.randrange(1, 400)]))]
        asking = asyncio.create_task(ask(batcher, servable, *texts))
        if rng.random() < 0.2:
            asyncio.get_running_loop().call_later(rng.random() * 0.02, asking.cancel)
        try:
            assert (await asking)["sum"].tolist() == sums(*texts)
        except RequestError as error:
            assert error.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
        except asyncio.CancelledError:
            pass
        assert 0 <= batcher.waiting <= 1 << 15

    async def many():
        batcher, servable = Batcher(rng.choice([1, 8, 32]), 1 << 15), Rows()
        await asyncio.gather(*(one(batcher, servable) for _ in range(40)))
        assert batcher.waiting == 0 and batcher.idle
        return servable.batches

    rows = np.array([(len(first), size) for first, size in event_loop.run(many())])
    assert (rows[rows[:, 0] > 1, 1] <= BATCH_TOKENS).all()


class Gated(Rows):
    """Encodes short texts at once, and long ones when `gate` is set. calls: sizes of the texts."""

    def __init__(self):
        super().__init__()
        self.gate, self.calls = threading.Event(), []

    def encode(self, texts):
        sizes = [len(text) for text in texts["text"]]
        self.calls.append(sizes)
        assert max(sizes) < 10**5 or self.gate.wait(60)
        return super().encode({"text": np.array([b"a"] * len(sizes), object)})


def test_long_texts_do_not_stand_before_short_ones():
    """A text of 1 MB took the only thread that tokenizes for 100 ms, and shared its call."""

    async def many(decodes):
        batcher, servable = Batcher(), Gated()
        servable.decodes = decodes
        long = [asyncio.create_task(ask(batcher, servable, b"L" * 10**6)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(3):
            async with asyncio.timeout(60):
                await asyncio.gather(*(ask(batcher, servable, b"s") for _ in range(5)))
        assert servable.calls.count([10**6]) == 1  # the others wait for it
        assert [10**6] in servable.calls and max(map(len, servable.calls)) < 6
        servable.gate.set()
        await asyncio.gather(*long)
        return servable.calls

    for decodes in (False, True):
        assert event_loop.run(many(decodes)).count([10**6]) == 3


def test_short_texts_do_not_starve_a_long_one():
    class Slow(Rows):
        def encode(self, texts):
            time.sleep(0.002)
            return super().encode({"text": np.array([b"a"] * len(texts["text"]), object)})

    async def many():
        batcher, servable = Batcher(), Slow()
        clients = [asyncio.create_task(keep_asking(batcher, servable)) for _ in range(8)]
        await computing(servable, 10)
        async with asyncio.timeout(60):
            await ask(batcher, servable, b"L" * 200_000)
        for client in clients:
            client.cancel()

    async def keep_asking(batcher, servable):
        while True:
            await ask(batcher, servable, b"s")

    event_loop.run(many())


def test_long_requests_are_converted_in_turn():
    gate, begun = threading.Event(), []

    def convert(number):
        begun.append((number, threading.current_thread().name))
        assert number < 1 or gate.wait(60)
        if number == 2:
            raise invalid("bad is bad")
        return -number

    async def many():
        batcher = Batcher()
        long = [asyncio.create_task(batcher.in_turn(1 << 20, convert, n)) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        assert await batcher.in_turn(100, convert, 0) == 0
        assert (await ask(batcher, Rows(), b"s"))["sum"].tolist() == [1]
        long.pop().cancel()
        gate.set()
        return await asyncio.gather(*long, return_exceptions=True)

    one, two = event_loop.run(many())
    assert one == -1 and str(two) == "bad is bad" and two.code == "INVALID_ARGUMENT"
    assert [number for number, _ in sorted(begun)] == [0, 1, 2]  # the third client left
    assert {number for number, name in begun if name.startswith("kbert-serve")} == {1, 2}


def test_requests_of_too_many_rows_are_rejected_before_they_are_measured():
    batcher, servable = Batcher(32, 1 << 14), Rows()
    servable.check = lambda signature, inputs: 10**6
    with pytest.raises(RequestError, match="at least 1,000,000 tokens"):
        event_loop.run(batcher.compute(servable, TEXTS, {"text": None}))
    assert batcher.waiting == 0
