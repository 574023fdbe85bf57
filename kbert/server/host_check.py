"""Who may ask by REST: of a server for this machine alone, no page of another site.

Any site may give its own name the address 127.0.0.1, and have a browser on this machine ask there
("DNS rebinding"). The browser still tells the name, in the headers Host and Origin.
"""

import ipaddress
import urllib.parse

from aiohttp import web

from kbert.errors import one_line


def guard(host):
    """aiohttp middleware that answers 403 to what pages of other sites ask.

    Args:
        host: that the server listens on. Where others than this machine reach it, all may ask.
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
                    f"{header} {value[:100]!r} is not this machine: ask {', '.join(sorted(own))}, "
                    f"or serve with --host=0.0.0.0."
                )
                return web.json_response({"error": one_line(reason, 500)}, status=403)
        return await handler(request)

    return guarded


def _own_hosts(host):
    """Names that this machine has for itself, if only it reaches `host`; else None: any name."""
    try:
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        is_own = False
    return {"localhost", "127.0.0.1", "::1", host} if is_own else None


def _host_of(value):
    """The host of a header Host or Origin, without its port; "" if there is none."""
    try:
        return urllib.parse.urlsplit(f"//{value.rpartition('://')[2]}").hostname or ""
    except ValueError:
        return ""
