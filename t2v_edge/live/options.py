"""How a live stream is played."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Optional, Union

from t2v_edge.bundle.draws import MAX_SEED
from t2v_edge.errors import UsageError
from t2v_edge.live.pacer import BOUND_S
from t2v_edge.play.clock import exact
from t2v_edge.play.stream import MAX_SIDE

LATEST, DROP_OLDEST, BLOCK = "latest", "drop-oldest", "block"
POLICIES = (LATEST, DROP_OLDEST, BLOCK)
MAX_FPS = 240
MAX_QUEUE = 16  # more is a delay that the viewer sees


@dataclass(frozen=True)
class LiveOptions:
    """What a live stream shows, and what happens where its consumer or the device is slow.

    fps: shown frames a second, 1 to 240, a fraction as text ("30000/1001") or None for the model's own. size: (width,
    height) of the frames, None for the model's own. seed: of every random draw. blend_steps: base steps over which a
    caption change blends, None for the model's own. smoothing: of motion, 0 to below 1.
    queue: frames, 1 to 16, that may wait for their consumer. policy: what a consumer gets that is slow: ``latest``: the
    newest frame that is due, older ones are dropped; ``drop-oldest``: frames in order, the oldest is dropped where the
    queue is full; ``block``: frames in order, and none is made while the queue is full. ahead: frames made earlier than
    needed, 0 to 16; each hides a slow frame, and is made anew when the caption changes. bound_s: seconds that a stream
    may be late and still catch up; see `pacer.BOUND_S`. adaptive: whether frames are left out where the device does not
    keep up. idle_after_s: seconds without a consumer after which nothing is made, None for never.
    Raises `UsageError` for values out of range.
    """

    fps: Union[int, float, Fraction, str, None] = None
    size: Optional[tuple[int, int]] = None
    seed: int = 0
    blend_steps: Optional[int] = None
    smoothing: float = 0.0
    queue: int = 2
    policy: str = LATEST
    ahead: int = 0
    adaptive: bool = True
    idle_after_s: Optional[float] = None
    bound_s: float = BOUND_S

    def __post_init__(self) -> None:
        if self.fps is not None and not 1 <= exact(self.fps, "fps") <= MAX_FPS:
            raise UsageError(f"fps is {self.fps}, expected 1 to {MAX_FPS}, or None for the model's own")
        if self.size is not None and not all(1 <= side <= MAX_SIDE for side in self.size):
            raise UsageError(f"size is {self.size[0]}x{self.size[1]}, expected 1 to {MAX_SIDE} pixels a side")
        check_seed(self.seed)
        if self.blend_steps is not None and self.blend_steps < 0:
            raise UsageError(f"blend_steps is {self.blend_steps}, expected 0 or more")
        if not 0.0 <= self.smoothing < 1.0:
            raise UsageError(f"smoothing is {self.smoothing}, expected 0 (none) up to but not including 1")
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


def check_seed(seed: int) -> None:
    """Raises `UsageError` for a seed that no generator takes."""
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed}, expected 0 to {MAX_SEED}")
