"""Every graph of every variant for a GPU goes through the real TensorRT-RTX parser and builder, which needs no GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.onnx_edit import float16_tensors
from t2v_edge.device.profile import load_profile
from t2v_edge.engine.tensorrt.api import RUNS, BuildSettings, find_api, installed
from t2v_export.checkpoint.config import StageConfig
from t2v_export.exporter.captions import DEFAULT_CAPTIONS
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.recipe import load_recipe, parse_recipe
from t2v_export.verify.difference import TOLERANCES
from tests.t2v_export.conftest import build_checkpoint

pytestmark = pytest.mark.skipif(installed("tensorrt-rtx") is None, reason="TensorRT-RTX is not installed")

ROOT = Path(__file__).parents[1]
LOOK_AHEAD = 4
FEW = {"text_samples": 8, "motion_samples": 8, "render_samples": 4, "steps": 8}
# What is quantized, and so the form of the graphs, is that of the recipe `fast`; ranges read from few samples and
# weights rounded to the nearest change numbers alone.
RECIPE = {"kind": "quantize", "smooth": 0.5, "compensate": False, "sensitivity": False, **FEW}
SHIPPED = ("tiny", "small", "reference")
STAGES = {
    "gru-resize": {"render": StageConfig("upsample", {"channels": [12, 8], "noise_size": 3, "residual": True})},
    "lstm-transpose": {
        "motion": StageConfig("recurrent", {"cell": "lstm", "layers": 2, "hidden": 16}),
        "render": StageConfig("upsample", {"channels": [12, 8], "upsample": "transpose"}),
    },
    "pixel-shuffle": {"render": StageConfig("upsample", {"channels": [12, 8], "upsample": "pixel_shuffle"})},
}


def example(name: str, folder: Path) -> Path:
    """A checkpoint of the examples of custom stages."""
    path = ROOT / "examples" / "custom_stages" / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make_checkpoint(name, folder)
    return folder


def checkpoint_of(name: str, folder: Path) -> Path:
    if name in STAGES:
        return build_checkpoint(folder, **STAGES[name])
    return example(name, folder) if name in ("mocogan", "tfgan") else ROOT / "checkpoints" / name


def check_types(api, graph: bytes) -> None:
    """What a builder with flags would be told of types is what a strongly typed network has of itself."""
    trt = api.module
    network = trt.Builder(api.log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, api.log)
    assert parser.parse(graph)
    layers = [network.get_layer(position) for position in range(network.num_layers)]
    found = api._types(layers, float16_tensors(graph))
    given = [layer.get_output(position) for layer in layers for position in range(layer.num_outputs)]
    assert {tensor.name: found[tensor.name] for tensor in given} == {tensor.name: tensor.dtype for tensor in given}


def check_all_build(checkpoint: Path, folder: Path, **changes) -> None:
    """Export for a Jetson, and build every graph that its TensorRT is to take: renderers also for several frames."""
    options = ExportOptions(measure=False, ship="all", allow_code=True, **changes)
    exported = export_checkpoint(checkpoint, folder / "bundle", load_profile("jetson-orin-nano-8gb"), options)
    assert not exported.report["look_ahead"]["refused"]
    api = find_api("tensorrt-rtx")
    with Bundle.open(folder / "bundle") as bundle:
        variants = bundle.manifest.variants
        assert set(RUNS) <= set(variants) and set(variants["int8-fp16"]) == {"text", "render"}
        for variant in RUNS:
            for stage, entry in variants[variant].items():
                graph = bundle.graph(variant, stage)
                check_types(api, graph)
                for batch in (1, LOOK_AHEAD) if stage == "render" else (1,):
                    settings = BuildSettings(batch=batch)
                    built = api.build(graph, variant, entry.opset, settings)
                    assert len(built.engine) > 10_000, (variant, stage, batch)


@pytest.mark.parametrize("name", [*STAGES, "mocogan", "tfgan", "small"])
def test_every_graph_of_a_gpu_bundle_builds_alone_and_looking_ahead(name, tmp_path, monkeypatch):
    # how near graphs are to torch is the affair of other tests: one caption, no search for layers to leave in float32
    monkeypatch.setitem(TOLERANCES, "fp16", 1.0)
    recipe = parse_recipe({"name": "few", "pass": [RECIPE]}, "test")
    check_all_build(checkpoint_of(name, tmp_path / "made"), tmp_path, recipe=recipe, captions=DEFAULT_CAPTIONS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_graph_that_export_makes_of_a_shipped_checkpoint_builds(name, tmp_path):
    check_all_build(checkpoint_of(name, tmp_path), tmp_path, recipe=load_recipe("fast"))
