"""The server: loads models, listens, polls for new versions, and shuts down on a signal."""

import asyncio
import logging
import pathlib
import signal
import ssl
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from tensorflow_serving.config import model_server_config_pb2

from kbert.errors import UserError
from kbert.server.batching import Batcher
from kbert.server.errors import RequestError
from kbert.server.grpc_api import GrpcServer
from kbert.server.input_checks import check_models
from kbert.server.loading import load_version
from kbert.server.metrics import Metrics
from kbert.server.models import Models, read_configs
from kbert.server.rest_api import RestServer
from kbert.server.service import Service
from kbert.tasks.registry import load_task_module

if TYPE_CHECKING:
    from kbert.settings.serving import ServeConfig

log: logging.Logger = logging.getLogger("kbert.serve")


async def serve(config: "ServeConfig", report: Callable[[str], None] = print) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends the process immediately.

    Args:
        config: ServeConfig. report: called with lines of text.

    Raises:
        UserError: no model can be served, a port is in use, or certificates are invalid.
    """

    check_models(config)
    load_task_module(config.task_module)
    certificates, configs = _certificates(config), _configs(config)
    downloads = tempfile.TemporaryDirectory(prefix="kbert-serve-")

    def load(folder):
        return load_version(folder, config.backend, config.enable_model_warmup, downloads.name)

    models, servers = Models(load), []
    metrics = Metrics(models, lambda: batcher.waiting)
    batcher = Batcher(config.max_batch_size, config.max_queue_tokens, metrics.batch)
    stopping = asyncio.create_task(_stop_signal())
    starting = asyncio.create_task(_start(configs, models, report))
    watching = None
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            service = Service(models, batcher)
            ports = await _listen(config, certificates, service, metrics, servers)
            watching = asyncio.create_task(_watch(models, config, configs))
            for line in _where(config, ports, models):
                report(line)
            await stopping
        report("stopping: waiting for open requests")
    finally:
        for task in (starting, stopping, watching):
            if task:
                task.cancel()
        await asyncio.gather(*(server.stop() for server in servers))
        models.close()
        batcher.close()
        downloads.cleanup()


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


async def _listen(config, certificates, service, metrics, servers):
    """Starts the configured servers; returns their ports, 0 for a server that is off."""
    secrets, context = certificates
    ports = []
    for kind, port, arguments in (
        (GrpcServer, config.port, (_address(config, config.port), secrets)),
        (RestServer, config.rest_api_port, (config.host, config.rest_api_port, context)),
    ):
        if port:
            server = kind(config, service, metrics)
            servers.append(server)
            try:
                await server.start(*arguments)
            except (OSError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or str(error).rstrip(".")
                address = _address(config, port)
                raise UserError(f"cannot listen on {address}: {reason}.") from error
        ports.append(server.port if port else 0)
    return ports


def _address(config, port):
    return f"[{config.host}]:{port}" if ":" in config.host else f"{config.host}:{port}"


def _certificates(config):
    """Returns ((key, chain, client_ca) as bytes, ssl.SSLContext); (None, None) without TLS."""
    if not config.ssl_key:
        return None, None
    secrets = []
    for name in ("ssl_key", "ssl_certificate", "ssl_client_ca"):
        path = getattr(config, name)
        try:
            secrets.append(path and pathlib.Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"--{name}: cannot read {path}: {error.strerror}.") from error
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.ssl_client_ca)
        # With an empty password, an encrypted key does not prompt on the terminal.
        context.load_cert_chain(config.ssl_certificate, config.ssl_key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise UserError(
            f"--ssl_certificate, --ssl_key and --ssl_client_ca must be PEM files without a "
            f"password, and the key must match the certificate: {error}."
        ) from error
    if config.ssl_client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return tuple(secrets), context


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


def _where(config, ports, models):
    """Returns lines that describe the models and addresses served."""
    secure = "s" if config.ssl_key else ""
    for name, numbers in models.available().items():
        yield f"{name}: version {', '.join(map(str, numbers))}"
    if ports[0]:
        yield f"gRPC: {_address(config, ports[0])}{' (TLS)' if secure else ''}"
    if ports[1]:
        address = f"http{secure}://{_address(config, ports[1])}"
        if config.demo:
            yield f"demo: {address}/"
        for name in models.available():
            yield f"REST: {address}/v1/models/{name}"
        yield f"metrics: {address}/monitoring/prometheus/metrics"
    yield "ready; Ctrl-C stops it"
