"""The requests of TensorFlow Serving's gRPC API, as messages that are cheap to parse.

They have TensorFlow Serving's wire format. But tf.Examples are bytes: TensorFlow parses them later,
in threads of its own, while Python would hold up all other requests. And the tensors of a request
are a list of entries, not a map: a map of 300,000 names takes seconds to parse.
"""

import time

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import input_pb2, model_service_pb2, prediction_service_pb2

from kbert.server.errors import LONG_BYTES, invalid

SERVICES = [
    service
    for module in (prediction_service_pb2, model_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]


def _add(pool: descriptor_pool.DescriptorPool, file: FileDescriptor) -> None:
    """Adds the messages of a .proto file to a pool, after those of the files that it imports."""
    for dependency in file.dependencies:
        _add(pool, dependency)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for message in proto.message_type:
        for field in message.field:
            if field.type_name == ".tensorflow.Example":
                field.type = field.TYPE_BYTES
                field.ClearField("type_name")
        if message.name == "PredictRequest":
            message.nested_type[0].options.ClearField("map_entry")
    pool.Add(proto)


_POOL = descriptor_pool.DescriptorPool()
for _service in SERVICES:
    _add(_POOL, _service.file)
_REQUESTS = {
    name: message_factory.GetMessageClass(_POOL.FindMessageTypeByName(method.input_type.full_name))
    for service in SERVICES
    for name, method in service.methods_by_name.items()
}
_INPUT = message_factory.GetMessageClass(
    _POOL.FindMessageTypeByName(input_pb2.Input.DESCRIPTOR.full_name)
)


def parse_request(method: str, data: bytes) -> Message:
    """Parses the request of a method, such as "Predict"; raises RequestError.

    Parsing 4 MB of empty strings takes 0.04 s or more, in which no other thread runs Python. After
    a long message, this thread therefore pauses for twice the time that parsing took.
    """
    begin = time.perf_counter()
    try:
        return _REQUESTS[method].FromString(data)
    except DecodeError:
        raise invalid("the request is not a valid message of this method.") from None
    finally:
        if len(data) > LONG_BYTES:
            time.sleep(2 * (time.perf_counter() - begin))


def with_serialized_examples(value: "input_pb2.Input") -> Message:
    """Returns a copy of an Input whose tf.Examples are bytes, as in `parse_request`."""
    return _INPUT.FromString(value.SerializeToString())
