"""Errors of requests, with gRPC and HTTP status codes."""

from kbert.errors import one_line

HTTP_STATUS = {  # gRPC status name -> HTTP status
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 400,
    "RESOURCE_EXHAUSTED": 503,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL": 500,
}

LONG_BYTES = 1 << 16  # longer parts of a request are parsed and converted in a thread
NO_KEY = "an API key is required: send x-api-key: KEY or authorization: Bearer KEY."


class RequestError(Exception):
    """A request that cannot be answered; most functions of this package may raise it.

    Args:
        code: one of `HTTP_STATUS`. message: one line for the client.
        status: HTTP status; None for the one in `HTTP_STATUS`.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(one_line(" ".join(message.split()), 500))  # it may quote the request
        self.code: str = code
        self.status: int = status or HTTP_STATUS[code]


def invalid(message: str) -> RequestError:
    """Returns a RequestError with the code INVALID_ARGUMENT."""
    return RequestError("INVALID_ARGUMENT", message)
