"""The lines that programs print while they work."""


def log(line):
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)
