"""Estimates of a bundle's speed on a device that is not here.

A stage takes the longer of its arithmetic and its memory traffic, plus a time for each kernel:

    max(operations / (share x dense rate), bytes / bandwidth) + kernels x time of the shortest kernel

The first term is the roofline of S. Williams, A. Waterman and D. Patterson (Roofline: an insightful visual performance
model for multicore architectures, 2009). The last dominates if networks are small and run one frame at a time. Costs
come from the manifest, rates from the device's profile, and a few constants from the measurements named below. If a
profile lacks a number, the estimate names what is missing.
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
"""Frames in memory: one is copied while the next is rendered."""

MARGIN = 0.95
"""A less exact variant is preferred if its time is below this share of the more exact one's."""


@dataclass(frozen=True)
class RooflineConstants:
    """The limits of engines on one kind of device.

    shares: the share of the dense rate that the layers of one frame attain, by rate.
    launch_cycles: GPU clocks of the shortest kernel in a replayed CUDA graph.
    launch_us: the part of the shortest kernel's time that depends on no clock.
    runtime_us: the runtime's own time for a frame.
    caption_us: the runtime's own time for a new caption: its tokens, and the text stage's arrays.
    """

    shares: Mapping[str, float]
    launch_cycles: float
    launch_us: float
    runtime_us: float
    caption_us: float


GPU = RooflineConstants(
    {"fp32": 0.5, "fp16": 0.1, "int8": 0.05}, launch_cycles=4200, launch_us=0, runtime_us=50, caption_us=600
)
"""From one H200 with TensorRT 8.6.0 and CUDA graphs; tests/t2v_edge/device/test_roofline.py has the figures. Narrow
layers leave Tensor cores idle, so the shares of float16 and INT8 are low. INT8 was no faster than float16 at batch 1,
so its share is half. A smaller GPU is easier to fill, so its estimate is cautious. A board's slower cores take longer
for `runtime_us` and `caption_us`."""

CPU = RooflineConstants({"fp32": 0.6, "int8": 0.6}, launch_cycles=0, launch_us=12, runtime_us=150, caption_us=1000)
"""From two AVX2 cores with ONNX Runtime and OpenVINO; benchmarks/results/peers.json has the figures. The share is that
of the machine's best matrix product in the larger renderer. The time of a kernel is from the motion step."""


@dataclass(frozen=True)
class StageEstimate:
    """An estimate of one run of a stage. ms: the longer of arithmetic and bandwidth, plus launches."""

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
        """The terms whose sum is `ms`."""
        roof = ARITHMETIC if self.arithmetic_ms >= self.bandwidth_ms else BANDWIDTH
        return {roof: max(self.arithmetic_ms, self.bandwidth_ms), LAUNCHES: self.launches_ms}

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "binds": self.binds}


@dataclass(frozen=True)
class Estimate:
    """An estimate of a bundle on a device. All numbers are None if `missing` names something.

    fps: base frames a second. A frame is a motion step and a render; copies run in parallel.
    first_frame_ms: from a caption to its first pixels in the CPU's memory.
    memory_bytes: the graphs and the values between kernels, without the engine's libraries.
    binds: the resource that takes most of a frame's time.
    missing: the numbers that the profile or the bundle lacks.
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
    """The estimate and the measurement of one stage in one variant. ratio: estimate over measurement."""

    variant: str
    stage: str
    estimated_ms: float
    measured_ms: float

    @property
    def ratio(self) -> float:
        return self.estimated_ms / self.measured_ms

    @property
    def factor(self) -> float:
        """The ratio or its inverse, whichever is at least 1."""
        return max(self.ratio, 1 / self.ratio)


def estimate(profile: DeviceProfile, manifest: Manifest) -> Estimate:
    """Estimate a bundle on a device, with each stage in its best variant there."""
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
    """Raise `BundleError` if no graph of a stage has its costs. Then no device has an estimate."""
    for stage in STAGES:
        if all(_uncounted(graphs[stage]) for graphs in manifest.variants.values() if stage in graphs):
            raise BundleError(
                f"the bundle {manifest.name} lacks the costs of its {stage} graphs; export it again with this "
                "version (graphs with unknown operators have no costs)"
            )


def estimate_stage(profile: DeviceProfile, stage: str, entry: GraphEntry) -> Optional[StageEstimate]:
    """Estimate one run of a graph on a device. None if the profile or the entry lacks a number."""
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
    """The stage's fastest variant that the device runs, or a more exact one that is about as fast."""
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
    """Compare estimates with measured medians, by variant and stage. graphs: a manifest's `variants`.

    Raises `ValueError` if a measured stage cannot be estimated.
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
    """The name of the dense rate for a variant's arithmetic."""
    return "int8" if precision.startswith("int8") else precision


def _constants(profile: DeviceProfile) -> RooflineConstants:
    return CPU if profile.kind == "cpu" else GPU


def _missing(profile: DeviceProfile) -> tuple[str, ...]:
    """The numbers that every estimate needs and the profile lacks."""
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
    """The reasons why no variant of a stage can be estimated, without those of `_missing`."""
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
