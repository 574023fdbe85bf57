"""Prints the progress lines of the programs."""


def log(line: str) -> None:
    """Prints a line and flushes it, so that it appears immediately even in a pipe."""
    print(line, flush=True)
