"""Graphs with float16 types: the float16 variant, and INT8 whose other parts compute in float16."""

from __future__ import annotations

from t2v_edge.errors import SpecError
from t2v_export.exporter.float16_search import make_half
from t2v_export.exporter.pack import pack_graph, pack_refusal, pack_variant, unpack_refusal, unpack_variant
from t2v_export.exporter.results import PassResults, VariantGraph
from t2v_export.exporter.runner import Advance, PassContext
from t2v_export.exporter.targets import HALF_INT8
from t2v_export.precision.int8_float16 import compute_half_int8
from t2v_export.quantize.stage import measure_int8
from t2v_export.store import Files
from t2v_export.verify.difference import TOLERANCES, check_accuracy


def make_float16(context: PassContext, results: PassResults) -> PassResults:
    """The float16 graph of a stage, with few layers in float32. Raises `AccuracyError` where a few do not suffice."""
    stage, graph = context.stage, results.graphs["fp32"][context.stage]

    def make(advance: Advance) -> Files:
        found = make_half(graph.model(), context.spec, results.rollouts, TOLERANCES["fp16"])
        check_accuracy("fp16", {stage: found.difference}, {stage: found.float32_layers})
        return pack_variant(VariantGraph(pack_graph(found.graph), found.difference, found.float32_layers))

    files = context.do(1, make, graph=graph.data, rollouts=results.rollouts_sha256)
    return results.with_graph("fp16", stage, unpack_variant(files))


def make_int8_float16(context: PassContext, results: PassResults) -> PassResults:
    """The signed INT8 graph of a stage with float16 types, for TensorRT that takes types from the graph.

    A stage with an operator that opset 19 may have changed is refused. A stage without INT8 graph is skipped.
    """
    graphs = results.of_stage(context.stage)
    if "int8" not in graphs:
        return results
    int8, half = graphs["int8"], graphs["fp16"]
    keep = tuple(name for name in half.float32_layers if name in int8.float32_layers)

    def make(advance: Advance) -> Files:
        try:
            model = compute_half_int8(int8.model(), context.spec, keep)
        except SpecError as error:
            return pack_refusal(str(error))
        found = measure_int8(model, context.spec, results.rollouts, HALF_INT8)
        return pack_variant(VariantGraph(pack_graph(model), found, keep))

    files = context.do(1, make, int8=int8.data, keep=keep, rollouts=results.rollouts_sha256)
    why = unpack_refusal(files)
    if why is not None:
        return results.with_refusal(HALF_INT8, context.stage, why)
    return results.with_graph(HALF_INT8, context.stage, unpack_variant(files))
