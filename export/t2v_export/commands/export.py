"""`t2v-edge export`: the command line of the exporter."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from t2v_edge.device.profile import load_profile
from t2v_edge.errors import UsageError
from t2v_edge.spec import STAGES
from t2v_export.commands.compress import add_teaching_arguments, recipe_of
from t2v_export.compress.passes import training_device
from t2v_export.evaluate.caption_set import HELD_OUT, read_slotted
from t2v_export.exporter.budget import AccuracyBudget
from t2v_export.exporter.captions import DEFAULT_CAPTIONS, read_captions
from t2v_export.exporter.choose import SHIP, fastest
from t2v_export.exporter.export import VARIANTS, Exported, ExportOptions, export_checkpoint
from t2v_export.store import PassStore

JUDGED = 400

HELP = "turn a trained checkpoint into a bundle for a device"
DESCRIPTION = """\
Turn a trained checkpoint (a folder with config.json) into a bundle: three ONNX graphs a variant, verified against
torch over 64 free-running steps of a dozen captions, with golden vectors and a report. Nothing is written where a
graph is further from torch than 1e-4 (fp32) or 1e-2 (fp16), relative; the exit code is 3 then. Where float16 alone
is too far, up to 4 of a stage's layers, the most sensitive ones, stay in float32 and are named. A recipe adds INT8
variants, calibrated on captions: how far they are from torch is measured and recorded, and bounded by nothing.
For a device with TensorRT every graph is checked against the releases that its profile names; one that a release would
refuse or misread is an error that names the node.
For a CPU every graph is timed here in every installed engine. What is no faster than a more exact graph of the stage
is left out of the bundle; report.json says what was tried and why it lost."""
EPILOG = """\
examples:
  t2v-edge export checkpoints/reference --device cpu -o bundle
  t2v-edge export checkpoints/reference --recipe fast -o bundle
  t2v-edge export checkpoints/reference --recipe fast --ship chosen -o small-bundle
  t2v-edge export checkpoints/reference --recipe fast --max-drop 0.5 -o bundle
  t2v-edge export my-model --device jetson-orin-nano-8gb --allow-code -o my-bundle.zip --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder; docs/formats.md describes it")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="profile the bundle is for, see t2v-edge devices (default: cpu)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to write, or a name ending in .zip"
    )
    parser.add_argument(
        "--variants",
        metavar="LIST",
        help="comma-separated, of fp32 and fp16 (default: those the device computes; fp32 always)",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="fast: INT8 variants beside the others, by calibration on captions; small, tiny: first a student of the "
        "checkpoint, on a GPU; or a .toml file (default: none)",
    )
    parser.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help="captions to verify with, one a line, at least 12 (default: built in)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the verification streams and golden vectors (default: 0)"
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="import the checkpoint's own module:Class files: they can do anything you can",
    )
    parser.add_argument(
        "--no-timing",
        action="store_true",
        help="measure no latencies: the same checkpoint and seed then give the same bytes throughout",
    )
    parser.add_argument(
        "--ship",
        choices=SHIP,
        default="faster",
        help="graphs to write: those that measured faster than every more exact one, and fp32 (faster, the default); "
        "all that were made (all); the one that each stage runs by default, for the smallest bundle (chosen)",
    )
    parser.add_argument(
        "--min-psnr",
        type=float,
        metavar="DB",
        help="of an INT8 renderer's frames, the mean over held-out samples: as few layers as keep it, the most "
        "sensitive ones, stay in float32 (default: the recipe's, or no bound)",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="of the default mix: where an evaluator reads fewer videos right than of FP32 by more percentage points, "
        "the stages that lose most run a more exact variant (default: no bound)",
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
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="make and measure everything anew: finished passes are kept by what they were made from, measured times "
        "included, so that an export that was stopped goes on where it was",
    )
    add_teaching_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Export and print what was written; errors are raised as `T2VError`. Returns the exit code 0."""
    profile = load_profile(args.device)
    asked = (
        tuple(v.strip() for v in args.variants.split(","))
        if args.variants
        else tuple(v for v in VARIANTS if v in profile.precisions)
    )
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
        store=PassStore(None) if args.no_cache else PassStore.of_user(),
        train_on=training_device(args.train_on),
        accuracy=budget_of(args),
        progress=True,
    )
    exported = export_checkpoint(args.checkpoint, args.output, profile, options)
    shown = json.dumps(summary(exported), indent=2, ensure_ascii=False) if args.json else table(exported)
    sys.stdout.write(shown + "\n")
    return 0


def budget_of(args: argparse.Namespace) -> AccuracyBudget | None:
    """What the default mix may lose; raises `UsageError` where no evaluator says what it loses."""
    if args.max_drop is None:
        if args.evaluator or args.judge:
            raise UsageError("--evaluator and --judge say how --max-drop is measured; add --max-drop POINTS")
        return None
    evaluator = args.evaluator or args.checkpoint / "evaluator"
    if not (evaluator / "evaluator.onnx").is_file():
        raise UsageError(f"--max-drop needs an evaluator, and {evaluator} is none; give --evaluator FOLDER")
    captions = read_slotted(args.judge or HELD_OUT)
    return AccuracyBudget(args.max_drop, evaluator, captions if args.judge else captions[:JUDGED])


def summary(exported: Exported) -> dict[str, Any]:
    """For each variant and stage that was made the largest difference from torch, the size, the layers that a float16
    or INT8 variant keeps in float32 where it does, the PSNR of an INT8 renderer's frames, the latency in its fastest
    engine where measured, and why it is not in the bundle where it is not.
    """
    report = exported.report
    variants: dict[str, dict[str, Any]] = {}
    for variant, stages in report["differences"].items():
        variants[variant] = {}
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
    """The same for people."""
    shown = summary(exported)
    lines = [
        f"{exported.path}: {exported.manifest.name} for {exported.manifest.device}, {shown['bytes'] / 1e6:.1f} MB",
        "variant   stage    size MB  max rel. difference        ms",
    ]
    for variant, stages in shown["variants"].items():
        for stage in STAGES:
            if stage not in stages:
                continue
            entry = stages[stage]
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
