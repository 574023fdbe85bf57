"""Prints the progress lines of the programs."""


def log(line: str) -> None:
    """Prints a line and flushes it, so that it appears immediately even in a pipe."""
    print(f"{line}\n", end="", flush=True)  # one write: lines of different threads do not mix
