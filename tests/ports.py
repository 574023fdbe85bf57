"""Ports for the servers that the tests start."""

import os
import random
import socket

# Below the ports that Linux gives to outgoing connections (from 32768 on), so that no connection
# of another process takes one between the look at it and the server's own bind.
LOWEST, HIGHEST = 10_000, 32_000

# Each process draws its own ports: pytest's workers would otherwise all try the same ones.
_draw = random.Random(os.getpid())


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on. Raises RuntimeError if 100 are taken."""
    for _ in range(100):
        port = _draw.randint(LOWEST, HIGHEST)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"100 ports between {LOWEST} and {HIGHEST} are all taken")
