"""The plan of an export: its passes in order, as a list."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from t2v_edge.device.profile import DeviceProfile
from t2v_edge.spec import STAGES
from t2v_export.exporter.options import ExportOptions
from t2v_export.exporter.passes.checks import check_frames_at_once, check_targets
from t2v_export.exporter.passes.choice import choose_default, keep_accuracy
from t2v_export.exporter.passes.float16 import make_float16, make_int8_float16
from t2v_export.exporter.passes.float32 import make_float32, make_references, verify_float32
from t2v_export.exporter.passes.int8 import (
    calibrate_stages,
    make_int8,
    observe_stage,
    rank_stage,
    smooth_stage,
    verify_int8,
)
from t2v_export.exporter.passes.latency import choose_upsampling, time_stage
from t2v_export.exporter.passes.stored_weights import store_8_bits, store_float32
from t2v_export.exporter.results import PassResults
from t2v_export.exporter.runner import PassContext
from t2v_export.exporter.targets import takes_half_int8, tensorrt_lines

Pass = Callable[[PassContext, PassResults], PassResults]

ONCE, NEVER = ("",), ()


@dataclass(frozen=True)
class PlannedPass:
    """One entry of the plan: `run`, for `stage` or (empty) for all. `name` is on the progress bar and in the key."""

    name: str
    run: Pass
    stage: str = ""


def plan_export(options: ExportOptions, profile: DeviceProfile) -> tuple[PlannedPass, ...]:
    """The passes of an export with these options for a device.

    A pass may find nothing to do, such as a stage without layers to quantize. It then returns the results unchanged.
    """
    half, quantize = "fp16" in options.variants, options.quantize
    int8 = tuple(s for s in STAGES if quantize and s in quantize.stages)
    stored = () if tensorrt_lines(profile) or not quantize else tuple(s for s in STAGES if s not in int8)
    # no INT8 with float16 for motion: its state would gather rounding
    typed = tuple(s for s in int8 if half and takes_half_int8(profile) and s != "motion")
    passes: tuple[tuple[str, Pass, Sequence[str]], ...] = (
        ("float32 graphs", make_float32, ONCE),
        ("torch", make_references, ONCE),
        ("upsampling", choose_upsampling, ONCE if options.measure and profile.kind == "cpu" else NEVER),
        ("float32 verified", verify_float32, ONCE),
        ("float16 {}", make_float16, STAGES if half else NEVER),
        ("calibration", calibrate_stages, ONCE if quantize else NEVER),
        ("smoothing {}", smooth_stage, int8 if quantize and quantize.smooth else NEVER),
        ("ranges {}", observe_stage, int8),
        ("sensitivity {}", rank_stage, int8),
        ("INT8 {}", make_int8, int8),
        ("INT8 {} verified", verify_int8, int8),
        ("8-bit weights of {}", store_8_bits, stored),
        ("INT8 and float16 {}", make_int8_float16, typed),
        ("float32 weights of {}", store_float32, quantize.float_weights if quantize else NEVER),
        ("targets", check_targets, ONCE),
        ("look-ahead", check_frames_at_once, ONCE),
        ("times {}", time_stage, STAGES if options.measure else NEVER),
        ("default", choose_default, ONCE),
        ("accuracy", keep_accuracy, ONCE if options.accuracy else NEVER),
    )
    return tuple(PlannedPass(name.format(stage), run, stage) for name, run, stages in passes for stage in stages)


def run_plan(plan: Sequence[PlannedPass], context: PassContext) -> PassResults:
    """Run the passes in order, each on the results of those before it."""
    results = PassResults()
    hidden = None if context.options.progress else True
    with tqdm(plan, unit="pass", file=sys.stderr, disable=hidden, leave=False) as bar:
        for planned in bar:
            bar.set_description(f"export: {planned.name}")
            results = planned.run(replace(context, name=planned.name, stage=planned.stage), results)
            bar.set_postfix_str(f"{context.runner.found} found finished" if context.runner.found else "")
    return results
