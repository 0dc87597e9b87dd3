"""Train the whole reference model: python -m examples.reference.train --data DIR --encoder DIR --out DIR

Two lines of work run at the same time. One is the frame generator. The other is text, motion and evaluator, one after
another. With two GPUs each line gets its own. With one they share it. The frame generator gets the motion stage's own
rollouts as soon as they exist. The same command with --resume continues after a stop. `assemble.py` then makes the
checkpoint.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from pathlib import Path

import torch


def commands(args: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """The two lines of work, each a list of commands to run in turn."""
    out = Path(args.out)
    shared = ["--data", args.data] + (["--resume"] if args.resume else [])

    def part(name: str, *options: object) -> list[str]:
        return [sys.executable, "-m", f"examples.reference.train_{name}", *shared, *map(str, options)]

    renderer = part(
        "renderer",
        "--out",
        out / "renderer",
        "--minutes",
        args.minutes,
        "--rollouts",
        out / "motion" / "motion_vectors.npy",
    )
    return [renderer], [
        part("text", "--out", out / "text", "--encoder", args.encoder, "--steps", 1000),
        part("motion", "--out", out / "motion", "--minutes", args.minutes * 0.4),
        part("evaluator", "--out", out / "evaluator", "--minutes", args.minutes * 0.3),
    ]


def run_line(line: list[list[str]], gpu: int | None, failed: list[str]) -> None:
    """Run the commands in turn; a failure is noted, and the next one runs all the same: none needs another's result."""
    environment = dict(os.environ) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    for command in line:
        if subprocess.run(command, env=environment).returncode:
            failed.append(" ".join(command))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with motions.npz and index.csv")
    parser.add_argument("--encoder", required=True, help="folder made by examples.reference.make_encoder")
    parser.add_argument("--out", required=True, help="folder for everything that is trained")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="minutes for the frame generator; the other parts follow"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the states in --out")
    args = parser.parse_args(arguments)
    gpus = torch.cuda.device_count()
    failed: list[str] = []
    lines = commands(args)
    threads = [
        threading.Thread(target=run_line, args=(line, None if gpus < 2 else gpu, failed))
        for gpu, line in enumerate(lines)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for command in failed:
        print(f"failed: {command}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
