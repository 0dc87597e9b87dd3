"""Arguments of every command that plays a bundle: on what, and how it is made."""

from __future__ import annotations

import argparse

from t2v_edge.engine.registry import AUTO, BUILT, ENGINES


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """``--variant``, ``--engine`` and ``--threads``, see `Pipeline.open`."""
    parser.add_argument("--variant", help="fp32, fp16, ... (default: what the bundle says is best for each stage)")
    parser.add_argument(
        "--engine",
        default=AUTO,
        choices=(AUTO, *ENGINES, *BUILT),
        help="engine of all stages (default: auto, the fastest of each, measured on first use)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice)")


def add_making_arguments(parser: argparse.ArgumentParser) -> None:
    """``--batch`` and ``--ahead``: more frames a second for a later caption, see `StreamOptions`."""
    parser.add_argument(
        "--batch", type=int, default=1, help="frames that the renderer makes at once, on TensorRT (default: 1)"
    )
    parser.add_argument(
        "--ahead",
        action="store_true",
        help="make the next frames while this one is shown: more a second, and a later caption",
    )
