"""``t2v-edge bench``: how fast a bundle is on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Optional

from t2v_edge.bench import BenchOptions, bench
from t2v_edge.bench_report import BenchReport
from t2v_edge.commands.engines import add_engine_arguments, add_making_arguments
from t2v_edge.commands.output import Progress, print_result
from t2v_edge.errors import SinkError, UsageError
from t2v_edge.files import write_atomic
from t2v_edge.strict_json import dumps

EXAMPLES = """examples:
  t2v-edge bench BUNDLE
  t2v-edge bench BUNDLE --fps 60 --seconds 60           # in real time as well: late frames, headroom
  t2v-edge bench BUNDLE --engine onnxruntime --threads 1 --json
  t2v-edge bench BUNDLE --fps 30 --report results/my-board.json

What each figure means, and how to contribute a report: docs/benchmarking.md."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench", help="latency, frame rate, memory and power on this machine",
        description="Measure a bundle here: stages, frames, first frames, caption changes, memory, power.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle folder or zip")
    parser.add_argument("--fps", help="shown frames a second; also play in real time at that rate, and count late "
                                      "frames (default: the model's own rate, and not in real time)")
    parser.add_argument("--seconds", type=float, default=BenchOptions.seconds,
                        help=f"how long to play (default: {BenchOptions.seconds:g})")
    parser.add_argument("--seed", type=int, default=0, help="of the streams (default: 0)")
    add_engine_arguments(parser)
    add_making_arguments(parser)
    parser.add_argument("--report", type=Path, metavar="FILE",
                        help="also write the JSON to FILE, which names neither you nor your machine")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.report is not None and args.report.suffix.lower() != ".json":
        raise UsageError(f"the report {args.report} must end with .json")
    options = BenchOptions(args.fps, args.seconds, args.seed, args.engine, args.variant, args.threads,
                           args.batch, args.ahead)
    bar = _Bar()
    try:
        report = bench(args.bundle, options, bar.advance)
    finally:
        bar.close()
    if args.report is not None:
        write_report(report, args.report)
    print_result(report.to_json(), report.to_text(), args.json)
    return 0


def write_report(report: BenchReport, path: Path) -> None:
    """Write the report's JSON, whole or not at all; raises `SinkError` where it cannot be."""
    try:
        write_atomic(path, dumps(report.to_json()))
    except OSError as error:
        raise SinkError(f"the report {path} cannot be written ({error}); give another --report") from error


class _Bar:
    """A progress bar for each phase, one after another."""

    def __init__(self) -> None:
        self._phase: Optional[str] = None
        self._progress: Optional[Progress] = None

    def advance(self, phase: str, share: float) -> None:
        if phase != self._phase or self._progress is None:
            self.close()
            self._phase, self._progress = phase, Progress(f"bench: {phase}", 100, unit="%/s")
        self._progress.update(int(100 * share))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
