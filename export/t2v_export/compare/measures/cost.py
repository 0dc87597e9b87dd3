"""What a mix costs: bytes, multiply-accumulates and parameters of each stage, and its time and memory here."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from t2v_edge import Pipeline
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.draws import Tensors
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.errors import EngineError
from t2v_edge.spec import STAGES
from t2v_export.compare.measures import memory
from t2v_export.evaluate import play
from t2v_export.evaluate.mixes import EnginePool, VariantMix
from t2v_export.graph.macs import GraphCost, graph_cost

WARM_UP, MIN_TURNS, MAX_TURNS, BUDGET_S = 3, 20, 200, 30.0
MEMORY_S = 2.0
FRAME, FIRST = "frame", "caption_to_first_frame"


def static_costs(mixes: Sequence[VariantMix]) -> dict[str, dict[str, Any]]:
    """By mix: ``bytes``, ``macs`` and ``parameters`` of each stage and in all, and ``uncounted`` where some are."""
    known: dict[tuple[Any, ...], GraphCost] = {}
    costs = {}
    for mix in mixes:
        with Bundle.open(mix.bundle) as bundle:
            stages, sizes = {}, {}
            for stage in STAGES:
                variant = mix.variants[stage]
                key = (mix.bundle, variant, stage)
                if key not in known:
                    known[key] = graph_cost(onnx.load_from_string(bundle.graph(variant, stage)))
                stages[stage] = known[key]
                sizes[stage] = bundle.manifest.files[bundle.entry(variant, stage).file].bytes
        uncounted = [f"{stage}: {name}" for stage, cost in stages.items() for name in cost.uncounted]
        costs[mix.name] = {
            "bytes": _summed(sizes),
            "macs": _summed({stage: cost.macs for stage, cost in stages.items()}),
            "parameters": _summed({stage: cost.parameters for stage, cost in stages.items()}),
            **({"uncounted": uncounted} if uncounted else {}),
        }
    return costs


def _summed(parts: Mapping[str, int]) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}


def measure_latencies(
    mixes: Sequence[VariantMix],
    engine: str,
    threads: int | None,
    caption: str,
    seed: int,
    advance: Callable[[], object],
) -> dict[str, dict[str, Any]]:
    """By mix and stage, and of a whole frame (motion and render) and from a caption to its first frame: milliseconds.

    Each is ``{"p50", "p95", "p99", "runs"}``. The mixes take turns, so that all of them see the machine's load alike.
    `advance` is called after each of at most `MAX_TURNS` turns. Outputs stay on the CPU, where engines give them.
    """
    times: dict[str, dict[str, list[float]]] = {mix.name: {} for mix in mixes}
    with EnginePool(engine, threads) as pool:
        timed = {mix.name: _Timed(pool.pipeline(mix), mix, caption, seed) for mix in mixes}
        begun = time.perf_counter()
        for turn in range(WARM_UP + MAX_TURNS):
            for name, one in timed.items():
                for what, took in one.turn().items():
                    if turn >= WARM_UP:
                        times[name].setdefault(what, []).append(took)
            advance()
            if turn >= WARM_UP + MIN_TURNS and time.perf_counter() - begun > BUDGET_S:
                break
    return {name: {what: _percentiles(taken) for what, taken in found.items()} for name, found in times.items()}


class _Timed:
    """A mix's pipeline with feeds of a real stream, after a second of it."""

    def __init__(self, pipeline: Pipeline, mix: VariantMix, caption: str, seed: int) -> None:
        self._pipeline, self._caption = pipeline, caption
        with Bundle.open(mix.bundle) as bundle:
            spec = bundle.manifest.tokenizer
            self._tokenize = CaptionTokenizer(bundle.tokenizer_json, spec.tokens, spec.pad_id)
        draws = play.draws_of(pipeline, seed)
        steps = play.step_motion(pipeline, ((0, caption),), draws)
        made = [step for step, _ in zip(steps, range(pipeline.manifest.video.fps))][-1]
        self._noises: Tensors = draws.render
        self._motion = {"condition": made.condition, **draws.motion, **draws.step(), **made.states}

    def turn(self) -> dict[str, float]:
        """Milliseconds of one caption to its first frame, and of its parts."""
        start = time.perf_counter()
        tokens = self._tokenize(self._caption)
        condition = self._pipeline.run("text", {"input_ids": tokens.ids, "attention_mask": tokens.mask})["condition"]
        encoded = time.perf_counter()
        motion = self._pipeline.run("motion", {**self._motion, "condition": condition})["motion"]
        moved = time.perf_counter()
        self._pipeline.run("render", {"motion": motion, "condition": condition, **self._noises})
        drawn = time.perf_counter()
        spans = {
            "text": encoded - start,
            "motion": moved - encoded,
            "render": drawn - moved,
            FRAME: drawn - encoded,
            FIRST: drawn - start,
        }
        return {what: 1000 * span for what, span in spans.items()}


def _percentiles(taken: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(taken, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "runs": len(taken)}


def measure_memory(mix: VariantMix, engine: str, caption: str) -> int:
    """Bytes by which a fresh process grows while it opens a mix and plays two seconds; raises `EngineError`."""
    choices = [f"{stage}={variant}" for stage, variant in mix.variants.items()]
    command = [sys.executable, "-m", memory.__name__, str(mix.bundle), engine, caption, str(MEMORY_S), *choices]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(
            f"memory of {mix.name} could not be measured ({done.stderr.strip()[-300:]}); leave it out with --no-timing"
        )
    return int(done.stdout)
