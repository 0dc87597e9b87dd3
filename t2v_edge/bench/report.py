"""The benchmark's report: JSON that anyone can contribute, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Optional

from t2v_edge.bench.pace import Pace
from t2v_edge.device.power import Power
from t2v_edge.spec import STAGES
from t2v_edge.util.memory import ProcessMemory
from t2v_edge.util.timing import Latency

FORMAT = "t2v-bench"
SCHEMA_VERSION = 1
MIB = 1 << 20
COLUMNS = ("", "runs", "median", "p95", "p99", "max", "jitter")


@dataclass(frozen=True)
class CaptionChange:
    """Caption changes in mid-stream, frames made as fast as they come.

    latency: from setting a caption to the first frame of its generation, with which the blend begins. most_frames: the
    most frames until that one. In real time the change takes that many frames.
    """

    latency: Latency
    most_frames: int

    def to_json(self) -> dict[str, Any]:
        return {**self.latency.to_json(), "most_frames": self.most_frames}


@dataclass(frozen=True)
class FreeRun:
    """Frames made as fast as they come. frame: the time from one to the next, as the caller sees it."""

    frames: int
    wall_s: float
    cpu_s: float
    frame: Latency

    @property
    def fps(self) -> Optional[float]:
        return self.frames / self.wall_s if self.wall_s > 0 else None

    def to_json(self) -> dict[str, Any]:
        share = self.cpu_s / self.wall_s if self.wall_s > 0 else None
        return {
            "frames": self.frames,
            "wall_s": self.wall_s,
            "fps": self.fps,
            "cpu_share": share,
            "frame": self.frame.to_json(),
        }


@dataclass(frozen=True)
class BenchReport:
    """The report of one benchmark. It has no name of a host or user, and no path.

    shown_fps: the rate that frames were made for, exact. stages: text from the first frames; the others from the run in
    real time, or without one from the free run. gpu_memory_mib: of this process. power: of the last run. date: in UTC.
    """

    bundle: str
    manifest_sha256: str
    options: Mapping[str, Any]
    size: tuple[int, int]
    shown_fps: Fraction
    base_fps: Fraction
    engines: Mapping[str, str]
    variants: Mapping[str, str]
    open_ms: float
    stages: Mapping[str, Latency]
    first_frame: Latency
    change: CaptionChange
    free: FreeRun
    real_time: Optional[Pace]
    memory: ProcessMemory
    gpu_memory_mib: Optional[float]
    power: Power
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str

    @property
    def energy_mj(self) -> Optional[float]:
        """Millijoules a frame of the whole device, None if no rail measures the device."""
        watts, fps = self.power.total_w, self.free.fps if self.real_time is None else self.real_time.fps
        return None if watts is None or fps is None else 1000 * watts / fps

    def to_json(self) -> dict[str, Any]:
        """The report as JSON. Units are in the keys; docs/benchmarking.md explains them."""
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "date": self.date,
            "bundle": self.bundle,
            "manifest_sha256": self.manifest_sha256,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "options": dict(self.options),
            "variants": dict(self.variants),
            "engines": dict(self.engines),
            "width": self.size[0],
            "height": self.size[1],
            "shown_fps": float(self.shown_fps),
            "shown_fps_exact": str(self.shown_fps),
            "base_fps": float(self.base_fps),
            "open_ms": self.open_ms,
            "stages": {stage: latency.to_json() for stage, latency in self.stages.items()},
            "caption_to_first_frame": self.first_frame.to_json(),
            "caption_change": self.change.to_json(),
            "free_run": self.free.to_json(),
            "real_time": None if self.real_time is None else self.real_time.to_json(),
            "memory": {
                "resident_mib": self.memory.resident_bytes / MIB,
                "peak_mib": self.memory.peak_bytes / MIB,
                "gpu_mib": self.gpu_memory_mib,
            },
            "power": {**self.power.to_json(), "energy_mj": self.energy_mj},
        }

    def to_text(self) -> str:
        rows = [self._row(stage, self.stages[stage]) for stage in STAGES]
        rows += [
            self._row("frame", self.free.frame),
            self._row("caption to first frame", self.first_frame),
            self._row("caption change", self.change.latency),
        ]
        if self.real_time is not None:
            rows.insert(len(STAGES) + 1, self._row("frame in real time", self.real_time.frame))
        title = (
            f"{self.bundle}: {self.size[0]}x{self.size[1]}, a stream of {float(self.shown_fps):g} fps "
            f"({float(self.base_fps):g} motion steps a second); milliseconds"
        )
        chosen = ", ".join(f"{stage} {self.variants[stage]} on {self.engines[stage]}" for stage in STAGES)
        places = [*self.machine.get("gpus", ()), self.machine.get("board") or self.machine.get("cpu")]
        if self.machine.get("jetpack"):
            places.append(f"JetPack {self.machine['jetpack']}")
        if self.machine.get("power_mode"):
            places.append(f"mode {self.machine['power_mode']}")
        where = f"on {', '.join(str(place) for place in places)}"
        return "\n".join([title, chosen, where, "", *table([COLUMNS, *rows]), "", *self._sentences()])

    @staticmethod
    def _row(name: str, latency: Latency) -> tuple[str, ...]:
        times = (latency.median_ms, latency.p95_ms, latency.p99_ms, latency.max_ms, latency.jitter_ms)
        return (name, str(latency.count), *("-" if value is None else f"{value:.2f}" for value in times))

    def _sentences(self) -> list[str]:
        how = "made ahead" if self.options.get("ahead") else "one after another"
        lines = [] if self.free.fps is None else [f"{self.free.fps:.1f} frames a second, {how}"]
        if self.real_time is not None:
            pace = self.real_time
            lines.append(
                f"in real time at {pace.fps:g} fps: {pace.late} of {pace.frames} frames late"
                + (f", by up to {pace.latest_ms:.1f} ms" if pace.late else "")
                + f"; {100 * pace.headroom:.0f} % of the time free, {pace.cpu_share:.2f} cores busy"
            )
        memory = f"memory: {self.memory.peak_bytes / MIB:.0f} MiB at its highest"
        lines.append(memory if self.gpu_memory_mib is None else f"{memory}, {self.gpu_memory_mib:.0f} MiB on the GPU")
        if self.power.mean_w:
            rails = ", ".join(f"{name} {watts:.2f} W" for name, watts in self.power.mean_w.items())
            energy = "" if self.energy_mj is None else f"; {self.energy_mj:.1f} mJ a frame"
            lines.append(f"power by {self.power.tool}: {rails}{energy}")
        else:
            lines.append(
                "power: " + ("no tool for it here" if self.power.tool is None else f"{self.power.tool} gave no value")
            )
        return lines


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines. Each column is as wide as its widest cell; the first is aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        f"  {row[0]:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))
        for row in rows
    ]
