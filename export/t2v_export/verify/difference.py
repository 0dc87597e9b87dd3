"""Differences of exported graphs from torch, by stage, run in the runtime's own engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.spec import Arrays, StageSpec, TensorSpec
from t2v_export.errors import AccuracyError
from t2v_export.graph.clean import levels_graph
from t2v_export.precision.float16 import computes_half, rounding_twin
from t2v_export.verify.reference import FRAME_STEPS, ReferenceRollout, roll_motion

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
"""Relative, by precision. float32 differs by the order of its sums, float16 by its 11 bits over some dozen layers."""
ENGINE = "onnxruntime"
NO_DIFFERENCE_DB = 100.0

Pairs = Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]
"""(made, reference) of one output."""


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference `max_abs`. `max_rel` is relative to the reference's largest absolute value."""

    max_abs: float
    max_rel: float

    def to_json(self) -> dict[str, float]:
        return {"max_abs": self.max_abs, "max_rel": self.max_rel}


@dataclass(frozen=True)
class StageDifference:
    """The differences of a stage's `outputs`, and the worst of them.

    Of render, the worst is that of `levels`, 0 to 255 before rounding. `frame` has whole levels: its smallest
    difference, at a rounding border, is 1. `by_rollout`: `max_rel` of each rollout. `psnr_db`: of render's frames,
    from `frame_psnr`.
    """

    max_abs: float
    max_rel: float
    outputs: Mapping[str, Difference] = field(default_factory=dict)
    by_rollout: tuple[float, ...] = ()
    psnr_db: Mapping[str, float] = field(default_factory=dict)

    def within(self, tolerance: float) -> bool:
        """Whether all outputs are within `tolerance`, relative."""
        frame = self.outputs.get("frame")
        return self.max_rel <= tolerance and (frame is None or frame.max_abs <= math.ceil(tolerance * 255))

    def to_json(self) -> dict[str, Any]:
        described = {
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "outputs": {n: d.to_json() for n, d in self.outputs.items()},
        }
        return {**described, "psnr_db": dict(self.psnr_db)} if self.psnr_db else described

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StageDifference:
        """The difference from `to_json`, without `by_rollout`, which is not written."""
        outputs = {n: Difference(d["max_abs"], d["max_rel"]) for n, d in data["outputs"].items()}
        return cls(data["max_abs"], data["max_rel"], outputs, psnr_db=data.get("psnr_db", {}))


def compare(pairs: Pairs) -> Difference:
    """The difference over all (made, reference) pairs of one output. It is infinite for NaN anywhere."""
    largest, scale = 0.0, 0.0
    for made, wanted in pairs:
        apart = np.abs(made.astype(np.float64) - wanted.astype(np.float64))
        largest = max(largest, float(apart.max()) if np.isfinite(apart).all() else math.inf)
        scale = max(scale, float(np.abs(wanted.astype(np.float64)).max()))
    return Difference(largest, largest / scale if scale else (0.0 if largest == 0 else math.inf))


def frame_psnr(pairs: Pairs) -> dict[str, float]:
    """PSNR in dB (peak 255) over (made, reference) pairs of uint8 frames: `mean` and `min` of the `frames`.

    A frame without any difference counts as `NO_DIFFERENCE_DB`.
    """
    found = []
    for made, wanted in pairs:
        error = float(np.mean((made.astype(np.float64) - wanted.astype(np.float64)) ** 2))
        found.append(min(NO_DIFFERENCE_DB, 10 * math.log10(255**2 / error)) if error else NO_DIFFERENCE_DB)
    return {"mean": round(float(np.mean(found)), 3), "min": round(min(found), 3), "frames": len(found)}


def compare_stage(graph: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout]) -> StageDifference:
    """The difference of one stage's graph from torch.

    Every stage gets the reference's inputs, so its difference is its own. The motion stage carries its own states
    through all steps.
    """
    return _COMPARE[spec.stage](graph, spec, rollouts)


def check_accuracy(
    variant: str, differences: Mapping[str, StageDifference], float32_layers: Mapping[str, Sequence[str]] = {}
) -> None:
    """Raise `AccuracyError` where a stage is beyond the tolerance of its precision.

    `float32_layers`: by stage, the layers that already stay in float32.
    """
    tolerance = TOLERANCES[variant]
    remedy = "export with --variants fp32, or train with smaller weights and activations"
    if variant == "fp32":
        remedy = "an operator is not exported faithfully; replace it in the stage's class, or report it"
    for stage, difference in differences.items():
        if not difference.within(tolerance):
            worst, found = max(difference.outputs.items(), key=lambda item: item[1].max_rel)
            layers = len(float32_layers.get(stage, ()))
            mixed = f" with its {layers} most sensitive layers in float32" if layers else ""
            raise AccuracyError(
                f"{variant} {stage}: {worst} differs from torch by {found.max_rel:.2g} relative{mixed}, "
                f"at most {tolerance:g} is allowed; {remedy}"
            )


def _stage(pairs: Mapping[str, Pairs], counted: Sequence[str], rollouts: int) -> StageDifference:
    """The stage's difference. `pairs`: by output one a rollout, in their order, repeated for each form of the graph."""
    outputs = {name: compare(found) for name, found in pairs.items()}
    each = tuple(max(compare(pairs[n][i::rollouts]).max_rel for n in counted) for i in range(rollouts))
    return StageDifference(
        max(outputs[n].max_abs for n in counted), max(outputs[n].max_rel for n in counted), outputs, each
    )


def _forms(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, ...]:
    """The graph, and of a float16 graph also the twin with explicit roundings: both must be near torch."""
    return (graph, rounding_twin(graph)) if computes_half(graph) else (graph,)


def _compare_text(graph: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout]) -> StageDifference:
    pairs = []
    for form in _forms(graph):
        with open_engine(ENGINE, form.SerializeToString(), spec, EngineOptions()) as engine:
            pairs += [
                (engine.run({"input_ids": r.ids, "attention_mask": r.mask})["condition"], r.condition) for r in rollouts
            ]
    return _stage({"condition": pairs}, ["condition"], len(rollouts))


def _compare_motion(graph: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout]) -> StageDifference:
    with open_engine(ENGINE, graph.SerializeToString(), spec, EngineOptions()) as engine:
        made = [roll_motion(spec, engine.run, r.condition, r.draws) for r in rollouts]
    names = [t.name for t in spec.outputs]
    pairs = {n: [(m[n], r.outputs[n]) for m, r in zip(made, rollouts)] for n in names}
    return _stage(pairs, names, len(rollouts))


def _compare_render(graph: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout]) -> StageDifference:
    frame = spec.results[0]
    both = StageSpec(spec.stage, spec.feeds, (frame, TensorSpec("levels", frame.shape)), spec.noises)
    made: list[dict[str, NDArray[np.generic]]] = []
    for form in _forms(levels_graph(graph)):
        with open_engine(ENGINE, form.SerializeToString(), both, EngineOptions()) as engine:
            made += [_frames(engine, r) for r in rollouts]
    levels = [(m["levels"], r.levels) for m, r in zip(made, [*rollouts, *rollouts])]
    frames = [(m["frame"], np.rint(r.levels)) for m, r in zip(made, rollouts)]
    each = [pair for made_frames, wanted in frames for pair in zip(made_frames, wanted)]
    return replace(_stage({"levels": levels, "frame": frames}, ["levels"], len(rollouts)), psnr_db=frame_psnr(each))


def _frames(engine: Engine, rollout: ReferenceRollout) -> dict[str, NDArray[np.generic]]:
    """`frame` and `levels` of the steps `FRAME_STEPS`, each (frames, H, W, 3)."""
    feeds: Arrays = {"condition": rollout.condition, **rollout.draws.render}
    motions = [rollout.outputs["motion"][step : step + 1] for step in FRAME_STEPS]
    made = [engine.run({"motion": motion, **feeds}) for motion in motions]
    return {name: np.concatenate([m[name] for m in made]) for name in ("frame", "levels")}


_COMPARE = {"text": _compare_text, "motion": _compare_motion, "render": _compare_render}
