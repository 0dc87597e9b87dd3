"""What every sink does."""

from __future__ import annotations

from types import TracebackType
from typing import Optional, Protocol

from t2v_edge.errors import SinkError
from t2v_edge.frame import Frame


class Sink(Protocol):
    """Takes frames in order. A context manager: a normal exit finishes what was written, an exception removes it."""

    def write(self, frame: Frame) -> bool:
        """Take one frame; its pixels are not kept after the call. False where the viewer has closed: stop then."""
        ...

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None: ...


def check_frame(frame: Frame, size: tuple[int, int], target: str) -> None:
    """Raise `SinkError` where a frame is not of the sink's (width, height)."""
    if frame.pixels.shape != (size[1], size[0], 3):
        shape = "x".join(str(side) for side in frame.pixels.shape)
        raise SinkError(f"{target}: a frame of {shape} came, not {size[1]}x{size[0]}x3; open the sink for that size")
