"""A whole server in the test's own process, and raw connections to it."""

import asyncio
import contextlib
import json

from ports import free_port

from kbert.server.main import serve
from kbert.settings.serving import ServeConfig


@contextlib.asynccontextmanager
async def running(**settings):
    """Yields the ServeConfig of a server that is ready."""
    settings = {
        "port": free_port(),
        "rest_api_port": free_port(),
        "backend": "tensorflow",
        "enable_model_warmup": False,
        "drain_seconds": 1.0,
        **settings,
    }
    config, ready = ServeConfig(**settings), asyncio.Event()
    task = asyncio.create_task(serve(config, lambda line: line.startswith("ready") and ready.set()))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if task.done():
            await task
        yield config
    finally:
        waiting.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def http(method, path, body=b"", *headers):
    """Returns the bytes of a request. body: bytes, or any JSON value."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-enc")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def send(port, data, timeout=20, ends=False):
    """Returns (status, headers, body) of the first response to raw bytes; None if there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if ends:
            writer.write_eof()
        async with asyncio.timeout(timeout):
            return await read_response(reader)
    finally:
        writer.close()


async def read_response(reader):
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body
