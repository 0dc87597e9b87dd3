"""Judge frames that `benchmarks.gpu.engines` wrote, by a checkpoint's evaluator: ``python -m benchmarks.gpu.read``.

    python -m benchmarks.gpu.read /tmp/frames --evaluator checkpoints/reference/evaluator -o read.json
    python -m benchmarks.gpu.read read.json --evaluator checkpoints/reference/evaluator \\
        --captions calibration/captions/heldout.jsonl -o benchmarks/results/gpu_judged.json

The first command writes, by file, the index that was read of each slot of each caption, in the captions' order. The
second says how often that was right, as accuracies. For other precisions than FP32 it also has the paired difference
from the same bundle's FP32.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from t2v_edge.util.files import write_atomic
from t2v_edge.util.targets import SCRIPT_FILE
from t2v_export.evaluate.accuracy import paired_differences
from t2v_export.evaluate.caption_set import read_slotted
from t2v_export.evaluate.evaluator import Evaluator, read_spec
from t2v_export.evaluate.readings import Readings, named_values


def read_rows(path: Path, shape: tuple[int, ...], evaluator: Path, rows: range) -> list[list[int]]:
    """The evaluator's readings of some rows of a raw uint8 file."""
    frames = np.memmap(path, np.uint8, "r", shape=shape)
    reader = Evaluator(evaluator)
    return [reader.read(list(frames[row]))[0] for row in rows]


def read_file(path: Path, evaluator: Path, side: int, processes: int) -> list[list[int]]:
    """The readings of a whole file of square frames."""
    spec, _ = read_spec(evaluator)
    count = path.stat().st_size // (spec.frames * side * side * 3)
    shape = (count, spec.frames, side, side, 3)
    parts = [range(start, count, processes) for start in range(min(processes, count))]
    with ProcessPoolExecutor(len(parts)) as pool:
        made: list[Iterator[list[int]]] = [
            iter(part) for part in pool.map(partial(read_rows, path, shape, evaluator), parts)
        ]
    return [next(made[row % len(parts)]) for row in range(count)]


def judge(read: dict[str, list[list[int]]], captions: Path, evaluator: Path) -> dict[str, Any]:
    """Of readings by BUNDLE.VARIANT: accuracy by slot and of all, and the difference from the bundle's ``fp32``."""
    spec, _ = read_spec(evaluator)
    named = named_values(read_slotted(captions), spec.slots)
    found = {name: Readings(tuple(spec.slots), named[: len(rows)], np.array(rows)) for name, rows in read.items()}
    judged = {}
    for name, readings in found.items():
        judged[name] = {"captions": len(readings), "accuracy": readings.accuracy()}
        exact = found.get(f"{name.rpartition('.')[0]}.fp32")
        if exact is not None and exact is not readings:
            judged[name]["from_fp32"] = paired_differences(readings, exact, seed=0)
    return judged


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.read", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frames", type=Path, help="folder of .frames files, or a .json of what was read of them")
    parser.add_argument("--captions", type=Path, help="JSON lines with text and slots: judge what was read")
    parser.add_argument("--evaluator", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256, help="pixels a side (256)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    if args.captions is not None:
        judged = judge(json.loads(args.frames.read_text()), args.captions, args.evaluator)
        write_atomic(args.output, (json.dumps(judged, indent=1) + "\n").encode(), SCRIPT_FILE)
        for name, found in judged.items():
            difference = found.get("from_fp32", {}).get("all")
            print(
                f"{name}: {100 * found['accuracy']['all']['rate']:.1f} of 100 right"
                + (
                    ""
                    if difference is None
                    else f", {difference['points']:+.2f} "
                    f"({difference['low']:+.2f} to {difference['high']:+.2f}) from FP32"
                )
            )
        return 0
    read = {}
    for path in sorted(args.frames.glob("*.frames")):
        read[path.stem] = read_file(path, args.evaluator, args.side, args.processes)
        write_atomic(args.output, json.dumps(read).encode(), SCRIPT_FILE)
        print(f"{path.stem}: {len(read[path.stem])} captions", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
