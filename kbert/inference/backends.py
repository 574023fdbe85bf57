"""Backends: what computes a model for batches, with weights that still change or that are frozen.

A backend makes a function on numpy arrays of a function on tensors. `keras_backend` serves a model
in training. A model whose weights are frozen is computed faster: TensorFlow takes them as
constants, which it fuses with what comes before and after a matrix product (on a GPU XLA compiles
the whole), or OpenVINO computes it, on the CPU alone and fastest where batches are small.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import shutil
import tempfile
import threading

import keras
import numpy as np
import tensorflow as tf

from kbert.errors import UserError
from kbert.model.inference_ops import constant_weights
from kbert.settings import BACKENDS
from kbert.utils import atomic
from kbert.utils.locks import target_lock

_changing_policies = threading.Lock()
_USELESS_REWRITES = (
    *("arithmetic_optimization", "dependency_optimization", "loop_optimization"),
    *("function_optimization", "debug_stripper", "scoped_allocator_optimization"),
    *("shape_optimization", "layout_optimizer", "common_subgraph_elimination"),
)
PARALLEL = 2  # batches at a time: where one waits for its slowest thread, the other goes on


def choose_backend(name):
    """The backend of a name: for "auto" OpenVINO if it is installed and no GPU is, else TensorFlow.

    Args:
        name: one of `kbert.settings.BACKENDS`; a server's are `SERVER_BACKENDS`.

    Raises:
        UserError: another name; OpenVINO is asked for and not installed.
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


def frozen_backend(name, model, kind, folder=None):
    """The backend for functions of a model whose weights no longer change.

    TensorFlow computes in the model's own dtype. OpenVINO computes in bfloat16 where the model does
    and the CPU can, but adds and normalises in float32, and else in float32: its results are those
    of the model up to the rounding of these dtypes.

    Args:
        name: as `choose_backend` returns it. model: of `kbert.model`.
        kind: str, different for functions that compute different things of a model.
        folder: of the model's weights; OpenVINO's form of it is kept there, in `openvino`, unless
            that cannot be written. None to keep nothing.

    Returns:
        function, as `keras_backend`.
    """
    if name == "openvino":
        return functools.partial(_openvino, model=model, kind=kind, folder=folder)
    if name == "keras":
        return keras_backend
    return functools.partial(_tensorflow, model=model)


def on_gpu():
    """Whether TensorFlow computes on a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def keras_backend(function, features):
    """Computes a function with the weights as they are at each call.

    Args:
        function: from a dict of tensors, int32, to a dict of tensors. features: an example of what
            it is called with, dict of numpy arrays; later ones may differ in size.

    Returns:
        function from such a dict to a dict of numpy arrays. Threads may share it.
    """
    return _traced(function, features, jit=None)


def _traced(function, features, jit):
    specs = {
        name: tf.TensorSpec([None] * array.ndim, array.dtype) for name, array in features.items()
    }
    traced = tf.function(function, [specs], jit_compile=jit, autograph=False)
    traced.get_concrete_function()
    return lambda features: {name: x.numpy() for name, x in traced(features).items()}


def frozen_graph(function, features, model, dtype):
    """A function as a graph of TensorFlow in which the weights of a model are constants.

    Args:
        function, features: as for `keras_backend`. model: of `kbert.model`.
        dtype: of the matrices; vectors and tables are float32, as the model reads them.

    Returns:
        two dicts of tensors of the graph: the function's arguments and its results.
    """
    graph, weights = tf.Graph(), []
    for weight in model.weights:
        is_matrix = len(weight.shape) > 1 and weight.name != "embeddings"
        array = tf.cast(weight.value, dtype if is_matrix else "float32").numpy()
        with graph.as_default():
            weights.append((weight, tf.constant(array)))
    with graph.as_default(), keras.StatelessScope(weights):
        inputs = {
            name: tf.compat.v1.placeholder(array.dtype, [None] * array.ndim, name)
            for name, array in features.items()
        }
        return inputs, {name: tf.identity(x) for name, x in function(inputs).items()}


def _tensorflow(function, features, model):
    if on_gpu():
        return _traced(function, features, jit=True)
    with constant_weights():
        inputs, outputs = frozen_graph(function, features, model, model.compute_dtype)
    # Of what Grappler does only what helps: each of its passes copies the weights.
    config = tf.compat.v1.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    for name in _USELESS_REWRITES:
        setattr(rewrites, name, rewrites.OFF)
    rewrites.memory_optimization = rewrites.NO_MEM_OPT
    rewrites.meta_optimizer_iterations = rewrites.ONE
    session = tf.compat.v1.Session(graph=inputs["input_ids"].graph, config=config)

    def compute(features):
        return session.run(outputs, {inputs[name]: features[name] for name in inputs})

    compute({name: array[:1] for name, array in features.items()})  # two at once rewrite it twice
    return compute


def _openvino(function, features, model, kind, folder):
    import openvino

    core = openvino.Core()
    path = folder and pathlib.Path(folder) / "openvino" / f"{kind}-{_fingerprint(model)}"
    converted = path and _kept(core, path)
    if not converted:
        converted = openvino_model(core, function, features, model)
        if path:
            _keep(converted, path)
    can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    bfloat16 = model.compute_dtype == "bfloat16" and "BF16" in can
    # One stream: two would give each batch half of the cores, and a single one waits twice as long.
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", "NUM_STREAMS": 1}
    compiled = core.compile_model(converted, "CPU", settings)
    names = [port.any_name for port in converted.outputs]
    openvino.Tensor(np.zeros(1, np.int32)).data  # noqa: B018 - two threads at the first can deadlock
    idle = []  # requests; each serves one thread at a time

    def compute(features):
        request = idle.pop() if idle else compiled.create_infer_request()
        request.infer(features)
        results = {
            name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(names)
        }
        idle.append(request)
        return results

    return compute


def openvino_model(core, function, features, model):
    """The function as openvino.Model, float32, with names and sizes as the function has them.

    Args:
        core: openvino.Core. function, features, model: as for `frozen_graph`.

    OpenVINO reads TensorFlow's file: its `convert_model` takes longer, and reports to its makers.
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
    """Makes a model compute in float32, whatever its dtype policy: OpenVINO reads nothing else."""
    with _changing_policies:
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
    """Differs for other weights, another architecture, other code of kbert, another OpenVINO."""
    version = importlib.metadata.version("openvino")
    config = [type(model).__name__, {**model.get_config(), "dtype": None, "name": None}]
    digest = hashlib.sha256(json.dumps([version, config], sort_keys=True, default=str).encode())
    for path in sorted(pathlib.Path(__file__).parent.parent.glob("*/*.py")):
        digest.update(path.read_bytes())
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()[:16]


def _kept(core, path):
    """The openvino.Model that `_keep` wrote, or None: there is none, or it is damaged."""
    try:
        if (path / "sha256").read_text() == _checksum(path):
            return core.read_model(path / "model.xml")
    except (OSError, RuntimeError):  # RuntimeError: another process replaces it right now
        pass
    return None


def _keep(converted, path):
    """Writes a model, whole or not at all, in the place of others of its kind."""
    import openvino

    # Not ours to write, or full, or another process writes it: it is converted again next time.
    with contextlib.suppress(OSError, RuntimeError, UserError), target_lock(path, "--output_dir"):
        with atomic.folder(path) as folder:
            openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)
            (folder / "sha256").write_text(_checksum(folder))
        for other in path.parent.glob(f"{path.name.rsplit('-', 1)[0]}-*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)


def _checksum(folder):
    digest = hashlib.sha256()
    for name in ("model.xml", "model.bin"):
        with open(folder / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
