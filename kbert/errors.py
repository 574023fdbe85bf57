"""The one exception that kbert raises for bad input."""


class UserError(ValueError):
    """Bad input: a flag, a config, a file, a corpus or a checkpoint that cannot be used.

    The text is one line for a person: what was wrong, what came, what is allowed, how to mend it.
    Programs print it and exit with status 2; a stack trace always means a bug.
    """
