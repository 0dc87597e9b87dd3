"""``t2v-edge build``: TensorRT engines of a bundle, built for this machine."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Optional

from t2v_edge.commands.arguments import BUILT, add_bundle, add_json
from t2v_edge.commands.output import Progress, print_result
from t2v_edge.errors import EngineError, UsageError

if TYPE_CHECKING:
    from t2v_edge.device.profile import DeviceProfile
    from t2v_edge.engine.tensorrt.api import BuildSettings

WORKSPACE_SHARE = 4
"""A layer may use one part in so many of a device's memory, while it is tried and run."""

DESCRIPTION = "Build, check, time and keep TensorRT engines of a bundle, for this machine."
EXAMPLES = """examples:
  t2v-edge build BUNDLE
  t2v-edge build BUNDLE --device jetson-orin-nano-8gb --json
  t2v-edge build BUNDLE --variant fp16 --level 5
  t2v-edge build BUNDLE --batch 4

Each variant that this TensorRT takes is built. It is run on the bundle's golden vectors, compared with ONNX Runtime
over a rollout, and timed. From then on the fastest correct one runs each stage, in t2v-edge run too. Engines are kept
in the user's cache, or in T2V_EDGE_CACHE. They belong to this GPU, driver and TensorRT, and are never copied."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--engine", choices=BUILT, help="default: tensorrt if it is installed, else tensorrt-rtx")
    parser.add_argument(
        "--variant",
        action="append",
        metavar="NAME",
        help="try this one only; may be given several times (default: all that TensorRT takes)",
    )
    parser.add_argument("--device", metavar="PROFILE", help="take the workspace from this device profile's memory")
    parser.add_argument("--workspace", type=float, metavar="MB", help="memory that a layer may use")
    parser.add_argument(
        "--level", type=int, metavar="0..5", help="optimization level; 5 tries longest (default: TensorRT's own, 3)"
    )
    parser.add_argument(
        "--tactics", metavar="NAMES", help="tactic sources to allow, comma-separated, or none (default: TensorRT's own)"
    )
    parser.add_argument("--batch", type=int, default=1, help="frames to render at once (default: 1)")
    parser.add_argument("--rebuild", action="store_true", help="ignore engines in the cache and build them again")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from t2v_edge.bundle.bundle import Bundle
    from t2v_edge.engine.registry import is_installed
    from t2v_edge.engine.tensorrt.api import REMEDIES

    engine = args.engine or next((name for name in BUILT if is_installed(name)), None)
    if engine is None:
        raise EngineError(
            f"neither TensorRT nor TensorRT-RTX is installed: {REMEDIES['tensorrt']}; on a desktop "
            f"{REMEDIES['tensorrt-rtx']}; t2v-edge doctor says more"
        )
    try:
        from t2v_edge.engine.tensorrt.build import Builder, BuildOptions
    except ImportError as error:
        raise EngineError(f"building needs cuda-python ({error}): pip install 't2v-edge[tensorrt]'") from error
    options = BuildOptions(engine, tuple(args.variant) if args.variant else None, settings(args), args.rebuild)
    with Bundle.open(args.bundle) as bundle:
        progress: Optional[Progress] = None

        def say(what: str) -> None:
            if progress is not None:
                progress.step(what)

        builder = Builder(bundle, options, say=say)
        progress = Progress("build", builder.count, sys.stderr)
        try:
            report = builder.build()
        finally:
            progress.close()
    print_result({"bundle": bundle.manifest.name, **report.to_json()}, report.to_text(), args.json)
    return 0


def settings(args: argparse.Namespace) -> BuildSettings:
    """What the flags ask for; raises `UsageError` or `DeviceError`."""
    from t2v_edge.device.profile import load_profile
    from t2v_edge.engine.tensorrt.api import BuildSettings

    workspace = None if args.workspace is None else int(args.workspace * 1e6)
    if workspace is None and args.device is not None:
        workspace = workspace_of(load_profile(args.device))
    tactics = args.tactics
    if tactics is not None and not tactics.strip():
        raise UsageError("--tactics is empty; name sources, or none")
    chosen = (
        None
        if tactics is None
        else tuple(t.strip().lower().replace("-", "_") for t in tactics.split(",") if t.strip().lower() != "none")
    )
    return BuildSettings(args.batch, workspace, args.level, chosen)


def workspace_of(profile: DeviceProfile) -> Optional[int]:
    """A share of the device's memory in bytes, a power of two; None if the profile does not know the memory."""
    if profile.memory_bytes is None:
        return None
    return 1 << (profile.memory_bytes // WORKSPACE_SHARE).bit_length() - 1
