"""Steps of the quantize pass: calibration streams, Q/DQ graphs within the recipe's bounds, and their difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import onnx

from t2v_calibration.calibration_set import CalibrationOptions, CalibrationSet, collect
from t2v_calibration.captions import load_captions
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.spec import StageSpec
from t2v_export.errors import AccuracyError
from t2v_export.graph.lint import check_lint, target_of
from t2v_export.precision.float16 import SMALL, store_half
from t2v_export.quantize.observe import Observations
from t2v_export.quantize.plan import QuantizePlan, make_plan
from t2v_export.quantize.qdq import INT8_VARIANTS, quantize
from t2v_export.quantize.sensitivity import SensitivityMetric
from t2v_export.recipe import Quantize
from t2v_export.verify.difference import ENGINE, StageDifference, compare_stage
from t2v_export.verify.reference import ReferenceRollout

Graphs = Mapping[str, onnx.ModelProto]

HELD_TEXT, HELD_MOTION, HELD_RENDER = 24, 96, 12
"""Samples of each stage to judge by. No range is read from them."""


@dataclass(frozen=True)
class StageInt8:
    """The INT8 graphs of a stage, the layers that stay in float32, and why a variant has no graph: each by variant."""

    graphs: Graphs = field(default_factory=dict)
    float32_layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def calibrate(
    graphs: Graphs,
    specs: Mapping[str, StageSpec],
    tokenizer: CaptionTokenizer,
    blend_steps: int,
    options: Quantize,
    seed: int,
) -> tuple[CalibrationSet, CalibrationSet]:
    """Two calibration sets of float32 graphs, played through the runtime's engine: one for ranges, one to judge by.

    The second is smaller and has other captions and other draws. Raises `CalibrationError` and `CaptionError`.
    """
    captions = [caption for name in options.captions for caption in load_captions(name)]
    held = min(HELD_TEXT, len(captions) // 4)
    sizes = CalibrationOptions(
        min(options.text_samples, len(captions) - held),
        options.motion_samples,
        options.render_samples,
        options.steps,
        seed,
    )
    with ExitStack() as stack:
        engines = {
            s: stack.enter_context(open_engine(ENGINE, graphs[s].SerializeToString(), specs[s], EngineOptions()))
            for s in ("text", "motion")
        }

        def play(captions: Sequence[str], sizes: CalibrationOptions) -> CalibrationSet:
            return collect(lambda s, feeds: engines[s].run(feeds), specs, tokenizer, captions, blend_steps, sizes)

        given = play(captions, sizes)
        used = {feeds["input_ids"].tobytes() for feeds in given.samples["text"]}
        others = [caption for caption in captions if tokenizer(caption).ids.tobytes() not in used]
        sizes = CalibrationOptions(HELD_TEXT, HELD_MOTION, HELD_RENDER, options.steps, seed + (1 << 32))
        return given, play(others or captions, sizes)


def quantize_stage(
    model: onnx.ModelProto,
    plan: QuantizePlan,
    seen: Observations,
    options: Quantize,
    judge: SensitivityMetric,
    ranked: Sequence[str],
    opset_cap: int,
    advance: Callable[[], object] = lambda: None,
) -> StageInt8:
    """Both INT8 variants of a float32 graph with layers to quantize, from one observation.

    Where the recipe bounds the loss (`min_psnr`, `max_error`), the first layers of `ranked` stay in float32: as few as
    the bound needs, which `judge` measures. A variant that breaks it even with all of them is refused. Large weights
    that stay in float are stored in float16. `advance` is called after each variant. Raises `CalibrationError` and
    `SpecError`.
    """
    graphs, layers, refused = {}, {}, {}
    for variant in INT8_VARIANTS:
        made = _within(model, plan, seen, options, judge, ranked, variant)
        if made is None:
            refused[variant] = f"keeps {judge.bound(options)} with no layer in INT8"
        else:
            check_lint(made[0], target_of(variant, opset_cap), judge.spec.stage, made[1].kept)
            graphs[variant], layers[variant] = store_half(made[0], judge.spec, least=SMALL + 1), made[1].kept
        advance()
    return StageInt8(graphs, layers, refused)


def _within(
    model: onnx.ModelProto,
    plan: QuantizePlan,
    seen: Observations,
    options: Quantize,
    judge: SensitivityMetric,
    ranked: Sequence[str],
    variant: str,
) -> tuple[onnx.ModelProto, QuantizePlan] | None:
    """The graph within the bound with the fewest layers of `ranked` in float32, and its plan; None without one.

    The number is found by bisection, on the assumption that more layers in float32 lose less.
    """

    def make(count: int) -> tuple[onnx.ModelProto, QuantizePlan]:
        fewer = make_plan(model, judge.spec, replace(options, keep=(*options.keep, *ranked[:count])))
        return quantize(model, judge.spec, fewer, seen, options, variant), fewer

    best = make(0)
    if not judge.bounded(options) or judge.within(judge(best[0]), options):
        return best
    found = None
    low, high = 0, len(ranked) if len(ranked) == len(plan.layers) else len(ranked) + 1
    while high - low > 1:
        middle = (low + high) // 2
        made = make(middle)
        if judge.within(judge(made[0]), options):
            found, high = made, middle
        else:
            low = middle
    return found


def measure_int8(
    graph: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout], variant: str
) -> StageDifference:
    """The difference of an INT8 graph from torch; of render also the PSNR of frames.

    INT8 has no fixed tolerance: its loss depends on the model and is written into the bundle. Raises `AccuracyError`
    for NaN or infinity.
    """
    found = compare_stage(graph, spec, rollouts)
    if not math.isfinite(found.max_abs):
        raise AccuracyError(f"{variant} {spec.stage}: gives NaN or infinity; leave layers out with keep in the recipe")
    return found
