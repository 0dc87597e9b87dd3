"""One contender, opened and measured in this process: ``python -m benchmarks.cpu.worker``, started by `peers`.

Prints one JSON object on its last line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.methods import OURS, method
from benchmarks.common.process import memory, without_telemetry
from benchmarks.common.results import psnr_db
from benchmarks.cpu.engines import import_runner, open_pipeline
from t2v_edge.pipeline import Pipeline
from t2v_edge.play.stream import FrameStream
from t2v_edge.spec import STAGES
from t2v_export.exporter.captions import DEFAULT_CAPTIONS

SHOWN_FPS = 60
WARM_FRAMES = 4
FIRST_FRAMES = 6  # captions timed to their first frame


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.worker", description=__doc__)
    parser.add_argument("--method", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--material", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--probe", action="store_true", help="compare frames with FP32 instead of timing")
    options = parser.parse_args()
    chosen = method(options.method)
    without_telemetry()
    start = time.perf_counter()
    import_runner(chosen.runner)
    imported_s, (import_mib, _) = time.perf_counter() - start, memory()
    start = time.perf_counter()
    with open_pipeline(chosen, options.checkpoint, options.material) as pipeline:
        next(pipeline.stream(DEFAULT_CAPTIONS[0], seed=options.seed))
        figures: dict[str, Any] = {
            "import_ms": 1000 * imported_s,
            "cold_start_ms": 1000 * (time.perf_counter() - start),
            "import_mib": import_mib,
        }
        if options.probe:
            figures["psnr_db"] = probe(pipeline, options.material / "probe.npz")
            figures["variants"] = pipeline.variants if chosen.runner == OURS else None
            figures["engines"] = pipeline.engines
        else:
            figures |= time_streams(pipeline, options.seconds, options.seed, chosen.ahead)
        figures["peak_mib"] = memory()[1]
    print(json.dumps(figures))


def time_streams(pipeline: Pipeline, seconds: float, seed: int, ahead: bool) -> dict[str, float]:
    """First frames of captions not seen before, then frames at the model's own rate and shown at 60.

    Frames are made back to back or ahead. The stages' times are of frames made back to back.
    """
    firsts = []
    for index, caption in enumerate(DEFAULT_CAPTIONS[1 : 1 + FIRST_FRAMES]):
        stream = pipeline.stream(caption, seed=seed + index)
        next(stream)
        firsts.append(stream.stats.first_frame_ms or math.nan)
    base = pipeline.stream(DEFAULT_CAPTIONS[0], seed=seed, ahead=ahead)
    shown = pipeline.stream(DEFAULT_CAPTIONS[0], seed=seed, fps=SHOWN_FPS, ahead=ahead)
    figures = {
        "first_frame_ms": statistics.median(firsts),
        "base_fps": frames_a_second(base, seconds),
        "shown_fps": frames_a_second(shown, seconds),
    }
    if ahead:
        shown = pipeline.stream(DEFAULT_CAPTIONS[0], seed=seed, fps=SHOWN_FPS)
        frames_a_second(shown, seconds / 4)
    return {**figures, **{f"{stage}_ms": _median_ms(shown if stage != "text" else stream, stage) for stage in STAGES}}


def frames_a_second(stream: FrameStream, seconds: float) -> float:
    """Frames made a second over `seconds`, one after another, once it is warm."""
    for _ in range(WARM_FRAMES):
        next(stream)
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        next(stream)
        count += 1
    stream.close()
    return count / taken


def _median_ms(stream: FrameStream, stage: str) -> float:
    return stream.stats.stages[stage].median_ms or math.nan


def probe(pipeline: Pipeline, path: Path) -> float:
    """Mean PSNR in dB (peak 255) of frames against those of the FP32 graph for the same inputs; 100 for equal ones."""
    found = []
    with np.load(path) as data:
        names = [name for name in data.files if name.startswith("in.")]
        for index, wanted in enumerate(data["frames"]):
            made = pipeline.run("render", {name[3:]: data[name][index] for name in names})["frame"]
            found.append(psnr_db(made, wanted))
    return float(np.mean(found))


if __name__ == "__main__":
    main()
