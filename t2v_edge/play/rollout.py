"""A run of the motion stage under captions that change, and frames drawn anywhere along it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy.typing as npt

from t2v_edge.bundle.draws import Draws
from t2v_edge.errors import UsageError
from t2v_edge.play.clock import Blend, Vector
from t2v_edge.util.timing import Stopwatch

if TYPE_CHECKING:
    from t2v_edge.pipeline import Pipeline

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class RolloutOptions:
    """seed: of every random draw. size: (width, height) of frames, None for the model's own. smoothing: of motion, see
    `clock.Smoother`. blend_steps: base steps over which a caption change blends, None for the model's own. ahead:
    whether several groups of frames will be on their way."""

    seed: int = 0
    size: Optional[tuple[int, int]] = None
    smoothing: float = 0.0
    blend_steps: Optional[int] = None
    ahead: bool = False


class Rollout:
    """What one stream has run: recurrent state, condition, and the two newest motions, between which frames are drawn.

    Use it from one thread. `steps`: base steps done; step s stands at position s. rows: frames that are best rendered
    at once; slots: groups of them that may be on their way. `watch` gets the times of motion and render.
    """

    def __init__(self, pipeline: Pipeline, options: RolloutOptions, watch: Stopwatch) -> None:
        video, stages = pipeline.manifest.video, pipeline.manifest.stages
        self.size = options.size or (video.width, video.height)
        self._resize = _resizer((video.width, video.height), self.size)
        self._draws = Draws(stages["motion"], stages["render"], options.seed)
        self.player = pipeline.player(self._draws, options.smoothing, options.ahead)
        self.rows, self.slots = self.player.rows, self.player.slots
        self._blend = Blend(video.blend_steps if options.blend_steps is None else options.blend_steps)
        self._watch = watch
        self.steps = 0

    def aim(self, condition: Vector) -> None:
        """Blend to `condition`, from the next base step on."""
        self._blend.retarget(condition)

    def place(self, step: int, share: Fraction, before_step: Optional[Callable[[], None]] = None) -> None:
        """Put a frame `share`, from 0 to below 1, of the way from `step` to the next into the next group.

        Runs the motion steps that this needs and no more, each after `before_step`. Positions must only grow, and not
        lie before the last step but one.
        """
        wanted = step + 2 if share else step + 1
        while self.steps < wanted:
            if before_step is not None:
                before_step()
            self._advance()
        # Positions only grow, so the newest step is `step` itself, or `step + 1` where there is a share of it.
        self.player.place(float(share) if share else 1.0)

    def send(self) -> float:
        """Send the group off; milliseconds that took. On a processor that is rendering it."""
        start = time.perf_counter()
        self.player.render()
        return 1000 * (time.perf_counter() - start)

    def collect(self, send_ms: float) -> list[Pixels]:
        """Wait for the oldest group, which took `send_ms` to send; its frames, uint8 (H, W, 3), as shown."""
        start = time.perf_counter()
        made = self.player.collect()
        self._watch.add("render", send_ms + 1000 * (time.perf_counter() - start))
        return made if self._resize is None else [self._resize(pixels) for pixels in made]

    def close(self) -> None:
        """Free what is held on a GPU."""
        self.player.close()

    def _advance(self) -> None:
        condition, noises = self._blend.advance(), self._draws.step()
        with self._watch.time("motion"):
            self.player.step(condition, noises)
        self.steps += 1


def _resizer(made: tuple[int, int], shown: tuple[int, int]) -> Optional[Callable[[Pixels], Pixels]]:
    """A function from frames as made to frames as shown; None where they are the same."""
    if made == shown:
        return None
    try:
        from t2v_edge.play.resize import Resizer
    except ImportError as error:
        raise UsageError("another size than the model's own needs OpenCV: pip install 't2v-edge[video]'") from error
    return Resizer(made, shown)
