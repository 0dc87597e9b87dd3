"""How a live stream is played."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from t2v_edge.errors import UsageError
from t2v_edge.live.pacer import BOUND_S
from t2v_edge.play.clock import exact
from t2v_edge.play.options import MotionOptions
from t2v_edge.util.limits import MAX_LIVE_FPS, MIN_LIVE_FPS

LATEST, DROP_OLDEST, BLOCK = "latest", "drop-oldest", "block"
POLICIES = (LATEST, DROP_OLDEST, BLOCK)
MAX_QUEUE = 16
"""Frames that wait. More is a delay that the viewer sees."""


@dataclass(frozen=True)
class LiveOptions(MotionOptions):
    """What a live stream shows, and what a slow consumer or device means for it.

    `MotionOptions` describes fps, size, seed, smoothing and blend_steps; fps is 1 to 240 here. queue: frames, 1 to 16,
    that may wait for their consumer. policy: what a slow consumer gets. ``latest``: the newest frame that is due, and
    older ones are dropped. ``drop-oldest``: frames in order, and a full queue drops its oldest. ``block``: frames in
    order, and a full queue stops the making. ahead: frames, 0 to 16, made earlier than needed. Each hides a slow frame,
    and is made again after a caption change. adaptive: leave frames out when the device does not keep up. idle_after_s:
    seconds without a consumer after which nothing is made, None for never. bound_s: seconds, up to 3600, that a stream
    may be late and still catch up, see `pacer.BOUND_S`. Raises `UsageError` for values out of range.
    """

    queue: int = 2
    policy: str = LATEST
    ahead: int = 0
    adaptive: bool = True
    idle_after_s: Optional[float] = None
    bound_s: float = BOUND_S

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is not None and not MIN_LIVE_FPS <= exact(self.fps, "fps") <= MAX_LIVE_FPS:
            raise UsageError(
                f"fps is {self.fps}, expected {MIN_LIVE_FPS} to {MAX_LIVE_FPS}, or None for the model's own"
            )
        if not 1 <= self.queue <= MAX_QUEUE:
            raise UsageError(f"queue is {self.queue}, expected 1 to {MAX_QUEUE} frames")
        if self.policy not in POLICIES:
            raise UsageError(f"policy is {self.policy!r}, choose one of: {', '.join(POLICIES)}")
        if not 0 <= self.ahead <= MAX_QUEUE:
            raise UsageError(f"ahead is {self.ahead}, expected 0 to {MAX_QUEUE} frames")
        if self.idle_after_s is not None and not self.idle_after_s >= 0:
            raise UsageError(f"idle_after_s is {self.idle_after_s}, expected 0 or more seconds, or None for never")
        if not 0 < self.bound_s <= 3600:
            raise UsageError(f"bound_s is {self.bound_s}, expected more than 0 seconds and at most 3600")
