"""What a stream's arithmetic runs on: its recurrent state, the two motions it is between, and its frames in the making.

On processors that is a few arrays and a call for each stage (`HostPlayer`); on a GPU everything stays there
(`t2v_edge.engine.resident`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, Protocol

import numpy.typing as npt

from t2v_edge.clock import Smoother, Vector, mix
from t2v_edge.draws import Draws
from t2v_edge.engine.base import Arrays
from t2v_edge.spec import StateSpec

Pixels = npt.NDArray[Any]
RunStage = Callable[[str, Arrays], Mapping[str, npt.NDArray[Any]]]


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
    """Motion and frames by way of `run`, which runs a stage by name; each frame is made when it is sent off."""

    rows = 1
    slots = 1

    def __init__(self, run: RunStage, states: Sequence[StateSpec], draws: Draws, smoothing: float) -> None:
        self._run, self._states, self._draws = run, states, draws
        self._state: Arrays = draws.states
        self._smooth = Smoother(smoothing)
        self._before: Optional[tuple[Vector, Vector]] = None
        self._after: Optional[tuple[Vector, Vector]] = None
        self._placed: list[float] = []
        self._made: deque[list[Pixels]] = deque()

    def step(self, condition: Vector, noises: Mapping[str, Vector]) -> None:
        results = self._run("motion", {"condition": condition, **self._draws.motion, **noises, **self._state})
        self._state = {state.input: results[state.output] for state in self._states}
        self._before, self._after = self._after, (self._smooth(results["motion"]), condition)

    def place(self, share: float) -> None:
        self._placed.append(share)

    def render(self) -> None:
        frames = []
        for share in self._placed:
            after = self._after
            before = after if share >= 1.0 else self._before
            if before is None or after is None:
                raise RuntimeError("a frame was placed before its motion step")
            feeds = {"motion": mix(before[0], after[0], share), "condition": mix(before[1], after[1], share)}
            frames.append(self._run("render", {**feeds, **self._draws.render})["frame"][0])
        self._placed = []
        self._made.append(frames)

    def collect(self) -> list[Pixels]:
        return self._made.popleft()

    def close(self) -> None:
        """Nothing is held that needs freeing."""
