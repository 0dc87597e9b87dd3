from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from t2v_edge.errors import CheckpointError, SpecError
from t2v_edge.spec import StateSpec, TensorSpec
from t2v_export.graph.from_torch import PixelFrames, example_inputs, run_torch, stage_to_onnx
from t2v_export.models import build_stage
from t2v_export.models.contract import motion_spec, render_spec
from t2v_export.precision.float16 import compute_half, rounding_twin, store_half

SIZES = {"condition_size": 4, "motion_size": 3, "height": 16, "width": 16}
FRAME = TensorSpec("frame", (1, 16, 16, 3), "uint8")


def randomize(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, 0, 0.5)
            nn.init.uniform_(part.running_var, 0.3, 2)
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias, 0, 0.3)
    return module.eval()


def make(stage: str, name: str, **options: object) -> tuple[nn.Module, onnx.ModelProto, object]:
    torch.manual_seed(0)
    module = randomize(build_stage(stage, name, options, **SIZES))
    spec = module.spec
    spec = replace(spec, results=(FRAME,)) if stage == "render" else spec
    return module, stage_to_onnx(module, spec), spec


def run(model: onnx.ModelProto, spec, seed: int) -> list[np.ndarray]:
    feeds = {t.name: value.numpy() for t, value in zip(spec.inputs, example_inputs(spec, seed))}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([t.name for t in spec.outputs], feeds)


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_motion_steps_export_without_recurrent_operators(cell, layers):
    module, model, spec = make(
        "motion", "recurrent", cell=cell, layers=layers, hidden=6, noise=2, content=2, category=3, feedback=True
    )
    assert not {"GRU", "LSTM", "Loop", "Scan"} & operators(model)
    assert len(spec.states) == layers * (2 if cell == "lstm" else 1) + 1
    for made, wanted in zip(run(model, spec, 3), run_torch(module, example_inputs(spec, 3))):
        np.testing.assert_allclose(made, wanted.numpy(), atol=1e-6)


@pytest.mark.parametrize("upsample", ["resize", "transpose", "pixel_shuffle"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("pixel_range", ["-1..1", "0..1"])
def test_renderers_export_with_norms_folded_and_pixels_rounded(upsample, residual, pixel_range):
    options = {"channels": [8, 6], "noise_size": 2, "pixel_range": pixel_range}
    module, model, spec = make("render", "upsample", upsample=upsample, residual=residual, **options)
    assert "BatchNormalization" not in operators(model)
    assert model.graph.node[-1].op_type == "Cast"
    (frame,) = run(model, spec, 3)
    inputs = example_inputs(spec, 3)
    levels = PixelFrames(module).levels(*inputs).detach().numpy()
    assert frame.dtype == np.uint8 and frame.std() > 1
    # half a level is the rounding; the rest is the order of sums
    assert np.abs(frame.astype(np.float64) - levels).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("pixel_range", ["-1..1", "0..1"])
def test_a_convolution_whose_pixels_are_clipped_gives_levels_itself(pixel_range):
    options = {"channels": [8, 6], "noise_size": 2, "pixel_range": pixel_range, "squash": "clip"}
    module, _, spec = make("render", "upsample", **options)
    with torch.no_grad():
        module.to_pixels.conv.weight.mul_(30)
    model = stage_to_onnx(module, spec)
    assert [n.op_type for n in model.graph.node][-5:] == ["Conv", "Clip", "Transpose", "Round", "Cast"]
    (frame,) = run(model, spec, 3)
    levels = PixelFrames(module).levels(*example_inputs(spec, 3)).detach().numpy()
    assert frame.min() == 0 and frame.max() == 255
    assert np.abs(frame.astype(np.float64) - levels).max() <= 0.5 + 1e-3


class Clamped(nn.Module):
    """A convolution, clipped in another way than to the range of pixels: to half of it, or to twice it."""

    spec = render_spec(4, 3, 16, 16)
    pixel_range = "0..1"

    def __init__(self, high):
        super().__init__()
        self.high, self.conv = high, nn.Conv2d(7, 3, 1)

    def forward(self, motion, condition):
        x = torch.cat([motion, condition], 1)[:, :, None, None].expand(-1, -1, 16, 16)
        return self.conv(x * 20).clamp(0, self.high)


@pytest.mark.parametrize("high, clips", [(0.5, 2), (2.0, 1)])
def test_a_clip_that_cuts_off_more_than_pixels_do_stays(high, clips):
    torch.manual_seed(0)
    module = Clamped(high)
    spec = replace(Clamped.spec, results=(FRAME,))
    model = stage_to_onnx(module, spec)
    assert [n.op_type for n in model.graph.node].count("Clip") == clips
    (frame,) = run(model, spec, 3)
    levels = PixelFrames(module).levels(*example_inputs(spec, 3)).detach().numpy()
    assert np.abs(frame.astype(np.float64) - levels).max() <= 0.5 + 1e-3


class Ends(nn.Module):
    """The ends of the range and a tie: -1, 1, beyond both, and levels 0.5 and 1.5, which round to even."""

    pixel_range = "-1..1"
    spec = render_spec(4, 3, 16, 16)

    def forward(self, motion, condition):
        values = torch.tensor([-1.0, 1.0, -3.0, 3.0, 0.5 / 127.5 - 1, 1.5 / 127.5 - 1] + [0.0] * 10)
        return (values + motion[:, :1] * 0)[:, None, None, :].expand(-1, 3, 16, 16)


def test_pixels_are_clipped_and_cover_the_full_range():
    spec = replace(Ends.spec, results=(FRAME,))
    (frame,) = run(stage_to_onnx(Ends(), spec), spec, 0)
    assert frame[0, 0, :4, 0].tolist() == [0, 255, 0, 255]
    assert set(frame[0, 0, 6:, 0].tolist()) == {128}


class Folded(nn.Module):
    """BatchNorm after each kind of layer it folds into, grouped ones among them, and one that it cannot fold into."""

    spec = render_spec(4, 3, 16, 16)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 4 * 16)
        self.after_reshape = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(4, 8, 4, 2, 1, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False), nn.PixelShuffle(2), nn.BatchNorm2d(4), nn.ReLU(),
            nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, motion, condition):
        x = self.linear(torch.cat([motion, condition], 1)).reshape(-1, 4, 4, 4)
        return self.layers(self.after_reshape(x))


def test_batch_norm_folds_through_groups_reshapes_and_pixel_shuffles():
    torch.manual_seed(0)
    module = randomize(Folded())
    spec = replace(module.spec, results=(FRAME,))
    model = stage_to_onnx(module, spec)
    # the one after a ReLU has nothing to fold into
    assert [n.op_type for n in model.graph.node].count("BatchNormalization") == 1
    levels = PixelFrames(module).levels(*example_inputs(spec, 2)).detach().numpy()
    assert np.abs(run(model, spec, 2)[0] - levels).max() <= 0.5 + 1e-3


class PassThrough(nn.Module):
    """A state that leaves as it came, one that is the motion, and an input that nothing reads."""

    spec = motion_spec(4, 3, states=[StateSpec("kept", (1, 2)), StateSpec("last", (1, 3))])

    def forward(self, condition, kept, last):
        motion = last * 0.5 + 1
        return motion, kept, motion


def test_states_may_pass_through_and_share_a_tensor():
    model = stage_to_onnx(PassThrough(), PassThrough.spec)
    assert [i.name for i in model.graph.input] == ["condition", "state.kept", "state.last"]
    _, kept, last = example_inputs(PassThrough.spec, 4)
    made = run(model, PassThrough.spec, 4)
    np.testing.assert_array_equal(made[1], kept.numpy())
    np.testing.assert_array_equal(made[0], made[2])
    np.testing.assert_allclose(made[0], last.numpy() * 0.5 + 1)


def test_output_that_breaks_the_contract_is_named():
    class Wrong(nn.Module):
        def forward(self, condition, *states):
            return condition[:, :2]

    with pytest.raises(SpecError, match=r"motion is float32 \(1, 2\), its spec says float32 \(1, 3\)"):
        stage_to_onnx(Wrong(), motion_spec(4, 3))
    with pytest.raises(SpecError, match="returned 1 tensors, its spec lists 2: motion, next.h"):
        stage_to_onnx(Wrong(), motion_spec(4, 3, states=[StateSpec("h", (1, 2))]))


def test_module_that_fails_is_a_typed_error():
    class Failing(nn.Module):
        def forward(self, condition):
            raise IndexError("boom")

    with pytest.raises(CheckpointError, match="motion cannot be exported: boom"):
        stage_to_onnx(Failing(), motion_spec(4, 3))


@pytest.mark.parametrize("opset", [13, 15, 17])
def test_opset_is_the_one_asked_for(opset):
    module, _, spec = make("render", "upsample", channels=[4])
    model = stage_to_onnx(module, spec, opset)
    assert model.opset_import[0].version == opset
    with pytest.raises(CheckpointError, match="opset 12 is outside"):
        stage_to_onnx(module, spec, 12)


SAME = """
import hashlib, sys, torch
from t2v_export.models import build_stage
from t2v_export.graph.from_torch import stage_to_onnx
torch.manual_seed(0)
m = build_stage("motion", "recurrent", {"layers": 2, "hidden": 5}, condition_size=4, motion_size=3, height=16, width=16)
sys.stdout.write(hashlib.sha256(stage_to_onnx(m, m.spec).SerializeToString(deterministic=True)).hexdigest())
"""


def test_graph_has_the_same_bytes_in_another_process_and_folder(tmp_path):
    hashes = {
        subprocess.run(
            [sys.executable, "-c", SAME], cwd=cwd, env=_environment(seed), capture_output=True, text=True, check=True
        ).stdout  # fmt: skip
        for cwd, seed in ((tmp_path, "1"), (tmp_path.parent, "2"))
    }
    assert len(hashes) == 1 and len(hashes.pop()) == 64


def _environment(hash_seed: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONHASHSEED": hash_seed}


def test_graph_says_nothing_of_the_machine():
    _, model, _ = make("render", "upsample", channels=[4])
    data = model.SerializeToString()
    assert model.producer_name == "t2v_edge" and not model.metadata_props and not model.doc_string
    assert b".py" not in data and b"/home" not in data and b"site-packages" not in data


def test_constants_are_stored_once():
    _, model, _ = make("motion", "recurrent", layers=2, hidden=6)
    stored = [(t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer]
    assert len(stored) == len(set(stored))
    assert "Constant" not in operators(model)


def test_half_renderer_halves_the_file_and_stays_near():
    module, model, spec = make("render", "upsample", channels=[32, 16], noise_size=2)
    half = compute_half(model, spec)
    assert len(half.SerializeToString()) < 0.55 * len(model.SerializeToString())
    kinds = {t.data_type for t in half.graph.initializer if len(t.dims) == 4}
    assert kinds == {TensorProto.FLOAT16}
    near = run(rounding_twin(half), spec, 3)[0].astype(int) - run(model, spec, 3)[0]
    assert 0 < np.abs(near).max() <= 2  # it does round, and hardly shows


def test_rounding_twin_rounds_where_the_half_graph_does():
    """By hand: a linear layer with weights and inputs that float16 cannot hold."""
    module = nn.Linear(4, 3)
    model = stage_to_onnx(module, motion_spec(4, 3))
    half = compute_half(model, motion_spec(4, 3))
    x = example_inputs(motion_spec(4, 3), 1)[0].half().float()
    w, b = module.weight.detach().half().float(), module.bias.detach().half().float()
    wanted = (x @ w.T + b).half().float()
    np.testing.assert_allclose(run(rounding_twin(half), motion_spec(4, 3), 1)[0], wanted.numpy(), atol=5e-4)
    assert not np.array_equal(run(rounding_twin(half), motion_spec(4, 3), 1)[0], run(model, motion_spec(4, 3), 1)[0])


def test_stored_half_weights_compute_in_float32():
    module, _, spec = make("motion", "recurrent", hidden=40)
    for parameter in module.parameters():
        parameter.data.copy_(parameter.data.half().float())
    model = stage_to_onnx(module, spec)
    half = store_half(model, spec)
    assert len(half.SerializeToString()) < 0.6 * len(model.SerializeToString())
    for made, wanted in zip(run(half, spec, 3), run(model, spec, 3)):
        np.testing.assert_array_equal(made, wanted)  # the weights are float16 numbers: nothing is lost


def test_small_constants_that_float16_cannot_hold_stay_exact():
    module, _, spec = make("motion", "recurrent", hidden=4)
    module.project.bias.data.fill_(1.0001)
    module.project.bias.data[0] = 3.14159
    half = store_half(stage_to_onnx(module, spec), spec)
    kept = [numpy_helper.to_array(t) for t in half.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert any(np.array_equal(k, module.project.bias.detach().numpy()) for k in kept)


def test_weights_beyond_float16_keep_their_layer_in_float32():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 4), 1e5))

        def forward(self, condition):
            return nn.functional.linear(condition, self.weight) * 1e-5

    model = stage_to_onnx(Large(), motion_spec(4, 3))
    (made,) = run(compute_half(model, motion_spec(4, 3)), motion_spec(4, 3), 1)
    np.testing.assert_allclose(made, run(model, motion_spec(4, 3), 1)[0], rtol=2e-3)
