"""Progress lines of the programs."""


def log(line: str) -> None:
    """Prints a line and flushes it, so that it also appears immediately in a pipe."""
    print(line, flush=True)
