"""``t2v-edge doctor``: what works on this machine, what does not, and what to type."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import Optional

from t2v_edge.commands.arguments import add_bundle, add_json
from t2v_edge.commands.output import Progress, print_result

DESCRIPTION = """Examine this machine: JetPack, TensorRT, CUDA, Python, engines, power mode, memory. With a bundle,
check it and run its golden vectors on every installed engine."""
EXAMPLES = """examples:
  t2v-edge doctor
  t2v-edge doctor BUNDLE
  t2v-edge doctor BUNDLE --device jetson-orin-nano-8gb
  t2v-edge doctor --json > doctor.json       # to attach to a question

With a bundle, each installed engine runs the golden vectors of every variant that it takes.
Exit code: 0 ready, 1 something failed (its remedy is printed below it), 2 wrong use."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, required=False)
    parser.add_argument("--device", metavar="NAME", help="what this machine should be, see t2v-edge devices")
    add_json(parser)


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
    """A progress bar that starts with the first graph: the total is not known before."""

    def __init__(self) -> None:
        self._bar: Optional[Progress] = None

    def advance(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = Progress("golden vectors", total, unit="graphs/s")
        self._bar.update(done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
