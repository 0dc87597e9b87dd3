"""`t2v-edge compare`: the command line of the comparison."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from t2v_calibration.captions import shipped_sets
from t2v_edge.engine.registry import ENGINES, check_engine
from t2v_edge.errors import BundleError, UsageError
from t2v_edge.util.files import atomic_folder
from t2v_export.compare.comparison import CompareOptions, compare_bundle
from t2v_export.compare.page.page import make_page
from t2v_export.compare.report import FORMAT, CompareBudget, make_report, sentence_of, to_bytes, to_text
from t2v_export.errors import AccuracyError
from t2v_export.evaluate.caption_set import HELD_OUT, SlottedCaption, read_slotted
from t2v_export.exporter.captions import DEFAULT_CAPTIONS

DESCRIPTION = """\
Play the same captions, seeds and noise through every variant of a bundle, its default mix and its FP32, and measure
how near they are: accuracy by an evaluator, pixels, motion in time, drift over a long run, size and speed. Writes
report.json and report.html, one file that opens without a network. With --against another bundle or a checkpoint, the
FP32 of that model is compared with as well, for example a student with its teacher. docs/comparing.md says how to read
the figures."""
EPILOG = """\
examples:
  t2v-edge compare bundle --evaluator checkpoints/reference/evaluator -o bundle-compare
  t2v-edge compare bundle -n 1200 --evaluator checkpoints/reference/evaluator --max-drop 1   # exit code 3 past it
  t2v-edge compare small.bundle --against checkpoints/reference --clips 8
  t2v-edge compare bundle --min-psnr 35 --no-timing --json                                  # without an evaluator"""
COUNT, LONG = 200, 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path, help="bundle folder or zip")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="MODEL",
        help="a bundle, or a checkpoint folder (needs torch), whose FP32 is compared with too",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="where to write (default: BUNDLE-compare here)"
    )
    parser.add_argument(
        "--evaluator",
        type=Path,
        metavar="FOLDER",
        help="folder with evaluator.json and evaluator.onnx (default: that of --against, if any)",
    )
    parser.add_argument(
        "--captions",
        metavar="SET",
        help=f"a .txt or .jsonl file or a shipped set (default: {HELD_OUT}); slots are what is judged",
    )
    parser.add_argument("-n", "--count", type=int, help=f"captions to judge by the evaluator (default: {COUNT})")
    parser.add_argument("--clips", type=int, default=16, help="captions of them to play whole (default: 16)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip (default: 4)")
    parser.add_argument("--drift-runs", type=int, default=8, help="captions of them to run freely (default: 8)")
    parser.add_argument("--drift-steps", type=int, default=1000, help="base steps of a free run (default: 1000)")
    parser.add_argument("--pictures", type=int, default=4, help="clips to show side by side (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="caption i is played with SEED + i (default: 0)")
    parser.add_argument("--engine", default="onnxruntime", choices=tuple(ENGINES), help="default: onnxruntime")
    parser.add_argument(
        "--processes",
        type=int,
        default=min(os.cpu_count() or 1, 2),
        help="of one thread each (default: 2, or 1 on one core)",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="exit with 3 where all-attributes accuracy is more percentage points lower than that of "
        "--against, or of FP32 without it",
    )
    parser.add_argument(
        "--min-psnr",
        type=float,
        metavar="DB",
        help="exit with 3 where frames rendered alone are further from FP32's on average",
    )
    parser.add_argument(
        "--variant",
        default="default",
        metavar="NAME",
        help="whose accuracy and frames these demands are about (default: the default mix)",
    )
    parser.add_argument(
        "--no-timing",
        action="store_true",
        help="measure neither latency nor memory: the same inputs then give the same bytes",
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="import the --against checkpoint's own module:Class files: they can do anything you can",
    )
    parser.add_argument("--json", action="store_true", help="print the report, without curves, as JSON")


def run(args: argparse.Namespace) -> int:
    """Compare, write the report and print its summary. Returns 0; raises `AccuracyError` (exit code 3, the report is
    written all the same) where a demand is not kept, and other `T2VError`.
    """
    check_engine(args.engine)
    target = args.output or Path.cwd() / f"{args.bundle.resolve().name.removesuffix('.zip')}-compare"
    check_target(target)
    options = options_of(args)
    budget = CompareBudget(args.max_drop, args.min_psnr)
    if budget.max_drop is not None and not (options.evaluator and any(c.slots for c in options.captions)):
        raise UsageError(
            "--max-drop asks for accuracy, which needs an evaluator and captions with slots: give "
            "--evaluator FOLDER and --captions FILE.jsonl"
        )
    measured = compare_bundle(args.bundle, options)
    report = make_report(measured, budget)
    with atomic_folder(target) as folder:
        (folder / "report.json").write_bytes(to_bytes(report))
        (folder / "report.html").write_text(make_page(report, measured), "utf-8")
    as_json = json.dumps(without_curves(report), indent=1, ensure_ascii=False)
    shown = as_json if args.json else to_text(report, str(target))
    sys.stdout.write(shown + "\n")
    broken = [sentence_of(demand) for demand in report["budget"]["demands"] if not demand["kept"]]
    if broken:
        raise AccuracyError(f"{report['budget']['lane']}: {'; '.join(broken)}; see {target / 'report.html'}")
    return 0


def options_of(args: argparse.Namespace) -> CompareOptions:
    """What the arguments ask for."""
    evaluator = args.evaluator
    if evaluator is None and args.against is not None and (args.against / "evaluator" / "evaluator.onnx").is_file():
        evaluator = args.against / "evaluator"
    return CompareOptions(
        captions=captions_of(args.captions, args.count),
        evaluator=evaluator,
        against=args.against,
        judged=args.variant,
        clips=args.clips,
        seconds=args.seconds,
        drift_runs=args.drift_runs,
        drift_steps=args.drift_steps,
        pictures=args.pictures,
        seed=args.seed,
        engine=args.engine,
        processes=args.processes,
        timing=not args.no_timing,
        allow_code=args.allow_code,
        progress=True,
    )


def captions_of(name: str | None, count: int | None) -> tuple[SlottedCaption, ...]:
    """The captions asked for; those held out where none are named, or a dozen built in where even these are absent."""
    if name is None and HELD_OUT not in shipped_sets():
        return tuple(SlottedCaption(text) for text in DEFAULT_CAPTIONS)[:count]
    captions = read_slotted(name or HELD_OUT, count)
    return captions if count is not None else captions[:COUNT]


def check_target(target: Path) -> None:
    """Leave alone what is there and is no report of ours; raises `BundleError`."""
    if not target.exists():
        return
    report = target / "report.json"
    ours = target.is_dir() and (
        not any(target.iterdir())
        or (report.is_file() and f'"format": "{FORMAT}"'.encode() in report.read_bytes()[:4096])
    )
    if not ours:
        raise BundleError(f"{target} is no report of t2v-edge compare and is left alone; give another -o FOLDER")


def without_curves(value: Any) -> Any:
    """A report, or a part of one, without its long lists."""
    if isinstance(value, dict):
        return {k: without_curves(v) for k, v in value.items() if not (isinstance(v, list) and len(v) > LONG)}
    return [without_curves(item) for item in value] if isinstance(value, list) else value
