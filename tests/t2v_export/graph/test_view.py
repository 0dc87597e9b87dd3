"""The view of a graph against walks by hand, on random graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from t2v_export.graph import view
from tests.t2v_export.quantize_samples import constants_of, model_of, run_all

UNARY, BINARY = ("Relu", "Neg", "Abs", "Identity"), ("Add", "Mul", "Sub", "Max")
SHAPE = (2, 3)


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Up to twelve nodes on two inputs and three constants, of which any may be read often or never."""
    values = ["x", "z", "one", "two", "nan"]
    nodes = []
    for number in range(draw(st.integers(1, 12))):
        operator = draw(st.sampled_from((*UNARY, *BINARY)))
        inputs = [draw(st.sampled_from(values)) for _ in range(1 if operator in UNARY else 2)]
        nodes.append(helper.make_node(operator, inputs, [f"v{number}"], name=f"/{number}"))
        values.append(f"v{number}")
    outputs = draw(st.lists(st.sampled_from(values[5:]), min_size=1, max_size=3, unique=True))
    constants = {"one": np.ones(SHAPE, np.float32), "two": np.float32(2), "nan": np.float32([np.nan, 1e-45, -0.0])}
    return model_of(nodes, constants, {"x": SHAPE, "z": SHAPE}, dict.fromkeys(outputs, SHAPE))


def needed(model: onnx.ModelProto) -> set[str]:
    """Every value that an output depends on."""
    found = {output.name for output in model.graph.output}
    for node in reversed(model.graph.node):
        if found.intersection(node.output):
            found.update(node.input)
    return found


@given(graphs())
def test_makers_readers_and_constants_are_those_of_a_walk_by_hand(model):
    values = view.values_of(view.read(model))
    nodes = {name: node.name for node in model.graph.node for name in node.output}
    reads = [(name, node.name) for node in model.graph.node for name in node.input]
    outputs = {output.name for output in model.graph.output}
    constants = constants_of(model)
    for name, value in values.items():
        maker, by = view.maker(value), [reader for read, reader in reads if read == name]
        assert (maker.name if maker else None) == nodes.get(name)
        assert [node.name for node in view.readers(value)] == by
        only = view.only_reader(value)
        assert (only.name if only else None) == (by[0] if len(by) == 1 and name not in outputs else None)
        assert view.is_constant(value) == (name in constants)
        if name in constants:
            np.testing.assert_array_equal(view.array(value), constants[name])
    assert set(values) >= set(nodes) | {name for name, _ in reads}


@given(graphs())
def test_a_graph_that_is_read_and_written_has_the_same_bytes(model):
    model.graph.node[0].doc_string = ""  # as a cleaned graph has it: present, and empty
    before = model.SerializeToString(deterministic=True)
    assert view.write(view.read(model)).SerializeToString(deterministic=True) == before
    assert view.write(view.read(model, typed=True)).SerializeToString(deterministic=True) == before
    assert model.SerializeToString(deterministic=True) == before


@settings(deadline=None, max_examples=50)
@given(graphs())
def test_dropping_dead_code_keeps_what_outputs_depend_on_and_their_values(model):
    opened = view.read(model)
    view.drop_dead(opened.graph)
    made = view.write(opened)
    wanted = needed(model)
    assert [n.name for n in made.graph.node] == [n.name for n in model.graph.node if n.output[0] in wanted]
    assert list(constants_of(made)) == [name for name in constants_of(model) if name in wanted]
    onnx.checker.check_model(made)
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal(SHAPE).astype(np.float32) for name in ("x", "z")}
    for after, before in zip(run_all(made, feeds), run_all(model, feeds)):
        np.testing.assert_array_equal(after, before)


@given(graphs())
def test_typed_values_have_their_static_shapes(model):
    values = view.values_of(view.read(model, typed=True))
    assert all(view.static_shape(values[node.output[0]]) is not None for node in model.graph.node)
    assert view.static_shape(values["v0"]) in (SHAPE, (), (3,))


@settings(deadline=None, max_examples=50)
@given(graphs(), st.data())
def test_a_value_put_in_the_place_of_another_takes_its_readers_and_its_output(model, data):
    opened = view.read(model)
    old = data.draw(st.sampled_from([node.outputs[0] for node in opened.graph]))
    name, by, output = old.name, view.readers(old), old.is_graph_output()
    made = view.rename_source(old, f"{name}.before")
    view.maker(old).append(view.make_node("Identity", [old], made, "/new"))
    assert (made.name, view.readers(made), made.is_graph_output()) == (name, by, output)
    assert [node.name for node in view.readers(old)] == ["/new"] and not old.is_graph_output()
    onnx.checker.check_model(view.write(opened))


def test_a_shape_with_a_free_size_is_not_static():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ["n", 3]}, {"y": ["n", 3]})
    assert view.static_shape(view.read(model).graph.inputs[0]) is None
    with pytest.raises(KeyError, match="x"):
        view.elements(view.read(model).graph.inputs[0])


def test_a_constant_is_there_once_and_keeps_its_numbers():
    model = model_of([helper.make_node("Add", ["x", "one"], ["y"])], {"one": np.float32(1)}, {"x": [1]}, {"y": [1]})
    graph = view.read(model).graph
    assert view.add_constant(graph, "one", np.asarray(1, np.float32)) is graph.initializers["one"]
    for other in (np.asarray(2, np.float32), np.asarray(1, np.float64)):
        with pytest.raises(ValueError, match="constant one is there already"):
            view.add_constant(graph, "one", other)


def test_exchanged_constants_keep_their_place():
    given = {name: np.full(2, k, np.float32) for k, name in enumerate(("a", "b", "c"))}
    nodes = [helper.make_node("Sum", ["x", *given], ["y"])]
    opened = view.read(model_of(nodes, given, {"x": [2]}, {"y": [2]}))
    change = {"b": ("b.half", np.ones(2, np.float16))}
    ((old, new),) = view.exchange_constants(opened.graph, lambda value: change.get(value.name))
    assert (old.name, new.name, list(opened.graph.initializers)) == ("b", "b.half", ["a", "b.half", "c"])
    assert len(view.readers(old)) == 1 and not view.readers(new)


def test_numbers_are_kept_to_the_bit_in_either_field_of_a_tensor():
    numbers = np.array([np.nan, -0.0, 1e-45, np.inf], np.float32)
    numbers.view(np.uint32)[0] |= 1  # a NaN with a payload
    for tensor in (numpy_helper.from_array(numbers, "w"), TensorProto(name="w", data_type=1, dims=[4])):
        if not tensor.HasField("raw_data"):
            tensor.float_data.extend(numbers.tolist())
        model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], {}, {"x": [4]}, {"y": [4]})
        model.graph.initializer.append(tensor)
        made = view.write(view.read(model)).graph.initializer[0]
        assert made.SerializeToString() == tensor.SerializeToString()
