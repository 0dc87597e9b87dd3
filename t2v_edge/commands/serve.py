"""``t2v-edge serve``: a live server, captions in and frames out, over WebSockets."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2v_edge.commands.arguments import add_bundle, add_engine, add_fps, add_json, add_seed, add_size, add_token_file
from t2v_edge.errors import ServerError, UsageError
from t2v_edge.remote.protocol import FORMATS, JPEG, MAX_FPS, MAX_SEED, MAX_SIDE, MIN_FPS, Settings
from t2v_edge.server.limits import Limits

if TYPE_CHECKING:
    from t2v_edge.live.stream import LiveStream
    from t2v_edge.pipeline import Pipeline
    from t2v_edge.server.server import LiveServer, ServerOptions

DESCRIPTION = "Serve a bundle to many clients. Each gets a stream of its own."
EXAMPLES = """examples:
  t2v-edge serve BUNDLE                                    # then open http://127.0.0.1:8765/ on this machine
  t2v-edge serve BUNDLE --fps 60 --size 512x512 --format webp --quality 70
  T2V_EDGE_TOKEN=$(openssl rand -hex 24) t2v-edge serve BUNDLE --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
  t2v-edge serve BUNDLE --origin https://app.example       # pages of this site may connect as well
  t2v-edge serve BUNDLE --mjpeg 8766                       # and http://127.0.0.1:8766/stream.mjpg for players

The page at / takes typed and spoken captions, and enters VR and AR (docs/web.md). Clients talk to /live by
docs/protocol.md; t2v_edge.client is one in Python. GET /healthz and GET /metrics (for Prometheus) are plain HTTP on the
same port. Without a token only this machine may connect. Ctrl-C and SIGTERM stop the server; it says goodbye to its
clients. With --json the first line is {"event": "serving", "url": ..., "page": ...}, and has "mjpeg" with --mjpeg. The
last line is {"event": "stopped", ...}."""

IDLE_S = 2.0
"""A client that takes no frames for so long gets none made."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8765, help="port to bind, 0 for any free one (default: 8765)")
    add_token_file(parser, "the token that clients must send")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="serve over TLS with this certificate")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="the certificate's key")
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of https://HOST may connect as well; may be given several times",
    )
    parser.add_argument(
        "--mjpeg",
        type=int,
        metavar="PORT",
        help="also serve MJPEG over HTTP on this port, 0 for any free one (default: no MJPEG)",
    )
    parser.add_argument(
        "--max-clients", type=int, default=Limits.clients, help=f"sessions at once (default: {Limits.clients})"
    )
    parser.add_argument(
        "--max-messages",
        type=float,
        default=Limits.messages_per_s,
        metavar="N",
        help=f"messages a second that a client may send (default: {Limits.messages_per_s:g})",
    )
    parser.add_argument(
        "--max-pixels",
        type=float,
        metavar="N",
        help="pixels a second of one client; it gets smaller or fewer frames than it asks for, if they are more "
        "(default: 8 million for each core, and at least what the defaults below need)",
    )
    defaults = parser.add_argument_group("defaults for clients, who may ask for others")
    add_fps(defaults, "30")
    add_size(defaults)
    add_seed(defaults)
    defaults.add_argument("--format", choices=FORMATS, default=JPEG, help=f"of frames (default: {JPEG})")
    defaults.add_argument("--quality", type=int, default=85, help="of jpeg and webp, 1 to 100 (default: 85)")
    parser.add_argument(
        "--no-adaptive",
        dest="adaptive",
        action="store_false",
        help="keep the frame rate on a device that is too slow; frames are then late",
    )
    add_engine(parser)
    add_json(parser, help="print events as lines of JSON")


def run(args: argparse.Namespace) -> int:
    try:
        from t2v_edge.server.access import Access, open_tls, read_token
        from t2v_edge.server.encode import check_format
        from t2v_edge.server.server import ServerOptions
    except ImportError as error:
        raise ServerError(f"the server needs websockets ({error}); pip install 't2v-edge[serve]'") from error
    # The arguments are checked before the bundle is loaded, which takes long.
    for name in ("port", "mjpeg"):
        number = getattr(args, name)
        if number is not None and not 0 <= number <= 65535:
            raise UsageError(f"--{name} is {number}, expected 0 to 65535")
    if not 1 <= args.quality <= 100:
        raise UsageError(f"--quality is {args.quality}, expected 1 to 100")
    if args.mjpeg is not None:
        check_format(JPEG)
    check_format(args.format)
    access = Access(args.host, read_token(args.token_file), tuple(args.origin))
    limits = Limits(
        clients=args.max_clients,
        messages_per_s=args.max_messages,
        burst=max(1, int(2 * args.max_messages)),
        **({} if args.max_pixels is None else {"pixels_per_s": args.max_pixels}),
    )
    tls = open_tls(args.tls_cert, args.tls_key)

    import asyncio

    from t2v_edge.pipeline import Pipeline

    with Pipeline.open(args.bundle, args.engine, args.variant, args.threads, callers=args.max_clients) as pipeline:
        settings = _settings(args, (pipeline.manifest.video.width, pipeline.manifest.video.height))
        # A wrong setting is an error here, and not of every client later.
        open_stream(pipeline, settings).close()
        options = ServerOptions(settings, access, args.port, tls, limits, args.mjpeg)
        asyncio.run(_serve(pipeline, options, args.adaptive, args.json))
    return 0


def _settings(args: argparse.Namespace, size: tuple[int, int]) -> Settings:
    """What a client gets that asks for nothing. size: the model's own. Raises `UsageError`."""
    from t2v_edge.play.clock import exact

    fps, size = exact(args.fps, "fps"), args.size or size
    if not MIN_FPS <= fps <= MAX_FPS:
        raise UsageError(f"--fps is {fps}, expected {MIN_FPS} to {MAX_FPS}")
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise UsageError(f"--size is {size[0]}x{size[1]}, expected 1 to {MAX_SIDE} pixels a side")
    if not 0 <= args.seed <= MAX_SEED:
        raise UsageError(f"--seed is {args.seed}, expected 0 to {MAX_SEED}")
    return Settings(fps, size, args.seed, args.format, args.quality)


def open_stream(pipeline: Pipeline, settings: Settings, adaptive: bool = True) -> LiveStream:
    """One client's stream. It waits for the first caption, and pauses while nobody takes its frames."""
    return pipeline.live(
        fps=settings.fps, size=settings.size, seed=settings.seed or 0, adaptive=adaptive, idle_after_s=IDLE_S
    )


async def _serve(pipeline: Pipeline, options: ServerOptions, adaptive: bool, as_json: bool) -> None:
    import asyncio
    import gc
    from fractions import Fraction

    from t2v_edge.server.server import LiveServer
    from t2v_edge.util.signals import stop_signals

    manifest = pipeline.manifest
    # What is loaded by now stays: looking through it for garbage takes longer than a frame may.
    gc.collect()
    gc.freeze()
    stop = asyncio.Event()
    server = LiveServer(
        lambda settings: open_stream(pipeline, settings, adaptive), manifest.name, Fraction(manifest.video.fps), options
    )
    with stop_signals(stop.set):
        async with server:
            more = {} if server.mjpeg is None else {"mjpeg": server.mjpeg.url}
            also = "".join(f"; MJPEG at {url}" for url in more.values())
            _say(
                as_json,
                f"serving {manifest.name} at {server.url}; open {server.page_url} in a browser{also}; Ctrl-C stops",
                event="serving",
                bundle=manifest.name,
                url=server.url,
                page=server.page_url,
                engines=pipeline.engines,
                variants=pipeline.variants,
                **more,
            )
            await stop.wait()
    _say(
        as_json,
        _summary(server),
        event="stopped",
        sessions=server.metrics.value("t2v_sessions_total"),
        captions=server.metrics.value("t2v_captions_total"),
        frames=server.metrics.value("t2v_frames_sent_total"),
    )


def _summary(server: LiveServer) -> str:
    sessions, frames = (server.metrics.value(f"t2v_{what}_total") for what in ("sessions", "frames_sent"))
    return f"stopped; sessions: {sessions}, frames sent: {frames}"


def _say(as_json: bool, text: str, **values: Any) -> None:
    """Write one event as a line on stdout, at once."""
    sys.stdout.write((json.dumps(values, ensure_ascii=False) if as_json else text) + "\n")
    sys.stdout.flush()
