"""Which variant of each stage a device runs by default, and which graphs a bundle holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from t2v_edge.device.profile import DeviceProfile
from t2v_edge.spec import STAGES
from t2v_export.verify.latency import GraphLatency, Latencies

SHIP = ("faster", "all", "chosen")
"""Graphs to write: those that measured faster than every more exact one; all that were made; the defaults alone."""

MARGIN = 0.95
"""A less exact variant must be this much faster: medians on a shared machine differ by some percent by themselves."""

SMALLER = 0.75

FRAME_STAGES = ("motion", "render")
"""The stages that every frame waits for."""


@dataclass(frozen=True)
class VariantChoice:
    """`default`: by stage the variant, and why. `lost`: by variant and stage, why a graph that was measured is no gain.
    `fp32` never loses: it is what the others are compared with.
    """

    default: Mapping[str, tuple[str, str]]
    lost: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def choose(
    profile: DeviceProfile,
    variants: Mapping[str, Collection[str]],
    latencies: Latencies,
    sizes: Mapping[str, Mapping[str, int]] | None = None,
) -> VariantChoice:
    """For each stage the default variant. `variants`: the stages that each has. `sizes`: bytes of the graphs whose size
    counts: one at most three quarters as large as a more exact one then needs to be no slower, and not faster.

    On a CPU what was measured here decides: a variant, on its fastest engine, must be faster than every more exact
    one on its own, in the order of the profile's `precisions`. In the stages that run for every frame it must also be
    slower on no engine, for a user may have installed another than the one that decided. Elsewhere nothing was
    measured: the profile's float16 goes to the feed-forward stages, the recurrent step stays fp32, for a batch-1 step
    gains nothing from it, and INT8, which does not always pay, to none.
    """
    default: dict[str, tuple[str, str]] = {}
    lost: dict[str, dict[str, str]] = {}
    for stage in STAGES:
        made = [v for v in variants if stage in variants[v]]
        offered = [v for v in profile.precisions if v in made]
        if profile.kind == "cpu":
            measured = {v: latencies[v][stage] for v in offered if stage in latencies.get(v, {})}
            bytes_of = {v: of[stage] for v, of in (sizes or {}).items() if v in measured and stage in of}
            default[stage] = _fastest(measured, bytes_of, lost, stage)
            if measured:
                for variant in set(made) - set(offered):
                    lost.setdefault(variant, {})[stage] = f"not among {profile.name}'s precisions"
        elif len(offered) < 2:
            default[stage] = ("fp32", f"fp16 is not exported, or not among {profile.name}'s precisions")
        elif stage == "motion" or "fp16" not in offered:
            why = "recurrent state: fp16 gains nothing at batch 1"
            default[stage] = ("fp32", why if stage == "motion" else "fp16 is not exported, INT8 not measured there")
        else:
            default[stage] = ("fp16", f"{profile.name} computes fp16; not measured on it")
    return VariantChoice(default, lost)


def fastest(by_engine: Mapping[str, GraphLatency]) -> tuple[str, float]:
    """The engine of the smallest median, and that, in milliseconds."""
    engine = min(by_engine, key=lambda name: by_engine[name].median_ms)
    return engine, by_engine[engine].median_ms


def shipped(variants: Mapping[str, Collection[str]], choice: VariantChoice, ship: str) -> dict[str, tuple[str, ...]]:
    """The stages of each variant that go into the bundle; `ship` is one of `SHIP`."""
    kept = {}
    for variant, stages in variants.items():
        chosen = [s for s in stages if choice.default[s][0] == variant]
        gains = [s for s in stages if s not in choice.lost.get(variant, {})]
        kept[variant] = tuple({"all": stages, "chosen": chosen, "faster": gains}[ship])
    return {variant: stages for variant, stages in kept.items() if stages}


def _fastest(
    measured: Mapping[str, Mapping[str, GraphLatency]],
    bytes_of: Mapping[str, int],
    lost: dict[str, dict[str, str]],
    stage: str,
) -> tuple[str, str]:
    """The variant that is faster by `MARGIN` than all before it, or fp32, and what was measured; the rest is `lost`.

    With `bytes_of` also one that is much smaller than the best before it and as fast as the fastest, within `MARGIN`.
    """
    if not measured:
        return ("fp32", "not measured")
    best, least, shown = "fp32", fastest(measured["fp32"])[1], []
    for variant, by_engine in measured.items():
        engine, median_ms = fastest(by_engine)
        smaller = {variant, best} <= set(bytes_of) and bytes_of[variant] <= SMALLER * bytes_of[best]
        gains = median_ms < least * MARGIN or (smaller and median_ms * MARGIN <= least)
        slower = _slower(by_engine, measured[best]) if gains and stage in FRAME_STAGES else ""
        if gains and not slower:
            best = variant
        elif variant != "fp32":
            no_gain = f"{median_ms:.3g} ms at best ({engine}) is no gain: a more exact one takes {least:.3g} ms"
            lost.setdefault(variant, {})[stage] = slower or no_gain
        if not slower:
            least = min(least, median_ms)
        shown.append(f"{variant} {median_ms:.3g} ms ({engine})")
    return (best, "measured here: " + ", ".join(shown))


def _slower(by_engine: Mapping[str, GraphLatency], than: Mapping[str, GraphLatency]) -> str:
    """Where a variant takes longer `than` a more exact one, by more than `MARGIN`, in words; empty where nowhere."""
    for engine in sorted(set(by_engine) & set(than)):
        mine, its = by_engine[engine].median_ms, than[engine].median_ms
        if mine * MARGIN > its:
            return f"slower in {engine}: {mine:.3g} ms, a more exact one takes {its:.3g} ms"
    return ""
