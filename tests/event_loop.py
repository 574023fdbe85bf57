"""One event loop for all tests of a process: grpc.aio may hang after it has seen several."""

import asyncio

_runner = asyncio.Runner()


def run(coroutine):
    """Returns the result of a coroutine, as asyncio.run does."""
    return _runner.run(coroutine)
