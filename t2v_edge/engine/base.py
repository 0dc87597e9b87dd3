"""The contract of engines: an engine holds one stage's graph and runs it."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional, Protocol

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle.draws import Draws
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.spec import Arrays, StageSpec
from t2v_edge.util.closing import Closing

MAX_THREADS = 256
MAX_PARALLEL = 8
"""Frames of one stream that a processor makes at the same time. Each takes memory of its own."""

Vector = npt.NDArray[np.float32]
Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs.

    threads: CPU threads inside one operator, 1 to 256, or None for the engine's own choice. callers: threads that may
    run the engine at the same time; some engines make room for each. ahead: render several frames of one stream at
    once. An engine may then make room for several callers and none for one alone. Raises `UsageError` for values out
    of range.
    """

    threads: Optional[int] = None
    callers: int = 1
    ahead: bool = False

    def __post_init__(self) -> None:
        if self.callers < 1:
            raise UsageError(f"callers is {self.callers}, expected 1 or more")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"threads is {self.threads}, expected 1 to {MAX_THREADS}")

    @property
    def parallel(self) -> int:
        """Callers that can each have a core of their own."""
        callers = max(self.callers, MAX_PARALLEL if self.ahead else 1)
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(callers, self.threads or usable, usable)


class Player(Protocol):
    """The state and the frames of one stream. Use it from one thread.

    `step` runs one motion step. `place` adds a frame between the two newest steps to the open group. `render` sends
    the group off, once it has `rows` frames, or fewer at the end. `collect` waits for the oldest group. At most `slots`
    groups may be on their way. All raise `EngineError`.
    """

    rows: int
    slots: int

    def step(self, condition: Vector, noises: Mapping[str, Vector]) -> None:
        """Run one motion step under `condition` (1, C), with the noises that are drawn at every step."""
        ...

    def place(self, share: float) -> None:
        """Add a frame at `share`, 0 to 1, of the way from the step before to the newest; 1 needs no step before."""
        ...

    def render(self) -> None: ...

    def collect(self) -> list[Pixels]:
        """Frames uint8 (H, W, 3) of the oldest group, in the order of `place`; they belong to the caller."""
        ...

    def close(self) -> None: ...


class Engine(Closing):
    """A loaded graph. Several threads may call `run`. Close the engine, or use it as a context manager.

    `name`: the engine's. `spec`: the stage's contract. `parallel`: calls at the same time that finish more in all than
    one after another; 1 for an engine that gains nothing.
    """

    name: str
    spec: StageSpec
    parallel: int = 1

    @abstractmethod
    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once, with arrays as `spec.inputs` says; gives arrays as `spec.outputs` says.

        `feeds` is read during the call only. The arrays returned belong to the caller: an engine that reuses buffers
        copies first. Raises `EngineError`.
        """

    def open_player(self, motion: Engine, draws: Draws, smoothing: float) -> Optional[Player]:
        """A player of this renderer and the motion engine, with frames and state in this engine's own memory.

        None for engines that share no such memory: their stream then goes through `run`. draws: the stream's random
        numbers. smoothing: of motion, 0 to below 1. Raises `EngineError`.
        """
        return None


def check_feeds(feeds: Arrays, spec: StageSpec) -> None:
    """Check names, shapes and dtypes against the contract; raises `EngineError` naming the first misfit."""
    for tensor in spec.inputs:
        array = feeds.get(tensor.name)
        if array is None:
            raise EngineError(f"stage {spec.stage}: input {tensor.name} is missing; feed all of its inputs")
        if array.shape != tensor.shape or array.dtype != np.dtype(tensor.dtype):
            raise EngineError(
                f"stage {spec.stage}: input {tensor.name} is {array.dtype}{list(array.shape)}, "
                f"the graph takes {tensor.dtype}{list(tensor.shape)}"
            )
    if len(feeds) != len(spec.inputs):
        extra = sorted(set(feeds) - {t.name for t in spec.inputs})
        raise EngineError(f"stage {spec.stage}: takes no input {', '.join(extra)}; leave it out")
