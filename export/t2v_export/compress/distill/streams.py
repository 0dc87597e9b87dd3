"""Streams in batches: the draws, caption changes and motion of many at once, as the runtime plays one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2v_edge.spec import NoiseSpec, StageSpec

STEADY_SHARE = 0.5
"""The share of streams that keep their caption."""

SWITCH_RATE = 1 / 64
"""How likely another stream changes its caption at a base step."""


class BatchDraws:
    """What `count` streams draw, from one generator: a dimension of streams in front of what `Draws` makes for one.

    `noises(specs)` draws some; `start(motion)` the states' start values by graph input name.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator

    def noise(self, spec: NoiseSpec, steps: int = 0) -> Tensor:
        """(streams, ...) float32, or (steps, streams, ...) where `steps` is given."""
        shape = (*([steps] if steps else []), self.count, *spec.shape[1:])
        draw = torch.randn if spec.distribution == "normal" else torch.rand
        return draw(shape, generator=self.generator, device=self.generator.device) * spec.scale

    def noises(self, specs: Sequence[NoiseSpec], cadence: str) -> dict[str, Tensor]:
        """The noises of a cadence by graph input name."""
        return {n.input: self.noise(n) for n in specs if n.cadence == cadence}

    def start(self, motion: StageSpec) -> dict[str, Tensor]:
        """Start states by graph input name, each (streams, ...)."""
        states, device = {}, self.generator.device
        for state in motion.states:
            shape = (self.count, *state.shape[1:])
            if state.start == "normal":
                states[state.input] = torch.randn(shape, generator=self.generator, device=device)
            elif state.start == "stored":
                stored = torch.tensor(state.value, dtype=torch.float32, device=device).reshape(state.shape)
                states[state.input] = stored.expand(shape).clone()
            else:
                states[state.input] = torch.zeros(shape, device=device)
        return states


class CaptionConditions:
    """The conditions of `count` streams, each with its caption changes: `advance(steps)` gives the next ones.

    `pool` (captions, C). A change blends in over `blend_steps` from where the condition is, as `clock.Blend` does.
    `draws` are what else the streams draw.
    """

    def __init__(self, pool: Tensor, count: int, blend_steps: int, generator: torch.Generator) -> None:
        self.pool, self.blend_steps, self.generator = pool, max(1, blend_steps), generator
        self.draws = BatchDraws(count, generator)
        self.switching = torch.arange(count, device=pool.device) >= STEADY_SHARE * count
        self.target = self._draw(count)
        self.start = self.target.clone()
        self.done = torch.full((count, 1), float(self.blend_steps), device=pool.device)

    def advance(self, steps: int) -> Tensor:
        """The conditions of the next base steps, (steps, streams, C)."""
        made = []
        for _ in range(steps):
            change = torch.rand(len(self.target), generator=self.generator, device=self.pool.device) < SWITCH_RATE
            self.change(change & self.switching)
            self.done = (self.done + 1).clamp(max=self.blend_steps)
            made.append(self.start + (self.target - self.start) * (self.done / self.blend_steps))
        return torch.stack(made)

    def change(self, which: Tensor, at_once: bool = False) -> None:
        """Give the streams in the mask `which` (streams,) another caption; `at_once` without a blend."""
        fresh = self._draw(len(self.target))
        now = self.start + (self.target - self.start) * (self.done / self.blend_steps)
        which = which[:, None]
        self.start = torch.where(which, fresh if at_once else now, self.start)
        self.target = torch.where(which, fresh, self.target)
        self.done = torch.where(which, torch.zeros_like(self.done), self.done)

    def state(self) -> dict[str, Tensor]:
        """All that changes, as `resume` takes it."""
        return {"target": self.target, "start": self.start, "done": self.done}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        self.target, self.start, self.done = (state[n].to(self.pool.device) for n in ("target", "start", "done"))

    def _draw(self, count: int) -> Tensor:
        return self.pool[torch.randint(len(self.pool), (count,), generator=self.generator, device=self.pool.device)]


@dataclass(frozen=True)
class Trajectories:
    """What the motion stage made: `motion` (steps, streams, M), `condition` (steps, streams, C), and the render
    stage's stream noises by input name, each (streams, ...).
    """

    motion: Tensor
    condition: Tensor
    noises: Mapping[str, Tensor]


def run_motion(module: nn.Module, spec: StageSpec, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One step of a motion module; results by graph output name."""
    made = module(*(feeds[t.name] for t in spec.inputs))
    made = made if isinstance(made, tuple) else (made,)
    return {t.name: tensor for t, tensor in zip(spec.outputs, made)}


@torch.no_grad()
def run_streams(
    module: nn.Module, spec: StageSpec, captions: CaptionConditions, steps: int
) -> Iterator[dict[str, Tensor]]:
    """What a motion module makes at each of `steps` base steps of new streams, and the ``condition`` it was given."""
    draws = captions.draws
    stream_noises, states = draws.noises(spec.noises, "stream"), draws.start(spec)
    for condition in captions.advance(steps):
        feeds = {"condition": condition, **stream_noises, **draws.noises(spec.noises, "step"), **states}
        made = run_motion(module, spec, feeds)
        states = {s.input: made[s.output] for s in spec.states}
        yield {**made, "condition": condition}


def play(
    module: nn.Module, motion: StageSpec, render: StageSpec, captions: CaptionConditions, steps: int
) -> Trajectories:
    """Play streams of `steps` base steps, with the changes of their `captions` in mid-run."""
    made = [(step["motion"], step["condition"]) for step in run_streams(module, motion, captions, steps)]
    motions, conditions = (torch.stack(part) for part in zip(*made))
    return Trajectories(motions, conditions, captions.draws.noises(render.noises, "stream"))
