"""The command line, ``t2v-edge``. Exit codes: 0 done, 1 the work failed, 2 wrong use, 3 below the demanded accuracy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Optional

import t2v_edge
from t2v_edge.commands import build, devices, doctor, inspect, run, serve, toolchain
from t2v_edge.commands.bench import frames as bench
from t2v_edge.errors import T2VError

INTERRUPTED = 130

EPILOG = """start here:
  t2v-edge export checkpoints/reference --device cpu -o BUNDLE
  t2v-edge run BUNDLE "a person is dribbling a basketball" -o out.mp4
  t2v-edge doctor BUNDLE

Every command has --help with examples, and --json.
Exit codes: 0 done, 1 the work failed, 2 wrong use, 3 below the demanded accuracy."""


def make_parser(command: Optional[str]) -> argparse.ArgumentParser:
    """The parser; `command` is the one about to be used, or None."""
    parser = argparse.ArgumentParser(
        "t2v-edge",
        description="Text-to-video on small devices: checkpoint to bundle, bundle to video.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"t2v-edge {t2v_edge.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in toolchain.COMMANDS:
        toolchain.add_parser(subparsers, name, wanted=command == name)
    build.add_parser(subparsers)
    run.add_parser(subparsers)
    serve.add_parser(subparsers)
    bench.add_parser(subparsers)
    inspect.add_parser(subparsers)
    devices.add_parser(subparsers)
    doctor.add_parser(subparsers)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return its exit code; wrong arguments raise `SystemExit` with 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = make_parser(arguments[0] if arguments else None).parse_args(arguments)
        return int(args.run(args))
    except T2VError as error:
        sys.stderr.write(f"t2v-edge: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout has had enough; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("t2v-edge: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
