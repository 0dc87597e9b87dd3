"""Everything that is measured on an NVIDIA GPU, by one command: ``python -m benchmarks.gpu``.

    python -m benchmarks.gpu --checkpoint checkpoints/reference --checkpoint checkpoints/small \\
        --bundle out/reference --bundle out/small --captions calibration/captions/heldout.jsonl \\
        --evaluator checkpoints/reference/evaluator --tensorrt-python /opt/tensorrt/python -o out/gpu

    build      TensorRT engines of the bundles (benchmarks.gpu.build)
    engines    what they do: streams, first frames, damaged engines, frames to judge (benchmarks.gpu.engines)
    peers      PyTorch and ONNX Runtime on the same checkpoints (benchmarks.gpu.peers)
    read       the evaluator's readings of the engines' frames (benchmarks.gpu.read)
    judge      how often they are right
    summary    ours and the peers in one table, and the demands on them (benchmarks.gpu.summary)

TensorRT 8.6 wants an older Python than PyTorch. --tensorrt-python is the program that runs its steps. It may be a
script around an interpreter, if that needs variables set.

Steps follow one another, so that each has the GPU to itself. The folder holds each step's JSON and log. A run that was
stopped goes on with the step that it was in. Take another folder for a bundle that was exported again.

Exits with 3 if a demand is not kept. Exits with 1 if a step failed, or could not begin because another one failed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2v_edge.util.files import write_atomic
from t2v_edge.util.targets import SCRIPT_FILE

ROOT = Path(__file__).parents[2]
MISSED = 3
LAST_LINES = 12


@dataclass(frozen=True)
class Step:
    """A program with its arguments. `after`: the steps whose results it reads. `again`: whether it runs each time."""

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    again: bool = False


def steps_of(args: argparse.Namespace) -> tuple[Step, ...]:
    """The steps in the order in which they run. Without --evaluator no frames are judged."""
    out = args.output.resolve()
    builds, engines, peers, frames, read = (
        str(out / name) for name in ("builds.json", "gpu_engines.json", "gpu_peers.json", "frames", "read.json")
    )
    bundles = [str(path.resolve()) for path in args.bundle]
    built = [
        word
        for name in ("level", "tactics")
        if (value := getattr(args, name)) is not None
        for word in (f"--{name}", str(value))
    ]
    paired = [
        word
        for kind in ("checkpoint", "bundle")
        for path in getattr(args, kind)
        for word in (f"--{kind}", str(path.resolve()))
    ]
    reading = ["--evaluator", str(args.evaluator.resolve())] if args.evaluator is not None else []
    captions = ["--captions", str(args.captions.resolve())]
    written = [*captions, "--frames", frames, "-n", str(args.n), "--judge", "fp32,fp16,int8"] if reading else captions

    def step(name: str, program: str, *words: str, after: tuple[str, ...] = (), again: bool = False) -> Step:
        python = args.tensorrt_python if program in ("gpu.build", "gpu.engines") else sys.executable
        return Step(name, (python, "-m", f"benchmarks.{program}", *words), after, again)

    found = [
        step("build", "gpu.build", *bundles, *built, "-o", builds),
        step("engines", "gpu.engines", *bundles, "--builds", builds, *built, *written, "-o", engines, after=("build",)),
        step("peers", "gpu.peers", *paired, "--resume", "--deadline", str(args.deadline), "-o", peers),
    ]
    if reading:
        found += [
            step("read", "gpu.read", frames, *reading, "-o", read, after=("engines",)),
            step("judge", "gpu.read", read, *reading, *captions, "-o", str(out / "gpu_judged.json"), after=("read",)),
        ]
    return (
        *found,
        step(
            "summary",
            "gpu.summary",
            engines,
            peers,
            "--check",
            "-o",
            str(out / "gpu_summary.json"),
            after=("engines", "peers"),
            again=True,
        ),
    )


def run(steps: Sequence[Step], folder: Path) -> int:
    """Run what is not done yet, and return the exit status. Each step's output goes into FOLDER/NAME.log.

    A step is done if FOLDER/NAME.done has its command, and nothing that it reads was made again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ended: dict[str, int] = {}
    made: set[str] = set()
    for step in steps:
        done, log, command = folder / f"{step.name}.done", folder / f"{step.name}.log", shlex.join(step.command)
        known = done.exists() and done.read_text("utf-8") == command
        if known and not step.again and made.isdisjoint(step.after):
            print(f"{step.name}: done before", flush=True)
            ended[step.name] = 0
            continue
        missing = [name for name in step.after if ended.get(name, 1)]
        if missing:
            print(f"{step.name}: left out, for {' and '.join(missing)} failed", flush=True)
            ended[step.name] = 1
            continue
        print(f"{step.name}: {command}", flush=True)
        start = time.monotonic()
        made.add(step.name)
        done.unlink(missing_ok=True)
        with log.open("wb") as written:
            ended[step.name] = subprocess.run(
                step.command, cwd=ROOT, stdout=written, stderr=subprocess.STDOUT, check=False
            ).returncode
        if ended[step.name] == 0:
            write_atomic(done, command.encode(), SCRIPT_FILE)
        shown = log.read_text("utf-8", errors="replace").splitlines()
        if ended[step.name] or step.again:
            print("\n".join(shown if step.again else shown[-LAST_LINES:]), flush=True)
        print(
            f"{step.name}: {time.monotonic() - start:.0f} s"
            + (f", ended with {ended[step.name]}; all it said is in {log}" if ended[step.name] else ""),
            flush=True,
        )
    failed = [name for name, status in ended.items() if status and (name, status) != ("summary", MISSED)]
    return 1 if failed else max(ended.values())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, action="append", required=True, help="checkpoint folder; repeatable")
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        required=True,
        help="a bundle of one of them, exported with --ship all; repeatable",
    )
    parser.add_argument("--captions", type=Path, required=True, help="JSON lines with text and slots")
    parser.add_argument(
        "-n",
        type=int,
        default=1200,
        help="captions whose frames are judged; of 256x256 each takes 3 MB a bundle and variant (default %(default)s)",
    )
    parser.add_argument("--evaluator", type=Path, help="an evaluator's folder; without it nothing is judged")
    parser.add_argument(
        "--tensorrt-python",
        default=sys.executable,
        metavar="PROGRAM",
        help="runs build and engines (default: this Python)",
    )
    parser.add_argument("--level", type=int, help="TensorRT's optimization level, 0 to 5")
    parser.add_argument("--tactics", help="tactic sources, comma-separated, or none")
    parser.add_argument(
        "--deadline",
        type=float,
        default=300.0,
        help="begin no peer after so many seconds of that step (default %(default)s)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for results and logs")
    args = parser.parse_args(arguments)
    for path in (*args.checkpoint, *args.bundle, args.captions, *filter(None, [args.evaluator])):
        if not path.exists():
            parser.error(f"there is no {path}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    try:
        return run(steps_of(args), args.output)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
