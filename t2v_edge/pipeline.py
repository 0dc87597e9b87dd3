"""A bundle that is ready to play: any number of streams of one model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Optional, Union

import numpy.typing as npt

from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import AUTO
from t2v_edge.live.options import LATEST, LiveOptions
from t2v_edge.live.stream import LiveStream
from t2v_edge.play.condition import Condition
from t2v_edge.play.model import Model
from t2v_edge.play.stream import FrameStream, StreamOptions
from t2v_edge.spec import Arrays
from t2v_edge.util.closing import Closing


class Pipeline(Closing):
    """A model and the streams of it. Threads and streams may share it. Close it, or use it as a context manager.

    `model`: what the streams stand on. `manifest`: the bundle's. `variants`: stage -> the variant loaded. `engines`:
    stage -> the engine's name.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.manifest = model.manifest
        self.variants = model.variants
        self.engines = model.engines

    @classmethod
    def open(
        cls,
        path: Union[str, os.PathLike[str]],
        engine: str = AUTO,
        variant: Optional[str] = None,
        threads: Optional[int] = None,
        batch: int = 1,
        callers: int = 1,
        ahead: bool = False,
    ) -> Pipeline:
        """Verify the bundle at `path`, load it and run each stage once.

        engine: one name for all stages, or ``auto``. ``auto`` takes TensorRT engines of this bundle that `t2v-edge
        build` has left. Otherwise it gives each stage the engine that runs it fastest here; the first use measures
        that, for about a second in all, and remembers it (see `engine.choice`). ``tensorrt`` and ``tensorrt-rtx`` build
        what is not built yet, which takes a minute or more. The same engines give the same frames; other engines
        differ by rounding.

        variant: one variant for every stage that has it; the others keep the manifest's default. None for the
        manifest's default, or on TensorRT for the fastest. threads: CPU threads of an operator, 1 to 256, or None for
        the engine's choice. batch: frames that the renderer makes at once, 1 to 64, on TensorRT only. callers: streams
        that will play at the same time; an engine may make room for them. ahead: render several frames of one stream
        at once. Each takes one core. Use it for files, not for live streams: a new caption shows later.

        Raises `BundleError`, `EngineError` or `UsageError`.
        """
        return cls(Model.open(path, engine, variant, batch, EngineOptions(threads, callers, ahead)))

    def encode(self, caption: str) -> Condition:
        """The condition of a caption; a remembered one is not encoded again. Raises `CaptionError`."""
        return self.model.encode(self.model.read(caption))

    def is_truncated(self, caption: str) -> bool:
        """Whether the caption's end is cut, because it has more tokens than the text stage takes."""
        return self.model.read(caption).truncated

    def run(self, stage: str, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one stage once; the arrays returned belong to the caller. Raises `EngineError`."""
        return self.model.run(stage, feeds)

    def stream(
        self,
        caption: str,
        *,
        then: Iterable[tuple[float, str]] = (),
        fps: Union[int, float, Fraction, str, None] = None,
        seconds: Union[int, float, Fraction, None] = None,
        seed: int = 0,
        size: Optional[tuple[int, int]] = None,
        smoothing: float = 0.0,
        blend_steps: Optional[int] = None,
        ahead: bool = False,
    ) -> FrameStream:
        """A stream of frames of `caption`. then: later captions, as (seconds, caption).

        `StreamOptions` describes the other parameters. Raises `CaptionError`, `UsageError` or `EngineError`.
        """
        options = StreamOptions(
            captions=((0.0, caption), *((at, text) for at, text in then)),
            fps=fps,
            seconds=seconds,
            seed=seed,
            size=size,
            smoothing=smoothing,
            blend_steps=blend_steps,
            ahead=ahead,
        )
        return FrameStream(self.model, options)

    def live(
        self,
        caption: Optional[str] = None,
        *,
        fps: Union[int, float, Fraction, str, None] = None,
        size: Optional[tuple[int, int]] = None,
        seed: int = 0,
        blend_steps: Optional[int] = None,
        smoothing: float = 0.0,
        queue: int = 2,
        policy: str = LATEST,
        ahead: int = 0,
        adaptive: bool = True,
        idle_after_s: Optional[float] = None,
    ) -> LiveStream:
        """A stream in real time, of `caption`, or of the first that is set. `LiveOptions` describes the parameters.

            with pipeline.live("a person is waving", fps=30) as live:
                for frame in live:
                    show(frame.pixels)
                    if heard := listen():
                        live.set_caption(heard)

        Raises `CaptionError`, `UsageError` or `EngineError`.
        """
        options = LiveOptions(
            fps=fps,
            size=size,
            seed=seed,
            blend_steps=blend_steps,
            smoothing=smoothing,
            queue=queue,
            policy=policy,
            ahead=ahead,
            adaptive=adaptive,
            idle_after_s=idle_after_s,
        )
        live = LiveStream(self.model, options)
        if caption is not None:
            try:
                live.set_caption(caption)
            except BaseException:
                live.close()
                raise
        return live

    def close(self) -> None:
        """Free the engines. Live streams of this pipeline are closed; other streams end with `EngineError`."""
        self.model.close()
