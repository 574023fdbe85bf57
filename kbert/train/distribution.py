"""Devices: the distribution strategy of a run, and whether XLA compiles its step."""

import contextlib
import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

import tensorflow as tf

from kbert.errors import UserError
from kbert.train.workers import Workers, join_cluster, read_cluster

if TYPE_CHECKING:
    import keras

    # The lazily loaded `tf.distribute` is opaque to type checkers.
    from tensorflow.python.distribute.distribute_lib import InputContext, Strategy

    from kbert.settings import FinetuneConfig, PretrainConfig

_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # flags of CPUs


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
        workers: the processes that share the run.
        jit: whether XLA compiles the training step.
        kind: "GPU", "TPU" or "CPU".
    """

    workers: Workers
    jit: bool
    kind: str

    @property
    def strategy(self) -> "Strategy":
        """The tf.distribute.Strategy of the run, TensorFlow's default one for a single device."""
        return self.workers.strategy

    @property
    def replicas(self) -> int:
        """Number of devices that share a global batch, over all workers."""
        return self.strategy.num_replicas_in_sync

    @property
    def local_replicas(self) -> int:
        """Number of devices of this worker."""
        return self.replicas // self.workers.count

    @property
    def input_context(self) -> "InputContext":
        """The tf.distribute.InputContext of this worker's part of the batches."""
        workers = self.workers
        return tf.distribute.InputContext(workers.count, workers.index, self.replicas)

    def local_copy(self, variable: "keras.Variable", replica: int | None) -> tf.Variable:
        """Returns the copy of a Keras variable on a device of this worker.

        `replica` is the device's index in the run; None on TPUs, where each uses its own copy.
        """
        if replica is None:
            return variable.value
        copies = self.strategy.experimental_local_results(variable.value)
        return copies[replica - self.workers.index * self.local_replicas]

    def describe(self, config: "PretrainConfig | FinetuneConfig") -> str:
        """Returns a log line that describes the devices and how they divide the batch."""
        each = config.global_batch_size // self.replicas
        text = f"devices: {self.replicas} {self.kind}{'s' if self.replicas > 1 else ''}"
        if self.workers.count > 1:
            text += f" of {self.workers.count} workers"
        text += f", {each} examples each"
        if config.accumulation_steps > 1:
            slices = config.accumulation_steps
            text += f" in {slices} slices of {each // slices}"
        return text + f", XLA {'on' if self.jit else 'off'}"


def fast_precision(kind: str) -> str:
    """Returns the dtype policy for `precision` "auto": mixed_bfloat16 where it is faster.

    That is on TPUs, on GPUs of compute capability 8 (Ampere) and above, and on CPUs with bfloat16
    instructions. On CPUs with AVX-512 but without them, oneDNN's bfloat16 matrix products take 2.5
    times as long as in float32; on CPUs without AVX-512, about as long.

    Args:
        kind: "GPU", "TPU" or "CPU".
    """
    if kind == "CPU":
        info = _CPU_INFO.read_text() if _CPU_INFO.exists() else ""
        fast = not _BFLOAT16.isdisjoint(info.split())
    else:
        gpus = tf.config.list_physical_devices("GPU") if kind == "GPU" else []
        details = map(tf.config.experimental.get_device_details, gpus)
        fast = all(gpu.get("compute_capability", (0, 0)) >= (8, 0) for gpu in details)
    return "mixed_bfloat16" if fast else "float32"


def find_devices(config: "PretrainConfig | FinetuneConfig") -> Devices:
    """Returns the devices of a run. Call this function before anything else uses TensorFlow.

    With `distribution` "auto", a run uses `cpu_devices` virtual CPUs if that number is above 1,
    else all GPUs, else the CPU. "multi_worker" waits for the other workers. `jit` "auto" is on only
    for GPUs: on CPUs, XLA's matrix products are several times slower than oneDNN's.

    Raises:
        UserError: the flags contradict each other or the machine, the batch cannot be divided among
            the devices, or the TPU or the other workers cannot be reached.
    """
    if config.distribution == "one_device" and config.cpu_devices > 1:
        raise UserError(
            f"cpu_devices must be 1 with --distribution=one_device; got {config.cpu_devices}. "
            f"Use --distribution=mirrored."
        )
    if config.distribution == "multi_worker" and config.cpu_devices > 1:
        raise UserError(
            f"cpu_devices must be 1 with --distribution=multi_worker, where each worker uses "
            f"its whole CPU; got {config.cpu_devices}. Start more workers."
        )
    cluster = read_cluster() if config.distribution == "multi_worker" else None
    if config.cpu_devices > 1:
        _split_cpu(config.cpu_devices)
    elif config.distribution == "one_device":
        _hide_unused_gpus()
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    if cluster:
        workers = join_cluster(*cluster)
    elif config.distribution == "tpu":
        workers = Workers(_tpu_strategy())
    else:
        workers = Workers(_local_strategy(config))
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    kind = "TPU" if config.distribution == "tpu" else kind
    jit = config.jit == "on" or (config.jit == "auto" and kind == "GPU")
    devices = Devices(workers, jit, kind)
    _check_devices(config, devices)
    return devices


def _local_strategy(config):
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")[: config.cpu_devices]
    mirrored = config.distribution == "mirrored" or (
        config.distribution == "auto" and len(devices) > 1
    )
    if not mirrored:
        return tf.distribute.get_strategy()
    reduce = tf.distribute.NcclAllReduce if gpus else tf.distribute.ReductionToOneDevice
    names = [device.name for device in devices]
    return tf.distribute.MirroredStrategy(names, cross_device_ops=reduce())


def _tpu_strategy():
    """Returns a strategy for the TPU named in the variable TPU_NAME, or for this machine's TPU."""
    # Not tested on TPUs: the tests only check that XLA compiles the whole step, as TPUs require.
    name = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no TPU can be reached ({reason}). Run on a TPU machine, with a TensorFlow built for "
            f"TPUs, or name a TPU in the environment variable TPU_NAME."
        ) from error
    strategy = tf.distribute.TPUStrategy(resolver)
    if strategy.extended.num_hosts > 1:
        raise UserError(
            f"the TPU {name} has {strategy.extended.num_hosts} hosts, each of which would read the "
            f"same examples; only one host is supported. Use a TPU with a single host."
        )
    return strategy


def _check_devices(config, devices):
    """Raises UserError if the flags contradict the available devices."""
    replicas, slices = devices.replicas, config.accumulation_steps
    if config.jit == "on" and devices.kind == "CPU" and devices.local_replicas > 1:
        raise UserError(
            "jit must be auto or off with cpu_devices > 1: XLA compiles for one CPU device."
        )
    examples = config.global_batch_size
    if examples % (replicas * slices):
        one_device_fits = replicas == devices.local_replicas > 1 and examples % slices == 0
        advice = ", or --distribution=one_device" * (one_device_fits and config.cpu_devices == 1)
        raise UserError(
            f"the batch size must be divisible by the number of devices times accumulation_steps; "
            f"got {examples} and {replicas} x {slices}. Use a batch size of "
            f"{-(-examples // (replicas * slices)) * replicas * slices}{advice}."
        )


def _split_cpu(count):
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_visible_devices([], "GPU")  # `cpu_devices` uses only the CPU
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, parts)
    except RuntimeError as error:  # TensorFlow is already initialized
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise UserError(
                f"cpu_devices={count} has no effect: TensorFlow is already initialized in this "
                f"process. Run kbert as a program."
            ) from error


def _hide_unused_gpus():
    """Hides all GPUs but the first, because TensorFlow reserves the memory of each visible GPU."""
    with contextlib.suppress(RuntimeError):  # already initialized
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")


def smaller_slices(config: "PretrainConfig | FinetuneConfig", replicas: int) -> str:
    """Returns advice for an error message: how to make a slice of the batch fit into memory."""
    share, now = config.global_batch_size // replicas, config.accumulation_steps
    more = next((n for n in range(now + 1, share + 1) if share % n == 0), None)
    what = "Each slice is already a single example"
    if more:
        what = f"Use --accumulation_steps={more}, which computes the same in smaller slices"
    return what if config.remat else f"{what}; --remat also saves memory"
