"""The files of a bundle that describe it: manifest, report, golden vectors, tokenizer and card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from t2v_edge.bundle.manifest import GraphEntry, Manifest, VideoSpec
from t2v_edge.util.machine import machine, versions
from t2v_export.checkpoint.tokenizer import tokenizer_spec
from t2v_export.exporter.results import PassResults, VariantGraph
from t2v_export.exporter.runner import TOOLS, PassContext
from t2v_export.graph.macs import graph_cost
from t2v_export.graph.traffic import graph_traffic
from t2v_export.verify.difference import ENGINE
from t2v_export.verify.golden import golden_vectors, pack_npz
from t2v_export.verify.reference import STEPS


def make_manifest(context: PassContext, results: PassResults, taken: Mapping[str, Sequence[str]]) -> Manifest:
    """The manifest of a bundle that holds the graphs `taken`, stages by variant."""
    checkpoint, options = context.checkpoint, context.options
    config, sha256 = checkpoint.config, results.calibration_sha256
    return Manifest(
        name=config.name,
        video=VideoSpec(config.height, config.width, config.fps, config.blend_steps),
        tokenizer=tokenizer_spec(checkpoint),
        stages=checkpoint.specs,
        variants={v: {s: _entry(results.graphs[v][s], v, s) for s in stages} for v, stages in taken.items()},
        default={stage: variant for stage, (variant, _) in results.choice.default.items()},
        golden="golden.npz",
        device=context.profile.name,
        condition_groups=config.condition_groups,
        quality={v: {s: results.differences[v][s].to_json() for s in stages} for v, stages in taken.items()},
        provenance={
            "checkpoint_sha256": checkpoint.sha256,
            "recipe": options.recipe.name if options.recipe else None,
            "seed": options.seed,
            "tools": versions(*TOOLS),
            **({"calibration_sha256": sha256} if sha256 else {}),
        },
    )


def bundle_files(
    context: PassContext, results: PassResults, manifest: Manifest, report: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files beside the manifest, by name: the graphs that it lists, and those that describe them."""
    card, graphs = context.checkpoint.card, results.graphs
    return {
        **{entry.file: graphs[v][s].data for v, stages in manifest.variants.items() for s, entry in stages.items()},
        "tokenizer.json": context.checkpoint.tokenizer.encode(),
        "golden.npz": pack_npz(golden_vectors(results.rollouts, context.options.seed)),
        "report.json": (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
        **({"README.md": card.encode()} if card else {}),
    }


def make_report(context: PassContext, results: PassResults, taken: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The content of ``report.json``: every graph that was made, and why those not `taken` are not in the bundle."""
    graphs, choice, budget = results.graphs, results.choice, context.options.accuracy
    layers = {v: {s: list(g.float32_layers) for s, g in of.items() if g.float32_layers} for v, of in graphs.items()}
    report = {
        "name": context.checkpoint.config.name,
        "checkpoint_sha256": context.checkpoint.sha256,
        "device": context.profile.name,
        "seed": context.options.seed,
        "verification": {"captions": len(context.options.captions), "steps": STEPS, "engine": ENGINE},
        "bytes": {v: {s: len(g.data) for s, g in stages.items()} for v, stages in graphs.items()},
        "differences": {v: {s: d.to_json() for s, d in stages.items()} for v, stages in results.differences.items()},
        "float32_layers": {v: stages for v, stages in layers.items() if stages},
        "sensitivity": results.sensitivity,
        **({"upsampling": asdict(results.upsampling)} if results.upsampling else {}),
        "look_ahead": {
            "variants": [v for v in results.of_stage("render") if v not in results.one_at_a_time],
            "refused": results.one_at_a_time,
        },
        "latency": {
            v: {s: {e: latency.to_json() for e, latency in engines.items()} for s, engines in stages.items()}
            for v, stages in results.latencies.items()
        },
        "default": {stage: {"variant": variant, "why": why} for stage, (variant, why) in choice.default.items()},
        "dropped": _dropped(results, taken),
        "machine": machine(),
        "tools": versions(*TOOLS),
    }
    if budget is not None:
        accuracy = {"max_drop": budget.max_drop, "captions": len(budget.captions), "rounds": results.rounds}
        report["accuracy"] = accuracy
    return report


def _dropped(results: PassResults, taken: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Why a graph is not in the bundle or was not made, by variant and stage."""
    dropped = {
        v: {s: results.choice.lost.get(v, {}).get(s, "not the default") for s in stages if s not in taken.get(v, ())}
        for v, stages in results.graphs.items()
    }
    for variant, refused in results.refused.items():
        dropped[variant] = {**dropped.get(variant, {}), **refused}
    return {variant: stages for variant, stages in dropped.items() if stages}


def _entry(graph: VariantGraph, variant: str, stage: str) -> GraphEntry:
    model = graph.model()
    cost, traffic = graph_cost(model), graph_traffic(model)
    return GraphEntry(
        f"{variant}/{stage}.onnx",
        variant,
        model.opset_import[0].version,
        graph.float32_layers,
        macs=None if cost.uncounted else cost.macs,  # part of the work is not the work
        weight_bytes=traffic.weight_bytes if traffic else None,
        activation_bytes=traffic.activation_bytes if traffic else None,
        launches=traffic.launches if traffic else None,
    )
