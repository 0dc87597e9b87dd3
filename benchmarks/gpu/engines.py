"""Bundles through this runtime's TensorRT engines on an NVIDIA GPU: ``python -m benchmarks.gpu.engines``.

    python -m benchmarks.gpu.build out/reference out/small -o builds.json
    python -m benchmarks.gpu.engines out/reference out/small --builds builds.json --batches 1,8 -o engines.json \\
        --captions calibration/captions/heldout.jsonl --frames /tmp/frames -n 1200

It needs no PyTorch and runs on Python 3.9, as a TensorRT host does. The file is written after each part. For each
bundle it has:

    build           what `t2v-edge build` says: every variant's build time, size, differences and milliseconds, and what
                    was chosen
    streams         frames a second at the model's own rate, with the frames copied back: by batch, with and without
                    frames made ahead, for the chosen engines and for each variant alone
                    the share of a frame's time in which the GPU is idle. Motion, rendering and copies of frames made
                    ahead overlap. Their share leaves the longest of the three out, and is an upper bound
    same            whether frames made ahead are those made one by one
    first_frame_ms  from a caption never seen to its first frame
    switch_ms       from a new caption to the first frame of its generation
    cache           whether engines that were damaged on purpose are taken

--captions writes the frames that the evaluator reads to --frames. There is one raw uint8 (captions, 16, H, W, 3) file
for each bundle and variant. `benchmarks.gpu.read` judges them on a machine with OpenCV.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np

from benchmarks.gpu.build import Job, settings_of
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.engine.registry import BUILT
from t2v_edge.engine.tensorrt.api import BuildSettings
from t2v_edge.engine.tensorrt.build import Builder, BuildOptions
from t2v_edge.engine.tensorrt.cuda import free_bytes
from t2v_edge.errors import EngineError, T2VError
from t2v_edge.pipeline import Pipeline
from t2v_edge.util.files import write_atomic
from t2v_edge.util.machine import machine, versions
from t2v_edge.util.targets import SCRIPT_FILE

CAPTION = "a person is playing basketball"
SEED = 7
WARM_FRAMES = 200
ROUNDS = 3
FIRST_FRAMES = 40
COMPARED_S, COMPARED_FPS = 10, (None, 60)
CUTS = 10
READ_FPS, READ_START, READ_FRAMES = 8, 8, 16
"""What the evaluator reads: 16 frames at 8 fps, after one second."""


def measure_stream(pipeline: Pipeline, frames: int, ahead: bool) -> dict[str, Any]:
    """Frames a second, median of rounds; milliseconds of a call for the next frame; the GPU's own time for them."""
    rates, waits = [], np.empty(0)
    for _ in range(ROUNDS):
        stream = pipeline.stream(CAPTION, seed=SEED, ahead=ahead)
        for _ in range(WARM_FRAMES):
            next(stream)
        stamps = np.empty(frames + 1)
        stamps[0] = time.perf_counter()
        for index in range(1, frames + 1):
            next(stream)
            stamps[index] = time.perf_counter()
        rates.append(frames / (stamps[-1] - stamps[0]))
        waits = np.concatenate([waits, 1000 * np.diff(stamps)])
        player: Any = stream._rollout.player
        step_ms, group_ms, copy_ms = player.time_ms(200)
        rows = player.rows
        stream.close()
    fps = float(np.median(rates))
    parts = (step_ms, group_ms / rows, copy_ms / rows)
    busy_ms = max(parts) if ahead else sum(parts)
    return {
        "fps": fps,
        "fps_of_rounds": rates,
        "frames": frames,
        "rows": rows,
        "wait_ms": {name: float(np.percentile(waits, q)) for name, q in (("p50", 50), ("p95", 95), ("p99", 99))},
        "gpu_step_ms": step_ms,
        "gpu_group_ms": group_ms,
        "gpu_copy_ms": copy_ms,
        "gpu_busy_ms_a_frame": busy_ms,
        "gpu_idle_share": max(0.0, 1 - busy_ms * fps / 1000),
    }


def play(pipeline: Pipeline, ahead: bool) -> np.ndarray:
    """Frames (N, H, W, 3) of changing captions, at the model's own rate and at another one."""
    then = [(second + 0.4, f"a person is {what}") for second, what in enumerate(("running", "waving", "dancing"))]
    return np.stack(
        [
            frame.pixels
            for fps in COMPARED_FPS
            for frame in pipeline.stream(
                CAPTION, then=then, fps=fps, seconds=COMPARED_S, seed=SEED, smoothing=0.3, ahead=ahead
            )
        ]
    )


def compare(frames: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """How many frames are not the same, and by how many levels at most."""
    levels = [int(np.abs(one.astype(np.int16) - other).max()) for one, other in zip(frames, others)]
    return {
        "frames": len(frames),
        "counts_agree": len(frames) == len(others),
        "not_the_same": sum(map(bool, levels)),
        "levels": max(levels),
    }


def measure_captions(pipeline: Pipeline, captions: list[str]) -> dict[str, Any]:
    """From a caption never seen to its first frame, and in mid-stream to the first frame of the new generation."""
    first, opened, switch = [], [], []
    for caption in captions:
        start = time.perf_counter()
        stream = pipeline.stream(caption, seed=SEED)
        middle = time.perf_counter()
        next(stream)
        first.append(1000 * (time.perf_counter() - middle))
        opened.append(1000 * (middle - start))
        stream.close()
    stream = pipeline.stream(CAPTION, seed=SEED)
    for number, caption in enumerate(captions):
        for _ in range(5):
            next(stream)
        start = time.perf_counter()
        generation = stream.set_caption(f"{caption} {number}")
        while next(stream).generation < generation:
            pass
        switch.append(1000 * (time.perf_counter() - start))
    stream.close()

    def of(times: list[float]) -> dict[str, float]:
        return {name: float(np.percentile(times, q)) for name, q in (("p50", 50), ("p95", 95), ("max", 100))}

    return {
        "captions": len(captions),
        "first_frame_ms": of(first),
        "stream_open_ms": of(opened),
        "switch_ms": of(switch),
    }


def damage(builder: Builder, stage: str = "motion", variant: str = "fp32") -> dict[str, Any]:
    """Whether a kept engine is taken after a byte of it changed, cut at ten places, or from another GPU."""
    cache, key = builder.cache, builder._key(variant, stage)
    path = cache._path(key)
    whole = path.read_bytes()
    taken = {"whole": cache.get(key) is not None}
    middle = len(whole) // 2
    damaged = {"one byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]}
    damaged.update({f"cut at {len(whole) * i // CUTS}": whole[: len(whole) * i // CUTS] for i in range(CUTS)})
    for name, data in damaged.items():
        path.write_bytes(data)
        taken[name] = cache.get(key) is not None
    shutil.copyfile(path, cache._path({**key, "gpu": "another"}))
    path.write_bytes(whole)
    shutil.copyfile(path, cache._path({**key, "gpu": "another"}))
    taken["of another GPU"] = cache.get({**key, "gpu": "another"}) is not None
    path.write_bytes(next(iter(damaged.values())))
    built = builder.with_settings(builder.options.settings).build()
    tried = {t.variant: t for t in built.stages[stage].tried}
    return {
        "taken": taken,
        "built_again": not tried[variant].kept,
        "right_again": not tried[variant].refused,
        "others_kept": all(
            t.kept
            for s, r in built.stages.items()
            for t in r.tried
            if (s, t.variant) != (stage, variant) and not t.refused
        ),
    }


def write_frames(pipeline: Pipeline, captions: list[str], path: Path) -> float:
    """Write the frames that the evaluator reads, caption i with seed i; the seconds it took."""
    start = time.perf_counter()
    video = pipeline.manifest.video
    shape = (len(captions), READ_FRAMES, video.height, video.width, 3)
    out = np.memmap(path, np.uint8, "w+", shape=shape)
    for row, caption in enumerate(captions):
        stream = pipeline.stream(caption, fps=READ_FPS, seed=row, ahead=True)
        for index in range(READ_START + READ_FRAMES):
            pixels = next(stream).pixels
            if index >= READ_START:
                out[row, index - READ_START] = pixels
        stream.close()
    out.flush()
    return time.perf_counter() - start


class Results:
    """The JSON file that grows. A part that fails says why, and the others go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {
            "format": "t2v-gpu-engines",
            "format_version": 1,
            "seed": SEED,
            "machine": machine(),
            "versions": versions("tensorrt", "cuda-python", "onnxruntime"),
            "bundles": {},
        }

    def part(self, bundle: str, name: str, make: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made: Any = None
        try:
            made = make()
            found = made
        except (T2VError, RuntimeError, OSError, KeyError) as error:
            found = {"failed": str(error), "traceback": traceback.format_exc()[-2000:]}
        self.data["bundles"].setdefault(bundle, {})[name] = found
        write_atomic(self.path, (json.dumps(self.data, indent=1) + "\n").encode(), SCRIPT_FILE)
        shown = found if isinstance(found, dict) and "failed" in found else ""
        print(f"{bundle} {name}: {time.perf_counter() - start:.1f} s {shown}", flush=True)
        return made


def read_captions(path: Optional[Path], count: int) -> list[str]:
    if path is None:
        return []
    return [str(json.loads(line)["text"]) for line in path.read_text("utf-8").splitlines()[:count]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--engine", default="tensorrt")
    parser.add_argument("--batches", default="1,8", help="frames that the renderer makes at once (1,8)")
    parser.add_argument("--tactics", help="tactic sources, comma-separated, or none")
    parser.add_argument("--level", type=int)
    parser.add_argument("--builds", type=Path, help="what benchmarks.gpu.build wrote: its seconds, and its refusals")
    parser.add_argument("--count", type=int, default=2000, help="frames of a timed stream (2000)")
    parser.add_argument("--captions", type=Path, help="JSON lines with text")
    parser.add_argument("-n", type=int, default=1200, help="captions whose frames are written (1200)")
    parser.add_argument("--frames", type=Path, help="folder for frames to be judged")
    parser.add_argument("--judge", default="chosen,int8", help="variants whose frames are written (chosen,int8)")
    parser.add_argument("--no-spoil", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    Prebuilt.builds = {} if args.builds is None else json.loads(args.builds.read_text())
    results, captions = Results(args.output), read_captions(args.captions, args.n)
    if args.frames is not None:
        args.frames.mkdir(parents=True, exist_ok=True)
    settings = settings_of(args.level, args.tactics)
    for path in args.bundles:
        results.part(path.name, "build 1", partial(_build, path, args.engine, settings))
        _streams(results, path, args, 1, None, captions)
        with Bundle.open(path) as bundle:
            variants = [v for v in ("fp32", "fp16", "int8") if v in bundle.manifest.variants]
        for variant in variants:
            _alone(results, path, args, settings, variant, captions)
    if not args.no_spoil:
        path = args.bundles[-1]
        with Bundle.open(path) as bundle:
            builder = Builder(bundle, BuildOptions(args.engine, ("fp32",), settings))
            results.part(path.name, "cache", lambda: damage(builder))
    # Last, for these are built only now: of what was chosen for one frame at once.
    for path in args.bundles:
        chosen = results.data["bundles"][path.name]["build 1"].get("stages", {}).get("render", {}).get("variant")
        for batch in (int(count) for count in args.batches.split(",") if int(count) > 1 and chosen is not None):
            several = settings_of(args.level, args.tactics, batch)
            results.part(path.name, f"build {batch}", partial(_build, path, args.engine, several, (chosen,)))
            _streams(results, path, args, batch, chosen, captions)
    return 0


class Prebuilt(Builder):
    """A builder that takes what `benchmarks.gpu.build` built, so that nothing is built twice.

    It has the seconds of that build. What was refused there, or not reached, counts as refused.
    """

    builds: dict[str, Any] = {}

    def _engine(self, variant: str, stage: str) -> tuple[bytes, bool, float]:
        known = self.builds if self._settings(stage).batch == 1 else {}
        found = known.get(Job(str(self.bundle.path), variant, stage).key)
        if known and found is None:
            raise EngineError("benchmarks.gpu.build did not come to it")
        if found is not None and found["refused"]:
            raise EngineError(found["refused"])
        data, kept, seconds = super()._engine(variant, stage)
        return (data, False, found["seconds"]) if kept and found is not None else (data, kept, seconds)


def _build(path: Path, engine: str, settings: BuildSettings, variants: Optional[tuple[str, ...]] = None) -> Any:
    with Bundle.open(path) as bundle:
        options = BuildOptions(engine, variants, settings)
        report = Prebuilt(bundle, options, say=lambda what: print(" ", what, flush=True)).build()
    print(report.to_text(), flush=True)
    return report.to_json()


def _streams(
    results: Results, path: Path, args: argparse.Namespace, batch: int, variant: Optional[str], captions: list[str]
) -> None:
    """The chosen engines of a batch."""
    before = free_bytes()
    with Pipeline.open(path, args.engine, variant, batch=batch) as pipeline:
        used = before - free_bytes()
        for ahead in (False, True):
            name = f"stream {batch}" + (" ahead" if ahead else "")
            measured = results.part(path.name, name, partial(measure_stream, pipeline, args.count, ahead))
            if measured is not None:
                measured.update(engines=pipeline.engines, variants=pipeline.variants, gpu_bytes=used)
        results.part(path.name, f"same {batch}", lambda: compare(play(pipeline, False), play(pipeline, True)))
        if batch == 1:
            heard = captions[-FIRST_FRAMES:] or [f"{CAPTION} {i}" for i in range(FIRST_FRAMES)]
            results.part(path.name, "captions", lambda: measure_captions(pipeline, heard))
            if args.frames is not None and "chosen" in args.judge.split(","):
                _write(results, path, args, pipeline, "chosen", captions)


def _alone(
    results: Results, path: Path, args: argparse.Namespace, settings: BuildSettings, variant: str, captions: list[str]
) -> None:
    """One variant wherever a stage has it and it is right there."""
    results.part(path.name, f"build {variant}", partial(_build, path, args.engine, settings, (variant,)))
    with Pipeline.open(path, args.engine, variant) as pipeline:
        if pipeline.engines["render"] not in BUILT:
            results.part(path.name, f"stream {variant}", lambda: {"engines": pipeline.engines})
            return
        results.part(
            path.name,
            f"stream {variant}",
            lambda: {
                "engines": pipeline.engines,
                "variants": pipeline.variants,
                **measure_stream(pipeline, args.count, True),
            },
        )
        if args.frames is not None and variant in args.judge.split(","):
            _write(results, path, args, pipeline, variant, captions)


def _write(
    results: Results, path: Path, args: argparse.Namespace, pipeline: Pipeline, name: str, captions: list[str]
) -> None:
    target = args.frames / f"{path.name}.{name}.frames"
    results.part(
        path.name,
        f"frames {name}",
        lambda: {
            "seconds": write_frames(pipeline, captions, target),
            "captions": len(captions),
            "variants": pipeline.variants,
            "engines": pipeline.engines,
            "file": target.name,
        },
    )


if __name__ == "__main__":
    raise SystemExit(main())
