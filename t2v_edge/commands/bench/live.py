"""``t2v-edge bench --live``: captions from a client to the server, and back as frames."""

from __future__ import annotations

import argparse
from pathlib import Path

from t2v_edge.commands.arguments import add_size, add_token_file
from t2v_edge.commands.output import PhaseBar, print_result, write_report
from t2v_edge.errors import ServerError, UsageError
from t2v_edge.remote.protocol import FORMATS

EXCEEDED, INTERRUPTED = 3, 130
_LIMITS = {
    "max_p95_ms": ("p95_ms", "MS", "caption to first frame, 95th percentile"),
    "max_cue_ms": ("cue_ms", "MS", "a cue's time to its first frame, 95th percentile"),
    "max_jitter_ms": ("jitter_ms", "MS", "jitter of frames, 95th percentile"),
    "max_drift": ("drift_frames", "FRAMES", "drift over the run"),
    "max_missed": ("missed", "FRAMES", "missed and dropped frames of all clients"),
    "max_slowdown": ("slowdown_percent", "PERCENT", "longer p95 beside hostile clients than without"),
    "max_loss": ("loss_percent", "PERCENT", "fewer frames a second beside hostile clients than without"),
    "max_growth": ("growth_mib_per_hour", "MIB", "growth of the server's memory an hour"),
}
"""Argument -> field of `LiveLimits`, unit, meaning."""
_HOSTILE = {
    "mute": "never read",
    "flood": "send 1,000 captions a second",
    "greedy": "ask for 4096x4096 at 240 fps",
    "wire_flood": "send empty frames without end, and no hello",
    "silent": "connect and send nothing",
}
"""Argument -> what clients of the kind do."""
_ONLY_LIVE = (
    *"server clients size format switches every captions token_file tls_ca".split(),
    *_HOSTILE,
    *_LIMITS,
)
_NOT_LIVE = {"batch": 1, "ahead": False}


def add_live_arguments(parser: argparse.ArgumentParser) -> None:
    """``--live`` and what goes with it."""
    live = parser.add_argument_group("live", "measure what viewers get: a server in its own process, and clients")
    live.add_argument("--live", action="store_true", help="measure live streams, from caption to frame")
    live.add_argument("--server", metavar="URL", help="measure the server at ws://HOST:PORT/live, and start none")
    live.add_argument("--clients", type=int, metavar="N", help="viewers at once (default: 1)")
    add_size(live)
    live.add_argument("--format", choices=FORMATS, help="of frames (default: the server's)")
    live.add_argument("--every", type=float, metavar="S", help="seconds between a client's captions (default: 1)")
    live.add_argument("--switches", type=int, metavar="N", help="captions of each client (default: as time allows)")
    live.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help=".txt: a caption a line, in turn; .vtt, .srt: played at their times (default: built in)",
    )
    for name, what in _HOSTILE.items():
        live.add_argument(
            _flag(name), type=int, metavar="N", help=f"add clients that {what}; first measures without them"
        )
    add_token_file(live, "the server's token")
    live.add_argument("--tls-ca", type=Path, metavar="PEM", help="for wss: the certificates to trust")
    limits = parser.add_argument_group(
        "live limits", "the most allowed; exit code 3 if one is exceeded, or if a frame of an old caption comes"
    )
    for name, (_, unit, meaning) in _LIMITS.items():
        limits.add_argument(_flag(name), type=float, metavar=unit, help=meaning)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_not_live(args: argparse.Namespace) -> None:
    """Raises `UsageError` for an argument that needs ``--live``."""
    for name in _ONLY_LIVE:
        if getattr(args, name) is not None:
            raise UsageError(f"{_flag(name)} goes with --live; add it")


def run_live(args: argparse.Namespace) -> int:
    """Measure a live server. Returns 0; 3 if a limit is exceeded; 130 if the run was interrupted."""
    from dataclasses import replace

    try:
        from t2v_edge.bench.live.report import LiveLimits
        from t2v_edge.bench.live.run import LiveBenchOptions, bench_live
        from t2v_edge.bench.live.script import make_script
        from t2v_edge.server.access import read_token
    except ImportError as error:
        raise ServerError(f"live measurements need websockets ({error}); pip install 't2v-edge[serve]'") from error
    for name, usual in _NOT_LIVE.items():
        if getattr(args, name) != usual:
            raise UsageError(f"--{name} does not go with --live; leave it out")
    if args.switches is not None and args.switches < 1:
        raise UsageError(f"--switches is {args.switches}, expected 1 or more")
    if args.server is not None and args.bundle is not None:
        raise UsageError("a bundle and --server: the server has its own; leave one of them out")
    options = LiveBenchOptions(
        script=make_script(args.captions, args.seconds, args.every, args.switches),
        clients=1 if args.clients is None else args.clients,
        hostile={name: getattr(args, name) or 0 for name in _HOSTILE},
        fps=args.fps,
        size=args.size,
        format=args.format,
        server=args.server,
        arguments=_server_arguments(args),
        cafile=None if args.tls_ca is None else str(args.tls_ca),
        token=read_token(args.token_file),
        seed=args.seed,
    )
    limits = LiveLimits(**{field: getattr(args, name) for name, (field, _, _) in _LIMITS.items()})
    bar = PhaseBar("bench")
    try:
        report = bench_live(args.bundle, options, bar.advance)
    finally:
        bar.close()
    report = replace(report, failed=limits.broken_by(report))
    if args.report is not None:
        write_report(report.to_json(), args.report)
    print_result(report.to_json(), report.to_text(), args.json)
    return INTERRUPTED if report.interrupted else EXCEEDED if report.failed else 0


def _server_arguments(args: argparse.Namespace) -> tuple[str, ...]:
    """Arguments for the server to be started."""
    given = {name: getattr(args, name) for name in ("engine", "variant", "threads")}
    return tuple(str(word) for name, value in given.items() if value is not None for word in (f"--{name}", value))
