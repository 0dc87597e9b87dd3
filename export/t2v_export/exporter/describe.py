"""What a bundle says of itself: its manifest, report and other files beside the graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from t2v_edge.bundle.manifest import GraphEntry, Manifest, TokenizerSpec, VideoSpec
from t2v_edge.device.profile import DeviceProfile
from t2v_edge.util.machine import machine, versions
from t2v_export.checkpoint.checkpoint import Checkpoint
from t2v_export.exporter.choose import VariantChoice, shipped
from t2v_export.exporter.passes import PassResults
from t2v_export.exporter.work import TOOLS
from t2v_export.graph.macs import graph_cost
from t2v_export.graph.traffic import graph_traffic
from t2v_export.verify.golden import golden_vectors, pack_npz
from t2v_export.verify.latency import Latencies
from t2v_export.verify.reference import STEPS, ReferenceRollout


def make_manifest(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    tokens: TokenizerSpec,
    made: PassResults,
    choice: VariantChoice,
    taken: Mapping[str, Sequence[str]],
    recipe: str | None,
    seed: int,
) -> Manifest:
    """The manifest of a bundle that holds the graphs `taken`, stages by variant."""
    config = checkpoint.config
    calibration = {"calibration_sha256": made.calibration_sha256} if made.calibration_sha256 else {}
    return Manifest(
        name=config.name,
        video=VideoSpec(config.height, config.width, config.fps, config.blend_steps),
        tokenizer=tokens,
        stages=checkpoint.specs,
        variants={v: {s: _entry(made, v, s) for s in stages} for v, stages in taken.items()},
        default={stage: variant for stage, (variant, _) in choice.default.items()},
        golden="golden.npz",
        device=profile.name,
        condition_groups=config.condition_groups,
        quality={v: {s: made.differences[v][s].to_json() for s in stages} for v, stages in taken.items()},
        provenance={
            "checkpoint_sha256": checkpoint.sha256,
            "recipe": recipe,
            "seed": seed,
            "tools": versions(*TOOLS),
            **calibration,
        },
    )


def other_files(
    checkpoint: Checkpoint, rollouts: Sequence[ReferenceRollout], seed: int, report: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files beside graphs and manifest, by name."""
    files = {
        "tokenizer.json": checkpoint.tokenizer.encode(),
        "golden.npz": pack_npz(golden_vectors(rollouts, seed)),
        "report.json": (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    return {**files, "README.md": checkpoint.card.encode()} if checkpoint.card else files


def make_report(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    made: PassResults,
    files: Mapping[str, bytes],
    latencies: Latencies,
    choice: VariantChoice,
    ship: str,
    captions: int,
    seed: int,
) -> dict[str, Any]:
    """What stands in ``report.json``, of every graph that was made. `files`: the graphs' bytes by file name."""
    taken = shipped(made.graphs, choice, ship)
    dropped = {
        v: {s: choice.lost.get(v, {}).get(s, "not the default") for s in stages if s not in taken.get(v, ())}
        for v, stages in made.graphs.items()
    }
    for variant, refused in made.refused.items():
        dropped[variant] = {**dropped.get(variant, {}), **refused}
    return {
        "name": checkpoint.config.name,
        "checkpoint_sha256": checkpoint.sha256,
        "device": profile.name,
        "seed": seed,
        "verification": {"captions": captions, "steps": STEPS, "engine": "onnxruntime"},
        "bytes": {v: {s: len(files[f"{v}/{s}.onnx"]) for s in stages} for v, stages in made.graphs.items()},
        "differences": {v: {s: d.to_json() for s, d in stages.items()} for v, stages in made.differences.items()},
        "float32_layers": {v: {s: list(names) for s, names in stages.items()} for v, stages in made.kept.items()},
        "sensitivity": made.sensitivity,
        **({"upsampling": made.upsampling} if made.upsampling else {}),
        "look_ahead": {
            "variants": [v for v, of in made.graphs.items() if "render" in of and v not in made.one_at_a_time],
            "refused": made.one_at_a_time,
        },
        "latency": {
            v: {s: {e: latency.to_json() for e, latency in engines.items()} for s, engines in stages.items()}
            for v, stages in latencies.items()
        },
        "default": {stage: {"variant": variant, "why": why} for stage, (variant, why) in choice.default.items()},
        "dropped": {v: stages for v, stages in dropped.items() if stages},
        "machine": machine(),
        "tools": versions(*TOOLS),
    }


def _entry(made: PassResults, variant: str, stage: str) -> GraphEntry:
    graph = made.graphs[variant][stage]
    cost, traffic = graph_cost(graph), graph_traffic(graph)
    return GraphEntry(
        f"{variant}/{stage}.onnx",
        variant,
        graph.opset_import[0].version,
        made.kept.get(variant, {}).get(stage, ()),
        macs=None if cost.uncounted else cost.macs,  # part of the work is not the work
        weight_bytes=traffic.weight_bytes if traffic else None,
        activation_bytes=traffic.activation_bytes if traffic else None,
        launches=traffic.launches if traffic else None,
    )
