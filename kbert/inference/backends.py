"""Backends compile functions of a model for inference.

A backend converts a function of tensors to a function of NumPy arrays.

- `keras_backend` uses the current weights of the model at each call.
- The TensorFlow backend is faster. On the CPU, its graph contains the weights as constants, so that
  TensorFlow can fuse matrix products with the ops after them; later changes of the weights have no
  effect. On a GPU, it uses the current weights, and XLA compiles the graph.
- The OpenVINO backend runs on the CPU, also with constant weights. It is the fastest for small
  batches.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from kbert.errors import UserError
from kbert.model.inference_ops import constant_weights
from kbert.model.pretrained import PretrainedModel
from kbert.settings import BACKENDS
from kbert.utils import atomic
from kbert.utils.formats import sha256_of
from kbert.utils.locks import target_lock

if TYPE_CHECKING:
    import openvino

TensorFunction = Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]]
ArrayFunction = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
Backend = Callable[[TensorFunction, Mapping[str, np.ndarray]], ArrayFunction]

_policy_lock = threading.Lock()
_DISABLED_PASSES = (  # of Grappler
    *("arithmetic_optimization", "dependency_optimization", "loop_optimization"),
    *("function_optimization", "debug_stripper", "scoped_allocator_optimization"),
    *("shape_optimization", "layout_optimizer", "common_subgraph_elimination"),
)
PARALLEL = 2  # concurrent batches; while one waits for its slowest thread, the other uses the rest


def choose_backend(name: str) -> str:
    """Returns the name of a backend; "auto" is OpenVINO if it is installed and there is no GPU.

    Raises UserError if the name is unknown, or OpenVINO is requested but not installed.
    """
    if name == "keras":
        return name
    if name not in BACKENDS:
        raise UserError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}.")
    if name == "tensorflow" or (name == "auto" and on_gpu()):
        return "tensorflow"
    try:
        import openvino  # noqa: F401
    except ImportError:
        if name == "auto":
            return "tensorflow"
        raise UserError("backend=openvino needs OpenVINO: pip install 'kbert[openvino]'") from None
    return "openvino"


def frozen_backend(
    name: str, model: PretrainedModel, kind: str, folder: str | os.PathLike[str] | None = None
) -> Backend:
    """Returns the backend with a given name for functions of a model.

    The result is called like `keras_backend`. This call freezes the weights, except with "keras",
    and with "tensorflow" on a GPU. TensorFlow computes in the model's dtype. OpenVINO computes in
    float32, or in bfloat16 (with sums and normalization in float32) if the model does and the CPU
    supports it. The results differ from the model's only by rounding in these dtypes.

    Args:
        name: result of `choose_backend`.
        model: a model of `kbert.model`.
        kind: name of the function in OpenVINO's cache; it must be unique among the functions of a
            model.
        folder: folder of the model's weights; the converted OpenVINO model is cached in its
            subfolder `openvino`, if the folder is writable. None for no cache.
    """
    if name == "openvino":
        return functools.partial(_openvino, model=model, kind=kind, folder=folder)
    if name == "keras":
        return keras_backend
    return functools.partial(_tensorflow, model=model)


def on_gpu() -> bool:
    """Returns whether TensorFlow uses a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def keras_backend(
    function: TensorFunction, features: Mapping[str, np.ndarray], jit: bool | None = None
) -> ArrayFunction:
    """Compiles a function; each call uses the current weights of the model.

    Args:
        function: function from a dict of tensors to a dict of tensors.
        features: example inputs, which set the names, ranks and dtypes; the sizes may vary.
        jit: whether XLA compiles the function; None for TensorFlow's default.

    Returns:
        A thread-safe function from a dict of arrays, like `features`, to a dict of arrays.
    """
    specs = {
        name: tf.TensorSpec([None] * array.ndim, array.dtype) for name, array in features.items()
    }
    traced = tf.function(function, [specs], jit_compile=jit, autograph=False)
    traced.get_concrete_function()
    return lambda features: {name: x.numpy() for name, x in traced(features).items()}


def frozen_graph(
    function: TensorFunction,
    features: Mapping[str, np.ndarray],
    model: PretrainedModel,
    dtype: str,
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Builds a TensorFlow graph of a function in which the weights of a model are constants.

    Args:
        function, features: as for `keras_backend`.
        model: the model that the function calls.
        dtype: dtype of the weight matrices; vectors and embedding tables are float32.

    Returns:
        The arguments and the results of the function, two dicts of symbolic tensors of the graph.
    """
    graph, scope = tf.Graph(), keras.StatelessScope()
    for weight in model.weights:
        is_matrix = len(weight.shape) > 1 and weight.name != "embeddings"
        array = tf.cast(weight.value, dtype if is_matrix else "float32").numpy()
        with graph.as_default():
            # Not an argument of StatelessScope, which would cast a bfloat16 constant to the float32
            # of the weight. Grappler does not fold the casts, so oneDNN would not know that its
            # operand is constant, and would not reorder it for AMX.
            scope.state_mapping[id(weight)] = tf.constant(array)
    with graph.as_default(), scope:
        inputs = {
            name: tf.compat.v1.placeholder(array.dtype, [None] * array.ndim, name)
            for name, array in features.items()
        }
        return inputs, {name: tf.identity(x) for name, x in function(inputs).items()}


def _inference_session(graph: tf.Graph) -> tf.compat.v1.Session:
    """Returns a Session that fuses ops, for a graph in which weights are constants."""
    config = tf.compat.v1.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    # Each Grappler pass copies the weights, so disable those that do not make the graph faster.
    for name in _DISABLED_PASSES:
        setattr(rewrites, name, rewrites.OFF)
    rewrites.memory_optimization = rewrites.NO_MEM_OPT
    rewrites.meta_optimizer_iterations = rewrites.ONE
    # By default, Grappler does not use the shapes of the inputs, which some fusions require.
    rewrites.remapping = rewrites.AGGRESSIVE
    return tf.compat.v1.Session(graph=graph, config=config)


def _tensorflow(function, features, model):
    if on_gpu():
        return keras_backend(function, features, jit=True)
    with constant_weights():
        inputs, outputs = frozen_graph(function, features, model, model.compute_dtype)
    session = _inference_session(inputs["input_ids"].graph)

    def compute(features):
        return session.run(outputs, {inputs[name]: features[name] for name in inputs})

    compute({name: array[:1] for name, array in features.items()})  # optimize the graph only once
    return compute


def _openvino(function, features, model, kind, folder):
    import openvino

    core = openvino.Core()
    # A model may compute the same function for one text and for several texts per example.
    kind = f"{kind}_of_several" if features["input_ids"].ndim == 3 else kind
    path = folder and pathlib.Path(folder) / "openvino" / f"{kind}-{_fingerprint(model)}"
    converted = path and _load_cached(core, path)
    if not converted:
        converted = openvino_model(core, function, features, model)
        if path:
            _save_cached(converted, path)
    can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    bfloat16 = model.compute_dtype == "bfloat16" and "BF16" in can
    # With two streams, each batch would get half of the cores, and a single batch would take twice
    # as long.
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", "NUM_STREAMS": 1}
    compiled = core.compile_model(converted, "CPU", settings)
    names = [port.any_name for port in converted.outputs]
    # Two threads that create the first tensor at the same time can deadlock.
    openvino.Tensor(np.zeros(1, np.int32)).data  # noqa: B018
    idle = []  # infer requests that no thread uses

    def compute(features):
        request = idle.pop() if idle else compiled.create_infer_request()
        request.infer(features)
        results = {
            name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(names)
        }
        idle.append(request)
        return results

    return compute


def openvino_model(
    core: "openvino.Core",
    function: TensorFunction,
    features: Mapping[str, np.ndarray],
    model: PretrainedModel,
) -> "openvino.Model":
    """Converts a function to an OpenVINO model in float32, with the same names and shapes.

    The function is written to a TensorFlow graph file that OpenVINO reads, because
    `openvino.convert_model` is slower and sends telemetry.

    Args:
        core: openvino.Core.
        function, features, model: as for `frozen_graph`.
    """
    import openvino

    with _in_float32(model):
        inputs, outputs = frozen_graph(function, features, model, "float32")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        path = pathlib.Path(scratch) / "model.pb"
        path.write_bytes(inputs["input_ids"].graph.as_graph_def().SerializeToString())
        read = core.read_model(path)
    for port in read.inputs:
        port.get_tensor().set_names({port.any_name.split(":")[0]})
    results = []
    for name, tensor in outputs.items():
        (port,) = (port for port in read.outputs if tensor.name in port.get_names())
        port.get_tensor().set_names({name})
        results.append(port.get_node())
    return openvino.Model(results, read.get_parameters())


@contextlib.contextmanager
def _in_float32(model):
    """Context in which a model computes in float32 regardless of its dtype policy."""
    with _policy_lock:
        layers = list(model._flatten_layers())
        policies = [layer.dtype_policy for layer in layers]
        try:
            for layer in layers:
                layer.dtype_policy = "float32"
            yield
        finally:
            for layer, policy in zip(layers, policies, strict=True):
                layer.dtype_policy = policy


def _fingerprint(model):
    """Returns a digest of the weights, the architecture, kbert's code and OpenVINO's version."""
    version = importlib.metadata.version("openvino")
    config = [type(model).__name__, {**model.get_config(), "dtype": None, "name": None}]
    digest = hashlib.sha256(json.dumps([version, config], sort_keys=True, default=str).encode())
    for path in sorted(pathlib.Path(__file__).parent.parent.glob("*/*.py")):
        digest.update(path.read_bytes())
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()[:16]


def _load_cached(core, path):
    """Loads the openvino.Model written by `_save_cached`; None if it is missing or damaged."""
    try:
        if (path / "sha256").read_text() == _checksum(path):
            return core.read_model(path / "model.xml")
    except (OSError, RuntimeError):  # RuntimeError: another process is replacing it
        pass
    return None


def _save_cached(converted, path):
    """Writes a model atomically and removes older models of the same kind."""
    import openvino

    # If the folder is read-only, full or in use, the model is converted again next time.
    with contextlib.suppress(OSError, RuntimeError, UserError), target_lock(path):
        with atomic.folder(path) as folder:
            openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
            (folder / "sha256").write_text(_checksum(folder))
        for other in path.parent.glob(f"{path.name.rsplit('-', 1)[0]}-*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)


def _checksum(folder):
    return "".join(sha256_of(folder / name) for name in ("model.xml", "model.bin"))
