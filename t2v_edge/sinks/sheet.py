"""Contact sheets: frames of a stream, evenly spaced in time, side by side in one PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import numpy.typing as npt

from t2v_edge.errors import SinkError
from t2v_edge.frame import Frame
from t2v_edge.sinks.marks import PICTURE
from t2v_edge.sinks.png import encode_png
from t2v_edge.util.files import write_atomic

CELLS = 24
COLUMNS = 8
GAP = 4
LABEL_HEIGHT = 20
MAX_CELL_SIDE = 256
_PAPER, _INK = 255, (40, 40, 40)


class ContactSheet:
    """A sheet of about `cells` frames of a stream.

    frame_count: the stream's length. None for an endless stream: then the kept frames get farther and farther apart.
    """

    def __init__(self, frame_count: Optional[int], cells: int = CELLS) -> None:
        self._cells = cells
        self._wanted: Optional[set[int]] = None
        if frame_count is not None:
            shown = min(cells, frame_count)
            self._wanted = {(2 * i + 1) * frame_count // (2 * shown) for i in range(shown)}
        self._stride = 1
        self._kept: list[tuple[int, str, npt.NDArray[Any]]] = []

    def add(self, frame: Frame) -> None:
        """Keep a copy of a frame if the sheet shows it."""
        wanted = frame.index % self._stride == 0 if self._wanted is None else frame.index in self._wanted
        if not wanted:
            return
        label = f"{frame.generation + 1}: {float(frame.seconds):.2f} s"
        self._kept.append((frame.index, label, _cell(frame.pixels)))
        if self._wanted is None and len(self._kept) > 2 * self._cells:
            self._stride *= 2
            self._kept = [kept for kept in self._kept if kept[0] % self._stride == 0]

    def pixels(self) -> npt.NDArray[Any]:
        """The sheet, uint8 (H, W, 3), RGB. Raises `SinkError` if it has no frame."""
        return contact_sheet([cell for _, _, cell in self._kept], [label for _, label, _ in self._kept])

    def save(self, path: Path) -> None:
        """Write the sheet as a PNG, atomically."""
        write_atomic(path, encode_png(self.pixels()), PICTURE, late=True)


def contact_sheet(
    frames: list[npt.NDArray[Any]], labels: Optional[list[str]] = None, columns: int = COLUMNS
) -> npt.NDArray[Any]:
    """A sheet of frames in rows, each above its ASCII label. Frames and sheet are uint8 (H, W, 3), RGB."""
    if not frames:
        raise SinkError("there is no frame for the contact sheet; ask for more seconds")
    height, width = frames[0].shape[:2]
    below = LABEL_HEIGHT if labels else 0
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    sheet = np.full((GAP + rows * (height + below + GAP), GAP + columns * (width + GAP), 3), _PAPER, np.uint8)
    for i, frame in enumerate(frames):
        top, left = GAP + i // columns * (height + below + GAP), GAP + i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = frame
        if labels:
            origin = (left + 2, top + height + LABEL_HEIGHT - 6)
            cv2.putText(sheet, labels[i], origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
    return sheet


def _cell(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy, at most `MAX_CELL_SIDE` wide and high."""
    height, width = pixels.shape[:2]
    scale = MAX_CELL_SIDE / max(height, width)
    if scale >= 1:
        return np.array(pixels, copy=True)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk: npt.NDArray[Any] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return shrunk
