"""A bundle shown in real time for a while: ``python -m benchmarks.cpu.endurance BUNDLE --fps 60 --seconds 60``.

What ``t2v-edge bench BUNDLE --fps 60 --seconds 60`` measures last, in the form of `results/endurance.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.process import MEGABYTE
from t2v_edge.bench.frames import BenchOptions, bench
from t2v_edge.bench.report import BenchReport
from t2v_edge.errors import T2VError
from t2v_edge.util.files import write_atomic
from t2v_edge.util.targets import SCRIPT_FILE

FORMAT, VERSION = "t2v-benchmark-endurance", 1


def describe(report: BenchReport) -> dict[str, Any]:
    """The run in real time of a benchmark, as JSON."""
    pace = report.real_time
    assert pace is not None
    frame_ms = {
        "p50": pace.frame.median_ms,
        "p95": pace.frame.p95_ms,
        "p99": pace.frame.p99_ms,
        "max": pace.frame.max_ms,
        "mean": pace.mean_ms,
    }
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "bundle": report.bundle,
        "fps": pace.fps,
        "seconds": report.options["seconds"],
        "seed": report.options["seed"],
        "threads": report.options["threads"],
        "cores": report.machine["usable_cores"],
        "width": report.size[0],
        "height": report.size[1],
        "engines": report.engines,
        "variants": report.variants,
        "frames": pace.frames,
        "late": pace.late,
        "latest_ms": pace.latest_ms,
        "headroom": pace.headroom,
        "cpu_share": pace.cpu_share,
        "frame_ms": frame_ms,
        "rss_growth_mib": pace.memory_growth_bytes / MEGABYTE,
        "peak_mib": report.memory.peak_bytes / MEGABYTE,
        "stages": {stage: latency.to_json() for stage, latency in report.stages.items()},
        "machine": report.machine,
        "versions": report.versions,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.endurance", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--fps", default="60")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        report = bench(
            options.bundle,
            BenchOptions(options.fps, options.seconds, options.seed, options.engine, threads=options.threads),
        )
    except T2VError as error:
        print(f"endurance failed: {error}", file=sys.stderr)
        return 1
    text = json.dumps(describe(report), indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.output, (text + "\n").encode(), SCRIPT_FILE)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
