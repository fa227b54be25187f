"""Dimensions of an ONNX file are set free, and nothing else of it changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keyhole.errors import DataError
from keyhole.faces.images.dimensions import free_dimensions

onnx = pytest.importorskip("onnx")
helper = onnx.helper


def network(names: tuple[str, ...] = ("x",), size: int = 300) -> bytes:
    """Return a network that adds 1 to pictures of one size, with its shapes inferred."""
    shape = [1, 3, size, 4]
    graph = helper.make_graph(
        [helper.make_node("Add", [names[0], "one"], ["middle"]), helper.make_node("Relu", ["middle"], ["y"])],
        "adds",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in names],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        initializer=[onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model.metadata_props.add(key="note", value="é" * 200)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


def dimensions(value: onnx.ValueInfoProto) -> list[int | None]:
    return [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]


def test_only_the_named_dimensions_are_freed() -> None:
    before = onnx.load_from_string(network(("x", "z")))
    after = onnx.load_from_string(free_dimensions(network(("x", "z")), {"x": (2, 3), "y": (0,), "nothing": (1,)}))
    assert [dimensions(value) for value in after.graph.input] == [[1, 3, None, None], [1, 3, 300, 4]]
    assert dimensions(after.graph.output[0]) == [None, 3, 300, 4]
    assert len(before.graph.value_info) == 1
    assert not after.graph.value_info
    for model in (before, after):
        del model.graph.value_info[:]
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.Clear()
    assert after == before


def test_the_network_then_takes_other_sizes() -> None:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    data = free_dimensions(network(), {"x": (2, 3), "y": (2, 3)})
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 3, 5, 7)).astype(np.float32)
    assert np.array_equal(session.run(None, {"x": x})[0], x + 1)


def test_a_published_network_stays_itself(shared: Path) -> None:
    data = (shared / "data" / "faces" / "models" / "yunet_n_640_640.onnx").read_bytes()
    before, after = onnx.load_from_string(data), onnx.load_from_string(free_dimensions(data, {"input": (2, 3)}))
    assert dimensions(after.graph.input[0]) == [1, 3, None, None]
    assert list(after.graph.node) == list(before.graph.node)
    assert list(after.graph.initializer) == list(before.graph.initializer)
    onnx.checker.check_model(after)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, b"hello, this is text", network()[:-9]])
def test_what_is_no_onnx_file_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(DataError, match="expected a") as error:
        free_dimensions(data, {"x": (2,)})
    assert "\n" not in str(error.value)
