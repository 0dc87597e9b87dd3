"""Judge frames that `benchmarks.gpu_engines` wrote, by a checkpoint's evaluator: ``python -m benchmarks.gpu_read``.

    python -m benchmarks.gpu_read /tmp/frames --evaluator checkpoints/reference/evaluator -o read.json

Writes, by file, the index that was read of each slot of each caption, in the captions' order.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from t2v_edge.files import write_atomic
from t2v_export.compare.evaluator import Evaluator, read_spec


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
            iter(part) for part in pool.map(partial(read_rows, path, shape, evaluator), parts)]
    return [next(made[row % len(parts)]) for row in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path, help="folder of .frames files")
    parser.add_argument("--evaluator", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256, help="pixels a side (256)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    read = {}
    for path in sorted(args.frames.glob("*.frames")):
        read[path.stem] = read_file(path, args.evaluator, args.side, args.processes)
        write_atomic(args.output, json.dumps(read).encode())
        print(f"{path.stem}: {len(read[path.stem])} captions", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
