"""`t2v-edge export`: the command line of the exporter."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2v_edge.errors import UsageError
from t2v_export.commands.arguments import add_allow_code, add_checkpoint, add_training, recipe_of, store_of
from t2v_export.evaluate.caption_set import HELD_OUT, read_slotted

if TYPE_CHECKING:
    from t2v_export.exporter.budget import AccuracyBudget
    from t2v_export.exporter.export import Exported

JUDGED = 400
"""Captions of the held-out set that an accuracy budget is measured on."""

DESCRIPTION = """\
Turn a trained checkpoint (a folder with config.json) into a bundle. A bundle has three ONNX graphs for each variant,
golden vectors and a report. Every graph is verified against torch, over 64 free-running steps of a dozen captions.
Nothing is written if a graph differs from torch by more than 1e-4 (fp32) or 1e-2 (fp16), relative; the exit code is 3
then. If float16 differs by too much, up to 4 of a stage's most sensitive layers stay in float32, and are named. A
recipe adds INT8 variants, calibrated on captions. Their difference from torch is recorded, but not limited.

For a device with TensorRT, every graph is checked against the releases in its profile. An error names the node that a
release would refuse or misread. For a CPU, every graph is timed here in every installed engine. A graph that is no
faster than a more exact one is left out. report.json says what was tried, and why it lost."""
EXAMPLES = """\
examples:
  t2v-edge export checkpoints/reference --device cpu -o bundle
  t2v-edge export checkpoints/reference --recipe fast -o bundle
  t2v-edge export checkpoints/reference --recipe fast --ship chosen -o small-bundle
  t2v-edge export checkpoints/reference --recipe fast --max-drop 0.5 -o bundle
  t2v-edge export my-model --device jetson-orin-nano-8gb --allow-code -o my-bundle.zip --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="device profile, see t2v-edge devices (default: cpu)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to write, or a name ending in .zip"
    )
    parser.add_argument(
        "--variants",
        metavar="LIST",
        help="fp32, fp16 or both, comma-separated (default: those that the device computes; fp32 always)",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="fast: add INT8 variants, calibrated on captions; small, tiny: first train a student of the checkpoint, "
        "on a GPU; or a .toml file (default: none)",
    )
    parser.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help="captions to verify with, one a line, at least 12 (default: built in)",
    )
    add_allow_code(parser)
    parser.add_argument(
        "--no-timing",
        action="store_true",
        help="measure no latencies; the same checkpoint and seed then give the same bytes",
    )
    parser.add_argument(
        "--ship",
        choices=("faster", "all", "chosen"),
        default="faster",
        help="graphs to write. faster: fp32, and those measured faster than every more exact one (default); all: every "
        "one; chosen: only each stage's default, for the smallest bundle",
    )
    parser.add_argument(
        "--min-psnr",
        type=float,
        metavar="DB",
        help="of an INT8 renderer's frames, the mean over held-out samples; as few layers as needed stay in float32 "
        "(default: the recipe's, or no limit)",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="of the default mix, in percentage points of videos that an evaluator reads right, below FP32; the stages "
        "that lose most then run a more exact variant (default: no limit)",
    )
    parser.add_argument(
        "--evaluator",
        type=Path,
        metavar="FOLDER",
        help="with --max-drop: evaluator.json and evaluator.onnx (default: the checkpoint's evaluator folder)",
    )
    parser.add_argument(
        "--judge",
        metavar="SET",
        help=f"with --max-drop: captions with slots, a .jsonl file or a shipped set (default: {JUDGED} of {HELD_OUT})",
    )
    add_training(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Export, and print what was written. Returns the exit code 0; raises `T2VError`."""
    from t2v_edge.bundle.target import bundle_target
    from t2v_edge.device.profile import load_profile
    from t2v_edge.util.targets import check_targets
    from t2v_export.compress.passes import training_device
    from t2v_export.exporter.captions import DEFAULT_CAPTIONS, read_captions
    from t2v_export.exporter.export import VARIANTS, ExportOptions, export_checkpoint

    inputs = [args.checkpoint, args.captions, args.evaluator, args.judge, args.recipe, args.corpus]
    check_targets([(args.output, bundle_target(args.output))], inputs)
    profile = load_profile(args.device)
    listed = args.variants.split(",") if args.variants else [v for v in VARIANTS if v in profile.precisions]
    asked = tuple(v.strip() for v in listed)
    if not all(asked):
        raise UsageError(f"--variants {args.variants!r} has an empty name; write for example --variants fp32,fp16")
    recipe = recipe_of(args.recipe, args.corpus) if args.recipe else None
    if args.min_psnr is not None:
        if recipe is None:
            raise UsageError("--min-psnr bounds INT8 graphs, which a recipe makes; add --recipe fast")
        recipe = recipe.bounded(args.min_psnr)
    options = ExportOptions(
        variants=asked,
        seed=args.seed,
        captions=read_captions(args.captions) if args.captions else DEFAULT_CAPTIONS,
        recipe=recipe,
        allow_code=args.allow_code,
        measure=not args.no_timing,
        ship=args.ship,
        store=store_of(args),
        train_on=training_device(args.train_on),
        accuracy=budget_of(args),
        progress=True,
    )
    exported = export_checkpoint(args.checkpoint, args.output, profile, options)
    shown = json.dumps(summary(exported), indent=2, ensure_ascii=False) if args.json else table(exported)
    sys.stdout.write(shown + "\n")
    return 0


def budget_of(args: argparse.Namespace) -> AccuracyBudget | None:
    """What the default mix may lose, None for no limit. Raises `UsageError` if no evaluator can measure it."""
    from t2v_export.exporter.budget import AccuracyBudget

    if args.max_drop is None:
        if args.evaluator or args.judge:
            raise UsageError("--evaluator and --judge say how --max-drop is measured; add --max-drop POINTS")
        return None
    evaluator = args.evaluator or args.checkpoint / "evaluator"
    if not (evaluator / "evaluator.onnx").is_file():
        raise UsageError(f"--max-drop needs an evaluator, and {evaluator} is not one; give --evaluator FOLDER")
    captions = read_slotted(args.judge or HELD_OUT)
    return AccuracyBudget(args.max_drop, evaluator, captions if args.judge else captions[:JUDGED])


def summary(exported: Exported) -> dict[str, Any]:
    """The result as JSON.

    For each variant and stage: the largest difference from torch and the size in bytes. Where they apply: the layers
    kept in float32, the PSNR of an INT8 renderer's frames, the latency in the fastest engine, and why the graph is not
    in the bundle.
    """
    from t2v_export.exporter.choose import fastest

    report = exported.report
    variants: dict[str, dict[str, Any]] = {variant: {} for variant in report["differences"]}
    for variant, stages in report["differences"].items():
        for stage, described in stages.items():
            entry = {**described, "bytes": report["bytes"][variant][stage]}
            if report["float32_layers"].get(variant, {}).get(stage):
                entry["float32_layers"] = report["float32_layers"][variant][stage]
            if variant in exported.latencies:
                engine, median_ms = fastest(exported.latencies[variant][stage])
                entry.update(latency_ms=round(median_ms, 4), engine=engine)
            if stage in report["dropped"].get(variant, {}):
                entry["dropped"] = report["dropped"][variant][stage]
            variants[variant][stage] = entry
    return {
        "bundle": str(exported.path),
        "bytes": sum(entry.bytes for entry in exported.manifest.files.values()),
        "device": exported.manifest.device,
        "verification": report["verification"],
        "variants": variants,
        "default": report["default"],
        **({"accuracy": report["accuracy"]} if "accuracy" in report else {}),
    }


def table(exported: Exported) -> str:
    """The summary as text."""
    from t2v_edge.spec import STAGES

    shown = summary(exported)
    lines = [
        f"{exported.path}: {exported.manifest.name} for {exported.manifest.device}, {shown['bytes'] / 1e6:.1f} MB",
        "variant   stage    size MB  max rel. difference        ms",
    ]
    for variant, stages in shown["variants"].items():
        for stage, entry in ((s, stages[s]) for s in STAGES if s in stages):
            latency = f"{entry['latency_ms']:8.3f} {entry['engine']}" if "latency_ms" in entry else f"{'-':>8}"
            mark = " default" if exported.manifest.default[stage] == variant else ""
            mark = " dropped" if "dropped" in entry else mark
            kept = f"  {len(entry['float32_layers'])} layers in float32" if "float32_layers" in entry else ""
            psnr = f"  {entry['psnr_db']['mean']:.1f} dB" if "psnr_db" in entry else ""
            line = f"{variant:9} {stage:7} {entry['bytes'] / 1e6:8.2f}  {entry['max_rel']:19.2g}  {latency}"
            lines.append(line + mark + psnr + kept)
    for one in shown.get("accuracy", {}).get("rounds", ()):
        mix = ", ".join(f"{stage} {variant}" for stage, variant in one["mix"].items())
        lines.append(f"{mix}: {one['drop_points']:.2f} points below fp32" + ("" if one["kept"] else ", too many"))
    return "\n".join(lines)
