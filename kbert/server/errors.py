"""Requests that are not answered, and why."""

from kbert.errors import one_line

HTTP_STATUS = {  # of the names of gRPC's codes
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 400,
    "RESOURCE_EXHAUSTED": 503,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL": 500,
}


class RequestError(Exception):
    """A request that is not answered.

    Args:
        code: one of `HTTP_STATUS`. message: one line for whoever asked.
    """

    def __init__(self, code, message):
        super().__init__(one_line(" ".join(message.split()), 500))  # it may quote whoever asked
        self.code = code


def invalid(message):
    """RequestError with the code INVALID_ARGUMENT."""
    return RequestError("INVALID_ARGUMENT", message)
