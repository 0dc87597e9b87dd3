"""How long a stage takes on this machine, and which variant a device should run by default."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from t2v_edge.device import DeviceProfile
from t2v_edge.engine import open_engine
from t2v_edge.engine.base import EngineOptions
from t2v_edge.spec import STAGES, StageSpec
from t2v_export.reference import Rollout
from t2v_export.verify import ENGINE

WARM_UP, MIN_RUNS, MAX_RUNS, BUDGET_S = 3, 15, 200, 1.5
# A less exact variant must be this much faster: medians on a shared machine differ by some percent by themselves.
MARGIN = 0.95


@dataclass(frozen=True)
class Latency:
    """Median and 95th percentile of `runs` runs, in milliseconds, on the machine that exported."""

    median_ms: float
    p95_ms: float
    runs: int

    def to_json(self) -> dict[str, float]:
        return {"median_ms": round(self.median_ms, 4), "p95_ms": round(self.p95_ms, 4), "runs": self.runs}


def measure_latencies(graphs: Mapping[str, onnx.ModelProto], spec: StageSpec, rollout: Rollout) -> dict[str, Latency]:
    """Time a stage's variants in the runtime's CPU engine on real inputs, in turns, so that all see the same load."""
    feeds: dict[str, NDArray[np.generic]] = {"input_ids": rollout.ids, "attention_mask": rollout.mask}
    if spec.stage == "motion":
        feeds = {
            "condition": rollout.condition,
            **rollout.draws.motion,
            **rollout.draws.steps[0],
            **rollout.draws.states,
        }
    elif spec.stage == "render":
        feeds = {"motion": rollout.outputs["motion"][:1], "condition": rollout.condition, **rollout.draws.render}
    times: dict[str, list[float]] = {variant: [] for variant in graphs}
    with ExitStack() as stack:
        engines = {
            variant: stack.enter_context(open_engine(ENGINE, graph.SerializeToString(), spec, EngineOptions()))
            for variant, graph in graphs.items()
        }
        begun = time.perf_counter()
        for turn in range(WARM_UP + MAX_RUNS):
            for variant, engine in engines.items():
                start = time.perf_counter()
                engine.run(feeds)
                if turn >= WARM_UP:
                    times[variant].append((time.perf_counter() - start) * 1e3)
            if turn >= WARM_UP + MIN_RUNS and time.perf_counter() - begun > BUDGET_S:
                break
    return {v: Latency(statistics.median(t), float(np.percentile(t, 95)), len(t)) for v, t in times.items()}


def choose_default(
    profile: DeviceProfile, variants: tuple[str, ...], latencies: Mapping[str, Mapping[str, Latency]]
) -> dict[str, tuple[str, str]]:
    """For each stage the default variant and why. No stage gets a precision that did not measure faster than every
    more exact one, in the order of the profile's `precisions`.

    On a CPU what was measured here decides. Elsewhere nothing was measured: the profile's float16 goes to the
    feed-forward stages, the recurrent step stays fp32, for a batch-1 step gains nothing from it, and INT8, which
    does not always pay, to none.
    """
    chosen = {}
    for stage in STAGES:
        offered = [v for v in profile.precisions if v in variants]
        if len(offered) < 2:
            chosen[stage] = ("fp32", f"fp16 is not exported, or not among {profile.name}'s precisions")
        elif profile.kind == "cpu":
            chosen[stage] = _fastest({v: latencies[v][stage] for v in offered if stage in latencies.get(v, {})})
        elif stage == "motion" or "fp16" not in offered:
            why = "recurrent state: fp16 gains nothing at batch 1"
            chosen[stage] = ("fp32", why if stage == "motion" else "fp16 is not exported, INT8 not measured there")
        else:
            chosen[stage] = ("fp16", f"{profile.name} computes fp16; not measured on it")
    return chosen


def _fastest(measured: Mapping[str, Latency]) -> tuple[str, str]:
    """The variant that is faster by `MARGIN` than all before it, or fp32, and what was measured."""
    if not measured:
        return ("fp32", "not measured")
    best, fastest = "fp32", measured["fp32"].median_ms
    for variant, latency in measured.items():
        if latency.median_ms < fastest * MARGIN:
            best = variant
        fastest = min(fastest, latency.median_ms)
    return (best, "measured here: " + ", ".join(f"{v} {x.median_ms:.3g} ms" for v, x in measured.items()))
