"""The builder of a bundle's TensorRT engines: it builds them on this machine, checks and times them, and chooses.

Every engine runs the golden vectors, and a rollout that ONNX Runtime makes here of other captions and another seed. The
fastest engine within its precision's tolerance is chosen. A less exact one must be faster by more than noise. If no
engine of a stage is within tolerance, another engine runs the stage and the report says why.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import numpy as np

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import Golden
from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.engine.registry import fallback_engines, open_engine
from t2v_edge.engine.tensorrt.api import RUNS, BuildSettings, TensorRt, find_api
from t2v_edge.engine.tensorrt.cache import EngineCache
from t2v_edge.engine.tensorrt.cuda import find_gpu
from t2v_edge.engine.tensorrt.engine import TensorRtEngine
from t2v_edge.engine.tensorrt.loaded import GpuQueue
from t2v_edge.engine.tensorrt.proof import make_reference
from t2v_edge.engine.tensorrt.report import BuildReport, EngineAttempt, StageResult
from t2v_edge.errors import BundleError, EngineError, UsageError
from t2v_edge.spec import STAGES
from t2v_edge.util.strict_json import dumps, loads

MARGIN = 0.95
"""The share of a more exact engine's time that a less exact one may take at most. A smaller gain is noise."""

ROUNDS = 5
RUNS_A_ROUND = 20

_LOG = logging.getLogger(__name__)
Say = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    engine: ``tensorrt`` or ``tensorrt-rtx``. variants: those to try, None for all that it runs. settings: of every
    engine; only the renderer has its batch. rebuild: build again what the cache keeps.
    """

    engine: str = "tensorrt"
    variants: Optional[tuple[str, ...]] = None
    settings: BuildSettings = BuildSettings()
    rebuild: bool = False


@dataclass(frozen=True)
class EnginePlan:
    """The chosen engine and variant of each stage of a bundle, and how the engines were built."""

    stages: Mapping[str, tuple[str, str]]
    settings: BuildSettings

    @classmethod
    def of(cls, results: Mapping[str, StageResult], settings: BuildSettings) -> EnginePlan:
        return cls({stage: (result.engine, result.variant) for stage, result in results.items()}, settings)

    def to_bytes(self) -> bytes:
        return dumps(
            {
                "stages": {stage: list(chosen) for stage, chosen in self.stages.items()},
                "settings": self.settings.to_json(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Optional[EnginePlan]:
        """The plan that `to_bytes` wrote; None for anything else, such as a plan of another version of t2v-edge."""
        try:
            plan = loads(data, "the plan")
            stages = {str(stage): (str(engine), str(variant)) for stage, (engine, variant) in plan["stages"].items()}
            return cls(stages, BuildSettings.from_json(plan["settings"])) if set(stages) == set(STAGES) else None
        except (BundleError, UsageError, KeyError, TypeError, ValueError, AttributeError):
            return None


class Builder:
    """The builder and opener of one bundle's engines. It owns nothing that needs closing."""

    def __init__(
        self, bundle: Bundle, options: BuildOptions, cache: Optional[EngineCache] = None, say: Optional[Say] = None
    ) -> None:
        """Raises `EngineError` without TensorRT or a GPU, `UsageError` for an unknown variant."""
        self.bundle, self.options = bundle, options
        self.api: TensorRt = find_api(options.engine)
        self.gpu = find_gpu()
        self.cache = EngineCache.of_user() if cache is None else cache
        self._say = say or _LOG.info
        known = bundle.manifest.variants
        for variant in options.variants or ():
            if variant not in known:
                raise UsageError(f"variant {variant!r} is not in the bundle; choose from {', '.join(known)}")

    def candidates(self, stage: str) -> tuple[str, ...]:
        """Variants of a stage that this TensorRT takes, the most exact first."""
        variants = self.bundle.manifest.variants
        asked = [v for v in self.options.variants or () if stage in variants[v]]
        taken = [
            v
            for v in asked or variants
            if stage in variants[v]
            and variants[v][stage].precision in RUNS
            and variants[v][stage].opset <= self.api.opset_cap
        ]
        return tuple(sorted(taken, key=lambda v: RUNS.index(variants[v][stage].precision)))

    @property
    def count(self) -> int:
        """How many engines `build` will try."""
        return sum(len(self.candidates(stage)) for stage in STAGES)

    def build(self) -> BuildReport:
        """Build, check and time every candidate, choose, and keep the outcome for `open`."""
        start = time.perf_counter()
        golden = Golden.read(self.bundle)
        reference = make_reference(self.bundle)
        if golden is None and reference is None:
            raise EngineError(
                "there is nothing to prove engines by: the bundle has no golden vectors and ONNX Runtime "
                "is not installed; pip install 't2v-edge[cpu]'"
            )
        results = {}
        queue = GpuQueue().acquire()
        try:
            for stage in STAGES:
                results[stage] = self._build_stage(stage, queue, golden, reference)
        finally:
            queue.release()
        self.cache.put(self._plan_key(), EnginePlan.of(results, self.options.settings).to_bytes())
        return BuildReport(
            self.api.name, self.api.version_text, self.gpu, self.options.settings, results, time.perf_counter() - start
        )

    def open(self) -> tuple[dict[str, Engine], dict[str, str]]:
        """The chosen engines in one queue, and the variant of each stage.

        An earlier `build` of this batch and these variants counts, with any settings. Engines that are not in the cache
        are built and checked again.
        """
        plan = self.plan()
        builder = self if plan is None else self.with_settings(plan.settings)
        if plan is None or not builder._holds(plan):
            plan = EnginePlan.of(builder.build().stages, builder.options.settings)
        return builder._open(plan)

    def with_settings(self, settings: BuildSettings) -> Builder:
        """The same, building differently."""
        return Builder(self.bundle, replace(self.options, settings=settings), self.cache, self._say)

    def plan(self) -> Optional[EnginePlan]:
        """The plan of an earlier `build` of this bundle on this machine; None without one."""
        data = self.cache.get(self._plan_key())
        plan = None if data is None else EnginePlan.from_bytes(data)
        known = self.bundle.manifest.variants
        if plan is None or not all(stage in known.get(variant, {}) for stage, (_, variant) in plan.stages.items()):
            return None
        return plan

    def open_kept(self, variant: str, stage: str) -> TensorRtEngine:
        """An engine that an earlier `build` left in the cache, chosen or not, in a queue of its own.

        It builds nothing. Raises `EngineError` without such an engine.
        """
        plan = self.plan()
        builder = self if plan is None else self.with_settings(plan.settings)
        data = builder.cache.get(builder._key(variant, stage))
        if data is None:
            raise EngineError(f"no engine of {variant} {stage} has been built here; t2v-edge build {self.bundle.path}")
        queue = GpuQueue().acquire()
        try:
            spec = self.bundle.manifest.stages[stage]
            return TensorRtEngine(self.api, data, spec, queue, builder._settings(stage).batch)
        finally:
            queue.release()  # the engine has acquired it as well

    def _holds(self, plan: EnginePlan) -> bool:
        """Whether the cache has all engines of a plan, undamaged."""
        return all(
            engine != self.api.name or self.cache.get(self._key(variant, stage)) is not None
            for stage, (engine, variant) in plan.stages.items()
        )

    def _open(self, plan: EnginePlan) -> tuple[dict[str, Engine], dict[str, str]]:
        with ExitStack() as opened:
            queue = GpuQueue().acquire()
            opened.callback(queue.release)  # the engines have acquired it as well
            engines: dict[str, Engine] = {}
            failed = ExitStack()
            try:
                for stage, (name, variant) in plan.stages.items():
                    engines[stage] = failed.enter_context(self._open_stage(stage, name, variant, queue))
            except BaseException:
                failed.close()
                raise
        return engines, {stage: variant for stage, (_, variant) in plan.stages.items()}

    def _open_stage(self, stage: str, engine: str, variant: str, queue: GpuQueue) -> Engine:
        spec = self.bundle.manifest.stages[stage]
        if engine != self.api.name:
            return open_engine(engine, self.bundle.graph(variant, stage), spec, EngineOptions())
        data, _, _ = self._engine(variant, stage)
        return TensorRtEngine(self.api, data, spec, queue, self._settings(stage).batch)

    def _build_stage(
        self, stage: str, queue: GpuQueue, golden: Optional[Golden], reference: Optional[Golden]
    ) -> StageResult:
        tried: dict[str, EngineAttempt] = {}
        with ExitStack() as opened:
            right: dict[str, TensorRtEngine] = {}
            for variant in self.candidates(stage):
                self._say(f"{stage} {variant}")
                tried[variant], engine = self._try(stage, variant, queue, golden, reference)
                if engine is not None:
                    right[variant] = opened.enter_context(engine)
                if tried[variant].refused:
                    _LOG.warning("%s %s is refused: %s", stage, variant, tried[variant].refused)
            for variant, median_ms in time_in_turns(right).items():
                tried[variant] = replace(tried[variant], median_ms=median_ms)
        times = {v: t.median_ms for v, t in tried.items() if t.median_ms is not None}
        if not times:
            return self._fall_back(stage, tuple(tried.values()))
        best = fastest(times)
        shown = ", ".join(f"{v} {ms:.3f} ms" for v, ms in times.items())
        return StageResult(stage, self.api.name, best, f"measured here: {shown}", tuple(tried.values()))

    def _fall_back(self, stage: str, tried: tuple[EngineAttempt, ...]) -> StageResult:
        why = tried[-1].refused if tried else f"no variant of the bundle is for {self.api.name} {self.api.version_text}"
        others = fallback_engines()
        if not others:
            raise EngineError(f"no engine runs the {stage} stage: {why}; pip install 't2v-edge[cpu]' for one that does")
        return StageResult(stage, others[0], self.bundle.manifest.default[stage], f"fallback: {why}", tried)

    def _try(
        self, stage: str, variant: str, queue: GpuQueue, golden: Optional[Golden], reference: Optional[Golden]
    ) -> tuple[EngineAttempt, Optional[TensorRtEngine]]:
        """Build one engine and check it; the engine is None if it is refused."""
        entry = self.bundle.entry(variant, stage)
        tried = EngineAttempt(variant, entry.precision)
        engine: Optional[TensorRtEngine] = None
        try:
            data, kept, build_s = self._engine(variant, stage)
            tried = replace(tried, kept=kept, build_s=build_s, engine_bytes=len(data))
            spec = self.bundle.manifest.stages[stage]
            engine = TensorRtEngine(self.api, data, spec, queue, self._settings(stage).batch)
            tried = replace(tried, layers=engine.layers)
            for name, vectors in (("golden", golden), ("rollout", reference)):
                if vectors is None:
                    continue
                found = vectors.check(stage, engine.run)
                worst = max(found.max_rel, tried.max_rel or 0.0)
                tried = replace(
                    tried,
                    max_rel=worst if math.isfinite(worst) else None,
                    psnr_db=found.psnr_db if tried.psnr_db is None else tried.psnr_db,
                )
                tried = replace(tried, golden=str(found)) if name == "golden" else replace(tried, rollout=str(found))
                allowed = vectors.tolerance(stage, entry.precision, variant)
                if not allowed.allows(found):
                    against = "the golden vectors" if name == "golden" else "ONNX Runtime"
                    raise EngineError(f"it differs from {against} by {found}, allowed is {allowed}")
            return tried, engine
        except (EngineError, BundleError) as error:
            if engine is not None:
                engine.close()
            return replace(tried, refused=str(error)), None

    def _engine(self, variant: str, stage: str) -> tuple[bytes, bool, float]:
        """The engine's bytes, whether the cache had them, and the seconds that building took."""
        start = time.perf_counter()
        entry, graph = self.bundle.entry(variant, stage), self.bundle.graph(variant, stage)
        key = self._key(variant, stage)

        def make() -> bytes:
            timing = {"kind": "timing cache", **self._machine()}
            built = self.api.build(
                graph, entry.precision, entry.opset, self._settings(stage), self.cache.get(timing) or b""
            )
            if built.timing_cache:
                self.cache.put(timing, built.timing_cache)
            return built.engine

        if self.options.rebuild:
            data = make()
            self.cache.put(key, data)
            return data, False, time.perf_counter() - start
        data, kept = self.cache.get_or_make(key, make, lambda: self._say("another process is building it; waiting"))
        return data, kept, 0.0 if kept else time.perf_counter() - start

    def _settings(self, stage: str) -> BuildSettings:
        return self.options.settings if stage == "render" else replace(self.options.settings, batch=1)

    def _machine(self) -> dict[str, Any]:
        """The part of this machine that an engine depends on."""
        return {
            "engine": self.api.name,
            "version": self.api.version_text,
            "gpu": self.gpu.name,
            "compute_capability": self.gpu.compute_capability,
            "driver": self.gpu.driver,
        }

    def _key(self, variant: str, stage: str) -> dict[str, Any]:
        entry = self.bundle.entry(variant, stage)
        return {
            "kind": "engine",
            **self._machine(),
            "graph_sha256": self.bundle.manifest.files[entry.file].sha256,
            "precision": entry.precision,
            "typed": self.api.types(entry.precision),
            "settings": self._settings(stage).to_json(),
        }

    def _plan_key(self) -> dict[str, Any]:
        variants = None if self.options.variants is None else list(self.options.variants)
        digest = hashlib.sha256(self.bundle.manifest.to_bytes()).hexdigest()
        return {
            "kind": "plan",
            **self._machine(),
            "bundle": digest,
            "batch": self.options.settings.batch,
            "variants": variants,
        }


def time_in_turns(engines: Mapping[str, TensorRtEngine]) -> dict[str, float]:
    """Median milliseconds of a run on the GPU, by variant. Engines take turns, so that heat slows all of them."""
    times: dict[str, list[float]] = {variant: [] for variant in engines}
    for done in range(ROUNDS + 1):
        for variant, engine in engines.items():
            taken = engine.time_ms(RUNS_A_ROUND)
            if done:  # the first round warms up
                times[variant] += taken
    return {variant: float(np.median(taken)) for variant, taken in times.items()}


def fastest(times: Mapping[str, float]) -> str:
    """The variant to take. `times`: medians, the most exact first; each must beat all before it by `MARGIN`."""
    best, least = "", math.inf
    for variant, median_ms in times.items():
        if median_ms < least * MARGIN:
            best = variant
        least = min(least, median_ms)
    return best
