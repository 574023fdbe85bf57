"""Devices: which strategy a run takes, and whether XLA compiles its step."""

import contextlib
import dataclasses

import tensorflow as tf

from kbert.errors import UserError


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where a run computes.

    Attributes:
        strategy: tf.distribute.Strategy; TensorFlow's default one for a single device.
        jit: whether XLA compiles the training step.
        kind: "GPU" or "CPU".
    """

    strategy: tf.distribute.Strategy
    jit: bool
    kind: str

    @property
    def replicas(self):
        """int, devices that share a global batch."""
        return self.strategy.num_replicas_in_sync

    def describe(self, config):
        """A line for a person: what is computed where, and in which portions."""
        each = config.global_batch_size // self.replicas
        text = f"devices: {self.replicas} {self.kind}{'s' if self.replicas > 1 else ''}"
        text += f", {each} examples each"
        if config.accumulation_steps > 1:
            slices = config.accumulation_steps
            text += f" in {slices} slices of {each // slices}"
        return text + f", XLA {'on' if self.jit else 'off'}"


def find_devices(config):
    """The devices of a `PretrainConfig`. Call it before anything else computes with TensorFlow.

    `distribution` "auto" is one device, or all of them where there are several GPUs or
    `cpu_devices`; `jit` "auto" is on for GPUs and off on the CPU, where XLA's matrix products are
    several times slower than oneDNN's.

    Raises:
        UserError: the flags contradict each other or the machine, or the batch cannot be divided.
    """
    if config.cpu_devices > 1:
        _split_cpu(config.cpu_devices)
    elif config.distribution == "one_device":
        _leave_other_gpus_alone()
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_logical_devices("GPU")
    kind = "GPU" if gpus else "CPU"
    devices = gpus or tf.config.list_logical_devices("CPU")[: config.cpu_devices]
    if config.distribution == "one_device" and config.cpu_devices > 1:
        raise UserError(
            f"cpu_devices must be 1 with --distribution=one_device; got {config.cpu_devices}. "
            f"Take --distribution=mirrored."
        )
    if config.jit == "on" and kind == "CPU" and len(devices) > 1:
        raise UserError("jit must be off with cpu_devices > 1: XLA compiles for one CPU device.")
    mirrored = config.distribution == "mirrored" or (
        config.distribution == "auto" and len(devices) > 1
    )
    replicas = len(devices) if mirrored else 1
    if config.global_batch_size % (replicas * config.accumulation_steps):
        raise UserError(
            f"the batch must be divisible by replicas x accumulation_steps; got "
            f"{config.global_batch_size} and {replicas} x {config.accumulation_steps}. Take "
            f"{_next_multiple(config.global_batch_size, replicas * config.accumulation_steps)}"
            f"{', or --distribution=one_device' if replicas > 1 else ''}."
        )
    strategy = tf.distribute.get_strategy()
    if mirrored:
        reduce = tf.distribute.NcclAllReduce if gpus else tf.distribute.ReductionToOneDevice
        names = [device.name for device in devices]
        strategy = tf.distribute.MirroredStrategy(names, cross_device_ops=reduce())
    jit = config.jit == "on" or (config.jit == "auto" and kind == "GPU")
    return Devices(strategy, jit, kind)


def _split_cpu(count):
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_visible_devices([], "GPU")  # who asks for CPU devices gets them
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, parts)
    except RuntimeError as error:  # TensorFlow has started already
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise UserError(
                f"cpu_devices={count} comes too late: TensorFlow runs already in this process. "
                f"Start kbert as a program."
            ) from error


def _leave_other_gpus_alone():
    """TensorFlow reserves the memory of every GPU it sees."""
    with contextlib.suppress(RuntimeError):  # it has started already
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")


def _next_multiple(number, divisor):
    return -(-number // divisor) * divisor
