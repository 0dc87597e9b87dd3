"""What is measured of one method on one model: stages, streams, first frames, errors, memory, busy time."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch._dynamo  # reset between methods
from torch import Tensor

from benchmarks.common.process import MEGABYTE
from benchmarks.common.results import covered, latency, psnr_db
from benchmarks.gpu.material import Material
from benchmarks.gpu.methods import COMPILE, ONNX, GpuMethod
from benchmarks.gpu.ort import OnnxRunner
from benchmarks.gpu.player import Call, Place, Player, Runner
from benchmarks.gpu.pytorch import TorchRunner
from t2v_export.exporter.captions import DEFAULT_CAPTIONS

WARM = 10
FEWEST = 20
"""Runs that are timed at least, however long they take."""
LEAST_S, MOST_S = 0.5, 2.0
"""Seconds of a stream at least, and of a stream or of a stage's runs at most."""
PROFILED = 30  # calls whose busy time is read
LIMIT = 4000  # characters kept of a traceback


@dataclass(frozen=True)
class MeasureOptions:
    """`runs` of each stage and frames of each stream, look-ahead `batches`; after `seconds` none of these is begun."""

    runs: int = 200
    batches: tuple[int, ...] = (4, 8)
    seconds: float = 20.0
    seed: int = 0


class Budget:
    """Seconds that may be spent from now on."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._begun, self._seconds = now, now(), seconds

    @property
    def spent(self) -> float:
        return self._now() - self._begun

    @property
    def over(self) -> bool:
        return self.spent >= self._seconds


def make_runner(method: GpuMethod, material: Material, place: Place) -> Runner:
    """A method's runner. Raises `NotInstalled`, and what its library raises."""
    with torch.inference_mode(False):
        return (OnnxRunner if method.runner == ONNX else TorchRunner)(method, material, place)


def measure(method: GpuMethod, material: Material, place: Place, options: MeasureOptions) -> dict[str, Any]:
    """All figures of a method but its busy time. Raises `NotInstalled`, and what its library raises."""
    budget = Budget(options.seconds)
    free = _forget(place)
    runner = make_runner(method, material, place)
    setup: dict[str, float] = {}
    stages: dict[str, Any] = {}
    with torch.inference_mode(), place.current():
        makers = {"render": lambda: runner.render(1), "motion": runner.motion, "text": runner.text}
        for stage, make in makers.items():
            begun = budget.spent
            call = make()
            samples = device_samples(material, stage, runner, 1)
            _warm(call, samples, place)
            setup[stage] = budget.spent - begun
            stages[stage] = time_call(call, samples, place, options.runs)
        found: dict[str, Any] = {
            "setup_s": setup,
            "stages": stages,
            "errors": {**stage_errors(runner, material), "frames": {"1": frame_errors(runner, material, 1)}},
            "streams": {},
            "first_frame_ms": None,
        }
        player = runner.player(1)
        found["streams"]["1"] = time_stream(player, options.seed, options.runs)
        found["first_frame_ms"] = first_frames(player, material.captions, options.seed)
        for batch in options.batches:
            look_ahead(runner, material, batch, options, budget, found)
        place.synchronize()
    used = (
        {
            "peak_allocated_mib": torch.cuda.max_memory_allocated(place.device) / MEGABYTE,
            "peak_reserved_mib": torch.cuda.max_memory_reserved(place.device) / MEGABYTE,
            "device_mib": (free - torch.cuda.mem_get_info(place.device)[0]) / MEGABYTE,
        }
        if place.on_gpu
        else None
    )
    if method.runner == COMPILE:
        counters = torch._dynamo.utils.counters
        # Three stages and the look-ahead batches: more graphs mean that something was compiled twice.
        runner.notes["compiled_graphs"] = counters["stats"]["unique_graphs"]
        runner.notes["cudagraph_skips"] = counters["inductor"]["cudagraph_skips"]
    return {**found, "memory": used, "notes": runner.notes, "seconds": budget.spent}


def look_ahead(
    runner: Runner, material: Material, batch: int, options: MeasureOptions, budget: Budget, found: dict[str, Any]
) -> None:
    """Add the figures of one look-ahead batch to `found`, or why it has none."""
    name = str(batch)
    if budget.over:
        found["streams"][name] = {"skipped": f"the method's {options.seconds:g} s were over"}
        return
    try:
        begun = budget.spent
        call, samples = runner.render(batch), device_samples(material, "render", runner, batch)
        _warm(call, samples, runner.place)
        found["setup_s"][f"render_{name}"] = budget.spent - begun
        found["stages"][f"render_{name}"] = time_call(call, samples, runner.place, options.runs)
        found["errors"]["frames"][name] = frame_errors(runner, material, batch)
        player = runner.player(batch)
        found["streams"][name] = time_stream(player, options.seed, options.runs)
    except Exception as error:  # noqa: BLE001 a library may refuse a batch in any way; batch 1 has been measured
        found["streams"][name] = {"failed": f"{type(error).__name__}: {error}", "traceback": trace()}


def trace() -> str:
    """The traceback of the exception being handled, its end."""
    return traceback.format_exc()[-LIMIT:]


def device_samples(material: Material, stage: str, runner: Runner, batch: int) -> list[list[Tensor]]:
    """Inputs of a stage on the device, one set for each sample; in a batch those after it join it."""
    found, made = material.samples[stage], []
    for first in range(len(found)):
        rows = [found[(first + row) % len(found)] for row in range(batch)]
        tensors = [torch.from_numpy(np.concatenate(arrays)).to(runner.place.device) for arrays in zip(*rows)]
        made.append([t.to(runner.dtype) if t.is_floating_point() else t for t in tensors])
    return made


def _warm(call: Call, samples: Sequence[Sequence[Tensor]], place: Place) -> None:
    for index in range(WARM):
        call.feed(samples[index % len(samples)])
        call.run()
    place.synchronize()


def time_call(call: Call, samples: Sequence[Sequence[Tensor]], place: Place, runs: int) -> dict[str, Any]:
    """One run at a time on rotated inputs, each from an idle GPU.

    `gpu_ms`: between CUDA events around the run. Gaps in which the GPU waits for the host count. None on a CPU.
    `wall_ms`: from the call to the end of the wait for it.
    """
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if place.on_gpu else []
    on_gpu, wall, limit = [], [], Budget(MOST_S)
    for index in range(runs):
        if index >= FEWEST and limit.over:
            break
        call.feed(samples[index % len(samples)])
        place.synchronize()
        start = time.perf_counter()
        if events:
            events[0].record(place.stream)
        call.run()
        if events:
            events[1].record(place.stream)
            events[1].synchronize()
        wall.append(1000 * (time.perf_counter() - start))
        if events:
            on_gpu.append(events[0].elapsed_time(events[1]))
    return {"gpu_ms": latency(on_gpu) if on_gpu else None, "wall_ms": latency(wall)}


def time_stream(player: Player, seed: int, frames: int) -> dict[str, Any]:
    """Frames back to back, a motion step for each; `call_ms` of calls that make a batch each, with copy and wait."""
    player.start(DEFAULT_CAPTIONS[0], seed)
    for _ in range(WARM):
        player.advance()
    took: list[float] = []
    least, most = Budget(LEAST_S), Budget(MOST_S)
    while len(took) < FEWEST or not (most.over or (least.over and len(took) * player.batch >= frames)):
        start = time.perf_counter()
        player.advance()
        took.append(1000 * (time.perf_counter() - start))
    return {
        "fps": 1000 * len(took) * player.batch / sum(took),
        "frames": len(took) * player.batch,
        "call_ms": latency(took),
        "busy_ms": None,
        "idle_share": None,
    }


def first_frames(player: Player, captions: Sequence[str], seed: int) -> dict[str, float]:
    """From a caption that was never seen to the first frame of it in pinned memory, batch 1."""
    player.start(DEFAULT_CAPTIONS[0], seed)
    for caption in DEFAULT_CAPTIONS[1:4]:
        player.caption(caption)
        player.advance()
    took = []
    for caption in captions:
        start = time.perf_counter()
        player.caption(caption)
        player.advance()
        took.append(1000 * (time.perf_counter() - start))
    return latency(took)


def stage_errors(runner: Runner, material: Material) -> dict[str, float | None]:
    """Largest differences from FP32 on the CPU: of a condition, and of a motion after one step from the same state.

    None where a method gives NaN or infinity.
    """
    found: dict[str, float | None] = {}
    for stage, call, name in (("text", runner.text(), "condition_max"), ("motion", runner.motion(), "motion_max")):
        off = []
        for sample, wanted in zip(device_samples(material, stage, runner, 1), material.wanted[stage]):
            call.feed(sample)
            off.append(np.abs(call.run()[0].float().cpu().numpy() - wanted).max())
        found[name] = float(max(off)) if np.isfinite(off).all() else None
    return found


def frame_errors(runner: Runner, material: Material, batch: int) -> dict[str, float]:
    """Of frames for the same inputs, against FP32 on the CPU: PSNR in dB, and the largest difference in levels."""
    call, wanted = runner.render(batch), material.wanted["render"]
    psnr, off = [], 0
    for first, sample in enumerate(device_samples(material, "render", runner, batch)):
        call.feed(sample)
        frames = call.run()[0].cpu().numpy()
        for row, frame in enumerate(frames):
            known = wanted[(first + row) % len(wanted)][0]
            psnr.append(psnr_db(frame, known))
            off = max(off, int(np.abs(frame.astype(np.int16) - known).max()))
    return {"psnr_db": float(np.mean(psnr)), "psnr_min_db": min(psnr), "max_levels": off}


def busy_times(
    method: GpuMethod, material: Material, place: Place, batches: Sequence[int], seed: int
) -> dict[str, Any]:
    """Batch -> milliseconds a call in which the GPU ran a kernel or a copy, read by torch.profiler.

    Runs that overlap count once. The profiler slows the host, even after it is closed. So this comes after everything
    that is timed. The profiler does not change what kernels take.
    """
    _forget(place)
    runner = make_runner(method, material, place)
    found: dict[str, Any] = {}
    with torch.inference_mode(), place.current():
        for batch in batches:
            player = runner.player(batch)
            player.start(DEFAULT_CAPTIONS[0], seed)
            for _ in range(WARM):
                player.advance()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(PROFILED):
                    player.advance()
                place.synchronize()
            intervals = gpu_intervals(profile.events())
            found[str(batch)] = covered(intervals) / 1000 / PROFILED if intervals else None
    return found


def gpu_intervals(events: Any) -> list[tuple[float, float]]:
    """(start, end) in microseconds of what ran on the GPU, without the regions that programs mark by name."""
    kind = torch.autograd.DeviceType.CUDA
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == kind
        and not getattr(event, "is_user_annotation", False)
        and not event.name.startswith(("ProfilerStep", "## Call"))
    ]


def with_busy(streams: dict[str, Any], busy: dict[str, Any]) -> dict[str, Any]:
    """Streams with their busy time and idle share: 1 - busy / wall, wall from the timed run without the profiler."""
    done = {}
    for batch, stream in streams.items():
        wall = 1000 * int(batch) / stream["fps"] if "fps" in stream else None
        known = busy.get(batch)
        done[batch] = (
            stream
            if wall is None or known is None
            else {**stream, "busy_ms": known, "idle_share": max(0.0, 1 - known / wall)}
        )
    return done


def _forget(place: Place) -> int:
    """Drop what earlier methods left; returns the bytes of the GPU that are free."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    if not place.on_gpu:
        return 0
    torch.cuda.synchronize(place.device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(place.device)
    free: int = torch.cuda.mem_get_info(place.device)[0]
    return free
