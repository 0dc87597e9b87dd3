"""A teacher and its student through every method, side by side: ``python -m benchmarks.cpu.peers``, see README.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from benchmarks.common.methods import METHODS, OURS, Method
from benchmarks.common.process import ProcessError, measure, without_telemetry
from benchmarks.common.results import FORMAT, STUDENT, TEACHER, VERSION, demands, describe, skipped, table
from benchmarks.cpu.engines import graph_path
from benchmarks.cpu.material import PACKAGES, failures, prepare
from benchmarks.cpu.plot import draw
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.errors import T2VError
from t2v_edge.util.files import write_atomic
from t2v_edge.util.machine import machine, versions
from t2v_edge.util.targets import SCRIPT_FILE
from t2v_export.graph.macs import graph_cost

WORKER, CEILING = "benchmarks.cpu.worker", "benchmarks.cpu.ceiling"
TIMEOUT_S = 900.0
MISSED = 3


@dataclass(frozen=True)
class Model:
    """`role` teacher or student, its checkpoint, the folder of its material, a bundle to take instead of exporting."""

    role: str
    checkpoint: Path
    bundle: Path | None
    material: Path = Path()


@dataclass(frozen=True)
class Options:
    """`rounds` of all contenders in turns; `seconds` at each frame rate; `samples` the quantizers are given."""

    rounds: int = 5
    seconds: float = 2.0
    samples: int = 128
    seed: int = 0
    methods: tuple[Method, ...] = METHODS


def compare(models: Sequence[Model], work: Path, options: Options) -> dict[str, Any]:
    """Prepare, start every contender once untimed, then time all in rounds. Returns the results as JSON.

    A contender that fails is left out with its reason. Raises `T2VError` where a checkpoint cannot be exported.
    """
    work = work.resolve()
    models = [_prepared(model, work, options) for model in models]
    pairs = [(model, how) for model in models for how in options.methods]
    ceilings = measure(CEILING, [], work, TIMEOUT_S)
    first: dict[tuple[str, str], dict[str, Any]] = {}
    why: dict[tuple[str, str], str] = {}
    rounds: dict[tuple[str, str], list[dict[str, float]]] = {(m.role, how.name): [] for m, how in pairs}
    total = len(pairs) * (1 + options.rounds)
    with tqdm(total=total, desc="measure", file=sys.stderr, disable=None) as bar:
        for turn in range(1 + options.rounds):
            for model, how in pairs:
                key = (model.role, how.name)
                bar.set_postfix_str(f"{model.role} {how.name}")
                if key not in why:
                    try:
                        if turn == 0:
                            first[key] = _start(model, how, work, options, probe=True)
                        else:
                            rounds[key].append(_start(model, how, work, options))
                    except ProcessError as error:
                        why[key] = str(error)
                bar.update()
    contenders = [
        skipped(model.role, how, why[key])
        if (key := (model.role, how.name)) in why
        else describe(model.role, how, first[key], rounds[key], render_macs(model, how), ceilings)
        for model, how in pairs
    ]
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(*PACKAGES),
        "seed": options.seed,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "calibration_samples": options.samples,
        "models": {model.role: _described(model) for model in models},
        "ceilings": ceilings,
        "contenders": contenders,
        "demands": [demand.to_json() for demand in demands(contenders)],
    }


def _prepared(model: Model, work: Path, options: Options) -> Model:
    def advance(doing: str) -> None:
        tqdm.write(f"{model.role}: {doing}", file=sys.stderr)

    folder = prepare(model.checkpoint, work, options.samples, options.seed, model.bundle, advance)
    return Model(model.role, model.checkpoint, model.bundle, folder)


def _start(model: Model, how: Method, work: Path, options: Options, probe: bool = False) -> dict[str, Any]:
    """One contender in a process of its own. Raises `ProcessError`."""
    reason = failures(model.material).get(how.graphs)
    if reason is not None:
        raise ProcessError(f"its tool failed: {reason}")
    arguments = [
        "--method",
        how.name,
        "--checkpoint",
        str(model.checkpoint.resolve()),
        "--material",
        str(model.material),
        "--seconds",
        str(options.seconds),
        "--seed",
        str(options.seed),
    ]
    return measure(WORKER, [*arguments, *(["--probe"] if probe else [])], work, TIMEOUT_S)


def render_macs(model: Model, how: Method) -> int:
    """Multiply-accumulates of the renderer as a contender runs it."""
    if how.runner == OURS:
        with Bundle.open(model.material / "bundle") as bundle:
            variant = bundle.manifest.default["render"]
            return graph_cost(onnx.load_from_string(bundle.graph(variant, "render"))).macs
    path = graph_path(model.material, how.graphs, "render")
    # What is not ONNX has the plain graph's operations: quantizing changes none.
    path = path if path.suffix == ".onnx" else model.material / "plain" / "render.onnx"
    return graph_cost(onnx.load(path)).macs


def _described(model: Model) -> dict[str, Any]:
    with Bundle.open(model.material / "bundle") as bundle:
        manifest = bundle.manifest
        return {
            "name": manifest.name,
            "checkpoint_sha256": manifest.provenance.get("checkpoint_sha256"),
            "default": dict(manifest.default),
            "width": manifest.video.width,
            "height": manifest.video.height,
            "base_fps": manifest.video.fps,
            "render_gmac": graph_cost(onnx.load(model.material / "plain" / "render.onnx")).macs / 1e9,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.peers", description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--student", type=Path, help="checkpoint folder of a smaller model")
    parser.add_argument("--teacher-bundle", type=Path, help="a bundle of it, instead of exporting with recipe fast")
    parser.add_argument("--student-bundle", type=Path, help="the same for the student")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="SVG or PNG of the frame rates to write")
    parser.add_argument(
        "--rounds", type=int, default=Options.rounds, help="rounds of all contenders (default %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=Options.seconds,
        help="seconds at each frame rate in a round (default %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=Options.samples,
        help="calibration samples each peer's quantizer gets (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=[how.name for how in METHODS], help="only these")
    parser.add_argument("--work", type=Path, help="keep what is prepared here, and take it from here when run again")
    parser.add_argument("--check", action="store_true", help=f"exit {MISSED} where a demanded ratio is missed")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1 or chosen.seconds <= 0 or chosen.samples < 1:
        parser.error("--rounds and --samples must be at least 1, --seconds more than 0")
    methods = tuple(how for how in METHODS if chosen.methods is None or how.name in chosen.methods)
    models = [Model(TEACHER, chosen.teacher, chosen.teacher_bundle)]
    if chosen.student:
        models.append(Model(STUDENT, chosen.student, chosen.student_bundle))
    options = Options(chosen.rounds, chosen.seconds, chosen.samples, chosen.seed, methods)
    without_telemetry()
    with ExitStack() as stack:
        work = chosen.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t2v-benchmark-")))
        try:
            results = compare(models, work, options)
        except (T2VError, ProcessError) as error:
            print(f"benchmark failed: {error}", file=sys.stderr)
            return 1
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(chosen.output, (json.dumps(results, indent=1) + "\n").encode(), SCRIPT_FILE)
    if chosen.plot:
        draw(results, chosen.plot)
    print(table(results))
    return MISSED if chosen.check and not all(demand["kept"] for demand in results["demands"]) else 0


if __name__ == "__main__":
    sys.exit(main())
