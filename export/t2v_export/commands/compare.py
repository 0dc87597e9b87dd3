"""`t2v-edge compare`: the command line of the comparison."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2v_calibration.captions import shipped_sets
from t2v_edge.commands.arguments import LOADED
from t2v_edge.errors import BundleError, UsageError
from t2v_edge.util.files import atomic_folder
from t2v_edge.util.targets import TargetKind, check_targets, foreign_entry, json_format
from t2v_export.commands.arguments import add_allow_code
from t2v_export.errors import AccuracyError
from t2v_export.evaluate.caption_set import HELD_OUT, SlottedCaption, read_slotted
from t2v_export.exporter.captions import DEFAULT_CAPTIONS

if TYPE_CHECKING:
    from t2v_export.compare.comparison import CompareOptions

DESCRIPTION = """\
Play the same captions, seeds and noise through every variant of a bundle, its default mix and its FP32, and measure how
near they are. Measured are accuracy by an evaluator, pixels, motion in time, drift over a long run, size and speed. The
command writes report.json and report.html, one file that opens without a network. --against compares with the FP32 of
another bundle or checkpoint too, such as a student with its teacher. docs/comparing.md explains the figures."""
EXAMPLES = """\
examples:
  t2v-edge compare bundle --evaluator checkpoints/reference/evaluator -o bundle-compare
  t2v-edge compare bundle -n 1200 --evaluator checkpoints/reference/evaluator --max-drop 1   # exit code 3 past it
  t2v-edge compare small.bundle --against checkpoints/reference --clips 8
  t2v-edge compare bundle --min-psnr 35 --no-timing --json                                  # without an evaluator"""
COUNT = 200
"""Captions to judge where none are counted."""
LONG = 40
"""Lists longer than this are left out of what is printed."""


def _flaw(folder: Path) -> str | None:
    foreign = foreign_entry(folder, ("report.json", "report.html"))
    if foreign is not None:
        return f"{foreign} in it is not a comparison's"
    report = folder / "report.json"
    return None if report.is_file() and json_format(report) == "t2v-compare" else "it is not a report of compare"


COMPARISON = TargetKind("the comparison", _flaw, BundleError, folder=True)
"""A folder of report.json, known by its format, and report.html."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("bundle", type=Path, help="a bundle folder or .zip")
    parser.add_argument(
        "--against", type=Path, metavar="MODEL", help="also compare with the FP32 of this bundle or checkpoint folder"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to write (default: BUNDLE-compare)")
    parser.add_argument(
        "--evaluator",
        type=Path,
        metavar="FOLDER",
        help="folder with evaluator.json and evaluator.onnx (default: that of --against, if any)",
    )
    parser.add_argument(
        "--captions",
        metavar="SET",
        help=f"a .txt or .jsonl file or a shipped set; accuracy is of their slots (default: {HELD_OUT})",
    )
    parser.add_argument("-n", "--count", type=int, help=f"captions for the evaluator to judge (default: {COUNT})")
    for name, kind, default, meaning in (
        ("clips", int, 16, "captions of them to play whole"),
        ("seconds", float, 4.0, "length of a clip"),
        ("drift-runs", int, 8, "captions of them to run freely"),
        ("drift-steps", int, 1000, "base steps of a free run"),
        ("pictures", int, 4, "clips to show side by side"),
        ("seed", int, 0, "caption i is played with SEED + i"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{meaning} (default: {default:g})")
    parser.add_argument("--engine", default=LOADED[0], choices=LOADED, help=f"default: {LOADED[0]}")
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
        help="exit with 3 if all-attributes accuracy is lower by more percentage points than that of --against, or of "
        "FP32 without it",
    )
    parser.add_argument(
        "--min-psnr",
        type=float,
        metavar="DB",
        help="exit with 3 if the mean PSNR of rendered frames against FP32's is lower",
    )
    parser.add_argument(
        "--variant",
        default="default",
        metavar="NAME",
        help="what --max-drop and --min-psnr are about (default: the default mix)",
    )
    parser.add_argument(
        "--no-timing",
        action="store_true",
        help="measure neither latency nor memory; the same inputs then give the same bytes",
    )
    add_allow_code(parser, "the --against checkpoint's")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, without curves")


def run(args: argparse.Namespace) -> int:
    """Compare, write the report and print its summary.

    Returns 0; raises `T2VError`. It is `AccuracyError`, with exit code 3, if a demand is not met; the report is written
    before that.
    """
    from t2v_edge.engine.registry import check_engine
    from t2v_export.compare.comparison import compare_bundle
    from t2v_export.compare.page.page import make_page
    from t2v_export.compare.report import CompareBudget, make_report, sentence_of, to_bytes, to_text

    check_engine(args.engine)
    target = args.output or Path.cwd() / f"{args.bundle.resolve().name.removesuffix('.zip')}-compare"
    inputs = [args.bundle, args.against, args.evaluator, args.captions]
    check_targets([(target, COMPARISON)], inputs)
    options = options_of(args)
    budget = CompareBudget(args.max_drop, args.min_psnr)
    if budget.max_drop is not None and not (options.evaluator and any(c.slots for c in options.captions)):
        raise UsageError(
            "--max-drop asks for accuracy, which needs an evaluator and captions with slots: give "
            "--evaluator FOLDER and --captions FILE.jsonl"
        )
    measured = compare_bundle(args.bundle, options)
    report = make_report(measured, budget)
    page = make_page(report, measured)
    with atomic_folder(target, COMPARISON, late=True) as folder:
        (folder / "report.json").write_bytes(to_bytes(report))
        (folder / "report.html").write_text(page, "utf-8")
    as_json = json.dumps(without_curves(report), indent=1, ensure_ascii=False)
    sys.stdout.write((as_json if args.json else to_text(report, str(target))) + "\n")
    broken = [sentence_of(demand) for demand in report["budget"]["demands"] if not demand["kept"]]
    if broken:
        raise AccuracyError(f"{report['budget']['lane']}: {'; '.join(broken)}; see {target / 'report.html'}")
    return 0


def options_of(args: argparse.Namespace) -> CompareOptions:
    """What the arguments ask for."""
    from t2v_export.compare.comparison import CompareOptions

    evaluator = args.evaluator
    if evaluator is None and args.against is not None and (args.against / "evaluator" / "evaluator.onnx").is_file():
        evaluator = args.against / "evaluator"
    alike = "against clips seconds drift_runs drift_steps pictures seed engine processes allow_code".split()
    return CompareOptions(
        captions=captions_of(args.captions, args.count),
        evaluator=evaluator,
        judged=args.variant,
        timing=not args.no_timing,
        progress=True,
        **{name: getattr(args, name) for name in alike},
    )


def captions_of(name: str | None, count: int | None) -> tuple[SlottedCaption, ...]:
    """The captions asked for. name: None for the held-out set, or for built-in ones if that is not installed."""
    if name is None and HELD_OUT not in shipped_sets():
        return tuple(SlottedCaption(text) for text in DEFAULT_CAPTIONS)[:count]
    captions: tuple[SlottedCaption, ...] = read_slotted(name or HELD_OUT, count)
    return captions if count is not None else captions[:COUNT]


def without_curves(value: Any) -> Any:
    """A report, or a part of one, without its long lists."""
    if isinstance(value, dict):
        return {k: without_curves(v) for k, v in value.items() if not (isinstance(v, list) and len(v) > LONG)}
    return [without_curves(item) for item in value] if isinstance(value, list) else value
