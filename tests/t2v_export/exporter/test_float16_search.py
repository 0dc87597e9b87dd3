from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto
from torch import nn

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import verify_bundle
from t2v_edge.spec import TensorSpec
from t2v_export.checkpoint.config import StageConfig
from t2v_export.commands.export import summary, table
from t2v_export.errors import AccuracyError
from t2v_export.exporter import float16_search as mixed
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.exporter.float16_search import make_half, rank_layers
from t2v_export.graph.from_torch import PixelFrames, stage_to_onnx
from t2v_export.models.contract import motion_spec, render_spec
from t2v_export.precision.float16 import compute_half, computes_half, layers, rounding_twin
from t2v_export.verify.difference import check_accuracy
from t2v_export.verify.reference import FRAME_STEPS, STEPS, ReferenceRollout, StreamDraws

CONDITION, MOTION, SIDE, TOLERANCE = 4, 3, 16, 1e-2
DRAWS = StreamDraws({}, {}, {}, tuple({} for _ in range(STEPS)))


def exact(module: nn.Module) -> nn.Module:
    """The module with weights that are float16 numbers, as of a float16 checkpoint."""
    return module.half().float().eval()


class Borders(nn.Module):
    """The middle layer takes the small difference of two maps: 64 a - 64 b, where b is a thousandth less than a."""

    spec = render_spec(CONDITION, MOTION, SIDE, SIDE)

    def __init__(self, gain: float = 64.0, nudge: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(CONDITION + MOTION, 4 * SIDE * SIDE)
        self.middle = nn.Conv2d(6, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 3, 3, padding=1)
        self.middle.weight.data[:, 4], self.middle.weight.data[:, 5] = gain, -gain
        exact(self)
        self.middle.weight.data *= nudge

    def forward(self, motion, condition):
        features = torch.relu(self.stem(torch.cat([motion, condition], 1))).reshape(-1, 4, SIDE, SIDE)
        near = motion[:, :1, None, None].expand(-1, 1, SIDE, SIDE)
        return torch.tanh(self.last(torch.relu(self.middle(torch.cat([features, near, near * 0.999], 1)))) / 8)


class Lost(nn.Module):
    """Six layers, each of which loses its small result in float16 beside 512."""

    spec = render_spec(CONDITION, MOTION, SIDE, SIDE)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(CONDITION + MOTION, 3 * SIDE * SIDE) for _ in range(6))

    def forward(self, motion, condition):
        x = torch.cat([motion, condition], 1)
        large = torch.stack([layer(x) + 512.0 for layer in self.layers])
        return torch.tanh((large - 512.0).sum(0)).reshape(-1, 3, SIDE, SIDE)


class Difference(nn.Module):
    """Motion as the small difference of two large products, whose weights float16 cannot hold."""

    spec = motion_spec(CONDITION, MOTION)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.widen, self.narrow = nn.Linear(CONDITION, 2048), nn.Linear(2048, MOTION)
        exact(self)
        self.widen.weight.data[:, 0], self.widen.weight.data[:, 1] = 300.1, -300.0

    def forward(self, condition):
        return self.narrow(torch.relu(self.widen(condition)))


def played(module: nn.Module, count: int = 3) -> list[ReferenceRollout]:
    """What torch makes of `count` random conditions, in which the first two numbers are equal, and motions."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        condition = torch.rand((1, CONDITION), generator=generator)
        condition[:, 1] = condition[:, 0]
        motion = torch.rand((STEPS, MOTION), generator=generator) + 0.5
        levels = torch.zeros(0)
        with torch.no_grad():
            if module.spec.stage == "render":
                frames = PixelFrames(module)
                levels = torch.cat([frames.levels(motion[s : s + 1], condition) for s in FRAME_STEPS])
            else:
                motion = module(condition).expand(STEPS, -1)
        nothing = np.zeros((1, 1), np.int64)
        outputs = {"motion": motion.numpy()}
        made.append(ReferenceRollout(str(index), nothing, nothing, condition.numpy(), DRAWS, outputs, levels.numpy()))
    return made


def exported(module: nn.Module) -> tuple[onnx.ModelProto, object]:
    spec = module.spec
    if spec.stage == "render":
        spec = replace(spec, results=(TensorSpec("frame", (1, SIDE, SIDE, 3), "uint8"),))
    return stage_to_onnx(module, spec), spec


def stored(graph: onnx.ModelProto, shape: tuple[int, ...]) -> list[int]:
    return [t.data_type for t in graph.graph.initializer if tuple(t.dims) == shape]


def test_only_the_layer_that_float16_breaks_stays_in_float32():
    module = Borders()
    model, spec = exported(module)
    rollouts = played(module)
    assert not mixed._convert(model, spec, rollouts).difference.within(TOLERANCE)
    made = make_half(model, spec, rollouts, TOLERANCE)
    assert (
        made.float32_layers == ("/render/middle/Conv",)
        and rank_layers(model, spec, rollouts)[0] == made.float32_layers[0]
    )
    assert made.difference.within(mixed.AIM * TOLERANCE) and computes_half(made.graph)
    assert len(made.difference.by_rollout) == 3 and max(made.difference.by_rollout) < TOLERANCE
    # nothing is lost by storing this layer's weights in float16, so the file is half the size all the same
    assert stored(made.graph, (32, 6, 3, 3)) == [TensorProto.FLOAT16]
    assert len(made.graph.SerializeToString()) < 0.6 * len(model.SerializeToString())
    again = make_half(model, spec, rollouts, TOLERANCE)
    assert again.graph.SerializeToString(deterministic=True) == made.graph.SerializeToString(deterministic=True)


def test_kept_weights_that_float16_cannot_hold_are_stored_in_float32():
    module = Borders(nudge=1.0001)
    model, spec = exported(module)
    made = make_half(model, spec, played(module), TOLERANCE)
    assert made.float32_layers == ("/render/middle/Conv",) and made.difference.within(TOLERANCE)
    assert stored(made.graph, (32, 6, 3, 3)) == [TensorProto.FLOAT]
    assert stored(made.graph, (3, 32, 3, 3)) == [TensorProto.FLOAT16]


def test_nothing_is_kept_where_float16_is_near_enough():
    module = Borders(gain=1.0)
    model, spec = exported(module)
    made = make_half(model, spec, played(module), TOLERANCE)
    assert made.float32_layers == () and made.difference.within(TOLERANCE)
    assert made.graph.SerializeToString() == compute_half(model, spec).SerializeToString()


def test_stage_that_four_layers_do_not_save_is_refused_with_what_was_tried():
    module = Lost().eval()
    model, spec = exported(module)
    made = make_half(model, spec, played(module), TOLERANCE)
    assert len(set(made.float32_layers)) == mixed.MAX_FLOAT32_LAYERS == 4 and len(layers(model)) == 6
    tried = "fp16 render: .* with its 4 most sensitive layers in float32, at most 0.01"
    with pytest.raises(AccuracyError, match=tried):
        check_accuracy("fp16", {"render": made.difference}, {"render": made.float32_layers})


def test_motion_keeps_weights_that_its_steps_cannot_spare():
    module = Difference()
    model, spec = exported(module)
    made = make_half(model, spec, played(module), TOLERANCE)
    assert made.float32_layers == ("/widen/Gemm",) and made.difference.within(TOLERANCE)
    assert stored(made.graph, (2048, CONDITION)) == [TensorProto.FLOAT]
    assert stored(made.graph, (MOTION, 2048)) == [TensorProto.FLOAT16]
    assert not computes_half(made.graph)


def test_bias_that_is_a_node_of_its_own_stays_with_its_layer():
    class Sequence(nn.Module):
        spec = motion_spec(CONDITION, MOTION)

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(1, 8), nn.Linear(8, 1)

        def forward(self, condition):
            return self.two(torch.relu(self.one(condition[:, :MOTION, None]))).flatten(1)

    model, spec = exported(Sequence())
    one, two = layers(model)
    assert [n.op_type for n in model.graph.node].count("Add") == 2
    half = compute_half(model, spec, [two])
    makers = {output: node.op_type for node in half.graph.node for output in node.output}
    readers = [n for n in half.graph.node if n.op_type == "Add"]
    casts = [[makers.get(i) for i in n.input].count("Cast") for n in readers]
    assert casts == [0, 0]  # the first is all float16, the second all float32
    assert not computes_half(compute_half(model, spec, [one, two]))


def test_twin_of_a_graph_whose_first_layer_is_half_is_not_half():
    model, spec = exported(Borders())
    half = compute_half(model, spec)
    assert computes_half(half) and not computes_half(rounding_twin(half)) and not computes_half(model)


def make_sensitive(folder) -> None:
    """Two motion numbers nearly equal, and a stem that takes their difference 4096 times."""
    for name, change in (("motion", _repeat), ("render", _subtract)):
        path = folder / f"{name}.safetensors"
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path, {"format": "pt"})


def _repeat(tensors) -> None:
    for name in ("project.weight", "project.bias"):
        tensors[name][1] = tensors[name][0] * 0.999


def _subtract(tensors) -> None:
    tensors["stem.linear.weight"][:, 0], tensors["stem.linear.weight"][:, 1] = 4096, -4096


DRAW = StageConfig("upsample", {"channels": [12, 8], "norm": False})


def test_export_names_the_layers_it_kept_and_gives_the_same_bytes(make_checkpoint, cpu, tmp_path):
    folder = make_checkpoint(render=DRAW)
    make_sensitive(folder)
    made = export_checkpoint(folder, tmp_path / "one", cpu, ExportOptions(measure=False))
    export_checkpoint(folder, tmp_path / "two", cpu, ExportOptions(measure=False))
    with Bundle.open(tmp_path / "one") as one, Bundle.open(tmp_path / "two") as two:
        verify_bundle(one)
        assert one.manifest == two.manifest  # hashes of every file among it
        kept = one.manifest.variants["fp16"]["render"].float32_layers
        assert "float32_layers" not in one.manifest.variants["fp32"]["render"].to_json()
        report = json.loads(one.read("report.json"))
    assert kept == ("/render/stem/linear/Gemm",)
    assert report["float32_layers"] == {"fp16": {"render": list(kept)}}
    assert summary(made)["variants"]["fp16"]["render"]["float32_layers"] == list(kept)
    assert "1 layers in float32" in table(made)
    assert made.differences["fp16"]["render"].within(TOLERANCE)


def test_export_that_may_keep_too_few_layers_writes_nothing(make_checkpoint, cpu, tmp_path, monkeypatch):
    folder = make_checkpoint(render=DRAW)
    make_sensitive(folder)
    monkeypatch.setattr(mixed, "MAX_FLOAT32_LAYERS", 0)
    with pytest.raises(AccuracyError, match="fp16 render: levels differs"):
        export_checkpoint(folder, tmp_path / "bundle", cpu, ExportOptions(measure=False))
    assert not (tmp_path / "bundle").exists()
