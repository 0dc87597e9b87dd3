"""What a bundle can be expected to do on a device that is not at hand: an estimate, and it says so.

A stage takes as long as its arithmetic or its memory traffic, whichever is longer, and something for each kernel:

    max(operations / (share x dense rate), bytes / bandwidth) + kernels x time of the shortest kernel

The first term is the roofline of S. Williams, A. Waterman and D. Patterson (Roofline: an insightful visual performance
model for multicore architectures, 2009); the last binds where networks are small and run one frame at a time. Costs
come from the manifest, rates from the device's profile, and the few constants from measurements, each named below. A
profile that lacks a number gets no estimate: what is missing is said instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from t2v_edge.bundle.manifest import COSTS, GraphEntry, Manifest
from t2v_edge.device.profile import DeviceProfile
from t2v_edge.errors import BundleError
from t2v_edge.spec import STAGES

ARITHMETIC, BANDWIDTH, LAUNCHES, COPY, RUNTIME = "arithmetic", "bandwidth", "launches", "copy", "runtime"
FRAME_STAGES = ("motion", "render")
BUFFERS = 2
"""Frames in flight: one is copied while the next is rendered."""

MARGIN = 0.95
"""A less exact variant must be estimated this much faster before it is preferred."""


@dataclass(frozen=True)
class RooflineConstants:
    """How engines stay below the limits of a device's kind.

    `shares`: of the dense rate that the layers of one frame attain, by rate. `launch_cycles`: GPU clocks of the
    shortest kernel in a replayed CUDA graph; `launch_us`: the same where it goes by no clock. `runtime_us`: the
    runtime's own time for a frame; `caption_us`: for a new caption, its tokens and the text stage's arrays.
    """

    shares: Mapping[str, float]
    launch_cycles: float
    launch_us: float
    runtime_us: float
    caption_us: float


GPU = RooflineConstants(
    {"fp32": 0.5, "fp16": 0.1, "int8": 0.05}, launch_cycles=4200, launch_us=0, runtime_us=50, caption_us=600
)
"""Measured on one H200 with TensorRT 8.6.0 and CUDA graphs (tests/t2v_edge/device/test_roofline.py has the figures): an
encoder of six layers, 73 kernels of little arithmetic, takes 157 us, which is 2.2 us or 4,000 clocks of 1.83 GHz a
kernel, a GRU step of five kernels 11 us, and a renderer of 77 of which few compute much 190 us. What renderers of 1.4
and 2.0 GMAC take besides in float16 is 9 % of the dense rate, for narrow layers leave Tensor cores idle, and in INT8
half that share: INT8 was no faster than float16 at batch 1. In float32, on ordinary cores, it is half. Enqueueing from
Python cost 20 to 60 us on that host, a caption 0.44 to 0.77 ms besides its stages on two, and both cost more on a
board's cores. A smaller GPU is easier to fill, so its arithmetic is cautious."""

CPU = RooflineConstants({"fp32": 0.6, "int8": 0.6}, launch_cycles=0, launch_us=12, runtime_us=150, caption_us=1000)
"""Measured on two AVX2 cores (benchmarks/results/peers.json): ONNX Runtime and OpenVINO attain a half to three
quarters of the machine's best matrix product in the larger renderer, and the motion step, 33 kernels' worth of little
arithmetic, takes 0.45 to 0.75 ms; a base frame takes 0.1 to 0.2 ms more than its stages, the first of a caption 1.1 to
2.9 ms."""


@dataclass(frozen=True)
class StageEstimate:
    """One run of a stage in milliseconds: `ms` is the longer of arithmetic and bandwidth, and launches besides."""

    stage: str
    variant: str
    ms: float
    arithmetic_ms: float
    bandwidth_ms: float
    launches_ms: float

    @property
    def binds(self) -> str:
        """The largest of its terms."""
        return _largest(self.terms())

    def terms(self) -> dict[str, float]:
        """What `ms` is made of."""
        roof = ARITHMETIC if self.arithmetic_ms >= self.bandwidth_ms else BANDWIDTH
        return {roof: max(self.arithmetic_ms, self.bandwidth_ms), LAUNCHES: self.launches_ms}

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "binds": self.binds}


@dataclass(frozen=True)
class Estimate:
    """What to expect of a bundle on a device; all numbers are None where `missing` names what is not known.

    fps: base frames a second, each a motion step and a render; copies run beside rendering. first_frame_ms: from a
    caption to its first pixels in the CPU's memory. memory_bytes: the graphs and what passes between kernels,
    without the engine's own libraries. binds: the resource that a frame spends most of its time on.
    """

    device: str
    bundle: str
    stages: tuple[StageEstimate, ...] = ()
    fps: Optional[float] = None
    frame_ms: Optional[float] = None
    copy_ms: Optional[float] = None
    first_frame_ms: Optional[float] = None
    memory_bytes: Optional[int] = None
    fits: Optional[bool] = None
    binds: Optional[str] = None
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "stages": {s.stage: s.to_json() for s in self.stages},
            "missing": list(self.missing),
            "estimate": True,
        }


@dataclass(frozen=True)
class RooflineCheck:
    """One stage of one variant, estimated and measured; `ratio` is estimate over measurement."""

    variant: str
    stage: str
    estimated_ms: float
    measured_ms: float

    @property
    def ratio(self) -> float:
        return self.estimated_ms / self.measured_ms

    @property
    def factor(self) -> float:
        """How far off, either way: at least 1."""
        return max(self.ratio, 1 / self.ratio)


def estimate(profile: DeviceProfile, manifest: Manifest) -> Estimate:
    """What to expect of a bundle on a device, each stage in its best variant there."""
    missing = list(_missing(profile))
    stages = []
    for stage in STAGES:
        best = best_variant(profile, manifest, stage)
        if best is None:
            missing += _why_not(profile, manifest, stage)
        else:
            stages.append(best)
    if missing:
        return Estimate(profile.name, manifest.name, missing=tuple(dict.fromkeys(missing)))
    constants = _constants(profile)
    frame_bytes = 3 * manifest.video.height * manifest.video.width
    copy_ms = 0.0 if profile.shares_memory or profile.link_gb_s is None else frame_bytes / profile.link_gb_s / 1e6
    runtime_ms = constants.runtime_us / 1e3
    terms = {RUNTIME: runtime_ms}
    for part in stages:
        if part.stage in FRAME_STAGES:
            for name, ms in part.terms().items():
                terms[name] = terms.get(name, 0.0) + ms
    compute_ms = sum(terms.values())
    frame_ms = max(compute_ms, copy_ms)
    memory = _memory(manifest, stages) + BUFFERS * frame_bytes
    return Estimate(
        profile.name,
        manifest.name,
        tuple(stages),
        fps=1e3 / frame_ms,
        frame_ms=frame_ms,
        copy_ms=copy_ms,
        first_frame_ms=sum(part.ms for part in stages) + copy_ms + runtime_ms + constants.caption_us / 1e3,
        memory_bytes=memory,
        fits=None if profile.memory_bytes is None else memory <= profile.memory_bytes,
        binds=COPY if copy_ms > compute_ms else _largest(terms),
    )


def require_costs(manifest: Manifest) -> None:
    """Raise `BundleError` where a stage's graphs say nothing of what they cost, so that no device has an estimate."""
    for stage in STAGES:
        if all(_uncounted(graphs[stage]) for graphs in manifest.variants.values() if stage in graphs):
            raise BundleError(
                f"the bundle {manifest.name} does not say what its {stage} graphs cost a run: export it "
                "again with this version; operators that are not understood stay uncounted"
            )


def estimate_stage(profile: DeviceProfile, stage: str, entry: GraphEntry) -> Optional[StageEstimate]:
    """One run of a graph on a device; None where the profile or the entry lacks a number that it takes."""
    constants, precision = _constants(profile), rate_of(entry.precision)
    rate, share = profile.dense_tops.get(precision), constants.shares.get(precision)
    bandwidth = profile.bandwidth_gb_s
    if rate is None or share is None or bandwidth is None or _missing(profile) or _uncounted(entry):
        return None
    assert entry.macs is not None and entry.launches is not None
    assert entry.weight_bytes is not None and entry.activation_bytes is not None
    arithmetic_ms = 2 * entry.macs / (share * rate * 1e12) * 1e3
    bandwidth_ms = (entry.weight_bytes + entry.activation_bytes) / (bandwidth * 1e9) * 1e3
    cycles_us = constants.launch_cycles / profile.gpu_mhz if profile.gpu_mhz else 0.0
    launches_ms = entry.launches * (constants.launch_us + cycles_us) / 1e3
    total_ms = max(arithmetic_ms, bandwidth_ms) + launches_ms
    return StageEstimate(stage, entry.precision, total_ms, arithmetic_ms, bandwidth_ms, launches_ms)


def best_variant(profile: DeviceProfile, manifest: Manifest, stage: str) -> Optional[StageEstimate]:
    """The stage's fastest variant that the device runs; a more exact one where it is about as fast."""
    best: Optional[StageEstimate] = None
    for variant in profile.precisions:
        entry = manifest.variants.get(variant, {}).get(stage)
        found = None if entry is None else estimate_stage(profile, stage, entry)
        if found is not None and (best is None or found.ms < MARGIN * best.ms):
            best = found
    return best


def check_against(
    profile: DeviceProfile,
    graphs: Mapping[str, Mapping[str, GraphEntry]],
    measured_ms: Mapping[str, Mapping[str, float]],
) -> tuple[RooflineCheck, ...]:
    """Estimates beside measured medians, both by variant and stage. `graphs` is a manifest's `variants`.

    What was measured and cannot be estimated raises `ValueError`, so that no check passes by checking nothing.
    """
    checks = []
    for variant, stages in measured_ms.items():
        for stage, median_ms in stages.items():
            entry = graphs.get(variant, {}).get(stage)
            found = None if entry is None else estimate_stage(profile, stage, entry)
            if found is None:
                raise ValueError(f"{variant}/{stage} was measured and has no estimate on {profile.name}")
            checks.append(RooflineCheck(variant, stage, found.ms, median_ms))
    return tuple(checks)


def rate_of(precision: str) -> str:
    """The dense rate that a variant's arithmetic goes by."""
    return "int8" if precision.startswith("int8") else precision


def _constants(profile: DeviceProfile) -> RooflineConstants:
    return CPU if profile.kind == "cpu" else GPU


def _missing(profile: DeviceProfile) -> tuple[str, ...]:
    """Numbers of a profile that every estimate needs and that no source was found for."""
    absent = []
    if not profile.dense_tops:
        absent.append("dense_tops")
    if profile.bandwidth_gb_s is None:
        absent.append("memory.bandwidth_gb_s")
    if profile.kind != "cpu" and profile.gpu_mhz is None:
        absent.append("gpu.mhz")
    if not profile.shares_memory and profile.link_gb_s is None:
        absent.append("link.bandwidth_gb_s")
    return tuple(absent)


def _uncounted(entry: GraphEntry) -> bool:
    return any(getattr(entry, key) is None for key in COSTS)


def _why_not(profile: DeviceProfile, manifest: Manifest, stage: str) -> list[str]:
    """Why no variant of a stage can be estimated, beside what `_missing` says of the profile."""
    entries = {v: g[stage] for v, g in manifest.variants.items() if stage in g and v in profile.precisions}
    if not entries:
        return [f"a variant of the {stage} stage that it runs ({', '.join(profile.precisions)})"]
    counted = [v for v, entry in entries.items() if not _uncounted(entry)]
    if not counted:
        return [f"costs of the {stage} stage in the bundle (export it again)"]
    rates = dict.fromkeys(rate_of(v) for v in counted)
    return [] if _missing(profile) else [" or ".join(f"dense_tops.{rate}" for rate in rates)]


def _memory(manifest: Manifest, stages: list[StageEstimate]) -> int:
    total = 0
    for part in stages:
        entry = manifest.variants[part.variant][part.stage]
        total += manifest.files[entry.file].bytes + (entry.activation_bytes or 0)
    return total


def _largest(terms: Mapping[str, float]) -> str:
    return max(terms, key=lambda name: terms[name])
