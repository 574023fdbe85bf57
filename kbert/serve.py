"""A small server with TensorFlow Serving's API: python -m kbert.serve --model_base_path=models/bert

It is meant for laptops, tests and single machines; use TensorFlow Serving for larger deployments.
"""

import asyncio
import os

from absl import flags

from kbert.errors import UserError
from kbert.server.input_checks import check_inputs, raise_open_file_limit
from kbert.server.log import start_log
from kbert.settings.serving import UNUSED_SWITCHES, UNUSED_VALUES, ServeConfig
from kbert.utils import program
from kbert.utils.logging import log


def check(config: ServeConfig) -> None:
    """Checks the config, and prints a note on each flag that has no effect."""
    for name in (*UNUSED_SWITCHES, *UNUSED_VALUES):
        if flags.FLAGS[name].present:
            log(f"note: --{name} has no effect here; see the table in docs/serving.md")
    check_inputs(config)


def main(config: ServeConfig) -> None:
    """Runs `kbert.server.main.serve` with the flags."""
    start_log()
    try:
        import aiohttp  # noqa: F401
        import grpc_health  # noqa: F401
        import prometheus_client  # noqa: F401
        import tensorflow_serving.apis  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'kbert[serve]'") from None
    raise_open_file_limit(config)
    # Each batch blocks a thread while it is computed; other threads must be free to tokenize.
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", str((os.cpu_count() or 1) + 3))
    from kbert.server.main import serve

    asyncio.run(serve(config, log))
    os._exit(0)  # other threads may still be loading a model or computing a result


if __name__ == "__main__":
    for switch in UNUSED_SWITCHES:
        flags.DEFINE_boolean(switch, None, "unused", module_name="tensorflow_model_server")
    for value in UNUSED_VALUES:
        flags.DEFINE_string(value, None, "unused", module_name="tensorflow_model_server")
    program.run(main, ServeConfig, check)
