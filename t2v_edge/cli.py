"""The command line, ``t2v-edge``. Exit codes: 0 done, 1 the work failed, 2 wrong use, 3 below the demanded accuracy."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, Optional

import t2v_edge
from t2v_edge.commands import COMMANDS
from t2v_edge.errors import T2VError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130

EPILOG = """start here:
  t2v-edge export checkpoints/reference --device cpu -o BUNDLE
  t2v-edge run BUNDLE "a person is dribbling a basketball" -o out.mp4
  t2v-edge doctor BUNDLE

Every command has --help with examples, and --json.
Exit codes: 0 done, 1 the work failed, 2 wrong use, 3 below the demanded accuracy."""


def make_parser(wanted: Optional[str]) -> argparse.ArgumentParser:
    """The parser. wanted: the one command that is imported and gets its arguments; None for no command."""
    parser = argparse.ArgumentParser(
        "t2v-edge",
        description="Text-to-video on small devices: checkpoint to bundle, bundle to video.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"t2v-edge {t2v_edge.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        subparser = subparsers.add_parser(
            command.name, help=command.line, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if command.name == wanted:
            module = importlib.import_module(command.module)
            subparser.description, subparser.epilog = module.DESCRIPTION, module.EXAMPLES
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return its exit code; wrong arguments raise `SystemExit` with 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    try:
        args = make_parser(wanted).parse_args(arguments)
        return int(args.run(args))
    except T2VError as error:
        sys.stderr.write(f"t2v-edge: {error}\n")
        return error.exit_code
    except ImportError as error:
        command = COMMANDS.get(wanted or "")
        if command is None or command.extra is None:
            raise
        sys.stderr.write(f"t2v-edge: {command.name} needs more packages ({error}); {command.remedy}\n")
        return UsageError.exit_code
    except BrokenPipeError:
        # The reader of stdout has had enough; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("t2v-edge: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
