"""Dimensions of an ONNX file that are set free, so that a network exported for one size takes every size.

Only the few fields of the file that hold these dimensions are read and rewritten (Protocol Buffers' wire format), so
that running a network needs no package beside ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from keyhole.errors import DataError

# numbers of fields in onnx.proto
_GRAPH, _INPUT, _OUTPUT, _INFERRED = 7, 11, 12, 13
_NAME, _TYPE, _TENSOR, _SHAPE, _DIMENSION = 1, 2, 1, 2, 1

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}  # wire type to length


def free_dimensions(data: bytes, free: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return an ONNX file in which dimensions of some inputs and outputs are not fixed any more.

    Shapes of tensors inside the network, which an exporter notes for readers, are left out, as they follow.

    Args:
        data: The whole file.
        free: Name of an input or output to the positions of its dimensions; names that do not occur are left alone.

    Raises:
        DataError: The bytes are no ONNX file.
    """

    def of_value(value: bytes) -> bytes:
        name = next((bytes(inner) for number, _, inner, _ in _fields(value) if number == _NAME), b"")
        positions = free.get(name.decode(errors="replace"), ())
        return _nested(value, (_TYPE, _TENSOR, _SHAPE), lambda shape: _freed(shape, positions)) if positions else value

    def of_graph(graph: bytes) -> bytes:
        kept = b"".join(whole for number, _, _, whole in _fields(graph) if number != _INFERRED)
        return _nested(_nested(kept, (_INPUT,), of_value), (_OUTPUT,), of_value)

    if not any(number == _GRAPH for number, _, _, _ in _fields(data)):
        raise DataError("no graph in it, expected an ONNX file")
    return _nested(data, (_GRAPH,), of_graph)


def _freed(shape: bytes, positions: tuple[int, ...]) -> bytes:
    made, position = [], 0
    for number, _, _, whole in _fields(shape):
        if number == _DIMENSION:
            made.append(_field(_DIMENSION, b"") if position in positions else whole)
            position += 1
        else:
            made.append(whole)
    return b"".join(made)


def _nested(message: bytes, path: tuple[int, ...], edit: Callable[[bytes], bytes]) -> bytes:
    """Return a message in which every message at a path of field numbers went through ``edit``."""
    made = []
    for number, wire, inner, whole in _fields(message):
        if number == path[0] and wire == _BYTES:
            whole = _field(number, edit(inner) if len(path) == 1 else _nested(inner, path[1:], edit))
        made.append(whole)
    return b"".join(made)


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield number, wire type, content and all bytes of each field of a message."""
    position = 0
    while position < len(message):
        key, start = _varint(message, position)
        wire = key & 7
        if wire == _BYTES:
            length, start = _varint(message, start)
            end = start + length
        elif wire == _VARINT:
            end = _varint(message, start)[1]
        elif wire in _FIXED:
            end = start + _FIXED[wire]
        else:
            raise DataError(f"a field of unknown kind {wire}, expected an ONNX file")
        if end > len(message):
            raise DataError("it ends in the middle of a field, expected a whole ONNX file")
        yield key >> 3, wire, message[start:end], message[position:end]
        position = end


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise DataError("it ends in the middle of a number, expected a whole ONNX file")
        byte = message[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
    raise DataError("a number of more than 64 bits, expected an ONNX file")


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
