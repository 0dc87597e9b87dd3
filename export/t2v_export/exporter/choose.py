"""The choice of each stage's default variant on a device, and of the graphs in a bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from t2v_edge.device.profile import DeviceProfile
from t2v_edge.spec import STAGES
from t2v_export.verify.latency import GraphLatency, Latencies

SHIP = ("faster", "all", "chosen")
"""Graphs to write: those measured faster than every more exact one; all that were made; the defaults alone."""

MARGIN = 0.95
"""Largest share of a more exact variant's time that counts as faster: medians differ by some percent."""

SMALLER = 0.75
"""Largest share of a more exact variant's bytes that counts as smaller."""

FRAME_STAGES = ("motion", "render")
"""Stages that run for every frame."""


@dataclass(frozen=True)
class VariantChoice:
    """The `default` variant of each stage, and why. `lost`: why a measured graph is not shipped, by variant and stage.

    `fp32` is never lost: the others are compared with it.
    """

    default: Mapping[str, tuple[str, str]]
    lost: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def choose(
    profile: DeviceProfile,
    variants: Mapping[str, Collection[str]],
    latencies: Latencies,
    sizes: Mapping[str, Mapping[str, int]] | None = None,
) -> VariantChoice:
    """The default variant of each stage. `variants`: the stages that each has.

    On a CPU the measured times decide, variants in the order of the profile's `precisions`. A variant must be faster
    by `MARGIN` than each more exact one, both in their fastest engine. In `FRAME_STAGES` it must also be slower in none
    of the engines, because a user may have only one of them. `sizes` are bytes of graphs whose size counts: one that is
    smaller by `SMALLER` need only be as fast.

    Other devices are not measured. Where the profile has float16 the feed-forward stages take it. The recurrent step
    stays fp32: at batch 1 it gains nothing from float16. INT8 is not chosen, because it is not always faster.
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
    """The engine with the smallest median, and the median in milliseconds."""
    engine = min(by_engine, key=lambda name: by_engine[name].median_ms)
    return engine, by_engine[engine].median_ms


def shipped(variants: Mapping[str, Collection[str]], choice: VariantChoice, ship: str) -> dict[str, tuple[str, ...]]:
    """The stages of each variant that go into the bundle. `ship` is one of `SHIP`."""
    taken = {}
    for variant, stages in variants.items():
        chosen = [s for s in stages if choice.default[s][0] == variant]
        gains = [s for s in stages if s not in choice.lost.get(variant, {})]
        taken[variant] = tuple({"all": stages, "chosen": chosen, "faster": gains}[ship])
    return {variant: stages for variant, stages in taken.items() if stages}


def _fastest(
    measured: Mapping[str, Mapping[str, GraphLatency]],
    bytes_of: Mapping[str, int],
    lost: dict[str, dict[str, str]],
    stage: str,
) -> tuple[str, str]:
    """The variant that is faster by `MARGIN` than all before it, or fp32, and what was measured. Adds to `lost`.

    With `bytes_of` also one that is smaller than the best before it and as fast as the fastest, within `MARGIN`.
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
    """The engine in which a variant is slower `than` a more exact one by `MARGIN`, in words; empty without one."""
    for engine in sorted(set(by_engine) & set(than)):
        mine, its = by_engine[engine].median_ms, than[engine].median_ms
        if mine * MARGIN > its:
            return f"slower in {engine}: {mine:.3g} ms, a more exact one takes {its:.3g} ms"
    return ""
