"""A checkpoint to a bundle: graphs, verification, golden vectors, report, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from t2v_edge.bundle.bundle import write_bundle
from t2v_edge.bundle.manifest import Manifest
from t2v_edge.device.profile import DeviceProfile
from t2v_edge.errors import UsageError
from t2v_export.checkpoint.checkpoint import load_checkpoint
from t2v_export.checkpoint.files import folder_sha256
from t2v_export.checkpoint.tokenizer import caption_tokenizer, tokenizer_spec
from t2v_export.compress.passes import PassOptions, compress
from t2v_export.exporter.budget import AccuracyBudget, keep_budget
from t2v_export.exporter.captions import DEFAULT_CAPTIONS
from t2v_export.exporter.choose import SHIP, VariantChoice, choose, shipped
from t2v_export.exporter.describe import make_manifest, make_report, other_files
from t2v_export.exporter.pack import pack_json
from t2v_export.exporter.passes import GraphPasses
from t2v_export.exporter.targets import check_engines, takes_half_int8
from t2v_export.exporter.work import Advance, Files, PassRunner
from t2v_export.graph.from_torch import OPSET
from t2v_export.recipe import Recipe
from t2v_export.store import PassStore
from t2v_export.verify.difference import StageDifference
from t2v_export.verify.latency import Latencies

VARIANTS = ("fp32", "fp16")


@dataclass(frozen=True)
class ExportOptions:
    """`variants` to write beside fp32, which is always there; `seed` of the verification streams and golden vectors.

    `captions`: at least a dozen to verify with. `recipe`: its quantize pass makes INT8 variants besides. `measure`:
    time each stage here; without it nothing in the bundle depends on the machine's speed, and the same checkpoint and
    seed give the same bytes throughout. `ship`, one of `SHIP`: which of the graphs made go into the bundle. `store`:
    where finished passes are kept and found, so that a stopped export goes on where it was; measured times too.
    `train_on`: the torch device for a recipe that teaches a student. `accuracy`: what the default mix may lose.
    """

    variants: tuple[str, ...] = VARIANTS
    seed: int = 0
    captions: tuple[str, ...] = DEFAULT_CAPTIONS
    recipe: Recipe | None = None
    allow_code: bool = False
    measure: bool = True
    ship: str = "faster"
    store: PassStore = PassStore(None)
    train_on: str = "cpu"
    accuracy: AccuracyBudget | None = None
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

    Raises `CheckpointError`, `SpecError` (also for a graph that an engine of the device would refuse or misread, naming
    the node), `AccuracyError` (a graph is too far from torch; nothing is written) and
    `BundleError`, each with its remedy.
    """
    half = "fp16" in options.variants
    quantize = options.recipe.quantize if options.recipe else None
    checkpoint = load_checkpoint(path, options.allow_code)
    if options.recipe and options.recipe.checkpoint_passes:
        passing = PassOptions(options.seed, options.allow_code, options.store, options.train_on, options.progress)
        checkpoint = compress(checkpoint, options.recipe, passing).checkpoint
    tokens, tokenizer = tokenizer_spec(checkpoint), caption_tokenizer(checkpoint)
    upsampling = options.measure and profile.kind == "cpu"
    count = GraphPasses.count(half, quantize, options.measure, profile) + bool(options.accuracy)
    recipe = options.recipe.name if options.recipe else None
    with PassRunner(options.store, count, options.progress, checkpoint=checkpoint.sha256) as work:
        passes = GraphPasses(work, checkpoint, tokenizer, min(OPSET, profile.opset_cap), options.seed)
        passes.float_graphs()
        passes.references(options.captions, upsampling)
        if half:
            passes.half_graphs()
        if quantize:
            passes.int8_graphs(quantize, profile)
            if half and takes_half_int8(profile):
                passes.half_int8_graphs()
            passes.float_weight_graphs(quantize.float_weights)
        check_engines(passes.made.graphs, profile)
        passes.look_ahead()
        latencies = passes.latencies() if options.measure else {}
        made = passes.made
        graphs = {
            f"{variant}/{stage}.onnx": graph.SerializeToString(deterministic=True)
            for variant, stages in made.graphs.items()
            for stage, graph in stages.items()
        }
        sizes = {v: {s: len(graphs[f"{v}/{s}.onnx"]) for s in stages} for v, stages in made.graphs.items()}
        # the size of a graph that loses something counts only where the smallest bundle is asked for
        exact = {v: {s: n for s, n in of.items() if v == "fp32" or (v, s) in made.exact} for v, of in sizes.items()}
        choice = choose(profile, made.graphs, latencies, sizes if options.ship == "chosen" else exact)
        rounds: Sequence[Mapping[str, Any]] = ()
        if options.accuracy is not None:
            everything = {variant: tuple(stages) for variant, stages in made.graphs.items()}
            manifest = make_manifest(checkpoint, profile, tokens, made, choice, everything, recipe, options.seed)
            files = {**graphs, **other_files(checkpoint, passes.rollouts, options.seed, {})}
            choice, rounds = _within_budget(work, manifest, files, choice, profile.precisions, options.accuracy)
    taken = shipped(made.graphs, choice, options.ship)
    captions, seed = len(options.captions), options.seed
    report = make_report(checkpoint, profile, made, graphs, latencies, choice, options.ship, captions, seed)
    if options.accuracy is not None:
        report["accuracy"] = {
            "max_drop": options.accuracy.max_drop,
            "captions": len(options.accuracy.captions),
            "rounds": rounds,
        }
    manifest = make_manifest(checkpoint, profile, tokens, made, choice, taken, recipe, seed)
    files = {entry.file: graphs[entry.file] for stages in manifest.variants.values() for entry in stages.values()}
    files |= other_files(checkpoint, passes.rollouts, seed, report)
    return Exported(Path(out), write_bundle(out, manifest, files), made.differences, latencies, report)


def _within_budget(
    work: PassRunner,
    manifest: Manifest,
    files: Mapping[str, bytes],
    choice: VariantChoice,
    order: Sequence[str],
    budget: AccuracyBudget,
) -> tuple[VariantChoice, Sequence[Mapping[str, Any]]]:
    """The choice with more exact variants where the evaluator asks for them, and what it read."""

    def make(advance: Advance) -> Files:
        with TemporaryDirectory(prefix="t2v-export-") as folder:
            write_bundle(Path(folder) / "whole", manifest, files)
            kept = keep_budget(Path(folder) / "whole", manifest.default, order, budget, advance)
        return {"kept.json": pack_json({"default": dict(kept.default), "rounds": list(kept.rounds)})}

    inputs = {name: sha256(data).hexdigest() for name, data in files.items() if name.endswith(".onnx")}
    said = [[c.text, dict(c.slots)] for c in budget.captions]
    made = work.do(
        "accuracy",
        len(budget.captions),
        make,
        graphs=inputs,
        default=dict(manifest.default),
        evaluator=folder_sha256(budget.evaluator),
        captions=said,
        max_drop=budget.max_drop,
    )
    kept = json.loads(made["kept.json"])
    default = {
        stage: (variant, why)
        if kept["default"][stage] == variant
        else (kept["default"][stage], f"{variant} would lose more than {budget.max_drop:g} points; {why}")
        for stage, (variant, why) in choice.default.items()
    }
    return VariantChoice(default, choice.lost), kept["rounds"]
