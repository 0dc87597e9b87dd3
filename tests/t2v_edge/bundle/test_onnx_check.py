from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from t2v_edge.bundle.onnx_check import read_graph
from t2v_edge.errors import BundleError
from tests.t2v_edge.wire_samples import encode


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


def weight(**fields):
    """An edit that adds a weight of two float32."""
    made = {"name": "extra", "data_type": TensorProto.FLOAT, "dims": [2], **fields}
    return lambda model: model.graph.initializer.append(TensorProto(**made))


def more(*nodes):
    return lambda model: model.graph.node.extend(nodes)


def attribute(**fields):
    """An edit that adds an attribute to the first node."""
    return lambda model: model.graph.node[0].attribute.append(AttributeProto(**{"name": "extra", **fields}))


def unread(part, data):
    """An edit that adds the bytes of a field that the onnx package skips as unknown."""
    return lambda model: part(model).MergeFromString(data)


def typed(name, shape, kind=TensorProto.FLOAT):
    return lambda model: model.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def identity(name, source="input_ids"):
    return helper.make_node("Identity", [source], [name])


def branches(outer, inner):
    """A node whose two branches make `inner`, behind one that makes `outer`."""
    graph = helper.make_graph([identity(inner)], "branch", [], [])
    return more(identity(outer), helper.make_node("If", [outer], ["chosen"], then_branch=graph, else_branch=graph))


def first_node(model):
    return model.graph.node[0]


def first_size(model):
    return model.graph.input[0].type.tensor_type.shape.dim[0]


EIGHT, ONES = bytes(8), [1.0, 1.0]
REFUSED = {
    "an unknown field": (
        unread(lambda model: model.graph, encode(60, 1)),
        "unsupported field 60 of .* in a GraphProto",
    ),
    "a tag over 32 bits": (unread(lambda model: model, encode(6 | 1 << 28, b"")), "unsupported field 268435462"),
    "an operator that is a number": (
        unread(first_node, encode(4, 1)),
        "unsupported field 4 of wire type 0 in a NodeProto",
    ),
    "a size that is a text": (
        unread(first_size, encode(1, b"1")),
        "unsupported field 1 of wire type 2 in a TensorShapeProto.Dim",
    ),
    "a group": (unread(first_node, b"\x63\x64"), "unsupported field 12 of .* in a NodeProto"),
    "an overload": (
        lambda model: setattr(first_node(model), "overload", "a"),
        "unsupported field 8 of .* in a NodeProto",
    ),
    "a reference": (
        attribute(ref_attr_name="a", type=AttributeProto.INT),
        "unsupported field 21 of .* in a AttributeProto",
    ),
    "a type attribute": (
        attribute(type=AttributeProto.TYPE_PROTO, tp={}),
        "unsupported field 14 of .* in a AttributeProto",
    ),
    "annotations": (
        lambda model: model.graph.quantization_annotation.add(),
        "unsupported field 14 of .* in a GraphProto",
    ),
    "a sequence": (
        lambda model: model.graph.value_info.append(helper.make_tensor_sequence_value_info("s", 1, [1])),
        "unsupported field 4 of .* in a TypeProto",
    ),
    "a segment": (weight(raw_data=EIGHT, segment={"begin": 0}), "unsupported field 3 of .* in a TensorProto"),
    "strings": (
        weight(data_type=TensorProto.STRING, string_data=[b"a", b"b"]),
        "unsupported field 6 of .* in a TensorProto",
    ),
    "a place that ONNX does not know": (
        unread(lambda model: model.graph.initializer[0], encode(14, 2)),
        "lies outside",
    ),
    "floats beside bytes": (
        weight(raw_data=EIGHT, float_data=ONES),
        r"values in the fields \[4, 9\], not only in 9 or 4",
    ),
    "numbers beside bytes": (weight(raw_data=EIGHT, int32_data=[1, 1]), r"values in the fields \[5, 9\], not only"),
    "floats beside no bytes": (weight(raw_data=b"", float_data=ONES), r"values in the fields \[4, 9\], not only"),
    "doubles of a float": (weight(double_data=ONES), r"values in the fields \[10\], not only in 9 or 4"),
    "long numbers of an int32": (weight(data_type=TensorProto.INT32, int64_data=[1, 1]), r"\[7\], not only in 9 or 5"),
    "two values in a tensor of an attribute": (
        attribute(type=AttributeProto.TENSOR, t=TensorProto(data_type=1, dims=[2], raw_data=EIGHT, float_data=ONES)),
        r"attribute .*extra has its values in the fields \[4, 9\]",
    ),
    "an attribute without a type": (attribute(i=1), r"extra is of type 0 and has its value in \[3\]"),
    "an attribute of another type": (
        attribute(i=1, type=AttributeProto.FLOAT),
        r"of type 1 and has its value in \[3\]",
    ),
    "an attribute of two values": (attribute(i=1, f=1, type=AttributeProto.INT), r"in \[2, 3\]"),
    "an attribute without a value": (attribute(type=AttributeProto.INT), "in no field"),
    "two infinite floats": (attribute(floats=[np.inf, np.inf], type=AttributeProto.FLOATS), "holds infinite"),
    "attributes of one name": (
        lambda model: [attribute(i=value, type=AttributeProto.INT)(model) for value in (1, 2)],
        "two attributes of a Gather are named 'extra'",
    ),
    "weights of one name": (
        lambda model: [weight(raw_data=EIGHT)(model) for _ in "ab"],
        "two tensors are named 'extra'",
    ),
    "outputs of one name": (more(identity("a"), identity("a")), "two tensors are named 'a'"),
    "an output named as an input": (more(identity("input_ids")), "two tensors are named 'input_ids'"),
    "a name of a branch and around it": (branches("a", "a"), "two tensors are named 'a'"),
    "inputs of one name": (lambda model: model.graph.input.append(model.graph.input[0]), "are named 'input_ids'"),
    "types of one name": (lambda model: [typed("a", [1])(model) for _ in "ab"], "are named 'a'"),
    "opsets of one domain": (
        lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx", 11)),
        "imports the opset of domain '' twice",
    ),
    "a weight of too many elements": (weight(dims=[1 << 40] * 9), "more than the file holds"),
    "no elements by a huge size": (weight(dims=[0, 1 << 40]), "more than the file holds"),
    "a negative size": (weight(dims=[-1, -2], raw_data=EIGHT), "a size below 0"),
    "too many sizes": (weight(dims=[1] * 33, raw_data=bytes(4)), "more than 32 sizes"),
    "a typed tensor of too many elements": (typed("a", [1 << 14, 1 << 15]), "more than 268435456 elements"),
    "a negative size of a typed tensor": (typed("a", [-1]), "a size below 0"),
    "inputs of too many elements": (
        lambda model: [
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1 << 27])) for name in "ab"
        ],
        "inputs and outputs have more than 268435456 elements",
    ),
}


@pytest.mark.parametrize("edit, problem", REFUSED.values(), ids=REFUSED)
def test_what_two_parsers_may_read_as_two_graphs_is_refused(build_graph, edit, problem):
    with pytest.raises(BundleError, match=f"^text.onnx: .*{problem}.*; "):
        read_graph(edited(build_graph, edit), "text.onnx")


def test_what_exporters_write_passes(build_graph):
    def edit(model):
        model.metadata_props.add(key="source", value="test")
        model.opset_import.add(domain="com.microsoft", version=1)
        model.graph.input.append(helper.make_tensor_value_info("last", TensorProto.INT64, [1]))
        for name, kind, values in (("i", TensorProto.INT32, [-1]), ("u", TensorProto.UINT64, [1]), ("b", 9, [1])):
            model.graph.initializer.append(helper.make_tensor(name, kind, [1], values))
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "none"))
        model.graph.initializer.append(TensorProto(name="empty", data_type=TensorProto.FLOAT, dims=[0]))
        for edited in (
            typed("open", ["batch", None, 3]),
            typed("rows", [1, 8]),
            attribute(type=AttributeProto.INTS),
            branches("outer", "inner"),
            more(helper.make_node("Identity", ["inner_elsewhere"], ["inner", ""])),
        ):
            edited(model)

    assert read_graph(edited(build_graph, edit), "text.onnx").operators["If"] == 1
