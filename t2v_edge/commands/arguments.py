"""Arguments that several commands share. Their values are checked by the options they go into, not here."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, Optional

LOADED = ("onnxruntime", "openvino", "onnxruntime-cuda")
BUILT = ("tensorrt", "tensorrt-rtx")
ENGINES = ("auto", *LOADED, *BUILT)
"""Names of engines, as in `t2v_edge.engine.registry`. That module needs numpy, and these must not."""


def add_bundle(parser: Any, required: bool = True) -> None:
    """The bundle to work on."""
    parser.add_argument("bundle", type=Path, nargs=None if required else "?", help="a bundle folder or .zip")


def add_json(parser: Any, help: str = "print the result as JSON") -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help=help)


def add_fps(parser: Any, default: Optional[str] = None, help: str = "frames a second: 72, 29.97, 30000/1001") -> None:
    """``--fps``, kept as text: a fraction is exact. None stands for the model's own rate."""
    shown = "the model's own" if default is None else default
    parser.add_argument("--fps", default=default, help=f"{help} (default: {shown})")


def add_size(parser: Any) -> None:
    """``--size``; None stands for the model's own."""
    parser.add_argument(
        "--size", type=parse_size, metavar="WxH", help="frame size, such as 512x512 (default: the model's own)"
    )


def parse_size(text: str) -> tuple[int, int]:
    """``512x256`` as (512, 256), width first."""
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write WIDTHxHEIGHT, for example 512x512")
    return int(match[1]), int(match[2])


def add_seed(parser: Any) -> None:
    """``--seed`` of every random draw."""
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same frames (default: 0)")


def add_engine(parser: Any) -> None:
    """``--variant``, ``--engine`` and ``--threads``, see `Pipeline.open`."""
    parser.add_argument("--variant", help="such as fp32 or fp16 (default: the bundle's choice for each stage)")
    parser.add_argument(
        "--engine",
        default=ENGINES[0],
        choices=ENGINES,
        help="run all stages on this engine (default: auto, the fastest for each stage, measured on first use)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice)")


def add_throughput(parser: Any) -> None:
    """``--batch`` and ``--ahead``: more frames a second, and a later caption change. See `StreamOptions`."""
    parser.add_argument("--batch", type=int, default=1, help="frames to render at once, on TensorRT (default: 1)")
    parser.add_argument(
        "--ahead",
        action="store_true",
        help="make the next frames while one is shown: more frames a second, later caption changes",
    )


def add_token_file(parser: Any, whose: str) -> None:
    """``--token-file``: a secret is read from a file or the environment, never from an argument."""
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"a file with {whose} (default: the variable T2V_EDGE_TOKEN)"
    )
