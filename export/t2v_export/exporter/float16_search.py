"""Search for a float16 graph in which as few layers as possible stay in float32."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from t2v_edge.spec import StageSpec
from t2v_export.precision.float16 import compute_half, layers, rounding_twin, store_half
from t2v_export.verify.difference import StageDifference, compare_stage
from t2v_export.verify.reference import ReferenceRollout

MAX_FLOAT32_LAYERS = 4
"""Layers that may stay in float32. A stage that needs more has no useful float16 variant."""

WORST_ROLLOUTS = 2
"""Rollouts to rank layers on: those that differ most. The result is checked on all."""

AIM = 0.5
"""Share of the tolerance that a search must reach: frames of other captions and seeds differ more than the measured."""


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
    """The float16 variant of a float32 graph: all layers in float16 if that is within the tolerance, else mixed.

    A mixed graph has as few layers in float32 as bring it within `AIM` of the tolerance, on all rollouts. Where
    `MAX_FLOAT32_LAYERS` layers do not, it has these: the caller checks its difference. The same input gives the same
    graph.
    """
    first = _convert(model, spec, rollouts)
    if first.difference.within(tolerance):
        return first
    worst = sorted(range(len(rollouts)), key=lambda i: -first.difference.by_rollout[i])[:WORST_ROLLOUTS]
    few = [rollouts[i] for i in worst]
    float32: list[str] = []
    for layer in rank_layers(model, spec, few)[:MAX_FLOAT32_LAYERS]:
        float32.append(layer)
        made = _convert(model, spec, few, float32)
        if made.difference.within(AIM * tolerance):
            made = _convert(model, spec, rollouts, float32)
            if made.difference.within(AIM * tolerance):
                return made
    return _convert(model, spec, rollouts, float32)


def rank_layers(model: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout]) -> tuple[str, ...]:
    """The graph's layers by the difference from torch of each alone in float16, the largest first."""
    names = layers(model)
    apart = {}
    for name in names:
        alone = rounding_twin(_halve(model, spec, [other for other in names if other != name]))
        apart[name] = compare_stage(alone, spec, rollouts).max_rel
    return tuple(sorted(names, key=lambda name: -apart[name]))


def _convert(
    model: onnx.ModelProto, spec: StageSpec, rollouts: Sequence[ReferenceRollout], float32: Sequence[str] = ()
) -> Float16Result:
    graph = _halve(model, spec, float32)
    return Float16Result(graph, compare_stage(graph, spec, rollouts), tuple(float32))


def _halve(model: onnx.ModelProto, spec: StageSpec, float32: Collection[str]) -> onnx.ModelProto:
    # a recurrent state gathers the rounding of every step, so there only stored weights are float16
    return store_half(model, spec, float32) if spec.stage == "motion" else compute_half(model, spec, float32)
