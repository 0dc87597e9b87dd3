"""Float16 graphs."""

from __future__ import annotations

from t2v_export.exporter.float16_search import make_half
from t2v_export.exporter.pack import pack_graph, pack_variant, unpack_variant
from t2v_export.exporter.results import PassResults, VariantGraph
from t2v_export.exporter.runner import Advance, PassContext
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
