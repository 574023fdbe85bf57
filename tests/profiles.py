"""How many cases hypothesis tries: few and always the same, or HYPOTHESIS_PROFILE=thorough."""

import os

from hypothesis import settings

settings.register_profile("ci", max_examples=100, derandomize=True, deadline=None, database=None)
settings.register_profile("thorough", max_examples=3000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def fewer(times):
    """For a test whose cases are slow: so many times fewer of them than the profile asks for."""
    return settings(max_examples=max(4, settings.default.max_examples // times))
