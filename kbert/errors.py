"""The one exception that kbert raises for bad input."""


class UserError(ValueError):
    """Bad input: a flag, a config, a file, a corpus or a checkpoint that cannot be used.

    The text is one line for a person: what was wrong, what came, what is allowed, how to mend it.
    What a file made of it, such as line breaks in a name, is escaped. Programs print it and exit
    with status 2; a stack trace always means a bug.
    """

    def __init__(self, message):
        message = str(message)
        if not message.isprintable():
            message = "".join(
                char if char.isprintable() else char.encode("unicode_escape").decode()
                for char in message
            )
        super().__init__(message)
