"""Mixed precision: a float16 variant in which the most sensitive layers stay in float32."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from t2v_edge.spec import StageSpec
from t2v_export.precision.float16 import compute_half, layers, rounding_twin, store_half
from t2v_export.verify.difference import StageDifference, compare_stage
from t2v_export.verify.reference import ReferenceRollout

MAX_KEPT = 4
"""Layers that may stay in float32. A stage that needs more has no float16 variant worth having."""

WORST_ROLLOUTS = 2
"""Layers are ranked on the rollouts that differ most; what comes of it is checked on all."""

AIM = 0.5
"""Of the tolerance, which a search goes on to. Frames that were not measured differ more, those of the reference
checkpoint up to 1.8 times as much as the worst that was: other captions and seeds, 144 frames.
"""


@dataclass(frozen=True)
class Float16Result:
    """The float16 graph of a stage and its difference from torch.

    `float32_layers`: names of the layers (nodes) that compute in float32, the most sensitive first. The motion stage
    computes in float32 throughout; its layers here are those stored in float32.
    """

    graph: onnx.ModelProto
    difference: StageDifference
    float32_layers: tuple[str, ...] = ()


def make_half(
    model: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout], tolerance: float
) -> Float16Result:
    """The float16 variant of a float32 graph: all of it where that is within the tolerance, else mixed.

    Then as few layers are kept as bring it within `AIM` of the tolerance, on all rollouts. `MAX_KEPT` that only come
    within the tolerance will do; where they do not, the difference says so. Same input, same graph.
    """
    first = _convert(model, spec, rollouts)
    if first.difference.within(tolerance):
        return first
    worst = sorted(range(len(rollouts)), key=lambda i: -first.difference.by_rollout[i])[:WORST_ROLLOUTS]
    few = [rollouts[i] for i in worst]
    kept: list[str] = []
    for layer in rank_layers(model, spec, few)[:MAX_KEPT]:
        kept.append(layer)
        made = _convert(model, spec, few, kept)
        if made.difference.within(AIM * tolerance):
            made = _convert(model, spec, rollouts, kept)
            if made.difference.within(AIM * tolerance):
                return made
    return _convert(model, spec, rollouts, kept)


def rank_layers(model: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout]) -> tuple[str, ...]:
    """The graph's layers by how far each, alone in float16, takes it from torch; the most sensitive first."""
    names = layers(model)
    apart = {}
    for name in names:
        alone = rounding_twin(_halve(model, spec, [other for other in names if other != name]))
        apart[name] = compare_stage(alone, spec, rollouts).max_rel
    return tuple(sorted(names, key=lambda name: -apart[name]))


def _convert(
    model: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout], kept: Sequence[str] = ()
) -> Float16Result:
    graph = _halve(model, spec, kept)
    return Float16Result(graph, compare_stage(graph, spec, rollouts), tuple(kept))


def _halve(model: onnx.ModelProto, spec: StageSpec, kept: Collection[str]) -> onnx.ModelProto:
    # a recurrent state gathers the rounding of every step, so there only the weights shrink
    return store_half(model, spec, kept) if spec.stage == "motion" else compute_half(model, spec, kept)
