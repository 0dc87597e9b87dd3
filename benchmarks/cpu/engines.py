"""Peers behind the runtime's `Engine` contract, each with its own defaults.

So every contender is played by the same `Pipeline` and `FrameStream`: same tokens, draws, blending, interpolation and
frame loop. What differs is what runs a stage.
"""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.common.methods import OURS, Method
from t2v_edge.bundle.manifest import Manifest
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.engine.base import Engine
from t2v_edge.pipeline import Pipeline
from t2v_edge.play.model import Model
from t2v_edge.spec import STAGES, Arrays, StageSpec


class PeerEngine(Engine):
    """What all peers share. One that is closed gives nothing more."""

    name = "peer"

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.outputs = [tensor.name for tensor in spec.outputs]

    def close(self) -> None:
        self.outputs = []


class TorchEngine(PeerEngine):
    """A stage's module in inference mode; `compiled` puts torch.compile around it."""

    name = "torch"

    def __init__(self, module: Any, spec: StageSpec, compiled: bool) -> None:
        import torch

        super().__init__(spec)
        self._torch = torch
        self._module = torch.compile(module) if compiled else module

    def run(self, feeds: Arrays) -> dict[str, Any]:
        with self._torch.inference_mode():
            # copied, for a condition is read-only: a few hundred bytes
            made = self._module(*(self._torch.tensor(feeds[t.name]) for t in self.spec.inputs))
        made = made if isinstance(made, tuple) else (made,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, made)}


class OnnxRuntimePeer(PeerEngine):
    """A graph in a session with ONNX Runtime's default options."""

    name = "onnxruntime"

    def __init__(self, path: Path, spec: StageSpec) -> None:
        import onnxruntime

        super().__init__(spec)
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(self, feeds: Arrays) -> dict[str, Any]:
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds))))


class OpenVinoPeer(PeerEngine):
    """A graph compiled for the CPU with OpenVINO's default options.

    `ahead`: asks for throughput, with as many requests at the same time as OpenVINO then advises.
    """

    name = "openvino"

    def __init__(self, path: Path, spec: StageSpec, ahead: bool) -> None:
        import openvino

        super().__init__(spec)
        options = {"PERFORMANCE_HINT": "THROUGHPUT"} if ahead else {}
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
        self.parallel = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if ahead else 1
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.parallel):
            self._requests.put(compiled.create_infer_request())
        self._ports = compiled.outputs

    def run(self, feeds: Arrays) -> dict[str, Any]:
        request = self._requests.get()
        try:
            # Copied, for the request's next run overwrites them. By position: an OpenVINO output may carry other names.
            made = request.infer(dict(feeds))
            return {name: made[port].copy() for name, port in zip(self.outputs, self._ports)}
        finally:
            self._requests.put(request)


def import_runner(runner: str) -> None:
    """Import what a runner needs, so that its import is timed and weighed apart from its work."""
    if runner in ("torch", "torch-compile"):
        import t2v_export.checkpoint.checkpoint
        import t2v_export.graph.from_torch  # noqa: F401
    elif runner == "onnxruntime":
        import onnxruntime  # noqa: F401
    elif runner == "openvino":
        import openvino  # noqa: F401


def open_pipeline(method: Method, checkpoint: Path, material: Path) -> Pipeline:
    """Load a contender; raises what its library raises."""
    bundle = material / "bundle"
    if method.runner == OURS:
        return Pipeline.open(bundle, ahead=method.ahead)
    manifest = Manifest.from_bytes((bundle / "manifest.json").read_bytes())
    tokens = manifest.tokenizer
    tokenizer = CaptionTokenizer((bundle / tokens.file).read_bytes(), tokens.tokens, tokens.pad_id)
    engines: dict[str, Any]
    if method.runner in ("torch", "torch-compile"):
        engines = _torch_engines(checkpoint, method.runner == "torch-compile")
    else:
        engines = {s: _peer(method, graph_path(material, method.graphs, s), manifest.stages[s]) for s in STAGES}
    return Pipeline(Model(manifest, tokenizer, engines, {stage: method.precision for stage in STAGES}))


def _peer(method: Method, path: Path, spec: StageSpec) -> PeerEngine:
    if method.runner == "onnxruntime":
        return OnnxRuntimePeer(path, spec)
    return OpenVinoPeer(path, spec, method.ahead and spec.stage == "render")


def graph_path(material: Path, graphs: str, stage: str) -> Path:
    """The stage's file in the folder `graphs`; the plain FP32 graph where that folder leaves the stage alone."""
    for name in (f"{graphs}/{stage}.xml", f"{graphs}/{stage}.onnx"):
        if (material / name).is_file():
            return material / name
    return material / "plain" / f"{stage}.onnx"


def _torch_engines(checkpoint: Path, compiled: bool) -> dict[str, TorchEngine]:
    from t2v_export.checkpoint.checkpoint import load_checkpoint
    from t2v_export.graph.from_torch import PixelFrames

    loaded = load_checkpoint(checkpoint)
    modules = {**loaded.modules, "render": PixelFrames(loaded.render).eval()}
    return {stage: TorchEngine(modules[stage], loaded.specs[stage], compiled) for stage in STAGES}
