"""What a target is, what it has to keep to, and how inputs are changed."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import random
import re
import signal
import tempfile
import time
import warnings

from kbert.errors import UserError
from kbert.server.errors import RequestError

MAX_INPUT = 10_000  # bytes
MAX_SECONDS = 5  # for an input
MAX_MEMORY = 50 << 20  # bytes that an input may take at a time
MAX_MESSAGE = 2000  # characters
TARGETS = {}
_IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk would take most time


class Fault(Exception):
    """What a target did with an input that it must not do."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser, and valid inputs.

    parse: function of a folder (pathlib.Path) where `files` is given, else of the bytes.
    seeds: function to a list of bytes. files: function to a dict of name -> list of bytes: what may
        be in each file; the first is there while an input takes the place of another file.
    """

    name: str
    parse: object
    seeds: object
    files: object = None

    def opened(self, folder):
        """Function of the bytes of an input. folder: an empty one."""
        if self.files is None:
            return self.parse
        contents = {folder / name: found[0] for name, found in self.files().items()}
        paths = list(contents)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents[path])

        def parse(data):
            path = paths[data[0] % len(paths)] if data else paths[0]
            path.write_bytes(data[1:])
            try:
                self.parse(folder)
            finally:
                path.write_bytes(contents[path])

        return parse


def reads(function):
    """Decorator of a target that is given the bytes. function: to a list of valid ones."""

    def decorate(parse):
        TARGETS[parse.__name__] = Target(parse.__name__, parse, function)
        return parse

    return decorate


def reads_files(function):
    """Decorator of a target that reads a folder. function: to what `Target` calls files.

    The first byte of an input is the number of the file whose place the rest takes.
    """

    def seeds():
        rows = enumerate(function().values())
        return [bytes([number]) + content for number, found in rows for content in found]

    def decorate(parse):
        TARGETS[parse.__name__] = Target(parse.__name__, parse, seeds, function)
        return parse

    return decorate


@contextlib.contextmanager
def checked(target):
    """Gives a function of the bytes of an input: whether the parser took it, or refused it.

    Raises:
        Fault: the parser raised something else than what it says of bad input, said that in more
            than a line, or took too much time or memory.
    """
    log = logging.getLogger("kbert.serve")  # where the server tells its own faults
    before = signal.signal(signal.SIGALRM, _stop), log.handlers, log.propagate
    log.handlers, log.propagate = [_Raises()], False
    try:
        with tempfile.TemporaryDirectory(dir=_IN_MEMORY) as folder:
            yield functools.partial(_check, target.name, target.opened(pathlib.Path(folder)))
    finally:
        handler, log.handlers, log.propagate = before
        signal.signal(signal.SIGALRM, handler)


def _check(name, parse, data):
    before, begin, message = _restart_peak(), time.monotonic(), None
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parse(data)
    except (UserError, RequestError) as error:
        message = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of Rust, too, whose panics are no Exception
        raise Fault(f"{name}: {type(error).__name__}: {str(error)[:1000]}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, peak = time.monotonic() - begin, _memory("VmHWM") - before
    if seconds > MAX_SECONDS:  # in a library that no signal stops
        raise Fault(f"{name}: {seconds:.1f} s")
    if before and peak > MAX_MEMORY:
        raise Fault(f"{name}: {peak >> 20} MB of memory")
    if message is not None and not (message.isprintable() and 0 < len(message) <= MAX_MESSAGE):
        raise Fault(f"{name}: a message of {len(message)} characters: {message[:300]!r}")
    return message is None


def _stop(*_):
    raise _TooLong(f"not done after {MAX_SECONDS} s")


class _TooLong(BaseException):
    """The time of an input is over."""


class _Raises(logging.Handler):
    def handle(self, record):
        if record.exc_info:
            raise record.exc_info[1]


def _restart_peak():
    """Bytes in memory, whose peak counts from now on; 0 where the system cannot do that."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _memory("VmRSS")


def _memory(kind):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(kind))


# What stands for a value in JSON, YAML, a flag or a text proto.
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:e-?\d+)?|true|false|null|\[\]|\{\}')
_VALUES = (
    *(b"null", b"true", b"-1", b"0", b"1.5", b"1e400", b"NaN", b"[]", b"{}", b'""', b"[[]]"),
    *(b"9223372036854775808", b"1" * 400, b"1" * 4301, b"0x" + b"f" * 4000, b"[1, 2]"),
    *(b'{"a": 1}', b'"\\ud800"', b'"\\n\\u0000"', b'"' + b"long " * 600 + b'"', b'["a", "b"]'),
    *(b"[" * 990 + b"]" * 990, b'{"a":' * 900 + b"1" + b"}" * 900, b'"1"', b'[{"b64": "=="}]'),
    *(b"[" * 5000, b"!!int ''", b"!!timestamp x", b'"' + b"1" * 5000 + b'"', b'"\xff"'),
)
_PARTS = (
    *(b"\x00", b"\n", b"\r\n", b"\t", b" ", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b","),
    *(b"\xe2\x80\xa8", b"{", b"}", b"[", b"]", b"-", b"\x80", b"\x7f\xff\xff\xff", b"\xff" * 8),
    *(b"##", b"[UNK]", b"\xee\x80\x80", b"\x00\x00\x00\x00", b"\n\n", b"&a [*a]", b"../", b"*a"),
)


def mutated(data, others, rng, most=MAX_INPUT):
    """Changed bytes. others: list of bytes of the same kind. rng: random.Random."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_CHANGES)(data, others, rng)
    return bytes(data[:most])


def _change_value(data, others, rng):
    found = list(_VALUE.finditer(data))
    if found:
        place = rng.choice(found)
        data[place.start() : place.end()] = rng.choice(_VALUES)


def _swap_values(data, others, rng):
    found = list(_VALUE.finditer(data))
    if found:
        place, other = rng.choice(found), bytes(rng.choice(found)[0])
        data[place.start() : place.end()] = other


def _flip(data, others, rng):
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _put_byte(data, others, rng):
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _insert(data, others, rng):
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.choice(_PARTS)


def _remove(data, others, rng):
    a, b = _range(data, rng)
    del data[a:b]


def _repeat(data, others, rng):
    a, b = _range(data, rng)
    data[a:a] = data[a:b] * rng.choice((1, 2, 50))


def _cut(data, others, rng):
    del data[rng.randrange(len(data) + 1) :]


def _splice(data, others, rng):
    other = rng.choice(others)
    a, b = _range(other, rng)
    place = rng.randrange(len(data) + 1)
    data[place:place] = other[a:b]


def _range(data, rng):
    a = rng.randrange(len(data) + 1)
    return a, min(len(data), a + rng.choice((1, 2, 8, 64, 1000)))


_CHANGES = (_change_value,) * 4 + (_swap_values, _flip, _put_byte, _insert, _remove, _repeat)
_CHANGES += (_cut, _splice)


def changed_seeds(target, count, seed=0):
    """List of `count` changed seeds of a target, always the same."""
    seeds, rng = target.seeds(), random.Random(f"{target.name} {seed}")
    return [mutated(rng.choice(seeds), seeds, rng) for _ in range(count)]
