"""Reshapes of vectors go into the gathers around them, and every number stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_export.checkpoint import load_checkpoint
from t2v_export.half import compute_half
from t2v_export.places import RESHAPES, gather_in_place
from t2v_export.to_onnx import stage_to_onnx

ROOT = Path(__file__).parents[2]
make = helper.make_node


def graph(nodes, size, outputs, **weights):
    """`nodes` that read x, float32 (batch, size), and give `outputs`, name -> shape behind the batch."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape]) for name, shape in outputs.items()]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [given], made, constants),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, x):
    """Outputs for rows of x, whatever batch the graph states."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = len(x)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def folded(model, size):
    """What is left of the nodes, after comparing one row and three; `size` of a row."""
    made = gather_in_place(model)
    onnx.checker.check_model(made, full_check=True)
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, size)).astype(np.float32)
        for found, wanted in zip(run(made, x), run(model, x)):
            np.testing.assert_array_equal(found, wanted)
    return [node.op_type for node in made.graph.node]


def test_what_is_gathered_and_reshaped_is_gathered_in_shape():
    nodes = [make("Gather", ["x", "places"], ["picked"], axis=1), make("Unsqueeze", ["picked", "two"], ["wide"]),
             make("Unsqueeze", ["wide", "three"], ["y"]), make("Flatten", ["picked"], ["z"])]
    model = graph(nodes, 6, {"y": (3, 1, 1), "z": (3,)}, places=[4, 0, 0], two=[2], three=[3])
    assert folded(model, 6) == ["Gather", "Gather"]


def test_columns_of_a_table_are_gathered_from_the_vector_behind_it():
    nodes = [make("Reshape", ["x", "shape"], ["table"]), make("Div", ["table", "scale"], ["scaled"]),
             make("Gather", ["scaled", "column"], ["u"], axis=2), make("Gather", ["scaled", "rows"], ["some"], axis=1)]
    weights = {"shape": [-1, 4, 3], "scale": np.float32(3.0), "column": np.int64(1), "rows": [[3], [2]]}
    assert folded(graph(nodes, 12, {"u": (4,), "some": (2, 1, 3)}, **weights), 12) == ["Div", "Gather", "Gather"]


@pytest.mark.parametrize("nodes, size, shape, weights", [
    ([make("Reshape", ["x", "shape"], ["t"]), make("Gather", ["t", "places"], ["y"], axis=0)], 4, (4, 2),
     {"shape": [4, -1], "places": [0, 1, 2, 3]}),
    ([make("Unsqueeze", ["x", "zero"], ["t"]), make("Gather", ["t", "places"], ["y"], axis=2)], 4, (1, 2),
     {"zero": [0], "places": [0, 3]}),
    ([make("Reshape", ["x", "shape"], ["t"]), make("Mul", ["t", "row"], ["m"]),
      make("Gather", ["m", "places"], ["y"], axis=2)], 4, (2, 1),
     {"shape": [-1, 2, 2], "row": np.ones((1, 2), np.float32), "places": [1]}),
], ids=["batch is reshaped", "batch moves", "no single number"])
def test_what_is_no_reshape_of_a_vector_is_left_alone(nodes, size, shape, weights):
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [given], [made], constants),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert [n.op_type for n in gather_in_place(model).graph.node] == [n.op_type for n in nodes]


def test_coordinates_of_limbs_pass_no_reshape_on_their_way_to_a_float16_frame():
    loaded = load_checkpoint(ROOT / "checkpoints" / "tiny")
    spec = loaded.specs["render"]
    full = stage_to_onnx(loaded.modules["render"], spec, 17)

    def behind_limbs(half):
        made_by = {output: node for node in half.graph.node for output in node.output}
        names, found = [*next(node for node in half.graph.node if node.op_type == "Exp").input], set()
        while names:
            node = made_by.get(names.pop())
            if node is not None:
                found.add(node.op_type)
                names.extend(node.input)
        return found

    before, after = (behind_limbs(compute_half(model, spec)) for model in (full, gather_in_place(full)))
    assert {"Gather", "Sub", "Div"} <= after and after.isdisjoint(RESHAPES)
    assert {"Reshape", "Unsqueeze"} <= before
