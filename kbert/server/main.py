"""The server: loads models, listens, polls for new versions, and shuts down on a signal."""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import tempfile
from collections.abc import Callable

from tensorflow_serving.config import model_server_config_pb2

from kbert.errors import UserError
from kbert.server.batching import Batcher
from kbert.server.errors import RequestError
from kbert.server.grpc_api import GrpcServer
from kbert.server.http_server import HttpServer, address_of
from kbert.server.input_checks import check_inputs, read_certificates, read_keys
from kbert.server.loading import load_version
from kbert.server.metrics import Metrics
from kbert.server.models import Models, read_configs
from kbert.server.monitoring import Monitoring
from kbert.server.rest_api import RestApi
from kbert.server.service import Service
from kbert.settings.serving import ServeConfig
from kbert.tasks.registry import load_task_module

log: logging.Logger = logging.getLogger("kbert.serve")


async def serve(config: ServeConfig, report: Callable[[str], None] = print) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends the process immediately.

    Args:
        config: ServeConfig. report: called with lines of text.

    Raises:
        UserError: no model can be served, a port is in use, or certificates or keys are invalid.
    """
    check_inputs(config)
    load_task_module(config.task_module)
    configs = _configs(config)
    gc.set_threshold(100_000)  # a long request has many objects, and no cycles
    sys.setswitchinterval(0.001)  # the event loop waits for threads that convert long requests
    gc.freeze()  # so that collections, after unloading a version, do not stop requests for long
    downloads = tempfile.TemporaryDirectory(prefix="kbert-serve-")

    def load(folder):
        return load_version(folder, config.backend, config.enable_model_warmup, downloads.name)

    models = Models(load)
    metrics = Metrics(models, lambda: batcher.waiting, config.access_log)
    batcher = Batcher(config.max_batch_size, config.max_queue_tokens, metrics.batch)
    monitoring = Monitoring(models, metrics, config.host)
    service = Service(models, batcher, config.max_request_bytes)
    servers = _servers(config, service, metrics, monitoring)
    stopping = asyncio.create_task(_stop_signal())
    tasks = [stopping]
    try:
        await _bind(config, servers)
        starting = asyncio.create_task(_start(configs, models, report))
        tasks.append(starting)
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await _listen(config, servers)
            monitoring.is_serving = True
            tasks.append(asyncio.create_task(_watch(models, config, configs)))
            for line in _where(config, models):
                report(line)
            await stopping
        report("stopping: waiting for open requests")
        if monitoring.is_serving:
            await _retire(config, servers, monitoring)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(server.stop() for server in servers.values()))
        models.close()
        batcher.close()
        downloads.cleanup()


def _servers(config, service, metrics, monitoring):
    """Returns a dict of the configured servers: name of the flag of its port -> server."""
    keys, servers = read_keys(config), {}
    if config.monitoring_port:
        servers["monitoring_port"] = HttpServer(monitoring.app(), config)
    if config.port:
        servers["port"] = GrpcServer(config, service, metrics, keys)
    if config.rest_api_port:
        routes = () if config.monitoring_port else monitoring.routes()
        app = RestApi(config, service, metrics, keys).app(routes)
        servers["rest_api_port"] = HttpServer(app, config)
    return servers


async def _stop_signal():
    """Returns at the first SIGTERM or SIGINT; the next one ends the process immediately."""
    stop_event, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop_event.set)
    try:
        await stop_event.wait()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would wait for compute threads


async def _start(configs, models, report):
    """Loads the models."""
    report(f"loading {', '.join(model_config.name for model_config in configs)}")
    try:
        await models.configure(configs)
    except RequestError as error:
        raise UserError(str(error)) from None


async def _bind(config, servers):
    """Takes the ports, so that one in use is reported before the models are loaded."""
    certificates = read_certificates(config)
    for name, server in servers.items():
        is_monitoring = name == "monitoring_port"
        with _listening(config, name):
            port = getattr(config, name)
            await server.bind(config.host, port, None if is_monitoring else certificates)
            if is_monitoring:  # it answers even while the models are loading
                await server.start()


async def _listen(config, servers):
    """Accepts connections."""
    for name, server in servers.items():
        if name != "monitoring_port":
            with _listening(config, name):
                await server.start()


@contextlib.contextmanager
def _listening(config, name):
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        address = address_of(config.host, getattr(config, name))
        raise UserError(f"--{name}: cannot listen on {address}: {reason}.") from error


async def _retire(config, servers, monitoring):
    """Lets clients and load balancers leave before the ports are closed."""
    monitoring.is_serving = False
    for server in servers.values():
        await server.retire()
    await asyncio.sleep(config.lame_duck_seconds)


def _configs(config):
    """Returns the list of ModelConfig given by the flags."""
    if config.model_config_file:
        return read_configs(config.model_config_file)
    path = str(config.model_base_path)
    return [model_server_config_pb2.ModelConfig(name=config.model_name, base_path=path)]


async def _watch(models, config, configs):
    """Polls for versions and re-reads the model config file at the configured intervals."""
    last_error = None

    async def every(seconds, look):
        nonlocal last_error
        while seconds:
            await asyncio.sleep(seconds)
            try:
                await look()
            except Exception as error:  # retried at the next poll
                if str(error) != last_error:
                    known = isinstance(error, (UserError, RequestError))
                    log.error("%s", error, exc_info=not known)
                last_error = str(error)

    async def look_at_file():
        nonlocal configs
        new_configs = _configs(config)
        if new_configs != configs:
            await models.configure(new_configs)
            configs = new_configs

    looks = [every(config.file_system_poll_wait_seconds, models.refresh)]
    if config.model_config_file:
        looks.append(every(config.model_config_file_poll_wait_seconds, look_at_file))
    await asyncio.gather(*looks)


def _where(config, models):
    """Returns lines that describe the models and addresses served."""
    secure = "s" if config.ssl_key else ""
    for name, numbers in models.available().items():
        yield f"{name}: version {', '.join(map(str, numbers))}"
    if config.port:
        yield f"gRPC: {address_of(config.host, config.port)}{' (TLS)' if secure else ''}"
    address = f"http{secure}://{address_of(config.host, config.rest_api_port)}"
    if config.rest_api_port:
        if config.demo:
            yield f"demo: {address}/"
        for name in models.available():
            yield f"REST: {address}/v1/models/{name}"
    if config.monitoring_port:
        address = f"http://{address_of(config.host, config.monitoring_port)}"
    if config.monitoring_port or config.rest_api_port:
        yield f"metrics: {address}/monitoring/prometheus/metrics"
    yield "ready; Ctrl-C stops it"
