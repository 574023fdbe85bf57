"""The one exception that kbert raises for bad input, and errors of the system as such."""

import contextlib
import re

_TOO_MUCH = re.compile(r"(OOM when|Out of memory while) .*?(?= on /job| \[Op|$)", re.MULTILINE)


class UserError(ValueError):
    """Bad input: a flag, a config, a file, a corpus or a checkpoint that cannot be used.

    The text is one line for a person: what was wrong, what came, what is allowed, how to mend it.
    What a file made of it is made short and printable by `one_line`. Programs print it and exit
    with status 2; a stack trace always means a bug.
    """

    def __init__(self, message):
        super().__init__(one_line(message))


def one_line(text, most=1000):
    """Text for a person: line breaks and the like escaped, the middle left out if it is too long.

    Args:
        most: characters.
    """
    text = _cut(str(text), most)
    if text.isprintable():
        return text
    escaped = (
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    return _cut("".join(escaped), most)


def _cut(text, most):
    half = (most - 7) // 2
    return text if len(text) <= most else f"{text[:half]} [...] {text[-half:]}"


@contextlib.contextmanager
def writing(folder):
    """Names a folder where the system only says that something cannot be written.

    Raises:
        UserError: for an OSError without a file, such as that of a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(
            f"cannot write {folder}: {reason}. Mend that and run the same command again."
        ) from error


def too_much(error):
    """What there was no memory for, in words, of TensorFlow's ResourceExhaustedError."""
    match = _TOO_MUCH.search(error.message)
    return match[0] if match else error.message.splitlines()[0]
