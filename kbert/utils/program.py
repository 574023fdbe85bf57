"""Runs a program: parses flags, prints errors as one line, hides start-up messages."""

import contextlib
import gc
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from absl import app, flags, logging

from kbert.errors import UserError, failed_allocation, one_line
from kbert.utils.flags import define, help_text, read

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

flags.disclaim_key_flags()  # so that --help attributes the flags to the program
HELP = {"--help", "-help", "-h"}
PACKAGED = pathlib.Path(__file__).parent.parent / "packaged"  # has configs/ and export/


@contextlib.contextmanager
def _quiet_import():
    """Hides messages that native libraries print while they are imported; shows them on an error.

    The libraries print before they read any log level, so stderr itself is redirected.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # 2: one line per missing GPU library
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(kept, hidden.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def import_tensorflow() -> ModuleType:
    """Imports tensorflow and tensorflow_text without start-up messages; returns tensorflow."""
    gc.disable()  # the many objects of an import stay, so collections would only take time
    try:
        with _quiet_import():
            import tensorflow
            import tensorflow_text  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
    return tensorflow


def run(
    main: Callable[..., None],
    config_class: "type[DataclassInstance] | None" = None,
    check: Callable[..., None] | None = None,
    config_class_of: "Callable[[str, str], type[DataclassInstance]] | None" = None,
) -> None:
    """Runs a program with the flags of the command line.

    If the input is invalid, an I/O operation fails or memory runs out, prints the error as one line
    and exits with status 2; an interrupt exits with status 130.

    Args:
        main: function of a config, called after TensorFlow is imported.
        config_class: dataclass of settings, one flag each; None if `main` and `check` take no
            argument.
        check: function of a config, called before TensorFlow is imported, so that errors appear
            immediately.
        config_class_of: function from the values of --task_module and --task to a subclass of
            `config_class`, whose additional settings become flags; called if --task_module is set.
    """
    if config_class:
        define(config_class)

    def parser(argv):
        nonlocal config_class
        if config_class_of:
            config_class = _config_class_with_task_flags(argv, config_class, config_class_of)
        return parse(argv, config_class)

    def run_main(argv):
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}; settings are flags: --name=value.")
        logging.set_verbosity(logging.WARNING)  # TensorFlow reports each checkpoint it writes
        try:
            arguments = [read(config_class)] if config_class else []
            if check:
                check(*arguments)
            import_tensorflow()
            main(*arguments)
        except UserError as error:
            _fail(error)
        except OSError as error:  # no permission, disk full, a file where a folder should be, ...
            _fail(f"{error.filename or 'input or output'}: {error.strerror or error}.")
        except KeyboardInterrupt:
            _fail("interrupted.", status=130)
        except Exception as error:
            tf = sys.modules.get("tensorflow")
            if tf is None or not isinstance(error, tf.errors.ResourceExhaustedError):
                raise
            reason = failed_allocation(error.message)
            _fail(
                f"out of memory ({reason}). Use more --accumulation_steps, --remat or a smaller "
                f"batch."
            )

    app.run(run_main, flags_parser=parser)


def _config_class_with_task_flags(argv, config_class, config_class_of):
    """Returns the config class for --task_module and --task; defines its additional flags."""
    try:
        flags.FLAGS([_resolve_flagfile(arg) for arg in argv if arg not in HELP], known_only=True)
    except (flags.Error, ValueError, RecursionError):  # reported by `parse`
        return config_class
    if not flags.FLAGS.task_module:
        return config_class
    import_tensorflow()
    try:
        wider = config_class_of(flags.FLAGS.task_module, flags.FLAGS.task)
    except UserError as error:
        _fail(error)
    define(wider, config_class)
    return wider


def parse(argv: Sequence[str], config_class: "type[DataclassInstance] | None" = None) -> list[str]:
    """Parses the flags, including flag files; returns the program's name and other arguments.

    Exits with status 0 after --help, and with one line and status 2 if a flag is invalid.
    """
    if config_class and HELP & set(argv):
        print(help_text(config_class), end="")
        sys.exit(0)
    try:
        return flags.FLAGS([_resolve_flagfile(arg) for arg in argv])
    except SystemExit:  # absl ends with status 1 after --help
        sys.exit(0)
    except flags.Error as error:
        text = str(error).replace("ERROR:: ", "").rstrip(" ?.")
        _fail(one_line(f"{text}. --help lists all flags."))
    except (ValueError, RecursionError) as error:  # not UTF-8, or a very long flag name
        _fail(one_line(f"cannot read the flags: {error}."))


def _resolve_flagfile(arg):
    return re.sub("(?<=flagfile=)configs/.+", _packaged_path, arg)


def _packaged_path(match):
    path = pathlib.Path(match[0])
    return str(path if path.exists() or not (PACKAGED / path).exists() else PACKAGED / path)


def _fail(message, status=2):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
