"""``t2v-edge doctor``: what works on this machine, what does not, and what to type."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any, Optional

from t2v_edge.commands.output import Progress, print_result

EXAMPLES = """examples:
  t2v-edge doctor
  t2v-edge doctor BUNDLE
  t2v-edge doctor BUNDLE --device jetson-orin-nano-8gb
  t2v-edge doctor --json > doctor.json       # to send along with a question

With a bundle its golden vectors are run on every engine that is installed, in every variant the engine takes.
Exit code: 0 ready, 1 something failed (each has its remedy beside it), 2 wrong use."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="what works on this machine, what does not, and what to type",
        description="Examine this machine: JetPack, TensorRT, CUDA, Python, engines, power mode, memory. With a "
        "bundle, verify it and run its golden vectors on every engine present.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", nargs="?", type=Path, help="a bundle folder or zip to try here")
    parser.add_argument("--device", metavar="NAME", help="what this machine is meant to be (see t2v-edge devices)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from t2v_edge.device.profile import load_profile
    from t2v_edge.device.system import System
    from t2v_edge.doctor.diagnosis import diagnose

    profile = load_profile(args.device) if args.device else None
    with closing(_Shown()) as shown:
        diagnosis = diagnose(System.read(), args.bundle, profile, advance=shown.advance)
    print_result(diagnosis.to_json(), diagnosis.to_text(), args.json)
    return 0 if diagnosis.can_run else 1


class _Shown:
    """A progress bar that starts once there is something to count."""

    def __init__(self) -> None:
        self._bar: Optional[Progress] = None

    def advance(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = Progress("golden vectors", total, unit="graphs/s")
        self._bar.update(done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
