"""Whether frames hang together in time: warping error by optical flow, and flicker where nothing moves."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from t2v_export.evaluate.fidelity import Frame, Plane

STILL_PX = 0.25
MIN_SIDE = 16


@dataclass(frozen=True, eq=False)
class Flow:
    """Where the pixels of a frame were in the one before it.

    `source`: float32 (H, W, 2), their x and y there. `sure`: bool (H, W), flow forward and back agree there.
    `still`: bool (H, W), sure and moved by less than a quarter of a pixel.
    """

    source: NDArray[np.float32]
    sure: NDArray[np.bool_]
    still: NDArray[np.bool_]


class FlowMeter:
    """Dense inverse search flow (Kroeger et al., ECCV 2016) between successive frames."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def between(self, before: Plane, after: Plane) -> Flow:
        """Flow of two luminances, float32 (H, W) of 0 to 255.

        A pixel is sure if going back and forth ends near where it began, inside the picture. The bound is that of
        Sundaram, Brox and Keutzer (ECCV 2010).
        """
        old, new = (np.rint(plane).astype(np.uint8) for plane in (before, after))
        back, forth = self._flow.calc(new, old, None), self._flow.calc(old, new, None)
        height, width = new.shape
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
        source = grid + back
        returned = back + cv2.remap(forth, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        squares = np.square(back).sum(-1)
        inside = ((source >= 0) & (source <= (width - 1, height - 1))).all(-1)
        sure = inside & (np.square(returned).sum(-1) < 0.01 * 2 * squares + 0.5)
        return Flow(source, sure, sure & (squares < STILL_PX**2))


@dataclass
class TemporalSums:
    """Sums over the frames of a stream; `warp` and `flicker` are the means so far, None where nothing was sure."""

    warp_sum: float = 0.0
    warp_count: int = 0
    flicker_sum: float = 0.0
    flicker_count: int = 0

    def add(self, before: Frame, after: Frame, flow: Flow) -> None:
        """Count a pair of frames: the difference of the second from the first, warped along the flow."""
        moved = cv2.remap(
            before.astype(np.float32), flow.source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        error = np.abs(after.astype(np.float32) - moved).mean(-1)
        change = np.abs(after.astype(np.float32) - before.astype(np.float32)).mean(-1)
        self.warp_sum += float(error[flow.sure].sum(dtype=np.float64))
        self.warp_count += int(flow.sure.sum())
        self.flicker_sum += float(change[flow.still].sum(dtype=np.float64))
        self.flicker_count += int(flow.still.sum())

    def merge(self, other: TemporalSums) -> None:
        self.warp_sum += other.warp_sum
        self.warp_count += other.warp_count
        self.flicker_sum += other.flicker_sum
        self.flicker_count += other.flicker_count

    @property
    def warp(self) -> float | None:
        """Mean absolute error of warped frames where flow is sure, levels of 255 (Lai et al., ECCV 2018)."""
        return self.warp_sum / self.warp_count if self.warp_count else None

    @property
    def flicker(self) -> float | None:
        """Mean absolute change from frame to frame where nothing moves, levels of 255."""
        return self.flicker_sum / self.flicker_count if self.flicker_count else None
