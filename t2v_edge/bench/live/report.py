"""What `t2v_edge.bench.live.run` found: JSON, a text for people, and whether the limits that were named are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

from t2v_edge.bench.live.hostile import HostileCounts
from t2v_edge.bench.live.record import Received
from t2v_edge.bench.live.server import Trend
from t2v_edge.bench.report import table
from t2v_edge.util.timing import Latency

FORMAT = "t2v-bench-live"
SCHEMA_VERSION = 1
STAGES = ("text", "motion", "render", "encode", "send", "caption")
COLUMNS = ("", "count", "p50", "p95", "p99", "max")


@dataclass(frozen=True)
class ServerSide:
    """What the server said of a run. own: from taking a caption to its first frame being sent, the median and the
    95th percentile of the clients' sessions, the worst of them. stages: its times, of its last thousand. qualities:
    clients at the end, by d where every d-th frame is made. trend: its memory and processor."""

    own_median_ms: Optional[float]
    own_p95_ms: Optional[float]
    stages: Mapping[str, Latency]
    qualities: Mapping[str, int]
    refused: Mapping[str, int]
    trend: Trend

    def to_json(self) -> dict[str, Any]:
        stages = {
            name: {"count": t.count, "p50_ms": t.median_ms, "p95_ms": t.p95_ms, "p99_ms": t.p99_ms}
            for name, t in self.stages.items()
        }
        return {
            "caption_to_sent_median_ms": self.own_median_ms,
            "caption_to_sent_p95_ms": self.own_p95_ms,
            "stages": stages,
            "clients_by_divisor": dict(self.qualities),
            "refused": dict(self.refused),
            "memory": self.trend.to_json(),
        }


@dataclass(frozen=True)
class LiveRun:
    """One run. fps: the rate that was asked for; rates: frames a second that each client got. seen: of all clients.

    latency: from sending a caption to its first frame at the client. cue: from a cue's time to its first frame, where
    captions had times. jitter_ms: the 95th percentile of how far frames came from their own times. drift_frames: of the
    client whose stream drifted most. client_cpu: processor time over wall time of the process that measures. foes:
    what the clients of --mute and --flood did. broken: what ended it before its time.
    """

    seconds: float
    fps: float
    rates: Sequence[float]
    seen: Received
    latency: Latency
    cue: Optional[Latency]
    jitter_ms: Optional[float]
    drift_frames: Optional[float]
    client_cpu: float
    server: ServerSide
    foes: Optional[HostileCounts] = None
    broken: Optional[str] = None

    @property
    def jitter_frames(self) -> Optional[float]:
        return None if self.jitter_ms is None else self.jitter_ms * self.fps / 1000

    def to_json(self) -> dict[str, Any]:
        seen = {field.name: getattr(self.seen, field.name) for field in fields(self.seen) if field.name != "seconds"}
        times = {
            "p50_ms": self.latency.median_ms,
            "p95_ms": self.latency.p95_ms,
            "p99_ms": self.latency.p99_ms,
            "max_ms": self.latency.max_ms,
            "count": self.latency.count,
        }
        cue = (
            None
            if self.cue is None
            else {
                "p50_ms": self.cue.median_ms,
                "p95_ms": self.cue.p95_ms,
                "max_ms": self.cue.max_ms,
                "count": self.cue.count,
            }
        )
        foes = None if self.foes is None else {f.name: getattr(self.foes, f.name) for f in fields(self.foes)}
        return {
            "seconds": self.seconds,
            "fps": self.fps,
            "client_fps": list(self.rates),
            "caption_to_first_frame": times,
            "cue_to_first_frame": cue,
            "jitter_p95_ms": self.jitter_ms,
            "jitter_p95_frames": self.jitter_frames,
            "drift_frames": self.drift_frames,
            **seen,
            "lost_captions": self.seen.lost,
            "client_cpu_share": self.client_cpu,
            "server": self.server.to_json(),
            "adversaries": foes,
            "broken": self.broken,
        }


@dataclass(frozen=True)
class LiveLimits:
    """What must hold; None: whatever comes. Milliseconds, frames, percent and MiB an hour, as the names say."""

    p95_ms: Optional[float] = None
    cue_ms: Optional[float] = None
    jitter_ms: Optional[float] = None
    drift_frames: Optional[float] = None
    missed: Optional[float] = None
    slowdown_percent: Optional[float] = None
    growth_mib_per_hour: Optional[float] = None

    def broken_by(self, report: LiveReport) -> list[str]:
        """Each limit that was not kept, in words. What could not be measured keeps no limit."""
        run = report.run
        found = [] if run.broken is None else [run.broken]
        if run.seen.old:
            found.append(f"{run.seen.old} frames of an old caption came after the new one was announced; none may")
        drift = None if run.drift_frames is None else abs(run.drift_frames)
        for name, value, most, unit in (
            ("caption to first frame, p95", run.latency.p95_ms, self.p95_ms, "ms"),
            ("cue to first frame, p95", None if run.cue is None else run.cue.p95_ms, self.cue_ms, "ms"),
            ("jitter, p95", run.jitter_ms, self.jitter_ms, "ms"),
            ("drift", drift, self.drift_frames, "frames"),
            ("missed and dropped", float(run.seen.missed + run.seen.dropped), self.missed, "frames"),
            ("p95 beside adversaries", report.slowdown_percent, self.slowdown_percent, "% longer"),
            ("memory", run.server.trend.slope_mib_per_hour, self.growth_mib_per_hour, "MiB an hour"),
        ):
            if most is not None and value is None:
                found.append(f"{name}: not measured, at most {most:g} {unit} wanted; run longer")
            elif most is not None and value is not None and value > most:
                found.append(f"{name}: {value:.2f} {unit}, more than {most:g}")
        return found


@dataclass(frozen=True)
class LiveReport:
    """A live benchmark. alone: the run before `run`, of the same clients without adversaries. interrupted: whether
    somebody ended it. failed: limits that were not kept. It holds nothing of whose machine it was."""

    bundle: str
    manifest_sha256: Optional[str]
    options: Mapping[str, Any]
    size: tuple[int, int]
    format: str
    said: Mapping[str, Any]
    run: LiveRun
    alone: Optional[LiveRun]
    interrupted: bool
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str
    failed: Sequence[str] = ()

    @property
    def slowdown_percent(self) -> Optional[float]:
        """By how much the p95 of caption to first frame is longer beside adversaries than alone."""
        before = None if self.alone is None else self.alone.latency.p95_ms
        after = self.run.latency.p95_ms
        return None if before is None or after is None else 100 * (after / before - 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "date": self.date,
            "bundle": self.bundle,
            "manifest_sha256": self.manifest_sha256,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "options": dict(self.options),
            "engines": self.said.get("engines"),
            "variants": self.said.get("variants"),
            "width": self.size[0],
            "height": self.size[1],
            "frame_format": self.format,
            "interrupted": self.interrupted,
            "run": self.run.to_json(),
            "alone": None if self.alone is None else self.alone.to_json(),
            "slowdown_percent": self.slowdown_percent,
            "failed": list(self.failed),
        }

    def to_text(self) -> str:
        run, count = self.run, len(self.run.rates)
        length = f"{run.seconds:.0f} s{', interrupted' * self.interrupted}"
        lines = [
            f"{self.bundle}, live: {count} client{'s' * (count != 1)} at {run.fps:g} fps, {self.size[0]}x"
            f"{self.size[1]} {self.format}, {length}; milliseconds",
            f"on {self.machine.get('cpu')}, {self.machine.get('usable_cores')} cores",
            "",
        ]
        rows = [COLUMNS, _row("caption to first frame", run.latency)]
        if self.alone is not None:
            rows.append(_row("  without adversaries", self.alone.latency))
        if run.cue is not None:
            rows.append(_row("cue to first frame", run.cue))
        rows += [_row(f"server: {name}", run.server.stages[name]) for name in STAGES if name in run.server.stages]
        return "\n".join([*lines, *table(rows), "", *_sentences(run), *self._verdicts()])

    def _verdicts(self) -> list[str]:
        lines = []
        if self.slowdown_percent is not None:
            lines.append(f"beside adversaries the p95 is {self.slowdown_percent:+.0f} %")
        return lines + [f"not kept: {what}" for what in self.failed]


def _sentences(run: LiveRun) -> list[str]:
    seen, trend, server = run.seen, run.server.trend, run.server
    rates = ", ".join(f"{rate:.1f}" for rate in run.rates)
    lines = [
        f"frames a second, each client: {rates}; {seen.missed} missed, {seen.dropped} dropped, {seen.late} late; "
        f"{seen.old} of an old caption, {seen.replaced} of it left out"
    ]
    if run.jitter_ms is not None:
        drift = "" if run.drift_frames is None else f"; drift {run.drift_frames:+.2f} frames"
        lines.append(
            f"jitter p95 {run.jitter_ms:.1f} ms, {run.jitter_frames:.2f} frames{drift}; longest gap "
            f"{seen.gap_ms:.0f} ms"
        )
    if seen.lost or seen.overtaken:
        lines.append(f"{seen.lost} captions without a frame, {seen.overtaken} left out for a newer one")
    if server.own_p95_ms is not None:
        lines.append(
            f"the server's own figure, from a caption to its first frame sent: median "
            f"{server.own_median_ms or 0:.1f}, p95 {server.own_p95_ms:.1f}"
        )
    if trend.samples:
        slope = "" if trend.slope_mib_per_hour is None else f", {trend.slope_mib_per_hour:+.1f} MiB an hour"
        cpu = "" if trend.cpu_share is None else f"; {trend.cpu_share:.2f} cores busy, {run.client_cpu:.2f} measuring"
        lines.append(
            f"the server's memory: {trend.start_bytes / (1 << 20):.0f} MiB at first, "
            f"{trend.end_bytes / (1 << 20):.0f} at the end, {trend.peak_bytes / (1 << 20):.0f} at its highest"
            + slope
            + cpu
        )
    lower = {divisor: clients for divisor, clients in server.qualities.items() if divisor != "1" and clients}
    if lower:
        lines.append(
            "quality at the end: "
            + ", ".join(
                f"{clients} client{'s' * (clients != 1)} at 1/{divisor} of the rate"
                for divisor, clients in lower.items()
            )
        )
    if run.foes is not None:
        foes = run.foes
        lines.append(
            f"adversaries: {foes.flood_captions} captions in {foes.flood_sessions} floods, "
            f"{foes.mute_sessions} mute sessions, {foes.refused} times not let in"
        )
    return lines


def _row(name: str, latency: Latency) -> tuple[str, ...]:
    times = (latency.median_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)
    return (name, str(latency.count), *("-" if value is None else f"{value:.1f}" for value in times))
