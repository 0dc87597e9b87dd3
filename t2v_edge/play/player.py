"""A stream's player on the processor: a few arrays, and a call for each stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Callable, Optional, Union

import numpy.typing as npt

from t2v_edge.bundle.draws import Draws
from t2v_edge.engine.base import Pixels, Vector
from t2v_edge.errors import EngineError
from t2v_edge.play.clock import Smoother, mix
from t2v_edge.spec import Arrays, StateSpec

RunStage = Callable[[str, Arrays], Mapping[str, npt.NDArray[Any]]]
WAITING = 4
"""Frames that wait while others are rendered in parallel, so that no thread of the pool waits for the stream."""

CLOSED = "the stream is closed; open another one"


class HostPlayer:
    """A `Player` that runs stages through `run`, by name.

    parallel: frames that are rendered at the same time, each in a thread of a pool. With 1, `render` renders each frame
    in the calling thread.
    """

    rows = 1

    def __init__(
        self, run: RunStage, states: Sequence[StateSpec], draws: Draws, smoothing: float, parallel: int = 1
    ) -> None:
        self._run, self._states, self._draws = run, states, draws
        self._pool = ThreadPoolExecutor(parallel, "t2v-render") if parallel > 1 else None
        self.slots = 1 if self._pool is None else parallel + WAITING
        self._state: Arrays = draws.states
        self._smooth = Smoother(smoothing)
        self._before: Optional[tuple[Vector, Vector]] = None
        self._after: Optional[tuple[Vector, Vector]] = None
        self._placed: list[float] = []
        self._made: deque[list[Any]] = deque()  # pixels, or with a pool, futures of them

    def step(self, condition: Vector, noises: Mapping[str, Vector]) -> None:
        results = self._run("motion", {"condition": condition, **self._draws.motion, **noises, **self._state})
        self._state = {state.input: results[state.output] for state in self._states}
        self._before, self._after = self._after, (self._smooth(results["motion"]), condition)

    def place(self, share: float) -> None:
        self._placed.append(share)

    def render(self) -> None:
        self._made.append([self._begin(share) for share in self._placed])
        self._placed = []

    def collect(self) -> list[Pixels]:
        made = self._made.popleft()
        if self._pool is None:
            return made
        try:
            return [frame.result() for frame in made]
        except CancelledError as error:
            raise EngineError(CLOSED) from error

    def close(self) -> None:
        """Drop the frames that wait to be rendered."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, share: float) -> Union[Pixels, Future[Pixels]]:
        after = self._after
        before = after if share >= 1.0 else self._before
        if before is None or after is None:
            raise RuntimeError("a frame was placed before its motion step")
        feeds = {
            "motion": mix(before[0], after[0], share),
            "condition": mix(before[1], after[1], share),
            **self._draws.render,
        }
        if self._pool is None:
            return self._frame(feeds)
        try:
            return self._pool.submit(self._frame, feeds)
        except RuntimeError as error:  # the pool was shut down
            raise EngineError(CLOSED) from error

    def _frame(self, feeds: Arrays) -> Pixels:
        frame: Pixels = self._run("render", feeds)["frame"][0]
        return frame
