"""A stream in real time: each frame when it is due, and captions that change at any moment.

    with Pipeline.open("bundle") as pipeline, pipeline.live("a person is waving", fps=30) as live:
        for frame in live:              # or: async for frame in live
            show(frame.pixels)          # each comes when it is due
            if heard := listen():
                live.set_caption(heard) # from here or from any thread

docs/live.md says what happens at a change, a stall and a pause.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Callable, Optional, Union

from t2v_edge.bundle.draws import check_seed
from t2v_edge.errors import EngineError
from t2v_edge.frame import Frame
from t2v_edge.live.core import LiveCore, Pending
from t2v_edge.live.maker import FrameRequest, Maker
from t2v_edge.live.options import BLOCK, LiveOptions
from t2v_edge.live.stats import LiveCounts, LiveStats
from t2v_edge.live.waiting import SystemClock, WaitClock
from t2v_edge.play.condition import Condition
from t2v_edge.play.model import Model
from t2v_edge.spec import STAGES
from t2v_edge.util.closing import Closing
from t2v_edge.util.timing import Stopwatch

if TYPE_CHECKING:
    import asyncio

__all__ = ["LiveOptions", "LiveStats", "LiveStream", "SystemClock", "WaitClock"]


class LiveStream(Closing, Iterator[Frame], AsyncIterator[Frame]):
    """Frames in real time. Made by `Pipeline.live`.

    A thread makes each frame just before it is due. Iterating gives the frame when it is due, never before. One
    consumer at a time iterates, with ``for`` or ``async for``. Any thread may call everything else. There are no frames
    before the first caption; iterating waits for it. Frame numbers (`index`, `pts`) always rise. Numbers of frames that
    were missed or left out do not come. ``pts * time_base`` is the stream's own time, exact, which stands still while
    the stream is paused or idle. `generation` counts captions and resets, from 0; -1 before the first.

    Iterating ends when the stream or its pipeline is closed, and raises the engines' errors. Close the stream, or use
    ``with``: its thread keeps it alive. `size`: (width, height) of frames. clock: the time it runs in, for tests.
    Raises `UsageError` or `EngineError`.
    """

    def __init__(self, model: Model, options: LiveOptions, clock: Optional[WaitClock] = None) -> None:
        self.options = options
        self.clock = options.clock(model.manifest.video.fps)
        self._time = clock if clock is not None else SystemClock()
        self._model = model
        self._watch = Stopwatch(STAGES)
        self._maker = Maker(model, options, self.clock, self._watch)
        self.size = self._maker.size
        # The lock of all that follows. Every change signals.
        self._changed = threading.Condition()
        self._core = LiveCore(self.options, self.clock.fps, self._maker.rows, self._time.now())
        self._waiters: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[Exception] = None
        self._closed = False
        self._calls = self._newest_call = 0
        model.adopt(self)

    # Control, from any thread.

    @property
    def caption(self) -> str:
        """The newest caption, normalised; empty before the first. Assigning it is `set_caption`."""
        condition = self._core.condition
        return "" if condition is None else condition.caption

    @caption.setter
    def caption(self, caption: str) -> None:
        self.set_caption(caption)

    @property
    def generation(self) -> int:
        """The generation of the newest caption or reset, -1 before the first."""
        return self._core.generation

    def set_caption(self, caption: str) -> int:
        """Change the caption; the generation that its frames carry. From its return on no older frame is given.

        The text stage runs in the calling thread. Of calls that overlap, the last one to begin counts. An unchanged
        caption changes nothing. Captions that change faster than a frame is made leave no frame to show. Raises
        `CaptionError`, and `EngineError` on a closed stream.
        """
        asked_s = self._time.now()
        with self._changed:
            self._check_open()
            self._calls += 1
            call = self._calls
        condition = self._encode(caption)
        with self._changed:
            self._check_open()
            if call > self._newest_call:
                self._newest_call = call
                if self._core.aim(condition, asked_s, self._time.now()):
                    self._start()
                    self._signal()
            return self._core.generation

    def pause(self) -> None:
        """Stand still: from its return on no frame is given. A frame that was begun is still made."""
        self._pause(True)

    def resume(self) -> None:
        """Continue after `pause`, with no gap in the frames' numbers."""
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        with self._changed:
            self._core.pause(paused, self._time.now())
            self._signal()

    def reset(self, seed: Optional[int] = None) -> int:
        """Start a new motion from a new start state, with `seed` or the seed before; the new generation.

        The caption stays, and the frames' numbers continue. Raises `UsageError`, and `EngineError` on a closed stream.
        """
        if seed is not None:
            check_seed(seed)
        with self._changed:
            self._check_open()
            self._core.reset(seed, self._time.now())
            self._signal()
            return self._core.generation

    def close(self, wait: bool = True) -> None:
        """End the stream. Whoever iterates is woken and gets no more frames. May be called often.

        wait: until the frame that is being made is done and GPU memory is free.
        """
        with self._changed:
            self._end()
            thread = self._thread
        if thread is None:
            self._maker.close()
        elif wait and thread is not threading.current_thread():
            thread.join()

    @property
    def stats(self) -> LiveStats:
        """Counts and latencies up to now."""
        stages = {stage: self._watch.latency(stage) for stage in STAGES}  # before the lock that frames are made under
        with self._changed:
            core, book = self._core, self._core.counts
            return LiveStats(
                book.shown,
                book.rendered,
                dict(book.dropped),
                book.late,
                book.anchors,
                book.fps,
                book.switch,
                len(core.queue),
                core.generation,
                core.quality.level,
                core.quality.divisor,
                self._maker.steps,
                stages,
            )

    @property
    def counts(self) -> LiveCounts:
        """The counts without latencies, which cost little to ask for."""
        with self._changed:
            core, book = self._core, self._core.counts
            return LiveCounts(book.rendered, dict(book.dropped), book.late, len(core.queue), core.quality.divisor)

    def tell_times(self, tell: Callable[[str, float], None]) -> None:
        """Call `tell` with (stage, milliseconds) after every run of a stage from now on, in the thread that ran it."""
        self._watch.tell = tell

    # The consumer.

    def __iter__(self) -> LiveStream:
        return self

    def __next__(self) -> Frame:
        with self._changed:
            self._arrive()
            try:
                while not self._is_over():
                    found = self._take()
                    if isinstance(found, Frame):
                        return found
                    self._time.wait(self._changed, found.until_s)
            finally:
                self._core.leave(self._time.now())
        raise StopIteration

    def __aiter__(self) -> LiveStream:
        return self

    async def __anext__(self) -> Frame:
        import asyncio  # a heavy module, which a running loop has already loaded

        loop = asyncio.get_running_loop()
        changed: asyncio.Future[None] = loop.create_future()
        with self._changed:
            self._arrive()
        try:
            while True:
                with self._changed:
                    if self._is_over():
                        raise StopAsyncIteration
                    found = self._take()
                    if isinstance(found, Frame):
                        return found
                    if changed.done():
                        changed = loop.create_future()
                    self._waiters[changed] = loop
                await self._time.wait_async(self._changed, changed, found.until_s)
        finally:
            with self._changed:
                self._waiters.pop(changed, None)
                self._core.leave(self._time.now())

    # The render thread.

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="t2v-edge-live", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while (request := self._await_request()) is not None:
                begun_s = self._time.now()
                frames = self._maker.make(request)
                with self._changed:
                    now_s = self._time.now()
                    self._core.deliver(request, frames, now_s - begun_s, now_s)
                    self._signal()
        except Exception as error:  # noqa: BLE001 - the consumer gets any error
            with self._changed:
                self._error = error
        finally:
            with self._changed:
                self._end()
            self._maker.close()

    def _await_request(self) -> Optional[FrameRequest]:
        """Wait until frames must be begun; None for a closed stream."""
        with self._changed:
            while not self._closed:
                found = self._core.plan(self._time.now())
                if isinstance(found, FrameRequest):
                    return found
                self._time.wait(self._changed, found.until_s)
        return None

    # Shared parts. The lock is held.

    def _arrive(self) -> None:
        if self._core.arrive(self._time.now()):
            self._signal()

    def _take(self) -> Union[Frame, Pending]:
        found = self._core.take(self._time.now())
        if isinstance(found, Frame) and self.options.policy == BLOCK:
            self._signal()  # there is room again
        return found

    def _is_over(self) -> bool:
        if self._error is not None:
            raise self._error
        return self._closed

    def _check_open(self) -> None:
        if self._is_over():
            raise EngineError("the stream is closed; make another")

    def _end(self) -> None:
        self._closed = True
        self._core.abandon()
        self._signal()

    def _signal(self) -> None:
        """Wake the render thread and all consumers, after a change."""
        self._time.notify(self._changed)
        for waiter, loop in self._waiters.items():
            try:
                loop.call_soon_threadsafe(_wake, waiter)
            except RuntimeError:  # that loop is closed, and nobody waits in it
                continue
        self._waiters.clear()

    # Without the lock.

    def _encode(self, caption: str) -> Condition:
        begun_s = self._time.now()
        condition = self._model.encode(self._model.read(caption))
        if condition.fresh:
            with self._changed:
                self._watch.add("text", 1000 * (self._time.now() - begun_s))
        return condition


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
