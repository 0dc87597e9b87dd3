"""Sensitivity of layers to INT8: each layer alone is quantized, and judged on samples that gave no range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from t2v_calibration.calibration_set import Feeds
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.macs import node_macs
from t2v_export.graph.operators import WEIGHTED
from t2v_export.quantize.observe import Observations
from t2v_export.quantize.plan import QuantizePlan, make_plan
from t2v_export.quantize.qdq import quantize_unchecked
from t2v_export.recipe import Quantize
from t2v_export.verify.difference import ENGINE, frame_psnr

MAX_LAYERS = 64
"""The most layers of a stage that are measured: those with the most multiply-accumulates. Each needs its own graph."""

VARIANT = "int8-u8"  # the engine here has its kernels; in `int8` nearly the same layers suffer


@dataclass(frozen=True)
class Sensitivity:
    """The loss of one layer in INT8: `value`, a PSNR or an error (see `SensitivityMetric`). `macs`: of one run."""

    layer: str
    value: float
    macs: int

    def to_json(self, key: str) -> dict[str, Any]:
        return {"layer": self.layer, key: self.value, "macs": self.macs}


class SensitivityMetric:
    """The distance between a graph of a stage and its float32 graph, on held-out inputs of the stage.

    A call with a graph measures it. For render the value is the mean PSNR of uint8 frames in dB (`key` is ``psnr_db``).
    For text and motion it is that of the worst output: the root mean square of the difference, divided by that of the
    output (``error``). A motion step is judged by itself, from recorded states.
    """

    def __init__(self, model: onnx.ModelProto, spec: StageSpec, samples: Sequence[Feeds]) -> None:
        self.spec, self.samples = spec, samples
        self.key = "psnr_db" if spec.stage == "render" else "error"
        self._model = model

    @cached_property
    def _wanted(self) -> list[dict[str, NDArray[Any]]]:
        return self._run(self._model)

    def __call__(self, graph: onnx.ModelProto) -> float:
        made = self._run(graph)
        if self.key == "psnr_db":
            return frame_psnr([(m["frame"], w["frame"]) for m, w in zip(made, self._wanted)])["mean"]
        return float(f"{max(self._error(made, t.name) for t in self.spec.outputs):.4g}")

    def bounded(self, options: Quantize) -> bool:
        """Whether the recipe bounds what this stage may lose."""
        return bool(options.min_psnr if self.key == "psnr_db" else options.max_error)

    def within(self, value: float, options: Quantize) -> bool:
        """Whether a value keeps the recipe's bound for this stage; True without a bound. NaN keeps none."""
        if self.key == "psnr_db":
            return not options.min_psnr or value >= options.min_psnr
        return not options.max_error or value <= options.max_error

    def bound(self, options: Quantize) -> str:
        """The bound in words."""
        return f"min_psnr {options.min_psnr:g} dB" if self.key == "psnr_db" else f"max_error {options.max_error:g}"

    def worst_first(self, found: Sequence[Sensitivity]) -> tuple[Sensitivity, ...]:
        """The layers, the most sensitive first. Equals keep their order."""
        sign = 1 if self.key == "psnr_db" else -1
        return tuple(sorted(found, key=lambda s: sign * s.value if math.isfinite(s.value) else -math.inf))

    def _run(self, graph: onnx.ModelProto) -> list[dict[str, NDArray[Any]]]:
        with open_engine(ENGINE, graph.SerializeToString(), self.spec, EngineOptions()) as engine:
            return [engine.run(feeds) for feeds in self.samples]

    def _error(self, made: Sequence[Mapping[str, NDArray[Any]]], name: str) -> float:
        wanted = np.stack([w[name] for w in self._wanted]).astype(np.float64)
        off = np.stack([m[name] for m in made]).astype(np.float64) - wanted
        size = float(np.sqrt(np.mean(wanted**2)))
        error = float(np.sqrt(np.mean(off**2)))
        return error / size if size else error


def spared_layers(found: Sequence[Sensitivity], share: float) -> tuple[str, ...]:
    """The first of `found` that together need at most `share` of all multiply-accumulates.

    These are the most sensitive layers, and in float they cost next to nothing.
    """
    room, spared = share * sum(s.macs for s in found), list[str]()
    for one in found:
        room -= one.macs
        if room < 0 or len(spared) == len(found) - 1:
            break
        spared.append(one.layer)
    return tuple(spared)


def measure_sensitivity(
    model: onnx.ModelProto,
    plan: QuantizePlan,
    seen: Observations,
    options: Quantize,
    judge: SensitivityMetric,
    advance: Callable[[], object] = lambda: None,
) -> tuple[Sensitivity, ...]:
    """The loss of each layer of the plan alone in INT8, the most sensitive first; at most `MAX_LAYERS`.

    `seen`: the observations of the whole plan. `advance` is called after each layer.
    """
    macs = layer_macs(model)
    measured = sorted(plan.layers, key=lambda name: -macs[name])[:MAX_LAYERS]
    found = []
    for name in (layer for layer in plan.layers if layer in set(measured)):
        others = tuple(layer for layer in plan.layers if layer != name)
        alone = make_plan(model, judge.spec, replace(options, keep=(*options.keep, *others)))
        graph = quantize_unchecked(model, alone, seen, options, VARIANT)
        found.append(Sensitivity(name, judge(graph), macs[name]))
        advance()
    return judge.worst_first(found)


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """The multiply-accumulates of each node with weights in one run, by its name."""
    layers = [node for node in view.read(model, typed=True).graph if node.op_type in WEIGHTED]
    return {node.name or "": node_macs(node) for node in layers if view.is_constant(view.operand(node, 1))}
