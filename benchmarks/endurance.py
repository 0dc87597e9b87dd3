"""A bundle shown in real time for a while: ``python -m benchmarks.endurance BUNDLE --fps 60 --seconds 60``.

Frame k is due at the end of its interval, (k + 1) / fps after the start, as a screen would ask for it. The stream makes
it, then sleeps until the next interval begins. A frame that is not done when it is due is late.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.process import memory
from t2v_edge.errors import T2VError
from t2v_edge.files import write_atomic
from t2v_edge.machine import machine, versions
from t2v_edge.pipeline import Pipeline
from t2v_edge.stream import FrameStream

CAPTIONS = ("a person is dribbling a basketball", "一个人在跑步", "a woman is washing a window")
CHANGE_S = 10.0  # a new caption that often: the text stage runs in the same time
FORMAT, VERSION = "t2v-benchmark-endurance", 1


@dataclass(frozen=True)
class Clockwork:
    """The time a run is held against: seconds now, seconds of processor time used, and a way to wait."""

    now: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep


def keep_pace(stream: FrameStream, fps: float, frames: int, clock: Clockwork = Clockwork(),
              advance: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Show `frames` frames on time and say how that went.

    `late`: frames not done when due, and by how much at most. `headroom`: the share of time in which nothing was to be
    done. `cpu_share`: processor time over wall time, 1 for one core kept busy.
    """
    took = np.empty(frames)
    lateness = np.empty(frames)
    begun, cpu = clock.now(), clock.cpu()
    rss = memory()[0]
    for index in range(frames):
        wait = begun + index / fps - clock.now()
        if wait > 0:
            clock.sleep(wait)
        start = clock.now()
        next(stream)
        end = clock.now()
        took[index] = end - start
        lateness[index] = end - (begun + (index + 1) / fps)
        if index == min(frames, int(fps)) - 1:  # allocators have settled after a second
            rss = memory()[0]
        advance()
    wall = max(clock.now() - begun, frames / fps)
    late = lateness > 0
    percentiles = {f"p{p}": 1000 * float(np.percentile(took, p)) for p in (50, 95, 99)}
    return {
        "frames": frames, "late": int(late.sum()), "latest_ms": 1000 * float(max(lateness.max(), 0.0)),
        "headroom": 1 - float(took.sum()) / wall, "cpu_share": (clock.cpu() - cpu) / wall,
        "frame_ms": {**percentiles, "max": 1000 * float(took.max()), "mean": 1000 * float(took.mean())},
        "rss_growth_mib": memory()[0] - rss, "peak_mib": memory()[1],
    }


def endure(bundle: Path, fps: float, seconds: float, seed: int, threads: int | None, engine: str) -> dict[str, Any]:
    """Play a bundle, its caption changing every `CHANGE_S` seconds. Raises `T2VError`."""
    changes = np.arange(CHANGE_S, seconds, CHANGE_S).tolist()
    then = [(at, CAPTIONS[i % len(CAPTIONS)]) for i, at in enumerate(changes, 1)]
    frames = round(fps * seconds)
    with Pipeline.open(bundle, engine=engine, threads=threads) as pipeline:
        stream = pipeline.stream(CAPTIONS[0], then=then, fps=fps, seed=seed)
        next(stream)  # the first caption's text stage: measured as caption to first frame elsewhere
        with tqdm(total=frames, desc="endurance", unit="frame", file=sys.stderr, disable=None, mininterval=1) as bar:
            found = keep_pace(stream, fps, frames, advance=bar.update)
        stages = {stage: latency.to_json() for stage, latency in stream.stats.stages.items()}
        return {
            "format": FORMAT, "format_version": VERSION, "bundle": pipeline.manifest.name, "fps": fps,
            "seconds": seconds, "seed": seed, "threads": threads, "cores": _cores(),
            "width": stream.size[0], "height": stream.size[1], "engines": pipeline.engines,
            "variants": pipeline.variants, **found, "stages": stages, "machine": machine(),
            "versions": versions(*sorted(set(pipeline.engines.values()))),
        }


def _cores() -> int | None:
    """Processors this process may use: fewer than the machine has under taskset or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--fps", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.fps <= 0 or round(options.fps * options.seconds) < 1:
        parser.error("--fps and --seconds must be more than 0")
    try:
        found = endure(options.bundle, options.fps, options.seconds, options.seed, options.threads, options.engine)
    except T2VError as error:
        print(f"endurance failed: {error}", file=sys.stderr)
        return 1
    text = json.dumps(found, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.output, (text + "\n").encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
