from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from t2v_edge.errors import SpecError
from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.checkpoint.checkpoint import load_checkpoint
from t2v_export.checkpoint.config import StageConfig
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.graph.batch import check_batch_free, free_batch
from t2v_export.graph.from_torch import stage_to_onnx
from t2v_export.graph.phases import split_phases
from tests.t2v_export.quantize_samples import model_of, weights

SPEC = StageSpec("render", (TensorSpec("x", (1, 8)),), (TensorSpec("y", (1, 2, 4)),))


def node(operator: str, inputs: list[str], outputs: list[str], name: str, **attributes) -> onnx.NodeProto:
    return onnx.helper.make_node(operator, inputs, outputs, name=name, **attributes)


def bound(*nodes: onnx.NodeProto, **constants) -> onnx.ModelProto:
    """x (1, 8) -> y (1, 2, 4) by way of `nodes`."""
    return model_of(list(nodes), constants, {"x": [1, 8]}, {"y": [1, 2, 4]})


def run(model: onnx.ModelProto, feeds) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def shapes_of(model: onnx.ModelProto) -> list[list[int]]:
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [known[n.input[1]].tolist() for n in model.graph.node if n.op_type == "Reshape"]


@pytest.mark.parametrize("shape", [[1, 2, 4], [1, 2, -1], [1, -1, 4]])
def test_reshape_that_names_the_batch_leaves_it_open(shape):
    model = bound(node("Reshape", ["x", "shape"], ["y"], "/reshape"), shape=np.array(shape))
    before = model.SerializeToString()
    with pytest.raises(SpecError, match="node /reshape takes one frame at a time"):
        check_batch_free(model, SPEC)
    made = free_batch(model, SPEC)
    check_batch_free(made, SPEC)
    assert shapes_of(made) == [[-1, 2, 4]] and model.SerializeToString() == before
    assert [
        list(d.dim_value for d in v.type.tensor_type.shape.dim) for v in [*made.graph.input, *made.graph.output]
    ] == [[1, 8], [1, 2, 4]]
    x = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(made, {"x": x})[0], run(model, {"x": x})[0])


def test_shapes_that_are_open_and_those_of_constants_stay():
    model = bound(
        node("Reshape", ["w", "flat"], ["v"], "/weight"),  # of a constant: no batch in it
        node("Add", ["x", "v"], ["a"], "/add"),
        node("Reshape", ["a", "open"], ["b"], "/open"),
        node("Reshape", ["b", "zero"], ["y"], "/zero"),
        w=weights(2, 4),
        flat=np.array([1, 8]),
        open=np.array([-1, 4, 2]),
        zero=np.array([0, 2, 4]),
    )
    assert shapes_of(free_batch(model, SPEC)) == shapes_of(model)


def test_frames_that_are_mixed_name_the_node_that_mixes_them():
    mixing = bound(
        node("ReduceMean", ["x"], ["m"], "/mean", axes=[0], keepdims=1),
        node("Sub", ["x", "m"], ["s"], "/sub"),
        node("Add", ["x", "s"], ["a"], "/add"),
        node("Reshape", ["a", "shape"], ["y"], "/reshape"),
        shape=np.array([-1, 2, 4]),
    )
    with pytest.raises(SpecError, match="node /mean takes one frame .*mixes the frames"):
        check_batch_free(mixing, SPEC)


def test_constant_of_one_frame_beside_a_batch_is_named():
    model = bound(
        node("Concat", ["x", "w"], ["c"], "/beside", axis=1),
        node("Slice", ["c", "from", "to", "axis"], ["s"], "/slice"),
        node("Reshape", ["s", "shape"], ["y"], "/reshape"),
        w=weights(1, 4),
        shape=np.array([1, 2, 4]),
        **{"from": np.array([2]), "to": np.array([10]), "axis": [1]},
    )
    with pytest.raises(SpecError, match="node /beside"):
        check_batch_free(free_batch(model, SPEC), SPEC)


@pytest.mark.parametrize("upsample", ["resize", "transpose", "pixel_shuffle"])
def test_every_kind_of_renderer_takes_a_batch_in_every_form(make_checkpoint, upsample):
    draw = StageConfig("upsample", {"channels": [12, 8], "upsample": upsample, "noise_size": 3})
    checkpoint = load_checkpoint(make_checkpoint(render=draw))
    spec = checkpoint.specs["render"]
    made = free_batch(stage_to_onnx(checkpoint.render, spec), spec)
    for form in (made, split_phases(made, spec)):
        check_batch_free(form, spec)


ONE_AT_A_TIME = """
import torch
from t2v_export.models.contract import render_spec

class Average(torch.nn.Module):
    pixel_range = "0..1"

    def __init__(self, *, condition_size, motion_size, height, width, **_):
        super().__init__()
        self.spec = render_spec(condition_size, motion_size, height, width)
        self.linear = torch.nn.Linear(motion_size, 3 * height * width)
        self.shape = 3, height, width

    def forward(self, motion, condition):
        made = torch.sigmoid(self.linear(motion - motion.mean(0, keepdim=True) + condition[:, :1]))
        return made.reshape(-1, *self.shape)
"""


def test_report_says_which_renderers_look_ahead_and_what_stops_the_others(make_checkpoint, cpu, tmp_path):
    exported = export_checkpoint(make_checkpoint(), tmp_path / "one", cpu, ExportOptions(measure=False))
    assert exported.report["look_ahead"] == {"variants": ["fp32", "fp16"], "refused": {}}
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "average.py").write_text(ONE_AT_A_TIME)
    folder = make_checkpoint("own", code=tmp_path / "code", render=StageConfig("average:Average", {}))
    options = ExportOptions(measure=False, allow_code=True, variants=("fp32",))
    exported = export_checkpoint(folder, tmp_path / "two", cpu, options)
    assert exported.report["look_ahead"]["variants"] == []
    assert "ReduceMean takes one frame at a time" in exported.report["look_ahead"]["refused"]["fp32"]
