from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.bundle.onnx_edit import MAX_BATCH, float16_tensors, opset_of, with_batch
from t2v_edge.errors import EngineError
from tests.t2v_edge.wire_samples import encode


def graph(*first_sizes: int, padding: str = "") -> bytes:
    """Two inputs and an output of these first sizes; `padding` makes what stands around them long."""
    x, w, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [size, 300])
        for n, size in zip(("x", "w", "y"), first_sizes)
    )
    made = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"], name="/add")], f"render{padding}", [x, w], [y])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], doc_string=padding).SerializeToString()


def sizes(data: bytes) -> list[list[int]]:
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    return [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*model.graph.input, *model.graph.output]]


@pytest.mark.parametrize("batch", [1, 4, MAX_BATCH])
@pytest.mark.parametrize("padding", ["", "x" * 1000])
def test_batch_is_written_over_every_input_and_output_and_nothing_else(batch, padding):
    before = graph(1, 1, 1, padding=padding)
    after = with_batch(before, batch)
    assert sizes(after) == [[batch, 300]] * 3
    assert len(after) == len(before) and sum(a != b for a, b in zip(before, after)) == (3 if batch > 1 else 0)


@pytest.mark.parametrize("batch", [0, -1, 128])
def test_batch_that_does_not_fit_is_refused(batch):
    with pytest.raises(EngineError, match="is not from 1 to 127"):
        with_batch(graph(1, 1, 1), batch)


@pytest.mark.parametrize(
    "data, message",
    [
        (graph(1, 2, 1), "does not have a batch of 1"),
        (graph(1, 1, 1)[:-40], "no static shapes"),
    ],
    ids=["batch of 2", "cut off"],
)
def test_graph_without_a_batch_of_one_is_refused(data, message):
    with pytest.raises(EngineError, match=message):
        with_batch(data, 4)


def test_sizes_that_are_open_are_refused():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    made = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    with pytest.raises(EngineError, match="no static shapes"):
        with_batch(helper.make_model(made).SerializeToString(), 4)


def test_a_size_behind_its_denotation_is_refused_and_not_overwritten():
    shape = encode(1, encode(3, b"\1") + encode(1, 1))
    value = encode(1, b"x") + encode(2, encode(1, encode(1, TensorProto.FLOAT) + encode(2, shape)))
    with pytest.raises(EngineError, match="no static shapes"):
        with_batch(encode(7, encode(11, value)), 4)


def test_the_opset_is_that_of_the_default_domain():
    model = onnx.load_from_string(graph(1, 1, 1))
    model.opset_import.add(domain="com.microsoft", version=30)
    assert opset_of(model.SerializeToString()) == 17


def test_opset_is_read_from_the_bytes():
    assert opset_of(graph(1, 1, 1)) == 17 and opset_of(graph(1, 1, 1, padding="x" * 1000)) == 17
    assert opset_of(b"") == 0 and opset_of(graph(1, 1, 1)[:20]) == 0


def test_float16_is_followed_from_weights_inputs_and_casts():
    half, make = TensorProto.FLOAT16, helper.make_node
    weight = numpy_helper.from_array(np.ones((3, 3), np.float16), "weight")
    scale = numpy_helper.from_array(np.float16(0.5), "scale")
    nodes = [
        make("Cast", ["x"], ["narrow"], to=half),
        make("MatMul", ["narrow", "weight"], ["product"]),
        make("Constant", [], ["one"], value=scale),
        make("Add", ["product", "one"], ["sum"]),
        make("Greater", ["sum", "product"], ["more"]),
        make("Where", ["more", "x", "x"], ["chosen"]),
        make("ArgMax", ["sum"], ["best"], axis=1),
        make("Shape", ["sum"], ["shape"]),
        make("Reshape", ["h", "shape"], ["shaped"]),
        make("Gather", ["x", "best"], ["picked"], axis=1),
        make("Cast", ["shaped"], ["y"], to=TensorProto.FLOAT),
    ]
    x, h, y = (
        helper.make_tensor_value_info(n, kind, [1, 3])
        for n, kind in (("x", TensorProto.FLOAT), ("h", half), ("y", TensorProto.FLOAT))
    )
    model = helper.make_model(helper.make_graph(nodes, "g", [x, h], [y], [weight]))
    halves = {"weight", "h", "narrow", "product", "one", "sum", "shaped"}
    others = {"x", "more", "chosen", "best", "shape", "picked", "y"}
    assert float16_tensors(model.SerializeToString()) == {**dict.fromkeys(halves, True), **dict.fromkeys(others, False)}
    assert float16_tensors(graph(1, 1, 1)) == {"x": False, "w": False, "y": False}


def test_float16_of_a_damaged_graph_is_refused():
    node = helper.make_node("Cast", ["x"], ["y"])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    data = helper.make_model(helper.make_graph([node], "g", [value], [value])).SerializeToString()
    for broken in (data, data[:-30]):
        with pytest.raises(EngineError, match="the graph is damaged; export the bundle again"):
            float16_tensors(broken)
