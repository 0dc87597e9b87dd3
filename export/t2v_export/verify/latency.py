"""Latencies of a stage on this machine, by variant and engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.engine.choice import agree
from t2v_edge.engine.registry import available_engines, open_engine
from t2v_edge.errors import EngineError
from t2v_edge.spec import Arrays, StageSpec
from t2v_export.verify.reference import ReferenceRollout

WARM_UP, MIN_RUNS, MAX_RUNS = 3, 15, 200
BUDGET_S = 1.5  # for all variants of a stage, on one engine


@dataclass(frozen=True)
class GraphLatency:
    """Median and 95th percentile of `runs` runs, in milliseconds, on the machine that exported."""

    median_ms: float
    p95_ms: float
    runs: int

    def to_json(self) -> dict[str, float]:
        return {"median_ms": round(self.median_ms, 4), "p95_ms": round(self.p95_ms, 4), "runs": self.runs}


Latencies = Mapping[str, Mapping[str, Mapping[str, GraphLatency]]]
"""By variant, stage and engine."""


def measure_latencies(
    graphs: Mapping[str, onnx.ModelProto], spec: StageSpec, rollout: ReferenceRollout
) -> dict[str, dict[str, GraphLatency]]:
    """Time a stage's variants in every installed engine, by variant and engine.

    The inputs are real, and the graphs run in turns, so that all meet the same load. An engine that cannot load a
    graph, or disagrees on it with the most preferred engine, is left out: the runtime would not choose it either.
    Raises `EngineError` if none is left.
    """
    feeds = stage_feeds(spec, rollout)
    times: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        engines = {
            (variant, engine.name): engine
            for variant, graph in graphs.items()
            for engine in _open_agreeing(stack, graph.SerializeToString(), spec, feeds)
        }
        times = {key: [] for key in engines}
        budget_s = BUDGET_S * len({name for _, name in engines})
        begun = time.perf_counter()
        for turn in range(WARM_UP + MAX_RUNS):
            for key, engine in engines.items():
                start = time.perf_counter()
                engine.run(feeds)
                if turn >= WARM_UP:
                    times[key].append((time.perf_counter() - start) * 1e3)
            if turn >= WARM_UP + MIN_RUNS and time.perf_counter() - begun > budget_s:
                break
    found: dict[str, dict[str, GraphLatency]] = {variant: {} for variant in graphs}
    for (variant, name), t in times.items():
        found[variant][name] = GraphLatency(statistics.median(t), float(np.percentile(t, 95)), len(t))
    return found


def stage_feeds(spec: StageSpec, rollout: ReferenceRollout) -> dict[str, NDArray[np.generic]]:
    """The inputs of a stage at the first step of a rollout."""
    if spec.stage == "text":
        return {"input_ids": rollout.ids, "attention_mask": rollout.mask}
    if spec.stage == "render":
        return {"motion": rollout.outputs["motion"][:1], "condition": rollout.condition, **rollout.draws.render}
    draws = rollout.draws
    return {"condition": rollout.condition, **draws.motion, **draws.steps[0], **draws.states}


def _open_agreeing(stack: ExitStack, graph: bytes, spec: StageSpec, feeds: Arrays) -> list[Engine]:
    opened: list[Engine] = []
    wanted: Arrays | None = None
    failed: EngineError | None = None
    for name in available_engines():
        try:
            engine = stack.enter_context(open_engine(name, graph, spec, EngineOptions()))
            made = engine.run(feeds)
        except EngineError as error:
            failed = failed or error
            continue
        wanted = made if wanted is None else wanted
        if agree(wanted, made):
            opened.append(engine)
    if not opened:
        raise failed or EngineError("no inference engine is installed; pip install 't2v-edge[cpu]'")
    return opened
