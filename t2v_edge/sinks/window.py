"""A sink that shows frames in a window on the screen, in real time."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any, Callable, Optional

import cv2

from t2v_edge.errors import SinkError
from t2v_edge.frame import Frame
from t2v_edge.sinks.base import Sink, check_frame

TITLE = "t2v-edge (q closes)"
MAX_LAG_S = 0.25
_QUIT = (ord("q"), 27)


class WindowPacer:
    """The waiting times between frames. Times are absolute, so errors do not add up. After a stall they start again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._origin: Optional[float] = None

    def wait_s(self, seconds: Fraction) -> float:
        """Seconds until a frame is due that comes `seconds` after the first. 0 if it is late."""
        now = self._clock()
        if self._origin is None or now - (self._origin + float(seconds)) > MAX_LAG_S:
            self._origin = now - float(seconds)
        return max(0.0, self._origin + float(seconds) - now)


class WindowSink(Sink):
    """A window of OpenCV. `write` returns False after q or Escape is pressed or the window is closed."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._pacer = WindowPacer()
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE)
        except cv2.error as error:
            raise SinkError(
                "no window can be opened: OpenCV was built without one or there is no display; "
                "put opencv-python in place of opencv-python-headless, or use -o"
            ) from error

    def write(self, frame: Frame) -> bool:
        check_frame(frame, self._size, "window")
        try:
            cv2.imshow(TITLE, cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2BGR))
            wait_ms = round(1000 * self._pacer.wait_s(frame.seconds))
            pressed = cv2.waitKey(max(1, wait_ms)) & 0xFF
            return pressed not in _QUIT and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error as error:
            raise SinkError(f"the window failed ({error}); write a file with -o instead") from error

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Any) -> None:
        cv2.destroyWindow(TITLE)


def open_sink(target: str, fps: Fraction, size: tuple[int, int]) -> WindowSink:
    return WindowSink(size)
