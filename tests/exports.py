"""What the tests of exports share: the ops that a SavedModel may be made of."""

import pathlib

from tensorflow.core.protobuf import saved_model_pb2

# Each is known to TensorFlow 2.19 and 2.20: test_export_versions.py compares.
OPS_FILE = pathlib.Path(__file__).parent / "serving_ops.txt"


def ops_of(folder):
    """Names of the ops of all SavedModels below a folder."""
    found = set()
    for path in folder.rglob("saved_model.pb"):
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
        for graph in (meta.graph_def for meta in saved.meta_graphs):
            nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
            functions = {function.signature.name for function in graph.library.function}
            found |= {node.op for node in nodes} - functions
    return found
