"""Other storage of weights: the same numbers in fewer bytes, or in a type that an older engine takes."""

from __future__ import annotations

from dataclasses import replace

from t2v_export.compress.grid import store_grid
from t2v_export.exporter.pack import pack_graph, pack_refusal, pack_variant, unpack_refusal, unpack_variant
from t2v_export.exporter.results import PassResults, VariantGraph
from t2v_export.exporter.runner import Advance, PassContext
from t2v_export.precision.float_weights import float_weights
from t2v_export.store import Files
from t2v_export.verify.difference import check_accuracy, compare_stage


def store_8_bits(context: PassContext, results: PassResults) -> PassResults:
    """A float32 stage for CPUs with its weights in 8 bits. A stage without weights on an 8-bit grid is skipped."""
    stage, graph = context.stage, results.graphs["fp32"][context.stage]

    def make(advance: Advance) -> Files:
        stored = store_grid(graph.model(), context.spec)
        if stored is None:
            return pack_refusal("no weight matrix is on an 8-bit grid")
        found = compare_stage(stored, context.spec, results.rollouts)
        check_accuracy("fp32", {stage: found})
        return pack_variant(VariantGraph(pack_graph(stored), found, exact=True))

    files = context.do(1, make, graph=graph.data, rollouts=results.rollouts_sha256)
    return results if unpack_refusal(files) is not None else results.with_graph("int8-u8", stage, unpack_variant(files))


def store_float32(context: PassContext, results: PassResults) -> PassResults:
    """The `int8` graph of a stage with float32 weights before Q and DQ: the same numbers, so not measured."""
    graph = results.of_stage(context.stage).get("int8")
    if graph is None:
        return results
    data = pack_graph(float_weights(graph.model(), context.spec))
    return results.with_graph("int8", context.stage, replace(graph, data=data))
