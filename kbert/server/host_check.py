"""Host check of the REST API: a server on a loopback address rejects pages of other sites.

Any site can resolve its own name to 127.0.0.1 and let a browser on this machine send requests there
("DNS rebinding"). The browser still sends the site's name in the headers Host and Origin.
"""

import urllib.parse
from typing import TYPE_CHECKING

from aiohttp import web

from kbert.errors import one_line
from kbert.server.http_server import as_json
from kbert.settings.serving import is_loopback

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware


def address_of(host: str, port: int) -> str:
    """Returns HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def guard(host: str) -> "Middleware":
    """Returns an aiohttp middleware that answers 403 to requests from pages of other sites.

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
