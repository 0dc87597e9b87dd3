"""INT8 graphs of the recipe's stages: calibrated, smoothed, observed, ranked, quantized and verified.

A stage without layers to quantize is skipped: it is not among `PassResults.int8`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import onnx

from t2v_calibration.captions import load_captions
from t2v_calibration.ranges import WEIGHT_LEVELS
from t2v_edge.spec import STAGES
from t2v_export.exporter.pack import (
    pack_calibration,
    pack_graph,
    pack_json,
    pack_observations,
    unpack_calibration,
    unpack_observations,
)
from t2v_export.exporter.results import Int8Stage, PassResults, VariantGraph
from t2v_export.exporter.runner import Advance, PassContext
from t2v_export.exporter.targets import tensorrt_lines
from t2v_export.graph.upsampling import int8_form
from t2v_export.quantize.observe import observe
from t2v_export.quantize.plan import make_plan, observed_tensors
from t2v_export.quantize.qdq import INT8_VARIANTS
from t2v_export.quantize.sensitivity import (
    MAX_LAYERS,
    Sensitivity,
    SensitivityMetric,
    measure_sensitivity,
    spared_layers,
)
from t2v_export.quantize.smooth import smooth
from t2v_export.quantize.stage import calibrate, measure_int8, quantize_stage
from t2v_export.store import Files
from t2v_export.verify.difference import StageDifference


def calibrate_stages(context: PassContext, results: PassResults) -> PassResults:
    """The samples of each stage, and of the recipe's stages what is quantized."""
    options, specs, seed = context.options.quantize, context.specs, context.options.seed
    assert options is not None
    graphs = {stage: graph.model() for stage, graph in results.graphs["fp32"].items()}
    if "render" in options.stages:
        graphs["render"] = int8_form(graphs["render"], specs["render"], context.profile.kind == "cpu")
    if tensorrt_lines(context.profile):
        # transposed convolutions without phases: 8.6 does not build them in INT8
        transposed = [n.name for model in graphs.values() for n in model.graph.node if n.op_type == "ConvTranspose"]
        options = replace(options, keep=(*options.keep, *transposed))

    def make(advance: Advance) -> Files:
        blend_steps = context.checkpoint.config.blend_steps
        given, held = calibrate(graphs, specs, context.tokenizer, blend_steps, options, seed)
        return pack_calibration({"given": given, "held": held})

    data = {stage: graph.data for stage, graph in results.graphs["fp32"].items()}
    captions = [load_captions(name) for name in options.captions]
    sizes = [options.text_samples, options.motion_samples, options.render_samples, options.steps]
    sets = unpack_calibration(context.do(1, make, graphs=data, captions=captions, sizes=sizes, seed=seed))
    given, held = sets["given"], sets["held"]
    stages = {}
    for stage in (s for s in STAGES if s in options.stages):
        plan = make_plan(graphs[stage], specs[stage], options)
        if plan.layers:
            graph, sha256 = pack_graph(graphs[stage]), (given.sha256, held.sha256)
            samples = given.samples[stage], held.samples[stage]
            stages[stage] = Int8Stage(graph, graph, options, *samples, sha256, plan)
    return replace(results, calibration_sha256=given.sha256, int8=stages)


def smooth_stage(context: PassContext, results: PassResults) -> PassResults:
    """The float32 graph of a stage with outliers of activations moved into weights."""
    one = results.int8.get(context.stage)
    if one is None:
        return results

    def make(advance: Advance) -> Files:
        return {"graph.onnx": pack_graph(smooth(one.model(), one.plan.layers, one.given, one.options.smooth))}

    graph = context.do(1, make, strength=one.options.smooth, **_inputs(one))["graph.onnx"]
    plan = make_plan(onnx.load_from_string(graph), context.spec, one.options)
    return _with_stage(results, context.stage, replace(one, graph=graph, plan=plan))


def observe_stage(context: PassContext, results: PassResults) -> PassResults:
    """The ranges of a stage's tensors on the calibration samples."""
    one = results.int8.get(context.stage)
    if one is None:
        return results
    bits = sorted(WEIGHT_LEVELS) if one.options.compensate else []

    def make(advance: Advance) -> Files:
        model = one.model()
        return pack_observations(observe(model, one.given, *observed_tensors(model, one.plan), advance, bits))

    files = context.do(len(one.given), make, bits=bits, **_inputs(one))
    return _with_stage(results, context.stage, replace(one, seen=unpack_observations(files)))


def rank_stage(context: PassContext, results: PassResults) -> PassResults:
    """What each layer of a stage alone loses. Skipped where the recipe neither reports nor bounds it."""
    one = results.int8.get(context.stage)
    if one is None:
        return results
    metric = _metric(context, one)
    if not (one.options.sensitivity or metric.bounded(one.options)):
        return results

    def make(advance: Advance) -> Files:
        found = measure_sensitivity(one.model(), one.plan, one.seen, one.options, metric, advance)
        return {"layers.json": pack_json([asdict(s) for s in found])}

    inputs = {**_inputs(one), "reference": one.reference, "options": asdict(one.options)}
    files = context.do(min(len(one.plan.layers), MAX_LAYERS), make, **inputs)
    ranking = tuple(Sensitivity(**s) for s in json.loads(files["layers.json"]))
    described = [s.to_json(metric.key) for s in ranking]
    ranked = replace(results, sensitivity={**results.sensitivity, context.stage: described})
    return _with_stage(ranked, context.stage, replace(one, ranking=ranking))


def make_int8(context: PassContext, results: PassResults) -> PassResults:
    """Both INT8 graphs of a stage, within the recipe's bounds, or why a variant has none."""
    one = results.int8.get(context.stage)
    if one is None:
        return results
    opset_cap = context.profile.opset_cap

    def make(advance: Advance) -> Files:
        spared = spared_layers(one.ranking, one.options.spare)
        options = replace(one.options, keep=(*one.options.keep, *spared))
        ranked = [s.layer for s in one.ranking if s.layer not in spared]
        model, metric = one.model(), _metric(context, one)
        plan = make_plan(model, context.spec, options)
        made = quantize_stage(model, plan, one.seen, options, metric, ranked, opset_cap, advance)
        graphs = {f"{variant}.onnx": pack_graph(graph) for variant, graph in made.graphs.items()}
        return {**graphs, "made.json": pack_json({"layers": made.float32_layers, "refused": made.refused})}

    inputs = {**_inputs(one), "reference": one.reference, "options": asdict(one.options)}
    files = context.do(len(INT8_VARIANTS), make, opset_cap=opset_cap, **inputs)
    made = json.loads(files["made.json"])
    for variant, why in made["refused"].items():
        results = results.with_refusal(variant, context.stage, why)
    for variant, layers in made["layers"].items():
        graph = VariantGraph(files[f"{variant}.onnx"], None, tuple(layers))
        results = results.with_graph(variant, context.stage, graph)
    return replace(results, int8={s: other for s, other in results.int8.items() if s != context.stage})


def verify_int8(context: PassContext, results: PassResults) -> PassResults:
    """The difference of a stage's INT8 graphs from torch. Raises `AccuracyError` for NaN or infinity."""
    graphs = {v: g for v, g in results.of_stage(context.stage).items() if v in INT8_VARIANTS}
    if not graphs:
        return results

    def make(advance: Advance) -> Files:
        found = {}
        for variant, graph in graphs.items():
            found[variant] = measure_int8(graph.model(), context.spec, results.rollouts, variant).to_json()
            advance()
        return {"differences.json": pack_json(found)}

    data = {variant: graph.data for variant, graph in graphs.items()}
    files = context.do(len(graphs), make, graphs=data, rollouts=results.rollouts_sha256)
    for variant, difference in json.loads(files["differences.json"]).items():
        verified = replace(graphs[variant], difference=StageDifference.from_json(difference))
        results = results.with_graph(variant, context.stage, verified)
    return results


def _with_stage(results: PassResults, stage: str, one: Int8Stage) -> PassResults:
    return replace(results, int8={**results.int8, stage: one})


def _metric(context: PassContext, one: Int8Stage) -> SensitivityMetric:
    return SensitivityMetric(onnx.load_from_string(one.reference), context.spec, one.held)


def _inputs(one: Int8Stage) -> dict[str, object]:
    """What every pass on a stage depends on, for its key."""
    return {"graph": one.graph, "samples": one.samples_sha256, "plan": asdict(one.plan)}
