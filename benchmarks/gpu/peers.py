"""Checkpoints through PyTorch and ONNX Runtime on an NVIDIA GPU, for scale: ``python -m benchmarks.gpu.peers``.

    python -m benchmarks.gpu.peers --checkpoint checkpoints/reference --checkpoint checkpoints/small \\
        --bundle out/reference --bundle out/small -o benchmarks/results/gpu_peers.json
    python -m benchmarks.gpu.peers --checkpoint checkpoints/small --only torch-compile-max-fp16 --resume -o FILE

The file is written after each method. --resume keeps what it has measured and does the rest. Its JSON:

    format, format_version, made, seed, runs, captions (how many), machine, versions
    gpu            name, capability, multiprocessors, memory_mib, driver, cuda, cudnn; null on a CPU
    tf32           false: FP32 is computed in FP32
    ceilings       as benchmarks.gpu.ceilings prints it
    models         name -> checkpoint_sha256, bundle (file name or null), width, height, base_fps, render_gmac
    contenders     one a model and method: model, method, label, precision, how (what a reader must know), status, and
      skipped      reason
      failed       reason, traceback
      measured     setup_s      stage -> seconds to make it ready: capture, compilation, first runs
                   stages       text, motion, render, render_4...: {"gpu_ms", "wall_ms"}, each {"runs", "median", "p95",
                                "min"}; gpu_ms between CUDA events around one run that starts on an idle GPU, wall_ms
                                of the host with the wait; inputs rotate among those of rolled-out streams
                   streams      "1", "4"...: frames made at a call -> fps, frames, call_ms (a call: that many motion
                                steps, one render, the copy of the uint8 frames to pinned memory, one wait), busy_ms
                                (of a call in which kernels or copies ran, by torch.profiler, in runs of their own
                                after all timing) and idle_share (1 - busy_ms / mean call of the timed run); or
                                "skipped", or "failed" and "traceback"
                   first_frame_ms  from a caption never seen to its first frame in pinned memory: tokens, text stage,
                                condition settled on the host, motion step, render, copy
                   errors       condition_max, motion_max (one step from the same state), null where not finite;
                                frames: "1"... -> psnr_db, psnr_min_db, max_levels (the same render inputs); all
                                against FP32 on the CPU
                   memory       peak_allocated_mib and peak_reserved_mib of PyTorch's allocator, device_mib: how much
                                less of the GPU was free at the end than at the start; null on a CPU
                   render_rate  "1"... -> tops: 10^12 operations a second by gpu_ms, share: of the ceiling
                   notes, seconds

A method that fails or is not installed says why, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.process import MEGABYTE
from benchmarks.common.results import MEASURED, SKIPPED
from benchmarks.gpu.ceilings import measure_gpu_ceilings
from benchmarks.gpu.material import Material, gather, match_bundles
from benchmarks.gpu.measure import Budget, MeasureOptions, busy_times, measure, trace, with_busy
from benchmarks.gpu.methods import COMPILE, GPU_METHODS, GpuMethod, gpu_method
from benchmarks.gpu.ort import NotInstalled
from benchmarks.gpu.player import Place
from t2v_edge.errors import T2VError, UsageError
from t2v_edge.util.files import write_atomic
from t2v_edge.util.machine import machine, versions
from t2v_edge.util.targets import SCRIPT_FILE

FORMAT, VERSION = "t2v-benchmark-gpu-peers", 1
FAILED = "failed"
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "onnxruntime", "onnxruntime-gpu")
SAME = ("format", "format_version", "seed", "gpu", "versions")
"""What a file must share with a run that adds to it: figures of two machines do not belong in one table."""
CPU_BLOCK = 8 << 20
CPU_SIZES = (128,)


def gpu_facts(place: Place) -> dict[str, Any] | None:
    """The GPU's name and what its figures depend on; None on a CPU."""
    if not place.on_gpu:
        return None
    known = torch.cuda.get_device_properties(place.device)
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        driver: str | None = asked.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = None
    return {
        "name": known.name,
        "capability": f"{known.major}.{known.minor}",
        "multiprocessors": known.multi_processor_count,
        "memory_mib": known.total_memory // MEGABYTE,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


class Results:
    """The results file: read where it is added to, written whole after each change."""

    def __init__(self, path: Path, place: Place, options: MeasureOptions, captions: int) -> None:
        self.path = path
        self.data: dict[str, Any] = {
            "format": FORMAT,
            "format_version": VERSION,
            "made": _now(),
            "seed": options.seed,
            "runs": options.runs,
            "captions": captions,
            "machine": machine(),
            "versions": versions(*PACKAGES),
            "gpu": gpu_facts(place),
            "tf32": False,
            "ceilings": None,
            "models": {},
            "contenders": [],
        }

    def resume(self) -> None:
        """Take over what the file has; raises `UsageError` where it is of another machine, seed or version."""
        if not self.path.exists():
            return
        try:
            before = json.loads(self.path.read_text("utf-8"))
            other = [key for key in SAME if before[key] != self.data[key]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self.path} is no results file ({error!r}); give another -o") from error
        if other:
            raise UsageError(
                f"{self.path} differs from this run in {', '.join(other)}; give another -o, or leave out "
                "--resume to start again"
            )
        for key in ("ceilings", "models", "contenders"):
            self.data[key] = before[key]

    def describe(self, material: Material) -> None:
        """Enter a model. Contenders of another checkpoint of that name are dropped."""
        config = material.checkpoint.config
        entry = {
            "checkpoint_sha256": material.checkpoint.sha256,
            "width": config.width,
            "height": config.height,
            "bundle": material.bundle.name if material.bundle else None,
            "base_fps": config.fps,
            "render_gmac": material.render_macs / 1e9,
        }
        before = self.data["models"].get(material.name)
        if before is not None and before["checkpoint_sha256"] != entry["checkpoint_sha256"]:
            self.data["contenders"] = [c for c in self.data["contenders"] if c["model"] != material.name]
        self.data["models"][material.name] = entry

    def find(self, model: str, method: str) -> dict[str, Any] | None:
        found = (c for c in self.data["contenders"] if (c["model"], c["method"]) == (model, method))
        return next(found, None)

    def put(self, contender: dict[str, Any]) -> None:
        """Enter a contender in place of an earlier one, and write the file."""
        key = (contender["model"], contender["method"])
        rest = [c for c in self.data["contenders"] if (c["model"], c["method"]) != key]
        order = [method.name for method in GPU_METHODS]
        models = list(self.data["models"])
        self.data["contenders"] = sorted(
            [*rest, contender], key=lambda c: (models.index(c["model"]), order.index(c["method"]))
        )
        self.write()

    def write(self) -> None:
        self.data["made"] = _now()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, (json.dumps(self.data, indent=1) + "\n").encode(), SCRIPT_FILE)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def run(
    materials: Sequence[Material],
    methods: Sequence[GpuMethod],
    place: Place,
    options: MeasureOptions,
    results: Results,
    deadline: Budget,
) -> None:
    """Measure every method on every model that `results` does not have yet; then the busy times.

    No method is begun after `deadline`. Busy times, which take a second or two, are read after it as well, but not
    those of torch.compile.
    """
    for material in materials:
        results.describe(material)
    if not results.data["ceilings"]:
        _say("ceilings")
        results.data["ceilings"] = (
            measure_gpu_ceilings(place) if place.on_gpu else measure_gpu_ceilings(place, 0.1, CPU_SIZES, CPU_BLOCK)
        )
        results.write()
    for method in methods:
        for material in materials:
            if (results.find(material.name, method.name) or {}).get("status") != MEASURED:
                results.put(measure_contender(method, material, place, options, results.data["ceilings"], deadline))
    for method in methods:
        for material in materials:
            contender = results.find(material.name, method.name)
            late = method.runner == COMPILE and deadline.over
            if place.on_gpu and contender and contender["status"] == MEASURED and not late:
                results.put(with_idle(contender, method, material, place, options.seed))


def measure_contender(
    method: GpuMethod,
    material: Material,
    place: Place,
    options: MeasureOptions,
    ceilings: Mapping[str, Any],
    deadline: Budget,
) -> dict[str, Any]:
    """One contender as JSON, whatever becomes of it."""
    entry = {
        "model": material.name,
        "method": method.name,
        "label": method.label,
        "precision": method.precision,
        "how": method.how,
    }
    if method.captures and not place.on_gpu:
        return {**entry, "status": SKIPPED, "reason": "CUDA graphs need a GPU"}
    if deadline.over:
        return {**entry, "status": SKIPPED, "reason": "out of time: the --deadline was over"}
    try:
        found = measure(method, material, place, options)
    except NotInstalled as error:
        found = {"status": SKIPPED, "reason": str(error)}
    except Exception as error:  # noqa: BLE001 a peer may raise anything, and the others go on
        found = {"status": FAILED, "reason": f"{type(error).__name__}: {error}"[:1000], "traceback": trace()}
    else:
        rate = render_rate(found["stages"], material.render_macs, ceilings["matrix"].get(method.precision, {}))
        found = {"status": MEASURED, **found, "render_rate": rate}
    _say(line({**entry, **found}))
    return {**entry, **found}


def with_idle(
    contender: dict[str, Any], method: GpuMethod, material: Material, place: Place, seed: int
) -> dict[str, Any]:
    """The contender with busy times and idle shares where it has none yet, or why it cannot have them."""
    wanted = [int(b) for b, s in contender["streams"].items() if "fps" in s and s["busy_ms"] is None]
    if not wanted:
        return contender
    try:
        busy = busy_times(method, material, place, wanted, seed)
    except Exception as error:  # noqa: BLE001 the profiler or the second start may fail; the timings stand
        return {**contender, "notes": {**contender["notes"], "busy": f"{type(error).__name__}: {error}"[:500]}}
    _say(f"{contender['model']} {contender['method']}: GPU busy {busy} ms a call")
    return {**contender, "streams": with_busy(contender["streams"], busy)}


def render_rate(stages: Mapping[str, Any], macs: int, ceiling: Mapping[str, Any]) -> dict[str, Any]:
    """Batch -> 10^12 operations a second of the renderer, two a multiply-accumulate, and its share of the ceiling."""
    found = {}
    for name, timed in stages.items():
        stage, _, batch = name.partition("_")
        if stage == "render":
            clock = timed["gpu_ms"] or timed["wall_ms"]
            tops = 2 * macs * int(batch or 1) / clock["median"] / 1e9
            found[batch or "1"] = {"tops": tops, "share": tops / ceiling["best"] if "best" in ceiling else None}
    return found


def line(contender: Mapping[str, Any]) -> str:
    """One contender for people."""
    head = f"{contender['model']:<10}{contender['label']:<38}"
    if contender["status"] != MEASURED:
        return f"{head}{contender['status']}: {contender['reason'].splitlines()[0][:150]}"
    stages = contender["stages"]
    times = [(stages[s]["gpu_ms"] or stages[s]["wall_ms"])["median"] for s in ("text", "motion", "render")]
    rates = [f"{s['fps']:>8.0f}" if "fps" in s else f"{'-':>8}" for s in contender["streams"].values()]
    shares = [s.get("idle_share") for s in contender["streams"].values()]
    idle = "".join(f"{100 * share:>5.0f}%" if share is not None else f"{'-':>6}" for share in shares)
    return (
        f"{head}{times[0]:>8.3f}{times[1]:>8.3f}{times[2]:>8.3f} ms{''.join(rates)} fps{idle} idle"
        f"{contender['first_frame_ms']['median']:>8.2f} ms first"
        f"{contender['errors']['frames']['1']['psnr_db']:>7.1f} dB{contender['seconds']:>6.0f} s"
    )


def table(results: Mapping[str, Any]) -> str:
    """Lines for people: text, motion, render; frames a second and idle share by batch; first frame; PSNR."""
    return "\n".join(line(contender) for contender in results["contenders"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    deadline = Budget(options.deadline)
    measuring = MeasureOptions(options.runs, options.batches, options.seconds_per_method, options.seed)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            "torch sees no CUDA device; run on a machine with an NVIDIA GPU and its driver, or give --device cpu "
            "to try the script",
            file=sys.stderr,
        )
        return 1
    try:
        place = Place.of(options.device)
        results = Results(options.output, place, measuring, options.captions)
        if options.resume:
            results.resume()
        bundles = match_bundles(options.checkpoint, options.bundle)
        materials = []
        for folder, bundle in zip(options.checkpoint, bundles):
            _say(f"rolling out {folder}")
            materials.append(gather(folder, bundle, options.captions, options.seed))
        run(materials, options.only, place, measuring, results, deadline)
    except T2VError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    print(table(results.data))
    wanted = {(material.name, method.name) for material in materials for method in options.only}
    done = {(c["model"], c["method"]) for c in results.data["contenders"] if c["status"] == MEASURED}
    return 0 if wanted & done else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked = ", ".join(method.name for method in GPU_METHODS if method.asked)
    parser.add_argument("--checkpoint", type=Path, action="append", required=True, help="checkpoint folder; repeatable")
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="a bundle of one of them, for ONNX Runtime; repeatable"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--only",
        type=_methods,
        help="methods, with commas between; all but those that must be named: "
        f"{asked}. Known: {', '.join(method.name for method in GPU_METHODS)}",
        default=tuple(method for method in GPU_METHODS if not method.asked),
    )
    parser.add_argument("--resume", action="store_true", help="keep what the file has measured, do the rest")
    parser.add_argument(
        "--seconds-per-method",
        type=float,
        default=MeasureOptions.seconds,
        help="after so many seconds a method's look-ahead batches are left out; a compilation that "
        "has begun is not broken off (default %(default)s)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=180.0,
        help="begin no method after so many seconds; what is under way and the reading of busy times "
        "take up to a minute more (default %(default)s)",
    )
    parser.add_argument("--runs", type=int, default=MeasureOptions.runs, help="of a stage (default %(default)s)")
    parser.add_argument(
        "--batches",
        type=_batches,
        default=MeasureOptions.batches,
        help="look-ahead frames at a call, besides 1 (default 4,8)",
    )
    parser.add_argument("--captions", type=int, default=32, help="timed to their first frame (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.runs < 1 or options.captions < 1 or options.seed < 0:
        parser.error("--runs and --captions must be at least 1, --seed at least 0")
    return options


def _methods(text: str) -> tuple[GpuMethod, ...]:
    try:
        named = {gpu_method(name) for name in text.split(",")}
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"no method {error}") from None
    return tuple(method for method in GPU_METHODS if method in named)


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers with commas between") from None
    if any(batch < 2 for batch in found):
        raise argparse.ArgumentTypeError("look-ahead batches are 2 and more; 1 is always measured")
    return found


if __name__ == "__main__":
    sys.exit(main())
