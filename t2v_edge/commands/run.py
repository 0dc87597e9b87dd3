"""``t2v-edge run``: captions in, video out."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from t2v_edge.commands.arguments import add_bundle, add_engine, add_fps, add_json, add_seed, add_size, add_throughput
from t2v_edge.commands.output import Progress, print_result
from t2v_edge.errors import CueError, SinkError, UsageError
from t2v_edge.sinks import WINDOW, open_sink, sink_targets
from t2v_edge.sinks.marks import PICTURE, in_sequence
from t2v_edge.util.targets import check_targets

if TYPE_CHECKING:
    from t2v_edge.commands.run_report import PixelHash
    from t2v_edge.pipeline import Pipeline
    from t2v_edge.play.stream import FrameStream

DEFAULT_SECONDS = 4.0
SHOWN = (WINDOW, "-")
"""Targets that play until they are closed; any other target is a file."""

DESCRIPTION = "Play captions through a bundle."
EXAMPLES = """examples:
  t2v-edge run BUNDLE "a person is dribbling a basketball" -o out.mp4
  t2v-edge run BUNDLE 一个人正在打篮球 --then 4 "a woman is dancing" --seconds 8 -o out.mp4 --sheet sheet.png
  t2v-edge run BUNDLE "a man is running" --fps 72 --size 512x512 --seed 7 -o frames/%04d.png
  t2v-edge run BUNDLE --captions story.vtt -o story.mp4
  t2v-edge run BUNDLE "a man is walking" --show
  t2v-edge run BUNDLE "a man is walking" -o - | ffplay -f rawvideo -pixel_format rgb24 -video_size 256x256 -

--captions plays a .vtt or .srt file at its cues' times. It plays a .txt file line by line, 4 seconds each, and a .jsonl
file of recorded caption events as they came. A CAPTION beside it shows before the first of them. Without a CAPTION, the
first of them shows from the start.

Without --seconds a file is 4 seconds long; with --then, 4 seconds after the last; with --captions, all of its cues. A
window and stdout play until they are closed. Ctrl-C ends such an endless stream, and removes an unfinished file."""


class PlayPlan(NamedTuple):
    """What to play: the first caption, (seconds, caption) of those that follow, and when a file ends."""

    first: str
    then: tuple[tuple[float, str], ...]
    end_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("caption", nargs="?", help="what to show, in a language that the model knows")
    later = parser.add_mutually_exclusive_group()
    later.add_argument(
        "--then",
        nargs=2,
        action="append",
        default=[],
        metavar=("SECONDS", "CAPTION"),
        help="change to CAPTION at SECONDS; may be given several times",
    )
    later.add_argument("--captions", type=Path, metavar="FILE", help="play a .vtt, .srt, .txt or .jsonl file in time")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-o", "--output", metavar="TARGET", help="x.mp4, x.gif, frames/%%04d.png, or - for raw RGB on stdout"
    )
    where.add_argument("--show", action="store_true", help="show a window, in real time")
    add_fps(parser)
    parser.add_argument("--seconds", type=float, help="how long to play")
    add_seed(parser)
    add_size(parser)
    parser.add_argument(
        "--smoothing", type=float, default=0.0, help="smooth the motion, 0 (not at all) to below 1 (default: 0)"
    )
    parser.add_argument("--blend-steps", type=int, help="base frames a caption change takes (default: the model's own)")
    add_engine(parser)
    add_throughput(parser)
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write a contact sheet")
    add_json(parser, help="print the report as JSON (on stderr with -o -)")


def run(args: argparse.Namespace) -> int:
    target = WINDOW if args.show else args.output
    if target is None and args.sheet is None and not args.json:
        raise UsageError("nowhere to put the video; add -o out.mp4, --show, --sheet sheet.png or --json")
    if args.sheet is not None and args.sheet.suffix.lower() != ".png":
        raise UsageError(f"the contact sheet {args.sheet} must end with .png")
    check_outputs(target, args.sheet, [args.bundle, args.captions])
    plan = plan_captions(args)
    args.ahead = args.ahead or target not in SHOWN  # a file gets the same frames, sooner

    from t2v_edge.commands.run_report import PixelHash, RunReport
    from t2v_edge.pipeline import Pipeline

    start = time.perf_counter()
    with Pipeline.open(args.bundle, args.engine, args.variant, args.threads, args.batch, ahead=args.ahead) as pipeline:
        open_s = time.perf_counter() - start
        stream = open_stream(pipeline, args, plan, target)
        _warn_truncated(pipeline, stream)
        pixels = PixelHash()
        start = time.perf_counter()
        play_into(stream, target, args.sheet, pixels)
        report = RunReport(
            pipeline.manifest.name,
            pipeline.engines,
            pipeline.variants,
            target,
            stream.options.captions,
            args.seed,
            stream.clock.fps,
            stream.size,
            pixels.hexdigest(),
            open_s,
            time.perf_counter() - start,
            stream.stats,
        )
    print_result(report.to_json(), report.to_text(), args.json, sys.stderr if target == "-" else None)
    return 0


def check_outputs(target: Optional[str], sheet: Optional[Path], inputs: list[Optional[Path]]) -> None:
    """Check that all files to write are free or ours. Raises `SinkError`."""
    if target is not None and sheet is not None and in_sequence(sheet, target):
        raise SinkError(f"the contact sheet {sheet} is a frame of {target}; give it another name")
    check_targets([*sink_targets(target), (sheet, PICTURE)], inputs)


def open_stream(pipeline: Pipeline, args: argparse.Namespace, plan: PlayPlan, target: Optional[str]) -> FrameStream:
    """The stream that the arguments ask for."""
    seconds = args.seconds
    if seconds is None and target not in SHOWN:
        seconds = plan.end_s
    return pipeline.stream(
        plan.first,
        then=plan.then,
        fps=args.fps,
        seconds=seconds,
        seed=args.seed,
        size=args.size,
        smoothing=args.smoothing,
        blend_steps=args.blend_steps,
        ahead=args.ahead,
    )


def plan_captions(args: argparse.Namespace) -> PlayPlan:
    """The captions that the arguments ask for. Raises `UsageError`, or `CueError` for what is wrong with a file."""
    if args.captions is not None:
        return _plan_file(args.captions, args.caption)
    if args.caption is None:
        raise UsageError('nothing to play; add a caption, such as "a person is walking", or --captions FILE')
    then = []
    for at, caption in args.then:
        try:
            then.append((float(at), caption))
        except ValueError as error:
            raise UsageError(f"--then takes SECONDS CAPTION; {at!r} is not a number") from error
    return PlayPlan(args.caption, tuple(then), DEFAULT_SECONDS + (then[-1][0] if then else 0.0))


def _plan_file(path: Path, before: Optional[str]) -> PlayPlan:
    from t2v_edge.captions.cues import play, read_cues
    from t2v_edge.captions.lines import read_transcript
    from t2v_edge.captions.merger import schedule

    if path.suffix.lower() == ".jsonl":
        events = read_transcript(path)
        shown = schedule(events)
        end_s = DEFAULT_SECONDS + (shown[-1][0] if shown else 0.0)
    else:
        cues = read_cues(path)
        shown = schedule(event for _, event in play(cues))
        end_s = max(cue.end_s for cue in cues)
    if not shown:
        raise CueError(f"{path} has no caption to show; record events with text")
    if shown[0][0] == 0 or before is None:
        return PlayPlan(shown[0][1], shown[1:], end_s)
    return PlayPlan(before, shown, end_s)


def play_into(stream: FrameStream, target: Optional[str], sheet: Optional[Path], pixels: PixelHash) -> None:
    """Run the stream into its sinks. Ctrl-C completes an endless stream and aborts one of a fixed length."""
    collected = None if sheet is None else _open_sheet(stream)
    progress = Progress("run", stream.frame_count)
    with ExitStack() as stack:
        stack.callback(progress.close)
        sink = None if target is None else stack.enter_context(open_sink(target, stream.clock.fps, stream.size))
        try:
            for frame in stream:
                pixels.add(frame)
                if collected is not None:
                    collected.add(frame)
                if sink is not None and not sink.write(frame):
                    break
                progress.update(frame.index + 1)
        except KeyboardInterrupt:
            if stream.frame_count is not None:
                raise
    if collected is not None and sheet is not None:
        collected.save(sheet)


def _open_sheet(stream: FrameStream) -> Any:
    try:
        from t2v_edge.sinks.sheet import ContactSheet
    except ImportError as error:
        raise SinkError("a contact sheet needs OpenCV: pip install 't2v-edge[video]'") from error
    return ContactSheet(stream.frame_count)


def _warn_truncated(pipeline: Pipeline, stream: FrameStream) -> None:
    for caption in stream.truncated:
        tokens = pipeline.manifest.tokenizer.tokens
        sys.stderr.write(f"t2v-edge: the caption {caption[:40]!r}... is cut after {tokens} tokens\n")
