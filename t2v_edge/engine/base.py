"""What every engine does: hold one stage's graph, and run it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Optional, Protocol

import numpy as np
import numpy.typing as npt

from t2v_edge.errors import EngineError, UsageError
from t2v_edge.spec import Arrays, StageSpec

MAX_THREADS = 256
MOST_BESIDE = 8
"""Frames of one stream that are made at the same time on a processor: each more takes memory of its own."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs. `threads`: CPU threads inside one operator, or None for the engine's own choice. `callers`:
    threads that may run it at the same time, for which some engines make room. `ahead`: whether there are always
    several, who make the frames of one stream: an engine may then have room for each and none for one alone."""

    threads: Optional[int] = None
    callers: int = 1
    ahead: bool = False

    def __post_init__(self) -> None:
        if self.callers < 1:
            raise UsageError(f"callers is {self.callers}, expected 1 or more")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"threads is {self.threads}, expected 1 to {MAX_THREADS}")

    @property
    def beside(self) -> int:
        """Callers that can each have a core of their own."""
        callers = max(self.callers, MOST_BESIDE if self.ahead else 1)
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(callers, self.threads or usable, usable)


class Engine(Protocol):
    """A loaded graph. `run` may be called from several threads; close it, or use it as a context manager.

    `beside`, where it has that attribute, is how many calls at the same time finish more than one after another.

    Arrays given to `run` are read during the call only. Arrays it returns belong to the caller: an engine that
    reuses buffers copies before it returns.
    """

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> StageSpec: ...

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once. Names, shapes and dtypes are those of `spec.inputs` and `spec.outputs`."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None: ...


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
