"""What our reader accepts is what the onnx package reads: the same nodes, names, sizes, types and bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from t2v_edge.bundle import onnx_schema, wire
from t2v_edge.bundle.onnx_check import read_graph
from t2v_edge.bundle.wire import Schema, WireError, WireReader, one
from t2v_edge.errors import BundleError
from tests.t2v_edge.wire_samples import encode, encode_varint

SCHEMAS = [value for value in [*vars(onnx_schema).values(), wire._PAIR] if isinstance(value, Schema)]
WIRES = {1: 1, 2: 5, 3: 0, 4: 0, 5: 0, 14: 0, 9: 2, 11: 2, 12: 2}
TYPES = {1: "double", 2: "float", 3: "int64", 4: "int64", 5: "int32", 14: "int32", 9: "text", 12: "bytes"}


def descriptor(name):
    found, *rest = name.split(".")
    message = onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name[found]
    for part in rest:
        message = message.nested_types_by_name[part]
    return message


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_schemas_are_those_of_onnx(schema):
    fields = {field.number: field for field in descriptor(schema.name).fields}
    held = {kind.number for kind in schema.kinds.values()}
    for tag, kind in schema.kinds.items():
        field = fields[kind.number]
        pair = field.message_type is not None and field.message_type.name == "StringStringEntryProto"
        assert tag == kind.number << 3 | kind.wire and kind.repeated == field.is_repeated
        assert kind.wire == WIRES[field.type] or (kind.repeated and kind.wire == wire.BYTES)
        assert kind.type == ("pair" if pair else TYPES.get(field.type, "message"))
        alternatives = (
            {other.number for other in field.containing_oneof.fields} & held if field.containing_oneof else ()
        )
        assert (kind.number in schema.oneof) == (len(alternatives) > 1)
    for number in fields.keys() - held:
        with pytest.raises(WireError, match=f"unsupported field {number} of .* in a {schema.name}"):
            WireReader().message(memoryview(encode(number, b"")), schema)


def test_an_open_size_beside_a_number_is_refused():
    for data in (encode(1, 1) + encode(2, b"n"), encode(2, b"n") + encode(1, 1)):
        with pytest.raises(WireError, match="a TensorShapeProto.Dimension has two values"):
            WireReader().message(memoryview(data), onnx_schema.DIMENSION)


def split(data, message=None):
    """The fields of a sound message as lists of a number, a wire type and a value: bytes, or a list of fields."""
    view, at, found = memoryview(data), 0, []
    while at < len(view):
        tag, at = wire.varint(view, at)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == wire.VARINT:
            _, at = wire.varint(view, at)
        else:
            size, start = wire.varint(view, at) if kind == wire.BYTES else ({1: 8, 5: 4}[kind], at)
            at = start + size
        inner = message.fields_by_number[number].message_type if message else None
        value = bytes(view[start:at])
        found.append([encode_varint(tag), kind, split(value, inner) if inner else value])
    return found


def write(fields):
    data = b""
    for tag, kind, value in fields:
        value = write(value) if isinstance(value, list) else value
        data += tag + (encode_varint(len(value)) if kind == wire.BYTES else b"") + value
    return data


def lists(fields):
    yield fields
    for _, _, value in fields:
        if isinstance(value, list):
            yield from lists(value)


@st.composite
def models(draw):
    """A sound model of a few nodes and weights, some typed and some raw, one of them in a branch."""
    sizes, shared = draw(st.lists(st.integers(0, 3), max_size=2)), draw(st.sampled_from(["a", "é"]))
    count = int(np.prod(sizes))
    kinds = st.sampled_from([TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.UINT8])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    weights = [
        numpy_helper.from_array(np.ones(sizes, np.float32), shared),
        helper.make_tensor("typed", draw(kinds), sizes, [1] * count),
    ]
    nodes = [
        helper.make_node(draw(st.sampled_from(["Add", "Mul"])), ["x", shared], ["s"], name="first"),
        helper.make_node("Constant", [], ["c"], value=weights[1]),
        helper.make_node("Pad", ["s", ""], ["p"], mode="edge", pads=[0, -1], scale=0.5, scales=[1.0, 2.0]),
    ]
    branch = helper.make_graph([helper.make_node("Neg", ["p"], ["n"])], "branch", [], [])
    nodes.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    graph = helper.make_graph(nodes, "g", [value], [result], weights, value_info=[result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="k", value="v")
    return model.SerializeToString()


def loosely(tag):
    """The number in a varint of any length."""
    return sum((byte & 0x7F) << 7 * at for at, byte in enumerate(tag))


@st.composite
def mutated(draw):
    """A model with one or two changes in its bytes. All lengths still fit."""
    fields = split(draw(models()), ModelProto.DESCRIPTOR)
    scalars = st.sampled_from([0, 1, 2, 1 << 31, 1 << 32, (1 << 32) + 1, -1]).map(
        lambda n: encode_varint(n % (1 << 64))
    )
    blobs = st.binary(max_size=8) | st.sampled_from([b"x", b"y", b"s", bytes(8), b"\xc3\xa9"])
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([found for found in lists(fields) if found]))
        at = draw(st.integers(0, len(place) - 1))
        tag, kind, value = place[at]
        number = loosely(tag) >> 3
        change = draw(st.integers(0, 9))
        if change == 0:
            place.insert(draw(st.integers(0, len(place))), [tag, kind, value])
        elif change == 1:
            del place[at]
        elif change == 2:
            other = draw(st.integers(0, len(place) - 1))
            place[at], place[other] = place[other], place[at]
        elif change == 3:
            place[at][0] = encode_varint(loosely(tag) | 1 << draw(st.integers(29, 63)))
        elif change == 4:
            place[at][0] = tag[:-1] + bytes([tag[-1] | 0x80]) + b"\x80" * draw(st.integers(0, 3)) + b"\x00"
        elif change == 5:
            number = draw(st.integers(0, 30))
            place[at][0] = encode_varint(number << 3 | kind)
        elif change == 6:
            place[at][:] = [encode_varint(number << 3), wire.VARINT, draw(scalars)]
        elif change == 7:
            place[at][:] = [encode_varint(number << 3 | wire.BYTES), wire.BYTES, draw(blobs)]
        elif change == 8:
            place.insert(at, [encode_varint(draw(st.integers(1, 30)) << 3), wire.VARINT, draw(scalars)])
        elif kind == wire.VARINT and isinstance(value, bytes):
            place[at][2] = value[:-1] + bytes([value[-1] | 0x80]) + b"\x00"
    return write(fields)


def ours(view, reader, nodes, weights):
    """Nodes and weights of a graph and of those in it, by our reader."""
    graph = reader.message(view, onnx_schema.GRAPH)
    weights.extend(reader.message(entry, onnx_schema.TENSOR) for entry in graph.get(5, []))
    for entry in graph.get(1, []):
        node = reader.message(entry, onnx_schema.NODE)
        attributes = [reader.message(entry, onnx_schema.ATTRIBUTE) for entry in node.get(5, [])]
        nodes.append(
            (
                [one(node, number, "") for number in (4, 7)],
                [node.get(number, []) for number in (1, 2)],
                [
                    (one(a, 1, ""), one(a, 20, 0), one(a, 3, 0), bytes(one(a, 4, b"")), a.get(8, []), floats(a))
                    for a in attributes
                ],
            )
        )
        for attribute in attributes:
            weights.extend(reader.message(entry, onnx_schema.TENSOR) for entry in attribute.get(5, []))
            for inner in attribute.get(6, []):
                ours(inner, reader, nodes, weights)


def floats(attribute):
    return np.frombuffer(b"".join(attribute.get(7, [])), "<f4").tolist()


def theirs(graph, nodes, weights):
    weights.extend(graph.initializer)
    for node in graph.node:
        attributes = [(a.name, a.type, a.i, a.s, list(a.ints), list(a.floats)) for a in node.attribute]
        nodes.append(([node.op_type, node.domain], [list(node.input), list(node.output)], attributes))
        for a in node.attribute:
            weights.extend([a.t] if a.HasField("t") else [])
            if a.type == AttributeProto.GRAPH:
                theirs(a.g, nodes, weights)


def contents(tensor):
    """A weight by our reader, in the onnx package's words."""
    halves, wide = (
        np.frombuffer(b"".join(tensor.get(number, [])), kind).tolist() for number, kind in ((4, "<f4"), (10, "<f8"))
    )
    return (one(tensor, 8, ""), tensor.get(1, []), one(tensor, 2, 0), bytes(one(tensor, 9, b"")), halves, wide) + tuple(
        tensor.get(number, []) for number in (5, 7, 11)
    )


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_what_our_reader_accepts_is_what_onnx_reads(data):
    try:
        summary = read_graph(data, "g.onnx")
    except BundleError as error:
        assert "; " in str(error)
        return
    model = onnx.load_model_from_string(data)
    assert summary.opset == max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    held = {weight.name for weight in model.graph.initializer}
    for found, values in ((summary.inputs, model.graph.input), (summary.outputs, model.graph.output)):
        assert [(spec.name, list(spec.shape)) for spec in found] == [
            (v.name, [d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values
            if v.name not in held or values is model.graph.output
        ]
    mine, weights, expected, tensors = [], [], [], []
    reader = WireReader()
    ours(one(reader.message(memoryview(data), onnx_schema.MODEL), 7), reader, mine, weights)
    theirs(model.graph, expected, tensors)
    assert mine == expected
    assert list(map(contents, weights)) == [
        (t.name, list(t.dims), t.data_type, t.raw_data, list(t.float_data), list(t.double_data))
        + (list(t.int32_data), list(t.int64_data), list(t.uint64_data))
        for t in tensors
    ]


@given(models())
def test_sound_models_are_accepted_and_written_back(data):
    assert write(split(data, ModelProto.DESCRIPTOR)) == data
    assert sum(read_graph(data, "g.onnx").operators.values()) == 6


def test_ragged_floats_are_refused():
    attribute = encode(1, b"scales") + encode(20, AttributeProto.FLOATS) + encode(7, bytes(5))
    weight = encode(1, 1) + encode(2, TensorProto.FLOAT) + encode(4, bytes(5)) + encode(8, b"w")
    for graph in (encode(1, encode(4, b"Resize") + encode(5, attribute)), encode(5, weight)):
        with pytest.raises(BundleError, match="ragged floats.*; "):
            read_graph(encode(8, encode(2, 17)) + encode(7, graph), "g.onnx")


def test_numbers_over_32_bits_are_refused_where_engines_keep_32():
    weight = encode(1, 1) + encode(2, TensorProto.FLOAT | 1 << 32) + encode(8, b"w") + encode(9, bytes(4))
    with pytest.raises(BundleError, match="a number over 32 bits.*; "):
        read_graph(encode(8, encode(2, 17)) + encode(7, encode(5, weight)), "g.onnx")
