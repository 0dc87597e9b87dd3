"""The live benchmark's report as JSON and as text, and the limits that it may be held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """The server's own figures of a run.

    own_median_ms, own_p95_ms: from taking a caption to sending its first frame, of the session with the highest value.
    stages: latencies of its last thousand runs. qualities: clients at the end, by divisor d, with which every d-th
    frame is made. refused: connections by error code. trend: its memory and processor time.
    """

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
    """One run of a live benchmark.

    fps: the rate that was asked for. rates: frames a second that each client got. received: counts of all clients.
    latency: from sending a caption to its first frame at the client. cue: from a cue's time to its first frame, None
    for captions without times. jitter_ms: 95th percentile. drift_frames: of the client that drifted most. client_cpu:
    processor time over wall time of the measuring process. hostile: counts of the --mute and --flood clients. broken:
    why the run ended early, None if it did not.
    """

    seconds: float
    fps: float
    rates: Sequence[float]
    received: Received
    latency: Latency
    cue: Optional[Latency]
    jitter_ms: Optional[float]
    drift_frames: Optional[float]
    client_cpu: float
    server: ServerSide
    hostile: Optional[HostileCounts] = None
    broken: Optional[str] = None

    @property
    def jitter_frames(self) -> Optional[float]:
        return None if self.jitter_ms is None else self.jitter_ms * self.fps / 1000

    def to_json(self) -> dict[str, Any]:
        received = {name: value for name, value in asdict(self.received).items() if name != "seconds"}
        cue = None if self.cue is None else {k: v for k, v in _times(self.cue).items() if k != "p99_ms"}
        return {
            "seconds": self.seconds,
            "fps": self.fps,
            "client_fps": list(self.rates),
            "caption_to_first_frame": _times(self.latency),
            "cue_to_first_frame": cue,
            "jitter_p95_ms": self.jitter_ms,
            "jitter_p95_frames": self.jitter_frames,
            "drift_frames": self.drift_frames,
            **received,
            "lost_captions": self.received.lost,
            "client_cpu_share": self.client_cpu,
            "server": self.server.to_json(),
            "adversaries": None if self.hostile is None else asdict(self.hostile),
            "broken": self.broken,
        }


@dataclass(frozen=True)
class LiveLimits:
    """The most that is allowed, None for no limit. Units are in the names; drift and missed are in frames."""

    p95_ms: Optional[float] = None
    cue_ms: Optional[float] = None
    jitter_ms: Optional[float] = None
    drift_frames: Optional[float] = None
    missed: Optional[float] = None
    slowdown_percent: Optional[float] = None
    loss_percent: Optional[float] = None
    growth_mib_per_hour: Optional[float] = None

    def broken_by(self, report: LiveReport) -> list[str]:
        """A sentence for each limit that was not kept. A value that was not measured does not keep its limit."""
        run = report.run
        found = [] if run.broken is None else [run.broken]
        if run.received.old:
            found.append(f"{run.received.old} frames of an old caption came after the new one was announced; none may")
        drift = None if run.drift_frames is None else abs(run.drift_frames)
        for name, value, most, unit in (
            ("caption to first frame, p95", run.latency.p95_ms, self.p95_ms, "ms"),
            ("cue to first frame, p95", None if run.cue is None else run.cue.p95_ms, self.cue_ms, "ms"),
            ("jitter, p95", run.jitter_ms, self.jitter_ms, "ms"),
            ("drift", drift, self.drift_frames, "frames"),
            ("missed and dropped", float(run.received.missed + run.received.dropped), self.missed, "frames"),
            ("p95 with adversaries", report.slowdown_percent, self.slowdown_percent, "% longer"),
            ("frames with adversaries", report.loss_percent, self.loss_percent, "% fewer"),
            ("memory", run.server.trend.slope_mib_per_hour, self.growth_mib_per_hour, "MiB an hour"),
        ):
            if most is not None and value is None:
                found.append(f"{name}: not measured, at most {most:g} {unit} wanted; run longer")
            elif most is not None and value is not None and value > most:
                found.append(f"{name}: {value:.2f} {unit}, more than {most:g}")
        return found


@dataclass(frozen=True)
class LiveReport:
    """The report of a live benchmark. It does not name the machine or its user.

    alone: the same run without hostile clients, made before `run`. announced: what the server printed when it started.
    interrupted: whether a signal ended it. failed: a sentence for each limit that was not kept.
    """

    bundle: str
    manifest_sha256: Optional[str]
    options: Mapping[str, Any]
    size: tuple[int, int]
    format: str
    announced: Mapping[str, Any]
    run: LiveRun
    alone: Optional[LiveRun]
    interrupted: bool
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str
    failed: Sequence[str] = ()

    @property
    def slowdown_percent(self) -> Optional[float]:
        """By how much hostile clients lengthen the p95 of caption to first frame."""
        before = None if self.alone is None else self.alone.latency.p95_ms
        after = self.run.latency.p95_ms
        return None if before is None or after is None else 100 * (after / before - 1)

    @property
    def loss_percent(self) -> Optional[float]:
        """By how much hostile clients lower the frames a second, of the client that loses most."""
        if self.alone is None:
            return None
        return max(
            (100 * (1 - after / before) for before, after in zip(self.alone.rates, self.run.rates) if before > 0),
            default=None,
        )

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
            "engines": self.announced.get("engines"),
            "variants": self.announced.get("variants"),
            "width": self.size[0],
            "height": self.size[1],
            "frame_format": self.format,
            "interrupted": self.interrupted,
            "run": self.run.to_json(),
            "alone": None if self.alone is None else self.alone.to_json(),
            "slowdown_percent": self.slowdown_percent,
            "loss_percent": self.loss_percent,
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
            lines.append(f"with adversaries the p95 is {self.slowdown_percent:+.0f} %")
        if self.loss_percent is not None and self.alone is not None:
            rates = ", ".join(f"{rate:.1f}" for rate in self.alone.rates)
            lines.append(f"without adversaries: {rates} frames a second; at most {self.loss_percent:.0f} % are lost")
        return lines + [f"not kept: {what}" for what in self.failed]


def _sentences(run: LiveRun) -> list[str]:
    counts, trend, server = run.received, run.server.trend, run.server
    rates = ", ".join(f"{rate:.1f}" for rate in run.rates)
    lines = [
        f"frames a second, each client: {rates}; {counts.missed} missed, {counts.dropped} dropped, {counts.late} late; "
        f"{counts.old} of an old caption, {counts.replaced} of it left out"
    ]
    if run.jitter_ms is not None:
        drift = "" if run.drift_frames is None else f"; drift {run.drift_frames:+.2f} frames"
        lines.append(
            f"jitter p95 {run.jitter_ms:.1f} ms, {run.jitter_frames:.2f} frames{drift}; longest gap "
            f"{counts.gap_ms:.0f} ms"
        )
    if counts.lost or counts.overtaken:
        lines.append(f"{counts.lost} captions without a frame, {counts.overtaken} left out for a newer one")
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
    if run.hostile is not None:
        hostile = run.hostile
        lines.append(
            f"adversaries: {hostile.flood_captions} captions in {hostile.flood_sessions} floods, "
            f"{hostile.mute_sessions} mute sessions, {hostile.greedy_frames} frames in {hostile.greedy_sessions} "
            f"greedy ones, {hostile.wire_flood_sessions} floods without a hello, {hostile.silent_sessions} silent "
            f"connections; {hostile.refused} times refused"
        )
    return lines


def _times(latency: Latency) -> dict[str, Any]:
    percentiles = {"p50_ms": latency.median_ms, "p95_ms": latency.p95_ms, "p99_ms": latency.p99_ms}
    return {**percentiles, "max_ms": latency.max_ms, "count": latency.count}


def _row(name: str, latency: Latency) -> tuple[str, ...]:
    times = (latency.median_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)
    return (name, str(latency.count), *("-" if value is None else f"{value:.1f}" for value in times))
