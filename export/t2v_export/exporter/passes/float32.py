"""Float32 graphs, what torch makes of the captions, and the difference of the two."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import onnx

from t2v_edge.errors import SpecError
from t2v_edge.spec import STAGES, StageSpec
from t2v_export.exporter.pack import pack_graph, pack_json, pack_rollouts, unpack_rollouts
from t2v_export.exporter.results import PassResults, VariantGraph
from t2v_export.exporter.runner import Advance, PassContext
from t2v_export.graph.batch import check_batch_free, free_batch
from t2v_export.graph.from_torch import OPSET, stage_to_onnx
from t2v_export.store import Files
from t2v_export.verify.difference import StageDifference, check_accuracy, compare_stage
from t2v_export.verify.reference import play_references


def make_float32(context: PassContext, results: PassResults) -> PassResults:
    """The float32 graph of each stage; the renderer's takes several frames at once where it can."""
    opset = min(OPSET, context.profile.opset_cap)

    def make(advance: Advance) -> Files:
        files = {}
        for stage, module in context.checkpoint.modules.items():
            model = stage_to_onnx(module, context.specs[stage], opset)
            files[stage] = pack_graph(_batch_free(model, context.specs[stage]) if stage == "render" else model)
            advance()
        return files

    files = context.do(len(STAGES), make, opset=opset)
    return replace(results, graphs={"fp32": {stage: VariantGraph(files[stage]) for stage in STAGES}})


def make_references(context: PassContext, results: PassResults) -> PassResults:
    """Rollouts of the captions through the torch modules. Raises `CheckpointError` for NaN or infinity."""
    captions, seed = context.options.captions, context.options.seed

    def make(advance: Advance) -> Files:
        return pack_rollouts(play_references(context.checkpoint, context.tokenizer, captions, seed, advance))

    files = context.do(len(captions), make, captions=captions, seed=seed)
    rollouts = unpack_rollouts(files, context.specs, context.tokenizer, captions, seed)
    return replace(results, rollouts=rollouts, rollouts_sha256=hashlib.sha256(files["rollouts.npz"]).hexdigest())


def verify_float32(context: PassContext, results: PassResults) -> PassResults:
    """The difference of the float32 graphs from torch. Raises `AccuracyError`."""
    graphs = results.graphs["fp32"]

    def make(advance: Advance) -> Files:
        found = {s: compare_stage(g.model(), context.specs[s], results.rollouts) for s, g in graphs.items()}
        check_accuracy("fp32", found)
        return {"differences.json": pack_json({stage: d.to_json() for stage, d in found.items()})}

    data = {stage: graph.data for stage, graph in graphs.items()}
    found = json.loads(context.do(1, make, graphs=data, rollouts=results.rollouts_sha256)["differences.json"])
    for stage, graph in graphs.items():
        verified = replace(graph, difference=StageDifference.from_json(found[stage]))
        results = results.with_graph("fp32", stage, verified)
    return results


def _batch_free(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The renderer for any number of frames at once, or the same graph where it has no such form."""
    try:
        free = free_batch(model, spec)
        check_batch_free(free, spec)
    except SpecError:
        return model
    return free
