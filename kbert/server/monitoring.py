"""Health checks and metrics by HTTP."""

from aiohttp import web

from kbert.server.http_server import as_json, host_check_middleware
from kbert.server.metrics import Metrics
from kbert.server.models import Models


class Monitoring:
    """Health checks and metrics. host: see `host_check_middleware`."""

    is_serving: bool = False  # the models are loaded, and the server is not stopping

    def __init__(self, models: Models, metrics: Metrics, host: str) -> None:
        self._models, self._metrics, self._host = models, metrics, host

    def routes(self) -> list[web.RouteDef]:
        """Returns the routes /healthz, /readyz and /monitoring/prometheus/metrics."""
        return [
            web.get("/healthz", self._alive),
            web.get("/readyz", self._ready),
            web.get("/monitoring/prometheus/metrics", self._prometheus),
        ]

    def app(self) -> web.Application:
        """Returns an application with these routes only."""
        app = web.Application(middlewares=[host_check_middleware(self._host)])
        app.router.add_routes(self.routes())
        return app

    async def _alive(self, request):
        return as_json(200, {"status": "alive"})

    async def _ready(self, request):
        ready = self.is_serving and all(self._models.available().values())
        return as_json(200 if ready else 503, {"status": "ready" if ready else "not ready"})

    async def _prometheus(self, request):
        return web.Response(body=self._metrics.text(), content_type="text/plain")
