"""Captions played through a bundle's stages as the runtime plays them, with frames drawn on demand.

`t2v_edge.FrameStream` renders every frame. Measurements need a second of warm-up and long runs without frames. So the
stages are stepped here, with the stream's own draws and blend. A test compares the pixels of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2v_edge import Pipeline
from t2v_edge.bundle.draws import Draws
from t2v_edge.play.clock import Blend, mix
from t2v_export.evaluate.fidelity import Frame

Floats = NDArray[np.float32]
Script = Sequence[tuple[int, str]]


@dataclass(frozen=True, eq=False)
class MotionStep:
    """What one base step made: `motion` (1, M), `condition` (1, C), and the next states by input name."""

    motion: Floats
    condition: Floats
    states: Mapping[str, Floats]


@dataclass(frozen=True, eq=False)
class Take:
    """One stream's motion: `motion` (steps, M) and the blended `condition` (steps, C), and the renderer's noises."""

    motion: Floats
    condition: Floats
    noises: Mapping[str, Floats]

    @property
    def key(self) -> str:
        """A hash that is equal for takes of which a renderer makes the same frames."""
        digest = hashlib.sha256()
        for name, value in sorted({"motion": self.motion, "condition": self.condition, **self.noises}.items()):
            digest.update(f"{name}{value.shape}".encode() + value.tobytes())
        return digest.hexdigest()


def step_motion(pipeline: Pipeline, script: Script, draws: Draws) -> Iterator[MotionStep]:
    """Endless base steps of a script of (base step, caption), the first at step 0; the state is carried throughout."""
    states_of = pipeline.manifest.stages["motion"].states
    blend = Blend(pipeline.manifest.video.blend_steps)
    changes = {step: pipeline.encode(caption).vector for step, caption in script}
    states: Mapping[str, Floats] = dict(draws.states)
    step = 0
    while True:
        if step in changes:
            blend.retarget(changes[step])
        condition = blend.advance()
        out = pipeline.run("motion", {"condition": condition, **draws.motion, **draws.step(), **states})
        states = {state.input: out[state.output] for state in states_of}
        yield MotionStep(out["motion"], condition, states)
        step += 1


def draws_of(pipeline: Pipeline, seed: int) -> Draws:
    """The draws of a stream of this seed."""
    return Draws(pipeline.manifest.stages["motion"], pipeline.manifest.stages["render"], seed)


def take(pipeline: Pipeline, script: Script, seed: int, steps: int) -> Take:
    """Step the motion stage `steps` times through a script."""
    draws = draws_of(pipeline, seed)
    made = [step for step, _ in zip(step_motion(pipeline, script, draws), range(steps))]
    return Take(np.concatenate([m.motion for m in made]), np.concatenate([m.condition for m in made]), draws.render)


def render_at(pipeline: Pipeline, played: Take, position: float) -> Frame:
    """The frame, uint8 (H, W, 3), at a position in base steps; motion and condition are interpolated linearly."""
    before, share = int(position), position % 1
    after = before + 1 if share else before
    motion, condition = (
        mix(values[before : before + 1], values[after : after + 1], share)
        for values in (played.motion, played.condition)
    )
    return np.asarray(pipeline.run("render", {"motion": motion, "condition": condition, **played.noises})["frame"][0])
