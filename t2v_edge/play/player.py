"""What a stream's arithmetic runs on: its recurrent state, the two motions it is between, and its frames in the making.

On processors that is a few arrays and a call for each stage (`HostPlayer`); on a GPU everything stays there
(`t2v_edge.play.gpu_player`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Callable, Optional, Protocol, Union

import numpy.typing as npt

from t2v_edge.bundle.draws import Draws
from t2v_edge.errors import EngineError
from t2v_edge.play.clock import Smoother, Vector, mix
from t2v_edge.spec import Arrays, StateSpec

Pixels = npt.NDArray[Any]
RunStage = Callable[[str, Arrays], Mapping[str, npt.NDArray[Any]]]
WAITING = 4
"""Frames that wait while others are made beside each other, so that none of the makers ever waits for the stream: with
four makers 882 frames a second without any, 952 with one and 1055 with four (256x256, two cores)."""

CLOSED = "the stream is closed; open another one"


class Player(Protocol):
    """One stream. Use it from one thread.

    `step` moves on by a base step. `place` puts a frame between the step before and the newest one into the group that
    is being made; with `rows` of them there, or fewer at the end, `render` sends the group off, and `collect` waits for
    the oldest group and gives its frames. At most `slots` groups may be on their way.
    """

    rows: int
    slots: int

    def step(self, condition: Vector, noises: Mapping[str, Vector]) -> None:
        """One motion step under `condition` (1, C), with the noises that are drawn at every step."""
        ...

    def place(self, share: float) -> None:
        """A frame at `share`, 0 to 1, of the way from the step before to the newest; 1 needs no step before."""
        ...

    def render(self) -> None: ...

    def collect(self) -> list[Pixels]:
        """Frames uint8 (H, W, 3) of the oldest group, in the order of `place`; they belong to the caller."""
        ...

    def close(self) -> None: ...


class HostPlayer:
    """Motion and frames by way of `run`, which runs a stage by name.

    beside: frames that are made beside each other, in threads of their own. Of 1 each is made when it is sent off, in
    the thread that sends it.
    """

    rows = 1

    def __init__(
        self, run: RunStage, states: Sequence[StateSpec], draws: Draws, smoothing: float, beside: int = 1
    ) -> None:
        self._run, self._states, self._draws = run, states, draws
        self._pool = ThreadPoolExecutor(beside, "t2v-render") if beside > 1 else None
        self.slots = 1 if self._pool is None else beside + WAITING
        self._state: Arrays = draws.states
        self._smooth = Smoother(smoothing)
        self._before: Optional[tuple[Vector, Vector]] = None
        self._after: Optional[tuple[Vector, Vector]] = None
        self._placed: list[float] = []
        self._made: deque[list[Any]] = deque()  # pixels, or futures of them where there is a pool

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
        """Frames that wait to be made never are."""
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
        except RuntimeError as error:  # how an executor says that it was shut down
            raise EngineError(CLOSED) from error

    def _frame(self, feeds: Arrays) -> Pixels:
        frame: Pixels = self._run("render", feeds)["frame"][0]
        return frame
