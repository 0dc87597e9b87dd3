"""The quantize pass: calibration streams played, tensors observed, Q/DQ graphs made, linted and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from t2v_calibration.calibration_set import CalibrationOptions, CalibrationSet, collect
from t2v_calibration.captions import load_captions
from t2v_edge.engine import open_engine
from t2v_edge.engine.base import EngineOptions
from t2v_edge.spec import STAGES, StageSpec
from t2v_edge.tokenizer import CaptionTokenizer
from t2v_export.errors import AccuracyError
from t2v_export.lint import check_lint, target_of
from t2v_export.observe import observe
from t2v_export.quantize import INT8_VARIANTS, make_plan, observed_tensors, quantize
from t2v_export.recipe import Quantize
from t2v_export.reference import FRAME_STEPS, Rollout
from t2v_export.verify import ENGINE, StageDifference, compare_stage

Graphs = Mapping[str, onnx.ModelProto]


@dataclass(frozen=True)
class Quantized:
    """INT8 graphs by variant and stage, the layers of each stage kept in float32, the calibration set's SHA-256."""

    graphs: Mapping[str, Graphs]
    kept: Mapping[str, tuple[str, ...]]
    calibration_sha256: str


def make_int8(
    graphs: Graphs,
    specs: Mapping[str, StageSpec],
    tokenizer: CaptionTokenizer,
    blend_steps: int,
    options: Quantize,
    seed: int,
    opset_cap: int,
    advance: Callable[[], object] = lambda: None,
) -> Quantized:
    """Both INT8 variants of the float32 `graphs`, from one calibration set and one observation of each stage.

    A stage without layers to quantize has none. `advance` is called after the calibration streams and after each
    stage in `options.stages`. Raises
    `CalibrationError`, `CaptionError` and `SpecError`.
    """
    calibration = calibrate(graphs, specs, tokenizer, blend_steps, options, seed)
    advance()
    made: dict[str, dict[str, onnx.ModelProto]] = {variant: {} for variant in INT8_VARIANTS}
    kept = {}
    for stage in (s for s in STAGES if s in options.stages):
        model, spec = graphs[stage], specs[stage]
        plan = make_plan(model, spec, options)
        if plan.layers:
            seen = observe(model, calibration.samples[stage], *observed_tensors(model, plan))
            for variant in INT8_VARIANTS:
                graph = made[variant][stage] = quantize(model, spec, plan, seen, options, variant)
                check_lint(graph, target_of(variant, opset_cap), stage, plan.kept)
            kept[stage] = plan.kept
        advance()
    return Quantized({v: stages for v, stages in made.items() if stages}, kept, calibration.sha256)


def calibrate(
    graphs: Graphs,
    specs: Mapping[str, StageSpec],
    tokenizer: CaptionTokenizer,
    blend_steps: int,
    options: Quantize,
    seed: int,
) -> CalibrationSet:
    """The calibration set of float32 graphs: their captions played through the runtime's engine."""
    captions = [caption for name in options.captions for caption in load_captions(name)]
    sizes = CalibrationOptions(
        options.text_samples, options.motion_samples, options.render_samples, options.steps, seed
    )
    with ExitStack() as stack:
        engines = {
            s: stack.enter_context(open_engine(ENGINE, graphs[s].SerializeToString(), specs[s], EngineOptions()))
            for s in ("text", "motion")
        }
        return collect(lambda s, feeds: engines[s].run(feeds), specs, tokenizer, captions, blend_steps, sizes)


def frame_psnr(graph: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """PSNR in dB (peak 255) of a render graph's uint8 frames against torch's, over the verification rollouts: mean
    and lowest of the frames. A frame without any difference counts as 100 dB.
    """
    found = []
    with open_engine(ENGINE, graph.SerializeToString(), spec, EngineOptions()) as engine:
        for rollout in rollouts:
            feeds = {"condition": rollout.condition, **rollout.draws.render}
            for step, levels in zip(FRAME_STEPS, rollout.levels):
                motion = rollout.outputs["motion"][step : step + 1]
                frame = engine.run({"motion": motion, **feeds})["frame"][0]
                error = float(np.mean((frame.astype(np.float64) - np.rint(levels)) ** 2))
                found.append(min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0)
    return {"mean": round(float(np.mean(found)), 3), "min": round(min(found), 3), "frames": len(found)}


def measure_int8(
    made: Quantized,
    specs: Mapping[str, StageSpec],
    rollouts: Sequence[Rollout],
    advance: Callable[[], object] = lambda: None,
) -> tuple[dict[str, dict[str, StageDifference]], dict[str, dict[str, Any]]]:
    """Differences from torch by variant and stage, and the same as JSON with the PSNR of frames beside render's.

    INT8 is held to no fixed tolerance: what it loses depends on the model, is measured, and stands in the bundle.
    `advance` is called after each graph. Raises `AccuracyError` where one gives NaN or infinity.
    """
    differences: dict[str, dict[str, StageDifference]] = {}
    described: dict[str, dict[str, Any]] = {}
    for variant, graphs in made.graphs.items():
        differences[variant], described[variant] = {}, {}
        for stage, graph in graphs.items():
            found = differences[variant][stage] = compare_stage(graph, specs[stage], rollouts)
            if not math.isfinite(found.max_abs):
                raise AccuracyError(
                    f"{variant} {stage}: gives NaN or infinity; leave layers out with keep in the recipe"
                )
            described[variant][stage] = found.to_json()
            if stage == "render":
                described[variant][stage]["psnr_db"] = frame_psnr(graph, specs[stage], rollouts)
            advance()
    return differences, described
