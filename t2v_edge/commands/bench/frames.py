"""``t2v-edge bench``: how fast a bundle is on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from t2v_edge.commands.arguments import add_bundle, add_engine, add_fps, add_json, add_seed, add_throughput
from t2v_edge.commands.bench.live import add_live_arguments, check_not_live, run_live
from t2v_edge.commands.output import REPORT, PhaseBar, print_result, write_report
from t2v_edge.errors import UsageError
from t2v_edge.util.targets import check_targets

DESCRIPTION = "Measure a bundle here: stages, frames, first frames, caption changes, memory, power."
EXAMPLES = """examples:
  t2v-edge bench BUNDLE
  t2v-edge bench BUNDLE --fps 60 --seconds 60           # in real time as well: late frames, headroom
  t2v-edge bench BUNDLE --engine onnxruntime --threads 1 --json
  t2v-edge bench BUNDLE --fps 30 --report results/my-board.json
  t2v-edge bench BUNDLE --live --fps 30 --switches 500 --max-p95-ms 100   # times captions to a server and frames back
  t2v-edge bench BUNDLE --live --fps 30 --seconds 600 --every 5           # a soak: drift, memory, missed frames
  t2v-edge bench BUNDLE --live --fps 30 --clients 6 --mute 1 --flood 1 --seconds 60
  t2v-edge bench BUNDLE --live --fps 30 --captions story.vtt              # is each cue's video there in time?
  t2v-edge bench --live --server ws://192.168.1.20:8765/live --clients 4  # a server that runs already

docs/benchmarking.md explains each figure, and how to contribute a report."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, required=False)
    add_fps(parser, help="frames a second; if given, also play in real time and count late frames")
    parser.add_argument("--seconds", type=float, help="how long to play (default: 5, or 10 with --live)")
    add_seed(parser)
    add_engine(parser)
    add_throughput(parser)
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write the JSON to FILE; it does not name you or your machine"
    )
    add_live_arguments(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.report is not None and args.report.suffix.lower() != ".json":
        raise UsageError(f"the report {args.report} must end with .json")
    check_targets([(args.report, REPORT)], [args.bundle, args.captions, args.token_file, args.tls_ca])
    if args.live:
        return run_live(args)
    check_not_live(args)
    if args.bundle is None:
        raise UsageError("there is nothing to measure; give a bundle")

    from t2v_edge.bench.frames import BenchOptions, bench

    seconds = BenchOptions.seconds if args.seconds is None else args.seconds
    options = BenchOptions(
        args.fps, seconds, args.seed, args.engine, args.variant, args.threads, args.batch, args.ahead
    )
    bar = PhaseBar("bench")
    try:
        report = bench(args.bundle, options, bar.advance)
    finally:
        bar.close()
    if args.report is not None:
        write_report(report.to_json(), args.report)
    print_result(report.to_json(), report.to_text(), args.json)
    return 0
