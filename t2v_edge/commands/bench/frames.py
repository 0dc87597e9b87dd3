"""``t2v-edge bench``: how fast a bundle is on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from t2v_edge.bench.frames import BenchOptions, bench
from t2v_edge.bench.report import BenchReport
from t2v_edge.commands.bench.live import add_live_arguments, check_not_live, run_live
from t2v_edge.commands.engines import add_engine_arguments, add_making_arguments
from t2v_edge.commands.output import PhaseBar, print_result, write_report
from t2v_edge.errors import UsageError

EXAMPLES = """examples:
  t2v-edge bench BUNDLE
  t2v-edge bench BUNDLE --fps 60 --seconds 60           # in real time as well: late frames, headroom
  t2v-edge bench BUNDLE --engine onnxruntime --threads 1 --json
  t2v-edge bench BUNDLE --fps 30 --report results/my-board.json
  t2v-edge bench BUNDLE --live --fps 30 --switches 500 --max-p95-ms 100   # captions to a server, frames back, all timed
  t2v-edge bench BUNDLE --live --fps 30 --seconds 600 --every 5           # a soak: drift, memory, missed frames
  t2v-edge bench BUNDLE --live --fps 30 --clients 6 --mute 1 --flood 1 --seconds 60
  t2v-edge bench BUNDLE --live --fps 30 --captions story.vtt              # is each cue's video there in time?
  t2v-edge bench --live --server ws://192.168.1.20:8765/live --clients 4  # a server that runs already

What each figure means, and how to contribute a report: docs/benchmarking.md."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="latency, frame rate, memory and power on this machine",
        description="Measure a bundle here: stages, frames, first frames, caption changes, memory, power.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="a bundle folder or zip")
    parser.add_argument(
        "--fps",
        help="shown frames a second; also play in real time at that rate, and count late "
        "frames (default: the model's own rate, and not in real time)",
    )
    parser.add_argument("--seconds", type=float, help=f"how long to play (default: {BenchOptions.seconds:g}; 10 live)")
    parser.add_argument("--seed", type=int, default=0, help="of the streams (default: 0)")
    add_engine_arguments(parser)
    add_making_arguments(parser)
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="also write the JSON to FILE, which names neither you nor your machine",
    )
    add_live_arguments(parser)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.report is not None and args.report.suffix.lower() != ".json":
        raise UsageError(f"the report {args.report} must end with .json")
    if args.live:
        return run_live(args)
    check_not_live(args)
    if args.bundle is None:
        raise UsageError("there is nothing to measure; give a bundle")
    seconds = BenchOptions.seconds if args.seconds is None else args.seconds
    options = BenchOptions(
        args.fps, seconds, args.seed, args.engine, args.variant, args.threads, args.batch, args.ahead
    )
    bar = PhaseBar("bench")
    try:
        report: BenchReport = bench(args.bundle, options, bar.advance)
    finally:
        bar.close()
    if args.report is not None:
        write_report(report.to_json(), args.report)
    print_result(report.to_json(), report.to_text(), args.json)
    return 0
