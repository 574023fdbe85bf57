"""Checks of what `task.json` may hold: pairs of whether a value fits, and what it must be."""

BOOL = (lambda x: isinstance(x, bool), "true or false")
NUMBER = (lambda x: type(x) in (int, float) and abs(x) < 1e30, "a finite number")


def whole_from(least):
    """A whole number that is not below `least`."""
    return lambda x: type(x) is int and least <= x < 2**31, f"a whole number from {least}"
