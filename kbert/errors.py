"""UserError, the exception that kbert raises for bad input, and functions for messages."""

import contextlib
import os
import re
from collections.abc import Iterator

_ALLOCATION = re.compile(r"(OOM when|Out of memory while) .*?(?= on /job| \[Op|$)", re.MULTILINE)


class UserError(ValueError):
    """Bad input: a flag, a config, a file, a corpus or a checkpoint that cannot be used.

    The message states what is wrong, the value, the allowed values and how to fix it; it is passed
    through `one_line`. Programs print it and exit with status 2; a stack trace always means a bug.
    """

    # These keep Keras and AutoGraph from adding arguments and source lines to the message.
    _keras_call_info_injected = True
    ag_pass_through: bool = True

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


def one_line(text: object, max_length: int = 1000) -> str:
    """Returns text with unprintable characters, such as newlines, escaped.

    Args:
        text: str, or an object, which is converted to str.
        max_length: maximum length in characters; the middle of a longer text is replaced by
            " [...] ".
    """
    text = _shorten(str(text), max_length)
    if text.isprintable():
        return text
    escaped = (
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    return _shorten("".join(escaped), max_length)


def _shorten(text, max_length):
    half = (max_length - 7) // 2
    return text if len(text) <= max_length else f"{text[:half]} [...] {text[-half:]}"


@contextlib.contextmanager
def convert_write_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Converts write errors that do not name a file to UserErrors that name the folder.

    Raises:
        UserError: the block raised an OSError without a file name, for example for a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(
            f"cannot write {folder}: {reason}. Fix this and run the same command again."
        ) from error


def failed_allocation(message: str) -> str:
    """Returns the words on the allocation in a ResourceExhaustedError, or else its first line."""
    match = _ALLOCATION.search(message)
    return match[0] if match else message.splitlines()[0]
