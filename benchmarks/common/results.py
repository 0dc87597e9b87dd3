"""What a run of `benchmarks.cpu.peers` found: rounds to medians, shares of the ceilings, demands, a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common.methods import FP32, INT8, OURS, OURS_ALONE, Method

FORMAT, VERSION = "t2v-benchmark-peers", 1
TEACHER, STUDENT = "teacher", "student"
MEASURED, SKIPPED = "measured", "skipped"
RATES = ("base_fps", "shown_fps")

EAGER_RATIO = 15.0
PEER_RATIO = 3.0
NOISE = 0.03
"""A peer counts as faster than ours on the same model by more than this: medians of rounds differ by less on their
own."""


@dataclass(frozen=True)
class Demand:
    """One demanded ratio of frame rates: `found` must be at least `wanted`."""

    name: str
    wanted: float
    found: float

    @property
    def kept(self) -> bool:
        return self.found >= self.wanted

    def to_json(self) -> dict[str, Any]:
        found = self.found if math.isfinite(self.found) else None
        return {"name": self.name, "wanted": self.wanted, "found": found, "kept": self.kept}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """A figure over rounds: its median, least, most, and the rounds themselves."""
    found = [float(value) for value in values]
    return {"median": statistics.median(found), "min": min(found), "max": max(found), "rounds": found}


def latency(values_ms: Sequence[float]) -> dict[str, float]:
    """How long runs took: how many there were, median, 95th percentile and least, in the unit given."""
    return {
        "runs": len(values_ms),
        "median": float(np.median(values_ms)),
        "p95": float(np.percentile(values_ms, 95)),
        "min": float(min(values_ms)),
    }


def psnr_db(made: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """PSNR in dB of frames against others of the same shape, peak 255; 100 for equal ones and at most."""
    error = float(np.mean((made.astype(np.float64) - wanted) ** 2))
    return min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of the union of (start, end) intervals: what overlaps is counted once."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def describe(
    model: str,
    how: Method,
    first: Mapping[str, Any],
    rounds: Sequence[Mapping[str, float]],
    macs: int,
    ceilings: Mapping[str, Any],
) -> dict[str, Any]:
    """A measured contender as JSON: every figure of every round, its median, least and most.

    `first`: what the untimed first start reported. `macs`: multiply-accumulates of the renderer as it is run.
    `share_of_ceiling`: its rate of operations over the machine's best in its precision. A multiply-accumulate is two
    operations.
    """
    figures = {name: spread([found[name] for found in rounds]) for name in rounds[0]}
    variant = (first.get("variants") or {}).get("render", how.precision)
    precision = INT8 if variant.startswith(INT8) else FP32
    rate = 2 * macs / figures["render_ms"]["median"] / 1e6
    return {
        "model": model,
        "method": how.name,
        "label": how.label,
        "status": MEASURED,
        "engines": first["engines"],
        "variants": first.get("variants"),
        "precision": precision,
        "psnr_db": first["psnr_db"],
        "first_start_ms": first["cold_start_ms"],
        "render_gmac": macs / 1e9,
        "render_gops": rate,
        "share_of_ceiling": rate / ceilings[precision]["best"],
        "figures": figures,
    }


def skipped(model: str, how: Method, reason: str) -> dict[str, Any]:
    """A contender that could not be measured, and why."""
    return {"model": model, "method": how.name, "label": how.label, "status": SKIPPED, "reason": reason}


def demands(contenders: Sequence[Mapping[str, Any]]) -> list[Demand]:
    """The ratios asked of this project, on both frame rates. What was not measured is not kept.

    Ours with the student is compared with three others: the teacher in torch eager, the best peer on the teacher, and
    every peer on the same student.
    """
    found: list[Demand] = []
    for rate in RATES:
        fps = {
            (c["model"], c["method"]): float(c["figures"][rate]["median"])
            for c in contenders
            if c["status"] == MEASURED
        }
        ours = fps.get((STUDENT, OURS), math.nan)
        eager = fps.get((TEACHER, "torch-eager"), math.nan)
        found.append(Demand(f"{rate}: student over the teacher in PyTorch eager", EAGER_RATIO, ours / eager))
        for model, wanted in ((TEACHER, PEER_RATIO), (STUDENT, 1 - NOISE)):
            peers = [value for (m, how), value in fps.items() if m == model and how not in (OURS, OURS_ALONE)]
            best = max(peers, default=math.nan)
            found.append(Demand(f"{rate}: student over the best peer on the {model}", wanted, ours / best))
    return found


def table(results: Mapping[str, Any]) -> str:
    """Lines for people."""
    ceilings = results["ceilings"]
    lines = [
        f"{precision} ceiling {c['best']:.0f} G{'FLOP' if precision == FP32 else 'OP'}/s ({c['by']})"
        for precision, c in ceilings.items()
    ]
    lines.append(
        f"{'model':<9}{'contender':<35}{'first':>9}{'cold':>9}{'fps':>8}{'fps@60':>8}{'render':>10}"
        f"{'of peak':>9}{'memory':>9}{'PSNR':>7}"
    )
    for c in results["contenders"]:
        if c["status"] == SKIPPED:
            lines.append(f"{c['model']:<9}{c['label']:<35}skipped: {c['reason']}")
            continue
        median = {name: values["median"] for name, values in c["figures"].items()}
        lines.append(
            f"{c['model']:<9}{c['label']:<35}{median['first_frame_ms']:>6.1f} ms{median['cold_start_ms']:>6.0f} ms"
            f"{median['base_fps']:>8.1f}{median['shown_fps']:>8.1f}{median['render_ms']:>7.2f} ms"
            f"{100 * c['share_of_ceiling']:>7.0f} %{median['peak_mib']:>5.0f} MiB{c['psnr_db']:>7.1f}"
        )
    lines += [
        f"{'kept' if d['kept'] else 'MISSED':<7}{d['name']}: "
        f"{'not measured' if d['found'] is None else format(d['found'], '.2f')}, wanted {d['wanted']:g}"
        for d in results["demands"]
    ]
    return "\n".join(lines)
