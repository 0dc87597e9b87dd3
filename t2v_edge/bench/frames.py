"""The benchmark of a bundle on this machine: stages, frames, first frames, caption changes, memory, power."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Callable, Optional, Union

from t2v_edge.bench.pace import REAL_TIME, Pace, PaceClock, keep_pace
from t2v_edge.bench.report import MIB, BenchReport, CaptionChange, FreeRun
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.device.power import PowerSampler, PowerTool, find_tool, own_gpu_memory_mib
from t2v_edge.device.system import System
from t2v_edge.engine.registry import AUTO
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.pipeline import Pipeline
from t2v_edge.play.clock import exact
from t2v_edge.play.stream import FrameStream
from t2v_edge.spec import STAGES
from t2v_edge.util.machine import machine, versions
from t2v_edge.util.memory import process_memory
from t2v_edge.util.timing import Latency

CPU_ENGINES = ("onnxruntime", "openvino")
WARM_S = 1.0
FREE_S = 5.0
"""The longest run without waiting, if one in real time follows it."""

MIN_FRAMES = 8
MAX_FRAMES = 1_000_000
MAX_CHANGE_FRAMES = 10_000
CHANGE_S = 10.0
"""Time between caption changes in real time. The text stage then runs while frames are due."""

ENGLISH = tuple(
    f"{who} is {what}"
    for who in ("a person", "a man", "a woman")
    for what in ("walking", "running", "dancing", "waving", "dribbling a basketball")
)
CHINESE = tuple(f"{who}在{what}" for who in ("一个人", "一个女人") for what in ("跑步", "跳舞", "挥手"))
CAPTIONS = (*ENGLISH, *CHINESE)
FIRSTS = 12
"""Captions whose first frame is timed. Every caption takes equally long, because all are padded to one length."""

CHANGES = 8
Advance = Callable[[str, float], object]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. Raises `UsageError` for values out of range.

    fps: frames a second, as in `StreamOptions`; if given, a run in real time is measured too. seconds: how long frames
    are played. seed: of the streams. engine, variant, threads, batch: as in `Pipeline.open`. ahead: as in
    `StreamOptions`.
    """

    fps: Union[int, float, str, None] = None
    seconds: float = 5.0
    seed: int = 0
    engine: str = AUTO
    variant: Optional[str] = None
    threads: Optional[int] = None
    batch: int = 1
    ahead: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"seconds is {self.seconds}, expected more than 0")
        if self.fps is not None and exact(self.fps, "fps") * exact(self.seconds, "seconds") > MAX_FRAMES:
            raise UsageError(
                f"{self.seconds} seconds at {self.fps} fps are more than {MAX_FRAMES} frames; give fewer --seconds"
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fps": None if self.fps is None else str(self.fps)}


def bench(
    path: Union[str, os.PathLike[str]],
    options: BenchOptions = BenchOptions(),
    advance: Advance = lambda phase, share: None,
    clock: PaceClock = REAL_TIME,
    tool: Callable[[bool], Optional[PowerTool]] = find_tool,
    system: Callable[[], System] = System.read,
) -> BenchReport:
    """Measure the bundle at `path`. Frames are made and discarded.

    The phases are: a warm-up; the first frames of new captions; changes to new captions in mid-stream; frames as fast
    as they come, for `seconds` (at most `FREE_S` with `fps`); with `fps`, frames in real time for `seconds`. Power is
    that of the last phase. advance: called with the phase and the share of it that is done. clock, tool, system: for
    tests. Raises what `Pipeline.open` and `Pipeline.stream` raise.
    """
    with Bundle.open(path) as bundle:
        manifest_sha256 = bundle.manifest_sha256
    start = clock.now()
    with Pipeline.open(
        path, options.engine, options.variant, options.threads, options.batch, ahead=options.ahead
    ) as pipeline:
        open_ms = 1000 * (clock.now() - start)
        _warm_up(pipeline, options, advance, clock)
        text, first = _first_frames(pipeline, options, advance, clock)
        change = _changes(pipeline, options, advance, clock)
        found = tool(any(name not in CPU_ENGINES for name in pipeline.engines.values()))
        real_time = None
        with PowerSampler(found if options.fps is None else None) as sampler:
            stream, free = _free_run(pipeline, options, advance, clock)
        if options.fps is not None:
            with PowerSampler(found) as sampler:
                stream, real_time = _real_time(pipeline, options, advance, clock)
        engines = sorted(set(pipeline.engines.values()))
        return BenchReport(
            bundle=pipeline.manifest.name,
            manifest_sha256=manifest_sha256,
            options=options.to_json(),
            size=stream.size,
            shown_fps=stream.clock.fps,
            base_fps=stream.clock.base_fps,
            engines=dict(pipeline.engines),
            variants=dict(pipeline.variants),
            open_ms=open_ms,
            stages={stage: text if stage == "text" else stream.stats.stages[stage] for stage in STAGES},
            first_frame=first,
            change=change,
            free=free,
            real_time=real_time,
            memory=process_memory(),
            gpu_memory_mib=None if set(engines) <= set(CPU_ENGINES) else own_gpu_memory_mib(),
            power=sampler.power,
            machine=describe_machine(system()),
            versions=versions(*engines, "onnxruntime-gpu"),
            date=time.strftime("%Y-%m-%d", time.gmtime()),
        )


def describe_machine(system: System) -> dict[str, Any]:
    """What a result depends on, without naming the machine. A value is None, or an empty list, if it has none."""
    # Under taskset or in a container these are fewer than the machine's processors.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **machine(),
        "usable_cores": usable,
        "memory_mib": system.memory_bytes and system.memory_bytes // MIB,
        "board": system.board,
        "jetpack": None if system.release is None else system.release.version,
        "power_mode": None if system.power_mode is None else system.power_mode.name,
        "gpus": list(system.gpus),
        "gpu_driver": system.driver,
    }


@contextmanager
def _playing(
    pipeline: Pipeline, options: BenchOptions, caption: str, seed: int, then: Sequence[tuple[float, str]] = ()
) -> Iterator[FrameStream]:
    stream = pipeline.stream(caption, then=then, fps=options.fps, seed=seed, ahead=options.ahead)
    try:
        yield stream
    finally:
        stream.close()


def _warm_up(pipeline: Pipeline, options: BenchOptions, advance: Advance, clock: PaceClock) -> None:
    """Let processors reach their clocks, allocators settle and engines initialise; encode the last caption."""
    with _playing(pipeline, options, CAPTIONS[-1], options.seed) as stream:
        start, done = clock.now(), 0
        while done < MIN_FRAMES or (clock.now() - start < WARM_S and done < MAX_FRAMES):
            next(stream)
            done += 1
            advance("warming up", min(1.0, (clock.now() - start) / max(WARM_S, 1e-9)))


def _first_frames(
    pipeline: Pipeline, options: BenchOptions, advance: Advance, clock: PaceClock
) -> tuple[Latency, Latency]:
    """Latency of the text stage alone, and from opening a stream to its first pixels."""
    text_ms: list[float] = []
    first_ms: list[float] = []
    for index, caption in enumerate(CAPTIONS[:FIRSTS]):
        start = clock.now()
        with _playing(pipeline, options, caption, options.seed + index) as stream:
            next(stream)
            first_ms.append(1000 * (clock.now() - start))
            median_ms = stream.stats.stages["text"].median_ms
        if median_ms is not None:
            text_ms.append(median_ms)
        advance("first frames", (index + 1) / FIRSTS)
    return Latency.of(text_ms), Latency.of(first_ms)


def _changes(pipeline: Pipeline, options: BenchOptions, advance: Advance, clock: PaceClock) -> CaptionChange:
    """Latency from setting a caption in mid-stream to the first frame of its generation."""
    times_ms: list[float] = []
    frames: list[int] = []
    with _playing(pipeline, options, CAPTIONS[-1], options.seed) as stream:
        for index, caption in enumerate(CAPTIONS[FIRSTS : FIRSTS + CHANGES]):
            for _ in range(3 + index):  # a different number each time, so that changes fall anywhere in a base step
                next(stream)
            start = clock.now()
            generation = stream.set_caption(caption)
            count = 1
            while next(stream).generation < generation:
                count += 1
                if count > MAX_CHANGE_FRAMES:
                    raise EngineError(
                        f"{MAX_CHANGE_FRAMES} frames came without a new caption; this is a bug in t2v-edge"
                    )
            times_ms.append(1000 * (clock.now() - start))
            frames.append(count)
            advance("caption changes", (index + 1) / CHANGES)
    return CaptionChange(Latency.of(times_ms), max(frames))


def _free_run(
    pipeline: Pipeline, options: BenchOptions, advance: Advance, clock: PaceClock
) -> tuple[FrameStream, FreeRun]:
    """Frames as fast as they come. The stream is returned closed, for its statistics."""
    seconds = options.seconds if options.fps is None else min(options.seconds, FREE_S)
    times_ms: list[float] = []
    with _playing(pipeline, options, CAPTIONS[-1], options.seed) as stream:
        begun = before = clock.now()
        cpu = clock.cpu()
        while len(times_ms) < MIN_FRAMES or (before - begun < seconds and len(times_ms) < MAX_FRAMES):
            next(stream)
            now = clock.now()
            times_ms.append(1000 * (now - before))
            before = now
            advance("as fast as it goes", min(1.0, (now - begun) / seconds))
        return stream, FreeRun(len(times_ms), before - begun, clock.cpu() - cpu, Latency.of(times_ms))


def _real_time(
    pipeline: Pipeline, options: BenchOptions, advance: Advance, clock: PaceClock
) -> tuple[FrameStream, Pace]:
    """Frames in real time, with a new caption every `CHANGE_S`. The stream is returned closed, for its statistics."""
    times = range(1, math.ceil(options.seconds / CHANGE_S))
    then = [(at * CHANGE_S, CAPTIONS[at % len(CAPTIONS)]) for at in times]
    with _playing(pipeline, options, CAPTIONS[-1], options.seed, then) as stream:
        frames = max(1, stream.clock.frames_in(exact(options.seconds, "seconds")))
        next(stream)
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            advance("in real time", done / frames)

        return stream, keep_pace(stream, float(stream.clock.fps), frames, clock, step)
