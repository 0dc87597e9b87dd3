"""The interface of all sinks."""

from __future__ import annotations

from typing import Any, Optional, Protocol, TypeVar

from t2v_edge.errors import SinkError
from t2v_edge.frame import Frame

S = TypeVar("S", bound="Sink")


class Sink(Protocol):
    """A consumer of frames in order. As a context manager it finishes its file, or removes it after an exception."""

    def write(self, frame: Frame) -> bool:
        """Take one frame. Its pixels are not used after the call. False if the viewer has closed: stop then."""
        ...

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Any) -> None:
        return None


def check_frame(frame: Frame, size: tuple[int, int], target: str) -> None:
    """Raise `SinkError` if a frame is not of the sink's (width, height)."""
    if frame.pixels.shape != (size[1], size[0], 3):
        shape = "x".join(str(side) for side in frame.pixels.shape)
        raise SinkError(f"{target}: a frame of {shape} came, not {size[1]}x{size[0]}x3; open the sink for that size")
