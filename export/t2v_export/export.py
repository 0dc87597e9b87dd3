"""A checkpoint to a bundle: graphs, verification, golden vectors, report, written whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from t2v_edge.bundle import write_bundle
from t2v_edge.device import DeviceProfile
from t2v_edge.errors import UsageError
from t2v_edge.machine import machine, versions
from t2v_edge.manifest import GraphEntry, Manifest, TokenizerSpec, VideoSpec
from t2v_edge.spec import STAGES
from t2v_edge.tokenizer import CaptionTokenizer
from t2v_export.captions import DEFAULT_CAPTIONS
from t2v_export.checkpoint import Checkpoint, load_checkpoint
from t2v_export.choose import SHIP, Choice, choose, shipped
from t2v_export.golden import golden_vectors, pack_npz
from t2v_export.int8 import Quantized, make_int8, measure_int8
from t2v_export.latency import Latencies, Latency, measure_latencies
from t2v_export.mixed import Mixed, make_half
from t2v_export.recipe import Quantize, Recipe
from t2v_export.reference import STEPS, Rollout, play_references
from t2v_export.to_onnx import OPSET, stage_to_onnx
from t2v_export.tokenizer import caption_tokenizer, tokenizer_spec
from t2v_export.verify import TOLERANCES, StageDifference, check_accuracy, compare_variant

VARIANTS = ("fp32", "fp16")
TOOLS = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")
Graphs = Mapping[str, Mapping[str, onnx.ModelProto]]
Kept = Mapping[str, Mapping[str, Sequence[str]]]  # by variant and stage, the layers that stay in float32


@dataclass(frozen=True)
class ExportOptions:
    """`variants` to write beside fp32, which is always there; `seed` of the verification streams and golden vectors.

    `captions`: at least a dozen to verify with. `recipe`: its quantize pass makes INT8 variants besides. `measure`:
    time each stage here; without it nothing in the bundle depends on the machine's speed, and the same checkpoint and
    seed give the same bytes throughout. `ship`, one of `SHIP`: which of the graphs made go into the bundle.
    """

    variants: tuple[str, ...] = VARIANTS
    seed: int = 0
    captions: tuple[str, ...] = DEFAULT_CAPTIONS
    recipe: Recipe | None = None
    allow_code: bool = False
    measure: bool = True
    ship: str = "faster"
    progress: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.variants) - set(VARIANTS))
        if unknown:
            raise UsageError(f"variant {unknown[0]!r} is unknown; choose from {', '.join(VARIANTS)}")
        if self.ship not in SHIP:
            raise UsageError(f"ship is {self.ship!r}; choose from {', '.join(SHIP)}")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed {self.seed} must be from 0 to 2^63 - 1")


@dataclass(frozen=True)
class Exported:
    """What an export wrote and measured, of every graph made: differences by variant and stage, latencies by engine
    too. `report`: what stands in ``report.json``.
    """

    path: Path
    manifest: Manifest
    differences: Mapping[str, Mapping[str, StageDifference]]
    latencies: Latencies
    report: Mapping[str, Any]


def export_checkpoint(
    path: Path | str, out: Path | str, profile: DeviceProfile, options: ExportOptions = ExportOptions()
) -> Exported:
    """Export the checkpoint folder at `path` for a device and write the bundle `out` (folder or .zip).

    Raises `CheckpointError`, `SpecError`, `AccuracyError` (a graph is too far from torch; nothing is written) and
    `BundleError`, each with its remedy.
    """
    variants = ("fp32", *(v for v in VARIANTS[1:] if v in options.variants))
    recipe = options.recipe
    total = 3 + len(STAGES) + len(options.captions) + len(variants)
    total += 1 + 2 * len(recipe.quantize.stages) if recipe and recipe.quantize else 0
    with tqdm(
        total=total, desc="export", file=sys.stderr, disable=None if options.progress else True, leave=False
    ) as bar:
        checkpoint = load_checkpoint(path, options.allow_code)
        tokens, tokenizer = tokenizer_spec(checkpoint), caption_tokenizer(checkpoint)
        bar.update()
        graphs: dict[str, Mapping[str, onnx.ModelProto]] = {
            "fp32": _make_graphs(checkpoint, min(OPSET, profile.opset_cap), bar)
        }
        rollouts = play_references(checkpoint, tokenizer, options.captions, options.seed, bar.update)
        differences = {"fp32": compare_variant(graphs["fp32"], checkpoint.specs, rollouts)}
        check_accuracy("fp32", differences["fp32"])
        bar.update()
        kept: dict[str, Mapping[str, tuple[str, ...]]] = {}
        if "fp16" in variants:
            halves = _make_halves(graphs["fp32"], checkpoint, rollouts)
            graphs["fp16"] = {stage: made.graph for stage, made in halves.items()}
            differences["fp16"] = {stage: made.difference for stage, made in halves.items()}
            kept["fp16"] = {stage: made.kept for stage, made in halves.items() if made.kept}
            bar.update()
        quality = _differences_json(differences)
        calibration = {}
        if recipe and recipe.quantize:
            made = _quantize(graphs["fp32"], checkpoint, tokenizer, profile, options, recipe.quantize, bar)
            graphs |= made.graphs
            kept |= dict.fromkeys(made.graphs, made.kept)
            calibration = {"calibration_sha256": made.calibration_sha256}
            found, described = measure_int8(made, checkpoint.specs, rollouts, bar.update)
            differences, quality = {**differences, **found}, {**quality, **described}
        latencies = _measure(graphs, checkpoint, rollouts[0]) if options.measure else {}
        bar.update()
        choice = choose(profile, graphs, latencies)
        files = _graph_files(graphs)
        report = _report(checkpoint, profile, options, files, quality, kept, latencies, choice)
        taken = shipped(graphs, choice, options.ship)
        graphs = {v: {s: graphs[v][s] for s in stages} for v, stages in taken.items()}
        manifest = _manifest(checkpoint, profile, options, tokens, graphs, quality, kept, choice, calibration)
        files = {entry.file: files[entry.file] for stages in manifest.variants.values() for entry in stages.values()}
        files |= _other_files(checkpoint, rollouts, options.seed, report)
        written = write_bundle(out, manifest, files)
        bar.update()
    return Exported(Path(out), written, differences, latencies, report)


def _make_graphs(checkpoint: Checkpoint, opset: int, bar: tqdm[Any]) -> dict[str, onnx.ModelProto]:
    graphs = {}
    for stage, module in checkpoint.modules.items():
        graphs[stage] = stage_to_onnx(module, checkpoint.specs[stage], opset)
        bar.update()
    return graphs


def _make_halves(
    graphs: Mapping[str, onnx.ModelProto], checkpoint: Checkpoint, rollouts: Sequence[Rollout]
) -> dict[str, Mixed]:
    halves = {}
    for stage in STAGES:
        made = halves[stage] = make_half(graphs[stage], checkpoint.specs[stage], rollouts, TOLERANCES["fp16"])
        check_accuracy("fp16", {stage: made.difference}, {stage: made.kept})
    return halves


def _quantize(
    graphs: Mapping[str, onnx.ModelProto],
    checkpoint: Checkpoint,
    tokenizer: CaptionTokenizer,
    profile: DeviceProfile,
    options: ExportOptions,
    quantize: Quantize,
    bar: tqdm[Any],
) -> Quantized:
    blend_steps, cap = checkpoint.config.blend_steps, profile.opset_cap
    return make_int8(graphs, checkpoint.specs, tokenizer, blend_steps, quantize, options.seed, cap, bar.update)


def _graph_files(graphs: Graphs) -> dict[str, bytes]:
    return {
        f"{variant}/{stage}.onnx": graph.SerializeToString(deterministic=True)
        for variant, stages in graphs.items()
        for stage, graph in stages.items()
    }


def _measure(graphs: Graphs, checkpoint: Checkpoint, rollout: Rollout) -> dict[str, dict[str, dict[str, Latency]]]:
    by_stage = {}
    for stage in STAGES:
        variants = {v: stages[stage] for v, stages in graphs.items() if stage in stages}
        by_stage[stage] = measure_latencies(variants, checkpoint.specs[stage], rollout)
    return {variant: {stage: by_stage[stage][variant] for stage in graphs[variant]} for variant in graphs}


def _manifest(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    options: ExportOptions,
    tokens: TokenizerSpec,
    graphs: Graphs,
    quality: Mapping[str, Any],
    kept: Kept,
    choice: Choice,
    calibration: Mapping[str, str],
) -> Manifest:
    config = checkpoint.config
    return Manifest(
        name=config.name,
        video=VideoSpec(config.height, config.width, config.fps, config.blend_steps),
        tokenizer=tokens,
        stages=checkpoint.specs,
        variants={
            v: {
                s: GraphEntry(f"{v}/{s}.onnx", v, graph.opset_import[0].version, tuple(kept.get(v, {}).get(s, ())))
                for s, graph in stages.items()
            }
            for v, stages in graphs.items()
        },
        default={stage: variant for stage, (variant, _) in choice.default.items()},
        golden="golden.npz",
        device=profile.name,
        quality={v: {s: quality[v][s] for s in stages} for v, stages in graphs.items()},
        provenance={
            "checkpoint_sha256": checkpoint.sha256,
            "recipe": options.recipe.name if options.recipe else None,
            "seed": options.seed,
            "tools": versions(*TOOLS),
            **calibration,
        },
    )


def _other_files(
    checkpoint: Checkpoint, rollouts: Sequence[Rollout], seed: int, report: Mapping[str, Any]
) -> dict[str, bytes]:
    files = {
        "tokenizer.json": checkpoint.tokenizer.encode(),
        "golden.npz": pack_npz(golden_vectors(rollouts, seed)),
        "report.json": (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    return {**files, "README.md": checkpoint.card.encode()} if checkpoint.card else files


def _differences_json(differences: Mapping[str, Mapping[str, StageDifference]]) -> dict[str, Any]:
    return {v: {s: d.to_json() for s, d in stages.items()} for v, stages in differences.items()}


def _report(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    options: ExportOptions,
    files: Mapping[str, bytes],
    quality: Mapping[str, Any],
    kept: Kept,
    latencies: Latencies,
    choice: Choice,
) -> dict[str, Any]:
    taken = shipped(quality, choice, options.ship)
    unshipped = {v: [s for s in stages if s not in taken.get(v, ())] for v, stages in quality.items()}
    return {
        "name": checkpoint.config.name,
        "checkpoint_sha256": checkpoint.sha256,
        "device": profile.name,
        "seed": options.seed,
        "verification": {"captions": len(options.captions), "steps": STEPS, "engine": "onnxruntime"},
        "bytes": {v: {s: len(files[f"{v}/{s}.onnx"]) for s in stages} for v, stages in quality.items()},
        "differences": quality,
        "float32_layers": {v: {s: list(names) for s, names in stages.items()} for v, stages in kept.items()},
        "latency": {
            v: {s: {e: latency.to_json() for e, latency in engines.items()} for s, engines in stages.items()}
            for v, stages in latencies.items()
        },
        "default": {stage: {"variant": variant, "why": why} for stage, (variant, why) in choice.default.items()},
        "dropped": {
            v: {s: choice.lost.get(v, {}).get(s, "not the default") for s in stages}
            for v, stages in unshipped.items()
            if stages
        },
        "machine": machine(),
        "tools": versions(*TOOLS),
    }
