"""The requests of TensorFlow Serving's gRPC API, as messages that are cheap to parse.

They have TensorFlow Serving's wire format. But tf.Examples are bytes: TensorFlow parses them later,
in threads of its own, while Python would hold up all other requests. And the tensors of a request
are a list of entries, not a map: a map of 300,000 names takes seconds to parse.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import input_pb2, model_service_pb2, prediction_service_pb2

from kbert.server.errors import invalid

_NOT_PARSED = (
    ".tensorflow.Example",
    ".tensorflow.ResourceHandleProto",  # values of tensors, which no signature takes
    ".tensorflow.VariantTensorDataProto",
)
# Method -> field of its request -> the same for the messages in it that can have many fields.
_EXAMPLES = {2: {1: {}, 2: {}}}  # the input, and its two kinds of lists
_LISTS = {
    "Predict": {2: {2: {2: {}}}},  # the inputs, their values, and the shape of a value
    **dict.fromkeys(("Classify", "Regress", "MultiInference"), _EXAMPLES),
}
_SIZES = {1: 8, 5: 4}  # wire type -> bytes of a value
SERVICES: list[ServiceDescriptor] = [
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
            if field.type_name in _NOT_PARSED:
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


def parse_request(method: str, data: bytes, most_values: int) -> Message:
    """Parses the request of a method, such as "Predict"; raises RequestError.

    Args:
        most_values: maximum number of values, such as examples, or strings of a tensor.
    """
    try:
        is_long = len(data) > 2 * most_values  # a value has at least two bytes
        if is_long and _count(data, _LISTS.get(method, {}), most_values) > most_values:
            raise invalid(
                f"the request has more than {most_values:,} values, half of --max_queue_tokens; "
                f"send fewer per request."
            )
        return _REQUESTS[method].FromString(data)
    except (DecodeError, IndexError):
        raise invalid("the request is not a valid message of this method.") from None


def _count(data, lists, most):
    """Returns the number of fields of a message and of those in it, or a number above `most`.

    Parsing 4 MB of empty strings takes 0.04 s or more, in which no other thread runs Python.
    Counting is slower, but lets other threads run, and ends early.

    Args:
        data: serialized message. lists: a value of `_LISTS`.
    """
    position = count = 0
    while position < len(data) and count <= most:
        count += 1
        key, position = data[position], position + 1
        if key > 127:
            key, position = _varint(data, position - 1)
        kind = key & 7
        if kind == 2 or not kind:
            size, position = data[position], position + 1
            if size > 127:
                size, position = _varint(data, position - 1)
            if kind:
                if key >> 3 in lists:
                    part = data[position : position + size]
                    count += _count(part, lists[key >> 3], most - count)
                position += size
        else:
            position += _SIZES.get(kind, 0)
    return count


def _varint(data, position):
    """Returns the number at a position of a serialized message, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte, position = data[position], position + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise DecodeError("a number of more than ten bytes")


def with_serialized_examples(value: "input_pb2.Input") -> Message:
    """Returns a copy of an Input whose tf.Examples are bytes, as in `parse_request`."""
    return _INPUT.FromString(value.SerializeToString())
