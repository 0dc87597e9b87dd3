"""The random numbers of a stream, from one seeded generator, in the order of docs/formats.md."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from t2v_edge.errors import UsageError
from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec
from t2v_edge.util.limits import MAX_SEED

Tensors = dict[str, npt.NDArray[np.float32]]


def check_seed(seed: int) -> None:
    """Raises `UsageError` for a seed out of range."""
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed}, expected 0 to {MAX_SEED}")


class Draws:
    """The noises and start states of one stream, all float32. The same seed gives the same numbers.

    seed: 0 to `MAX_SEED`. Raises `UsageError`.
    motion, render: the noises of the whole stream by input name.
    states: the start states by input name.
    """

    def __init__(self, motion: StageSpec, render: StageSpec, seed: int) -> None:
        check_seed(seed)
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._step_noises = tuple(n for n in motion.noises if n.cadence == "step")
        self.motion = self._noises(n for n in motion.noises if n.cadence == "stream")
        self.render = self._noises(n for n in render.noises if n.cadence == "stream")
        self.states: Tensors = {s.input: self._state(s) for s in motion.states}

    def step(self) -> Tensors:
        """Draw the noises of the next base step, by input name."""
        return self._noises(self._step_noises)

    def _noises(self, noises: Iterable[NoiseSpec]) -> Tensors:
        return {noise.input: self._noise(noise) for noise in noises}

    def _noise(self, noise: NoiseSpec) -> npt.NDArray[np.float32]:
        if noise.distribution == "normal":
            drawn = self._generator.standard_normal(noise.shape, np.float32)
        else:
            drawn = self._generator.random(noise.shape, np.float32)
        scaled: npt.NDArray[np.float32] = drawn * np.float32(noise.scale)
        return scaled

    def _state(self, state: StateSpec) -> npt.NDArray[np.float32]:
        if state.start == "normal":
            return self._generator.standard_normal(state.shape, np.float32)
        if state.start == "stored":
            return np.array(state.value, np.float32).reshape(state.shape)
        return np.zeros(state.shape, np.float32)
