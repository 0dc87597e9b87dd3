"""The report of ``t2v-edge run``: what was made, and how fast, as JSON and as text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Optional

import numpy as np

from t2v_edge.frame import Frame
from t2v_edge.util.machine import machine, versions
from t2v_edge.util.timing import StreamStats


class PixelHash:
    """SHA-256 of all pixels shown, in order. Equal hashes mean identical frames."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, frame: Frame) -> None:
        self._digest.update(np.ascontiguousarray(frame.pixels).data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True)
class RunReport:
    """The report of one played stream. wall_s: includes the sinks' time. stats: the stream's own times."""

    bundle: str
    engines: Mapping[str, str]
    variants: Mapping[str, str]
    target: Optional[str]
    captions: tuple[tuple[float, str], ...]
    seed: int
    fps: Fraction
    size: tuple[int, int]
    pixels_sha256: str
    open_s: float
    wall_s: float
    stats: StreamStats

    def to_json(self) -> dict[str, Any]:
        """The report as JSON. ``fps`` is how fast frames were made; ``shown_fps`` is the rate that they play at."""
        return {
            "bundle": self.bundle,
            "engines": dict(self.engines),
            "variants": dict(self.variants),
            "target": self.target,
            "captions": [{"seconds": at, "caption": caption} for at, caption in self.captions],
            "seed": self.seed,
            "shown_fps": float(self.fps),
            "shown_fps_exact": str(self.fps),
            "width": self.size[0],
            "height": self.size[1],
            "pixels_sha256": self.pixels_sha256,
            "open_ms": 1000 * self.open_s,
            "wall_ms": 1000 * self.wall_s,
            "machine": machine(),
            "versions": versions(*sorted(set(self.engines.values()))),
            **self.stats.to_json(),
        }

    def to_text(self) -> str:
        stats = self.stats
        rate = "" if stats.fps is None else f" at {stats.fps:.1f} fps"
        first = "" if stats.first_frame_ms is None else f", first frame after {stats.first_frame_ms:.1f} ms"
        lines = [
            f"{self.target or 'nothing written'}: {stats.frames} frames of {self.size[0]}x{self.size[1]} "
            f"for {float(self.fps):g} fps, made{rate}{first}"
        ]
        for stage, latency in stats.stages.items():
            if latency.median_ms is not None and latency.p95_ms is not None:
                lines.append(
                    f"  {stage:<7}{self.variants[stage]:<8}{self.engines[stage]:<12}{latency.count:>6} runs  "
                    f"median {latency.median_ms:.2f} ms  p95 {latency.p95_ms:.2f} ms"
                )
        return "\n".join(lines)
