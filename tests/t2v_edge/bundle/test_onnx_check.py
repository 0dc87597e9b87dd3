from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.bundle.onnx_check import read_graph
from t2v_edge.errors import BundleError


def with_weight(build_graph, tensor):
    """The text graph with one more, unused, weight."""
    return build_graph("text", lambda nodes, weights: weights.update(extra=tensor))


def edited(build_graph, edit):
    model = onnx.load_from_string(build_graph("text"))
    edit(model)
    return model.SerializeToString()


def test_a_graph_is_summarised(build_graph, specs):
    for stage, spec in specs.items():
        summary = read_graph(build_graph(stage), stage)
        assert summary.opset == 17
        assert summary.inputs == spec.inputs
        assert summary.outputs == spec.outputs
    assert dict(summary.operators) == {"Concat": 1, "MatMul": 1, "Sigmoid": 1, "Mul": 1, "Cast": 1, "Reshape": 1}
    assert summary.weight_bytes == 4 * 9 * 768 + 4 + 8 * 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_non_finite_weights_are_named(build_graph, dtype, value, word):
    array = np.ones((3, 5), dtype)
    array[2, 4] = value
    with pytest.raises(BundleError, match=f"'bad_weight' holds {word}"):
        read_graph(with_weight(build_graph, numpy_helper.from_array(array, "bad_weight")), "text.onnx")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_nan_in_typed_fields_is_found(build_graph, kind):
    good = helper.make_tensor("typed", kind, [2], [1.0, 2.0])
    bad = helper.make_tensor("typed", kind, [2], [1.0, float("nan")])
    assert not bad.raw_data
    read_graph(with_weight(build_graph, good), "text.onnx")
    with pytest.raises(BundleError, match="'typed' holds NaN"):
        read_graph(with_weight(build_graph, bad), "text.onnx")


def test_nan_in_bfloat16_bytes_is_found(build_graph):
    tensor = TensorProto(name="brain", data_type=TensorProto.BFLOAT16, dims=[2], raw_data=b"\x80\x3f\xc0\x7f")
    with pytest.raises(BundleError, match="'brain' holds NaN"):
        read_graph(with_weight(build_graph, tensor), "text.onnx")


def test_a_lone_infinity_is_an_attention_mask_fill_and_passes_but_nan_does_not(build_graph):
    read_graph(with_weight(build_graph, np.array(-np.inf, np.float32)), "text.onnx")
    with pytest.raises(BundleError, match="NaN"):
        read_graph(with_weight(build_graph, np.array(np.nan, np.float32)), "text.onnx")


def test_nan_in_constant_nodes_and_attributes_is_found(build_graph):
    tensor = numpy_helper.from_array(np.array([1, np.nan], np.float32))
    for attributes in ({"value": tensor}, {"value_float": float("nan")}, {"value_floats": [0.0, float("nan")]}):
        with pytest.raises(BundleError, match="Constant.value.* holds NaN"):
            read_graph(
                build_graph(
                    "text", lambda nodes, _, a=attributes: nodes.append(helper.make_node("Constant", [], ["c"], **a))
                ),
                "text.onnx",
            )


def nested(depth, leaf):
    graph = helper.make_graph([leaf], "leaf", [], [])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["x"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [])
    return graph.node[0]


def test_nan_in_a_subgraph_is_found(build_graph):
    leaf = helper.make_node("Constant", [], ["c"], value_float=float("nan"))
    with pytest.raises(BundleError, match="NaN"):
        read_graph(build_graph("text", lambda nodes, _: nodes.append(nested(2, leaf))), "text.onnx")


def test_deep_nesting_is_refused(build_graph):
    leaf = helper.make_node("Identity", ["a"], ["b"])
    with pytest.raises(BundleError, match="nested deeper"):
        read_graph(build_graph("text", lambda nodes, _: nodes.append(nested(10, leaf))), "text.onnx")


def test_external_data_is_refused(build_graph):
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(BundleError, match="'far' lies outside the file"):
        read_graph(with_weight(build_graph, tensor), "text.onnx")


def test_custom_operators_and_local_functions_are_refused(build_graph):
    node = helper.make_node("Evil", ["a"], ["b"], domain="my.ops")
    with pytest.raises(BundleError, match="custom domain 'my.ops'"):
        read_graph(build_graph("text", lambda nodes, _: nodes.append(node)), "text.onnx")
    function = helper.make_function(
        "", "F", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    with pytest.raises(BundleError, match="local functions"):
        read_graph(edited(build_graph, lambda model: model.functions.append(function)), "text.onnx")


@pytest.mark.parametrize("opset", [1, 10, 26])
def test_an_opset_out_of_range_is_refused(build_graph, opset):
    with pytest.raises(BundleError, match=f"opset {opset} is outside"):
        read_graph(build_graph("text", opset=opset), "text.onnx")


def test_weights_that_disagree_with_their_shape_are_refused(build_graph):
    for dims, match in (([3], "its shape needs 12"), ([1 << 40], "more than the file holds"), ([-1], "more than the")):
        tensor = TensorProto(name="odd", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(8))
        with pytest.raises(BundleError, match=match):
            read_graph(with_weight(build_graph, tensor), "text.onnx")
    tensor = TensorProto(name="odd", data_type=TensorProto.FLOAT, dims=[3], float_data=[1.0, 2.0])
    with pytest.raises(BundleError, match="has 2 values, its shape needs 3"):
        read_graph(with_weight(build_graph, tensor), "text.onnx")


def test_dynamic_shapes_are_refused(build_graph):
    def edit(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    with pytest.raises(BundleError, match="dynamic shape"):
        read_graph(edited(build_graph, edit), "text.onnx")


def test_a_second_graph_that_an_engine_would_merge_is_refused(build_graph):
    data = build_graph("text")
    with pytest.raises(BundleError, match="stands 2 times"):
        read_graph(data + data, "text.onnx")


def test_truncated_anywhere_is_a_typed_error(build_graph, specs):
    data = build_graph("motion")
    whole = read_graph(data, "motion.onnx")
    for cut in range(0, len(data), 7):
        try:  # a cut between two fields of the model leaves a shorter valid message: then something must be missing
            assert read_graph(data[:cut], "motion.onnx") != whole
        except BundleError:
            pass


def test_any_flipped_byte_is_read_or_a_typed_error(build_graph):
    data = bytearray(build_graph("motion"))
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            data[at] ^= flip
            try:
                read_graph(bytes(data), "motion.onnx")
            except BundleError:
                pass
            data[at] ^= flip


@pytest.mark.parametrize("noise", [b"", b"\x00", b"\xff" * 64, b"\x0b\x0c", b"not an onnx file at all"])
def test_what_is_no_onnx_is_refused(noise):
    with pytest.raises(BundleError):
        read_graph(noise, "x.onnx")
