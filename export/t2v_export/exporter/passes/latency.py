"""Times on this machine: of every graph, and of the forms that the renderer's doublings can have."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from statistics import geometric_mean

from t2v_edge.engine.registry import available_engines
from t2v_edge.util.machine import versions
from t2v_export.exporter.choose import MARGIN
from t2v_export.exporter.pack import pack_graph, pack_json
from t2v_export.exporter.results import PassResults, UpsamplingTimes, VariantGraph
from t2v_export.exporter.runner import Advance, PassContext
from t2v_export.graph.upsampling import BUILT, doubling_forms
from t2v_export.store import Files
from t2v_export.verify.latency import GraphLatency, measure_latencies


def choose_upsampling(context: PassContext, results: PassResults) -> PassResults:
    """The renderer with its doublings in the form of the least geometric mean over all engines.

    Another form than the one built must be faster by `MARGIN`. A renderer with one form is left as it is.
    """
    built, spec = results.graphs["fp32"]["render"], context.specs["render"]
    forms = doubling_forms(built.model(), spec)
    if len(forms) == 1:
        return results

    def make(advance: Advance) -> Files:
        times = measure_latencies(forms, spec, results.rollouts[0])
        found = {form: {e: round(t.median_ms, 4) for e, t in of.items()} for form, of in times.items()}
        return {"ms.json": pack_json(found)}

    engines = versions(*available_engines())
    files = context.do(
        1, make, forms=sorted(forms), engines=engines, graph=built.data, rollouts=results.rollouts_sha256
    )
    median_ms = json.loads(files["ms.json"])
    shared = set.intersection(*(set(found) for found in median_ms.values()))
    mean_ms = {form: geometric_mean(found[e] for e in shared) for form, found in median_ms.items() if shared}
    best = min(mean_ms, key=lambda form: mean_ms[form] * (MARGIN if form == BUILT else 1.0), default=BUILT)
    taken = results.with_graph("fp32", "render", VariantGraph(pack_graph(forms[best])))
    return replace(taken, upsampling=UpsamplingTimes(best, median_ms))


def time_stage(context: PassContext, results: PassResults) -> PassResults:
    """The latency of a stage's graphs, by variant and engine."""
    stage, graphs = context.stage, results.of_stage(context.stage)

    def make(advance: Advance) -> Files:
        models = {variant: graph.model() for variant, graph in graphs.items()}
        measured = measure_latencies(models, context.spec, results.rollouts[0])
        described = {v: {e: asdict(x) for e, x in by_engine.items()} for v, by_engine in measured.items()}
        return {"latencies.json": pack_json(described)}

    data = {variant: graph.data for variant, graph in graphs.items()}
    files = context.do(1, make, graphs=data, engines=versions(*available_engines()))
    latencies = {variant: dict(results.latencies.get(variant, {})) for variant in results.graphs}
    for variant, by_engine in json.loads(files["latencies.json"]).items():
        latencies[variant][stage] = {engine: GraphLatency(**x) for engine, x in by_engine.items()}
    return replace(results, latencies=latencies)
