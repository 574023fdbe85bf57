"""An HTTP server on aiohttp: bounded connections, errors as JSON, an orderly end."""

import asyncio
import json
import socket
import urllib.parse

from aiohttp import web
from aiohttp.typedefs import Middleware

from kbert.errors import one_line
from kbert.server.credentials import Certificates
from kbert.settings.serving import ServeConfig, is_loopback

RETRY_AFTER_S = 1  # in responses with status 503
HANDSHAKE_S = 20  # limit of a TLS handshake, and of writes to a client that does not read
_FULL = b'{"error": "the server has too many connections; try again later."}'
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Retry-After: %d\r\nContent-Length: %d\r\n\r\n%s" % (RETRY_AFTER_S, len(_FULL), _FULL)
)


def as_json(status: int, value: object) -> web.Response:
    """Returns a response with a JSON value."""
    return web.Response(
        status=status, body=json.dumps(value).encode(), content_type="application/json"
    )


def address_of(host: str, port: int) -> str:
    """Returns HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_check_middleware(host: str) -> Middleware:
    """Returns an aiohttp middleware that answers 403 to requests from pages of other sites.

    Any site can resolve its own name to 127.0.0.1 and let a browser on this machine send requests
    there ("DNS rebinding"). The browser still sends the site's name in the headers Host and Origin.

    Args:
        host: address of the server. If other machines can reach it, no request is rejected.
    """
    own = _own_hosts(host)

    @web.middleware
    async def guarded(request, handler):
        named = {"Host": request.headers.get("Host")}
        if request.method != "GET":
            named["Origin"] = request.headers.get("Origin")
        for header, value in named.items():
            if own and value is not None and _host_of(value) not in own:
                reason = (
                    f"{header} {value[:100]!r} is not this machine: use {', '.join(sorted(own))}, "
                    f"or serve with --host=0.0.0.0."
                )
                return as_json(403, {"error": one_line(reason, 500)})
        return await handler(request)

    return guarded


def _own_hosts(host: str) -> set[str] | None:
    """Returns the allowed names if only this machine can reach `host`; None: all are allowed."""
    return {"localhost", "127.0.0.1", "::1", host} if is_loopback(host) else None


def _host_of(value):
    """Returns the host in a Host or Origin header, without the port; "" if there is none."""
    try:
        return urllib.parse.urlsplit(f"//{value.rpartition('://')[2]}").hostname or ""
    except ValueError:
        return ""


class HttpServer:
    """Serves an aiohttp application. port: once it is bound."""

    port: int

    def __init__(self, app: web.Application, config: ServeConfig) -> None:
        app.on_response_prepare.append(self._add_headers)
        self._most, self._idle_s = config.max_connections, config.idle_timeout_seconds
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # do not compute requests of disconnected clients
            shutdown_timeout=config.drain_seconds,
        )
        self._listener: asyncio.Server | None = None
        self._retiring = False

    async def bind(self, host: str, port: int, certificates: Certificates | None = None) -> None:
        """Takes the port, or raises OSError. Connections are accepted after `start`."""
        await self._runner.setup()
        self._listener = await asyncio.get_running_loop().create_server(
            self._connection,
            host,
            port,
            ssl=certificates and certificates.context(),
            ssl_handshake_timeout=certificates and HANDSHAKE_S,
            start_serving=False,
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def start(self) -> None:
        """Accepts connections."""
        await self._listener.start_serving()

    async def retire(self) -> None:
        """Still answers requests, and closes each connection after its next response."""
        self._retiring = True

    async def stop(self) -> None:
        """Stops accepting requests, and waits for the open ones."""
        if self._listener:
            self._listener.close()
        await self._runner.cleanup()

    def _connection(self):
        server = self._runner.server
        if server is None or len(server.connections) >= self._most:
            return _Refusal()
        return _Connection(server, loop=asyncio.get_running_loop(), keepalive_timeout=self._idle_s)

    async def _add_headers(self, request, response):
        response.headers["X-Content-Type-Options"] = "nosniff"
        if response.status == 503:
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
        if self._retiring:
            response.headers["Connection"] = "close"
            response.force_close()


class _Refusal(asyncio.Protocol):
    """Closes a connection above the limit with status 503."""

    def connection_made(self, transport):
        transport.write(_REFUSAL)
        transport.close()


class _Connection(web.RequestHandler):
    """A connection whose errors are JSON; those that clients cause are not logged."""

    def connection_made(self, transport):
        super().connection_made(transport)
        if option := getattr(socket, "TCP_USER_TIMEOUT", None):  # for clients that read nothing
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, option, HANDSHAKE_S * 1000)

    def handle_error(self, request, status=500, exc=None, message=None):
        """Returns the response to bytes that are not HTTP, or to a failed request; see aiohttp."""
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the response has been sent")
        reason = f"bad HTTP request: {' '.join((message or '').split())}"
        if status >= 500:
            super().log_exception("a request failed", exc_info=exc)
            reason = "the server failed; see its log."
        response = as_json(status, {"error": one_line(reason, 300)})
        response.force_close()
        return response

    def log_exception(self, *args, exc_info=None, **kwargs):
        """Logs an exception, but not a body that cannot be read."""
        if not isinstance(exc_info, web.RequestPayloadError):
            super().log_exception(*args, exc_info=exc_info, **kwargs)

    async def finish_response(self, request, resp, start_time):
        """Sends a response; converts aiohttp's own error responses to JSON."""
        if isinstance(resp, web.HTTPException):
            allowed = {name: resp.headers[name] for name in ("Allow",) if name in resp.headers}
            reason = f"{request.method} {request.path}: {resp.reason}."
            resp = as_json(resp.status, {"error": one_line(reason, 300)})
            resp.headers.update(allowed)
        return await super().finish_response(request, resp, start_time)
