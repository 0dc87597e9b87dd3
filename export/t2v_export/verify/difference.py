"""Comparison of exported graphs with torch, stage by stage, through the runtime's own engine."""

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
from t2v_edge.spec import STAGES, Arrays, StageSpec, TensorSpec
from t2v_export.errors import AccuracyError
from t2v_export.graph.clean import levels_graph
from t2v_export.precision.float16 import computes_half, rounding_twin
from t2v_export.verify.reference import FRAME_STEPS, ReferenceRollout, roll_motion

# Relative, by precision: float32 differs by the order of its sums, float16 by its 11 bits over some dozen layers.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
ENGINE = "onnxruntime"
NO_DIFFERENCE_DB = 100.0


@dataclass(frozen=True)
class Difference:
    """`max_abs`: largest absolute difference; `max_rel`: that by the largest absolute value of the reference."""

    max_abs: float
    max_rel: float

    def to_json(self) -> dict[str, float]:
        return {"max_abs": self.max_abs, "max_rel": self.max_rel}


@dataclass(frozen=True)
class StageDifference:
    """The worst of a stage's outputs, and each of them.

    Of render, `levels` (0 to 255 before rounding) counts; `frame` counts whole uint8 levels, for which the smallest
    difference at a rounding border is 1. `by_rollout`: `max_rel` of each rollout by itself. `psnr_db`: of render's
    frames, as `frame_psnr` gives it.
    """

    max_abs: float
    max_rel: float
    outputs: Mapping[str, Difference] = field(default_factory=dict)
    by_rollout: tuple[float, ...] = ()
    psnr_db: Mapping[str, float] = field(default_factory=dict)

    def within(self, tolerance: float) -> bool:
        """Whether no output differs by more than `tolerance`, relative."""
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
        """The same again, but for `by_rollout`, which is not written."""
        outputs = {n: Difference(d["max_abs"], d["max_rel"]) for n, d in data["outputs"].items()}
        return cls(data["max_abs"], data["max_rel"], outputs, psnr_db=data.get("psnr_db", {}))


def compare(pairs: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> Difference:
    """Difference over all (made, reference) pairs of one output; NaN anywhere makes it infinite."""
    largest, scale = 0.0, 0.0
    for made, wanted in pairs:
        apart = np.abs(made.astype(np.float64) - wanted.astype(np.float64))
        largest = max(largest, float(apart.max()) if np.isfinite(apart).all() else math.inf)
        scale = max(scale, float(np.abs(wanted.astype(np.float64)).max()))
    return Difference(largest, largest / scale if scale else (0.0 if largest == 0 else math.inf))


def frame_psnr(pairs: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> dict[str, float]:
    """PSNR in dB (peak 255) over (made, reference) pairs of uint8 frames: `mean` and `min` of the `frames`. A frame
    without any difference counts as `NO_DIFFERENCE_DB`.
    """
    found = []
    for made, wanted in pairs:
        error = float(np.mean((made.astype(np.float64) - wanted.astype(np.float64)) ** 2))
        found.append(min(NO_DIFFERENCE_DB, 10 * math.log10(255**2 / error)) if error else NO_DIFFERENCE_DB)
    return {"mean": round(float(np.mean(found)), 3), "min": round(min(found), 3), "frames": len(found)}


def compare_stage(graph: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout]) -> StageDifference:
    """Difference of one stage's graph from torch.

    Every stage gets the reference's inputs, so that each difference is its own; the motion stage carries its own
    states through all steps.
    """
    return _COMPARE[spec.stage](graph, spec, rollouts)


def compare_variant(
    graphs: Mapping[str, onnx.ModelProto], specs: Mapping[str, StageSpec], rollouts: Sequence[ReferenceRollout]
) -> dict[str, StageDifference]:
    """Differences of a variant's stages from torch, as `compare_stage` finds them."""
    return {stage: compare_stage(graphs[stage], specs[stage], rollouts) for stage in STAGES}


def check_accuracy(
    variant: str, differences: Mapping[str, StageDifference], kept: Mapping[str, Sequence[str]] = {}
) -> None:
    """Raise `AccuracyError` where a stage is beyond the tolerance of its precision.

    `kept`: by stage, the layers that already stay in float32.
    """
    tolerance = TOLERANCES[variant]
    remedy = "export with --variants fp32, or train with smaller weights and activations"
    if variant == "fp32":
        remedy = "an operator is not exported faithfully; replace it in the stage's class, or report it"
    for stage, difference in differences.items():
        if not difference.within(tolerance):
            worst, found = max(difference.outputs.items(), key=lambda item: item[1].max_rel)
            mixed = f" with its {len(kept[stage])} most sensitive layers in float32" if kept.get(stage) else ""
            raise AccuracyError(
                f"{variant} {stage}: {worst} differs from torch by {found.max_rel:.2g} relative{mixed}, "
                f"at most {tolerance:g} is allowed; {remedy}"
            )


Pairs = Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]


def _stage(pairs: Mapping[str, Pairs], counted: Sequence[str], rollouts: int) -> StageDifference:
    """`pairs`: by output one for each rollout, in their order, and that again for each form of the graph."""
    outputs = {name: compare(found) for name, found in pairs.items()}
    each = tuple(max(compare(pairs[n][i::rollouts]).max_rel for n in counted) for i in range(rollouts))
    return StageDifference(
        max(outputs[n].max_abs for n in counted), max(outputs[n].max_rel for n in counted), outputs, each
    )


def _forms(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, ...]:
    """The graph, and for a float16 one its twin with every rounding in the open: both must be near torch."""
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
