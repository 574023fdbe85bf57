"""A small server with TensorFlow Serving's API: python -m kbert.serve --model_base_path=models/bert

It is meant for laptops, tests and single machines; use TensorFlow Serving for larger deployments.
"""

import asyncio
import logging
import os
import resource
import sys

from kbert.errors import UserError
from kbert.server.input_checks import check_models
from kbert.settings.serving import ServeConfig
from kbert.utils import program


def main(config: ServeConfig) -> None:
    """Runs `kbert.server.main.serve` with the flags."""
    log, shown = logging.getLogger("kbert.serve"), logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    log.propagate = False  # absl's handler would print it again
    try:
        import aiohttp  # noqa: F401
        import grpc_health  # noqa: F401
        import prometheus_client  # noqa: F401
        import tensorflow_serving.apis  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'kbert[serve]'") from None
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # each connection is an open file
    from kbert.server.main import serve

    asyncio.run(serve(config))
    sys.stdout.flush()
    os._exit(0)  # other threads may still be loading a model or computing a result


if __name__ == "__main__":
    program.run(main, ServeConfig, check_models)
