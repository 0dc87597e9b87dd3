"""TensorRT engines of bundles, several at once: ``python -m benchmarks.gpu.build``.

    python -m benchmarks.gpu.build out/reference out/small --gpus 0,1 -o builds.json

It fills the user's cache, from which `benchmarks.gpu.engines` then takes engines. It writes what each build took, or
why it was refused. TensorRT builds one engine at a time in a process. Each process here works on one GPU. Engines that
are in the cache are left alone. The file is written after each engine, and a run that was stopped goes on with it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.engine.tensorrt.api import BuildSettings
from t2v_edge.engine.tensorrt.build import Builder, BuildOptions
from t2v_edge.errors import BundleError, EngineError
from t2v_edge.spec import STAGES
from t2v_edge.util.files import write_atomic
from t2v_edge.util.targets import SCRIPT_FILE

VARIANTS = ("fp16", "fp32", "int8")
"""In the order in which they are built: what is most likely chosen comes first."""


@dataclass(frozen=True)
class Job:
    """One engine: of a bundle's folder, by variant and stage."""

    bundle: str
    variant: str
    stage: str

    @property
    def key(self) -> str:
        return " ".join((Path(self.bundle).name, self.variant, self.stage))


def jobs_of(bundles: list[Path], engine: str, settings: BuildSettings) -> list[Job]:
    """Renderers first, because they take longest. The bundles take turns."""
    taken = {}
    for path in bundles:
        with Bundle.open(path) as bundle:
            builder = Builder(bundle, BuildOptions(engine, None, settings))
            taken[path] = {stage: builder.candidates(stage) for stage in STAGES}
    return [
        Job(str(path), variant, stage)
        for variant in VARIANTS
        for stage in reversed(STAGES)
        for path in bundles
        if variant in taken[path][stage]
    ]


def make(job: Job, engine: str, settings: BuildSettings) -> dict[str, Any]:
    """Build one engine, or find it in the cache: the seconds, its bytes, or why it was refused."""
    start = time.perf_counter()
    try:
        with Bundle.open(job.bundle) as bundle:
            builder = Builder(bundle, BuildOptions(engine, None, settings))
            data, kept, _ = builder._engine(job.variant, job.stage)
        return {"seconds": time.perf_counter() - start, "bytes": len(data), "kept": kept, "refused": ""}
    except (EngineError, BundleError) as error:
        return {"seconds": time.perf_counter() - start, "bytes": 0, "kept": False, "refused": str(error)}


def take_gpu(gpus: Any) -> None:
    """Of a new process: the GPU that it works on from now on."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()


def settings_of(level: Optional[int], tactics: Optional[str], batch: int = 1) -> BuildSettings:
    """`tactics`: names with commas between, or none."""
    sources = None if tactics is None else tuple(name for name in tactics.split(",") if name != "none")
    return BuildSettings(batch, None, level, sources)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--engine", default="tensorrt")
    parser.add_argument("--tactics", help="tactic sources, comma-separated, or none")
    parser.add_argument("--level", type=int, help="0 (quick build) to 5 (quick engine)")
    parser.add_argument("--processes", type=int, help="engines built at once (three for each GPU)")
    parser.add_argument("--gpus", default="0", help="numbers of the GPUs that processes take in turn (0)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    settings = settings_of(args.level, args.tactics)
    done: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    gpus, names = context.Queue(), args.gpus.split(",")
    processes = args.processes or 3 * len(names)
    for number in range(processes):
        gpus.put(names[number % len(names)])
    with ProcessPoolExecutor(processes, context, take_gpu, (gpus,)) as pool:
        waiting: dict[Future[dict[str, Any]], Job] = {
            pool.submit(make, job, args.engine, settings): job
            for job in jobs_of(args.bundles, args.engine, settings)
            if job.key not in done
        }
        for future in as_completed(waiting):
            job = waiting[future]
            done[job.key] = {**asdict(job), **future.result()}
            write_atomic(args.output, (json.dumps(done, indent=1) + "\n").encode(), SCRIPT_FILE)
            print(job.key, {k: v for k, v in done[job.key].items() if k not in asdict(job)}, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
