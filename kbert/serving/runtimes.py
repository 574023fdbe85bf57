"""Runtimes other than TensorFlow: conversion of an endpoint's model, and inference."""

import abc
import contextlib
import importlib.util
import logging

import tensorflow as tf

from kbert.errors import UserError
from kbert.inference.backends import frozen_graph, openvino_model
from kbert.model.inference_ops import plain_ops
from kbert.serving.signatures import traced


class Runtime(abc.ABC):
    """A runtime that computes `Endpoint.forward`.

    Attributes:
        name: str, also the name of the extra of kbert that installs `packages`. packages: names of
            modules.
        file: name of the model's file. quantizations: supported `settings.QUANTIZATIONS`.
        fixed_sizes: whether a model takes one text, padded to one length.
        calibrates: whether its int8 can be calibrated.
    """

    fixed_sizes = calibrates = False

    @abc.abstractmethod
    def write(self, endpoint, shapes, folder, quantize=None, calibration=()):
        """Writes the model.

        Args:
            endpoint: Endpoint. folder: to write to. quantize: one of `quantizations`, or None.
            calibration: for int8: features of representative texts, which determine the activation
                ranges; if empty, the ranges are computed for every input.
            shapes: two dicts of name -> shape, of the inputs and of the outputs: ints, and letters
                for variable sizes.
        """

    @abc.abstractmethod
    def load(self, folder, threads=None):
        """Loads the model of a folder as a function from a dict of arrays to a dict of arrays.

        Args:
            folder: folder that `write` wrote to. threads: number of threads; None: the runtime's
                default.
        """


class OpenVINO(Runtime):
    """OpenVINO IR, computed in float32; OpenVINO's default may be bfloat16."""

    name, packages, file = "openvino", ("openvino",), "model.xml"
    quantizations = ("float16",)

    def write(self, endpoint, shapes, folder, quantize=None, calibration=()):
        import openvino

        model = openvino_model(
            openvino.Core(), endpoint.forward, _example(shapes[0]), endpoint.model
        )
        try:
            openvino.save_model(model, folder / self.file, compress_to_fp16=quantize is not None)
        except RuntimeError as error:
            raise OSError(" ".join(str(error).split())) from error

    def load(self, folder, threads=None):
        import openvino

        core = openvino.Core()
        read = core.read_model(folder / self.file)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        model = core.compile_model(read, "CPU", settings)
        names = [port.any_name for port in read.outputs]  # compiled ports may have other names too
        return lambda features: dict(zip(names, model(features).values(), strict=True))


class LiteRT(Runtime):
    """LiteRT (TensorFlow Lite), with built-in ops only."""

    name, packages, file = "litert", ("ai_edge_litert",), "model.tflite"
    quantizations = ("int8", "float16")
    fixed_sizes = True

    def write(self, endpoint, shapes, folder, quantize=None, calibration=()):
        specs = {name: tf.TensorSpec(shape, tf.int32, name) for name, shape in shapes[0].items()}
        function = traced(lambda **features: endpoint.forward(features), specs)
        root = tf.train.Checkpoint()
        root.variables = [variable.value for variable in endpoint.model.variables]
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], root)
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]  # int8 weight matrices
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        with _without_warnings():
            model = converter.convert()
        (folder / self.file).write_bytes(model)

    def load(self, folder, threads=None):
        from ai_edge_litert.interpreter import Interpreter

        run = Interpreter(str(folder / self.file), num_threads=threads).get_signature_runner()
        return lambda features: run(**features)


class ONNX(Runtime):
    """ONNX, computed by ONNX Runtime."""

    name, packages, file = "onnx", ("onnx", "onnxruntime", "tf2onnx"), "model.onnx"
    quantizations = ("int8",)
    calibrates = True
    opset = 18  # the highest opset that tf2onnx supports

    def write(self, endpoint, shapes, folder, quantize=None, calibration=()):
        import onnx
        from tf2onnx import tfonnx

        with plain_ops():
            inputs, outputs = frozen_graph(
                endpoint.forward, _example(shapes[0]), endpoint.model, "float32"
            )
        with _without_warnings():
            # Skip tf2onnx's optimizers, which copy the weights dozens of times; ONNX Runtime does
            # the same optimizations when it loads a model.
            model = tfonnx.process_tf_graph(
                inputs["input_ids"].graph,
                opset=self.opset,
                input_names=[tensor.name for tensor in inputs.values()],
                output_names=[tensor.name for tensor in outputs.values()],
                tensors_to_rename={t.name: name for name, t in (inputs | outputs).items()},
            ).make_model("kbert")
        for port in (*model.graph.input, *model.graph.output):
            shape = {**shapes[0], **shapes[1]}[port.name]
            for axis, size in zip(port.type.tensor_type.shape.dim, shape, strict=True):
                setattr(axis, "dim_value" if isinstance(size, int) else "dim_param", size)
        onnx.checker.check_model(model)
        if quantize:
            self._write_int8(model, folder / self.file, calibration)
        else:
            onnx.save(model, folder / self.file)

    @staticmethod
    def _write_int8(model, path, calibration):
        """Quantizes the weight matrices, one scale per column, and the inputs of their products."""
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):
            rows = iter(calibration)

            def get_next(self):
                return next(self.rows, None)

        settings = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
        with _without_warnings():
            if not calibration:
                quantization.quantize_dynamic(model, path, **settings)
                return
            # Outputs of matrix products stay in float: LayerNorm, softmax and GELU need the range.
            matrices = ["MatMul", "Gemm", "Gather"]
            quantization.quantize_static(
                model,
                path,
                Reader(),
                op_types_to_quantize=matrices,
                activation_type=quantization.QuantType.QUInt8,
                extra_options={
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": matrices,
                },
                **settings,
            )

    def load(self, folder, threads=None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(
            folder / self.file, options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return lambda features: dict(zip(names, session.run(names, features), strict=True))


RUNTIMES = {runtime.name: runtime for runtime in (OpenVINO(), LiteRT(), ONNX())}


def find_runtime(name, quantize=None, calibrated=False):
    """Returns the Runtime of a name.

    Args:
        name: one of `kbert.settings.EXPORT_RUNTIMES`. quantize: requested quantization, or None.
        calibrated: whether it is calibrated on examples.

    Raises:
        UserError: an unsupported quantization; a missing package.
    """
    runtime = RUNTIMES[name]
    if calibrated and not (runtime.calibrates and quantize == "int8"):
        those = " or ".join(name for name, other in RUNTIMES.items() if other.calibrates)
        raise UserError(
            f"--calibration_file is for --quantize=int8 of --format={those}; got "
            f"--format={name}{f' --quantize={quantize}' if quantize else ''}."
        )
    if quantize and quantize not in runtime.quantizations:
        raise UserError(
            f"--format={name} has no --quantize={quantize}; it has "
            f"{', '.join(runtime.quantizations)}."
        )
    for package in runtime.packages:
        if not importlib.util.find_spec(package):
            raise UserError(f"--format={name} needs {package}: pip install 'kbert[{name}]'")
    return runtime


def _example(shapes):
    """Creates example arrays with the ranks of these shapes."""
    return {name: tf.zeros([1] * len(shape), tf.int32).numpy() for name, shape in shapes.items()}


@contextlib.contextmanager
def _without_warnings():
    """Suppresses the deprecation warnings that converters log about their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
