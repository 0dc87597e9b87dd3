"""A run of the motion stage under captions that change, and frames drawn anywhere along it."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Callable, Optional

from t2v_edge.bundle.draws import Draws
from t2v_edge.engine.base import Pixels, Vector
from t2v_edge.errors import UsageError
from t2v_edge.play.clock import Blend
from t2v_edge.play.model import Model
from t2v_edge.play.options import MotionOptions
from t2v_edge.util.timing import Stopwatch


class Rollout:
    """The state of one stream: recurrent state, condition, and the two newest motions, between which frames are drawn.

    Use it from one thread. `steps`: base steps done; step s stands at position s. `size`: (width, height) of frames.
    `rows`: frames that are best rendered at once. `slots`: groups of them that may be on their way. watch: takes the
    times of motion and render. ahead: several groups will be on their way.
    """

    def __init__(self, model: Model, options: MotionOptions, watch: Stopwatch, ahead: bool = False) -> None:
        video, stages = model.manifest.video, model.manifest.stages
        self.size = options.size or (video.width, video.height)
        self._resize = _resizer((video.width, video.height), self.size)
        self._draws = Draws(stages["motion"], stages["render"], options.seed)
        self.player = model.player(self._draws, options.smoothing, ahead)
        self.rows, self.slots = self.player.rows, self.player.slots
        self._blend = Blend(video.blend_steps if options.blend_steps is None else options.blend_steps)
        self._watch = watch
        self.steps = 0

    def aim(self, condition: Vector) -> None:
        """Blend to `condition`, from the next base step on."""
        self._blend.retarget(condition)

    def place(self, step: int, share: Fraction, before_step: Optional[Callable[[], None]] = None) -> None:
        """Put a frame `share`, from 0 to below 1, of the way from `step` to the next into the next group.

        Runs only the motion steps that this needs, each after `before_step`. Positions must grow. They must not lie
        before the last step but one.
        """
        wanted = step + 2 if share else step + 1
        while self.steps < wanted:
            if before_step is not None:
                before_step()
            self._advance()
        # Positions grow, so the newest step is `step` itself, or `step + 1` for a share above 0.
        self.player.place(float(share) if share else 1.0)

    def send(self) -> float:
        """Send the group off; the milliseconds that took, which on a processor is rendering."""
        start = time.perf_counter()
        self.player.render()
        return 1000 * (time.perf_counter() - start)

    def collect(self, send_ms: float) -> list[Pixels]:
        """Wait for the oldest group, which took `send_ms` to send; its frames as shown, uint8 (H, W, 3)."""
        start = time.perf_counter()
        made = self.player.collect()
        self._watch.add("render", send_ms + 1000 * (time.perf_counter() - start))
        return made if self._resize is None else [self._resize(pixels) for pixels in made]

    def close(self) -> None:
        """Free the player."""
        self.player.close()

    def _advance(self) -> None:
        condition, noises = self._blend.advance(), self._draws.step()
        with self._watch.time("motion"):
            self.player.step(condition, noises)
        self.steps += 1


def _resizer(made: tuple[int, int], shown: tuple[int, int]) -> Optional[Callable[[Pixels], Pixels]]:
    """A function from frames as made to frames as shown; None for the same size."""
    if made == shown:
        return None
    try:
        from t2v_edge.play.resize import Resizer
    except ImportError as error:
        raise UsageError("another size than the model's own needs OpenCV: pip install 't2v-edge[video]'") from error
    return Resizer(made, shown)
