"""What the OpenVINO engine rewrites in a graph before it is compiled."""

from __future__ import annotations

import numpy as np
import pytest

rewriting = pytest.importorskip("t2v_edge.engine.openvino", reason="pip install 't2v-edge[openvino]'")
ov = rewriting.ov


def test_openvino_transposes_bytes():
    levels = ov.opset13.parameter([1, 3, 4, 4], ov.Type.f32)
    image = ov.opset13.round(ov.opset13.transpose(levels, np.array([0, 2, 3, 1])), "half_to_even")
    frame = ov.opset13.convert(image, "u8")
    frame.output(0).set_names({"frame"})
    model = ov.Model([frame], [levels])
    rewriting._round_before_transposing(model)
    last = model.get_results()[0].input_value(0)
    assert last.get_node().get_type_name() == "Transpose" and last.get_element_type() == ov.Type.u8
    assert model.outputs[0].get_names() == {"frame"}


@pytest.mark.parametrize(("dtype", "shape", "split"), [
    ("u8", [65, 65, 2, 48], True), ("u8", [129, 129, 2, 6], True), ("u8", [65, 65, 2, 64], False),
    ("u8", [9, 9, 2, 48], False), ("u8", [65, 65, 3, 48], False), ("f32", [65, 65, 2, 48], False)])
def test_openvino_interleaves_whole_runs_of_bytes(dtype, shape, split):
    o = ov.opset13
    stored = o.parameter(shape, ov.Type.u8 if dtype == "u8" else ov.Type.f32)
    real = o.multiply(o.convert(stored, "f32"), np.float32(0.5)) if dtype == "u8" else o.relu(stored)
    pixels = o.reshape(o.transpose(real, np.array([0, 2, 1, 3])), [2 * shape[0], -1, 1], False)
    model = ov.Model([pixels], [stored])
    rewriting._interleave_whole_runs(model)
    assert any(node.get_type_name() == "Split" for node in model.get_ops()) == split
    values = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8 if dtype == "u8" else np.float32)
    made = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(values)[0]
    expected = values.transpose(0, 2, 1, 3).astype(np.float32) * (0.5 if dtype == "u8" else 1)
    assert np.array_equal(made.ravel(), expected.ravel())
