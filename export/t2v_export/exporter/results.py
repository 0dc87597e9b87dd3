"""Results of an export's passes. All are frozen: a pass reads the results so far and returns new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from t2v_calibration.calibration_set import Feeds
from t2v_export.exporter.choose import VariantChoice
from t2v_export.quantize.observe import Observations
from t2v_export.quantize.plan import QuantizePlan
from t2v_export.quantize.sensitivity import Sensitivity
from t2v_export.recipe import Quantize
from t2v_export.verify.difference import StageDifference
from t2v_export.verify.latency import Latencies
from t2v_export.verify.reference import ReferenceRollout


@dataclass(frozen=True)
class VariantGraph:
    """The graph of one stage in one variant: the ONNX file `data`.

    `difference` from torch is None until a pass has verified the graph. `float32_layers`: names of layers that stay in
    float32. `exact`: the graph computes the very same as the fp32 graph.
    """

    data: bytes
    difference: StageDifference | None = None
    float32_layers: tuple[str, ...] = ()
    exact: bool = False

    def model(self) -> onnx.ModelProto:
        """The parsed graph, a new one for each caller."""
        return onnx.load_from_string(self.data)


@dataclass(frozen=True)
class UpsamplingTimes:
    """The `form` of the renderer's doublings that was taken, and the median time by form and engine."""

    form: str
    median_ms: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class Int8Stage:
    """The quantization of one stage, until its INT8 graphs are made.

    `reference`: the float32 graph that INT8 graphs are judged by. `graph`: the graph to quantize, the same or smoothed.
    `options`: the recipe's, with what the device keeps in float32. `given`: samples that ranges are read from. `held`:
    other samples, to judge by. `samples_sha256`: of both. `plan`: what of `graph` is quantized. `seen`: observations of
    `graph` on `given`. `ranking`: layers by what each alone loses, the most sensitive first.
    """

    reference: bytes
    graph: bytes
    options: Quantize
    given: tuple[Feeds, ...]
    held: tuple[Feeds, ...]
    samples_sha256: tuple[str, ...]
    plan: QuantizePlan
    seen: Observations = Observations({}, {}, {})
    ranking: tuple[Sensitivity, ...] = ()

    def model(self) -> onnx.ModelProto:
        """The parsed graph to quantize."""
        return onnx.load_from_string(self.graph)


@dataclass(frozen=True, eq=False)
class PassResults:
    """All that the passes of an export have made.

    `graphs` and `refused` (why a variant has no graph) are by variant and stage, `latencies` also by engine.
    `rollouts`: what torch makes of the captions. `upsampling`: the renderer's doublings, where they were timed.
    `int8`: stages that are being quantized. `sensitivity`: what single layers lose in INT8, by stage, as JSON.
    `one_at_a_time`: why a variant's renderer takes one frame at a time. `choice` of the default variants. `rounds` of
    the accuracy budget, as JSON.
    """

    graphs: Mapping[str, Mapping[str, VariantGraph]] = field(default_factory=dict)
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rollouts: tuple[ReferenceRollout, ...] = ()
    rollouts_sha256: str = ""
    upsampling: UpsamplingTimes | None = None
    calibration_sha256: str | None = None
    int8: Mapping[str, Int8Stage] = field(default_factory=dict)
    sensitivity: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    one_at_a_time: Mapping[str, str] = field(default_factory=dict)
    latencies: Latencies = field(default_factory=dict)
    choice: VariantChoice = VariantChoice({})
    rounds: Sequence[Mapping[str, Any]] = ()

    def of_stage(self, stage: str) -> dict[str, VariantGraph]:
        """The graphs of one stage, by variant."""
        return {variant: stages[stage] for variant, stages in self.graphs.items() if stage in stages}

    def with_graph(self, variant: str, stage: str, graph: VariantGraph) -> PassResults:
        """These results and a graph, in place of one that had its variant and stage."""
        stages = {**self.graphs.get(variant, {}), stage: graph}
        return replace(self, graphs={**self.graphs, variant: stages})

    def with_refusal(self, variant: str, stage: str, why: str) -> PassResults:
        """These results and the reason why a variant has no graph of a stage."""
        return replace(self, refused={**self.refused, variant: {**self.refused.get(variant, {}), stage: why}})

    @property
    def differences(self) -> dict[str, dict[str, StageDifference]]:
        """Differences from torch of the verified graphs, by variant and stage."""
        return {
            variant: {stage: graph.difference for stage, graph in stages.items() if graph.difference is not None}
            for variant, stages in self.graphs.items()
        }
