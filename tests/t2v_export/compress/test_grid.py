from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.errors import UsageError
from t2v_export.checkpoint.checkpoint import load_checkpoint, save_loaded
from t2v_export.checkpoint.config import StageConfig
from t2v_export.compress.grid import on_grid, round_checkpoint, round_rows, store_grid
from t2v_export.compress.passes import compress
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.exporter.passes import latency
from t2v_export.graph.from_torch import example_inputs, stage_to_onnx
from t2v_export.recipe import Recipe, Round, load_recipe
from t2v_export.verify.latency import GraphLatency

WIDE = StageConfig("recurrent", {"hidden": 64})


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 300.0])
def test_rounded_rows_are_near_and_survive_float16(size):
    random = torch.Generator().manual_seed(0)
    weight = size * torch.randn(40, 130, generator=random) * torch.logspace(-2, 0, 40)[:, None]
    weight[3] = 0
    made = round_rows(weight)
    assert torch.equal(made, made.half().float())
    step = weight.abs().amax(1, keepdim=True) / 127 * 1.125  # its four bits may be a ninth above what the row needs
    assert ((made - weight).abs() <= 0.5 * step.clamp(min=2.0**-20) + 1e-12).all()
    whole, steps = on_grid(made.numpy())
    assert whole.dtype == np.int8 and np.abs(whole).max() <= 127
    np.testing.assert_array_equal(whole * steps[:, None], made.numpy())
    assert torch.equal(round_rows(made), made)


def test_weights_that_are_not_rounded_are_on_no_grid():
    assert on_grid(np.random.default_rng(0).standard_normal((40, 130)).astype(np.float32)) is None


def rounded(make_checkpoint, tmp_path):
    """A checkpoint with a rounded motion stage, as it is read back from its float16 files."""
    save_loaded(round_checkpoint(load_checkpoint(make_checkpoint(motion=WIDE)), Round()), tmp_path / "rounded")
    return load_checkpoint(tmp_path / "rounded")


def test_weights_on_a_grid_are_stored_in_a_quarter_and_compute_the_very_same(make_checkpoint, tmp_path):
    checkpoint = rounded(make_checkpoint, tmp_path)
    spec = checkpoint.specs["motion"]
    model = stage_to_onnx(checkpoint.motion, spec)
    stored = store_grid(model, spec)
    assert 2.5 * len(stored.SerializeToString()) < len(model.SerializeToString())
    feeds = {t.name: v.numpy() for t, v in zip(spec.inputs, example_inputs(spec))}
    wanted, found = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
        for m in (model, stored)
    )
    for a, b in zip(wanted, found):
        np.testing.assert_array_equal(a, b)
    plain = load_checkpoint(make_checkpoint(motion=WIDE))
    assert store_grid(stage_to_onnx(plain.motion, spec), spec) is None


def test_an_int8_export_stores_a_rounded_motion_stage_and_moves_as_fp32_does(make_checkpoint, cpu, tmp_path):
    rounded(make_checkpoint, tmp_path)
    options = ExportOptions(recipe=load_recipe("fast"), measure=False, ship="all")
    export_checkpoint(tmp_path / "rounded", tmp_path / "bundle", cpu, options)
    with Bundle.open(tmp_path / "bundle") as bundle:
        entry = bundle.manifest.variants["int8-u8"]["motion"]
        assert bundle.manifest.quality["int8-u8"]["motion"] == bundle.manifest.quality["fp32"]["motion"]
        kinds = {t.data_type for t in onnx.load_from_string(bundle.graph("int8-u8", "motion")).graph.initializer}
        assert entry.precision == "int8-u8" and onnx.TensorProto.INT8 in kinds
        assert "motion" not in bundle.manifest.variants["int8"]  # TensorRT has its own ways to store weights


def test_round_is_a_pass_and_refuses_a_stage_without_a_matrix(make_checkpoint, tmp_path):
    made = compress(load_checkpoint(make_checkpoint(motion=WIDE)), Recipe("grid", (Round(),))).checkpoint
    large = [w for w in made.motion.parameters() if w.dim() > 1 and w.numel() > 4096]
    assert large and all(on_grid(w.numpy()) is not None for w in large)
    with pytest.raises(UsageError, match="stage motion has no weight matrix of more than 4096 numbers"):
        round_checkpoint(load_checkpoint(make_checkpoint(tmp_path / "small")), Round())


def test_weights_stored_in_8_bits_are_the_default_where_they_are_no_slower(make_checkpoint, cpu, tmp_path, monkeypatch):
    rounded(make_checkpoint, tmp_path)
    even = {"onnxruntime": GraphLatency(1.0, 1.0, 20)}
    monkeypatch.setattr(latency, "measure_latencies", lambda graphs, *_: dict.fromkeys(graphs, even))
    options = ExportOptions(recipe=load_recipe("fast"))
    exported = export_checkpoint(tmp_path / "rounded", tmp_path / "bundle", cpu, options)
    assert exported.manifest.default == {"text": "fp32", "motion": "int8-u8", "render": "fp32"}
