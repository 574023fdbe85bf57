"""Values of pytest.mark.parametrize that only `-m slow` tries."""

import pytest


def slow(*values):
    """List of such values; a tuple is the values of several parameters."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]
