"""The trainer of the motion stage: the student moves in long streams, and the teacher corrects every step.

Teacher and student play the same streams, with the same captions and noise. States that both have in the same shape,
such as a pose that is fed back, get the same values: mostly the student's own. So the teacher corrects the student
where the student really is, and no trajectories are compared that chaos has driven apart (on-policy imitation; Ross et
al., DAgger, AISTATS 2011). If no state is shared, the student imitates the teacher's own trajectory.

Streams continue from window to window, with caption changes, and restart now and then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2v_edge.spec import StageSpec
from t2v_export.compress.distill.streams import CaptionConditions, play, run_motion, run_streams
from t2v_export.compress.distill.training import StageTrainer, UpdateReplay, adamw, generators
from t2v_export.recipe import Distill

STREAM_STEPS = 800
"""Base steps after which a stream restarts, about."""

LED_FIRST, LED_LAST = 0.9, 0.1
"""The share of streams that the teacher leads: at the start, and from the middle of the training on."""

MEASURED_STREAMS, MEASURED_STEPS = 64, 160


class MotionTrainer(StageTrainer):
    """One update learns from a window of `length` base steps of `motion_batch` streams."""

    name = "motion"

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        specs: tuple[StageSpec, StageSpec, StageSpec],
        pool: Tensor,
        blend_steps: int,
        options: Distill,
        seed: int,
        device: torch.device,
    ) -> None:
        """`specs`: the teacher's motion, the student's motion, and the render stage's. `pool` (captions, C)."""
        self.teacher, self.student, self.rate, self.device = teacher, student, options.motion_rate, device
        self.spec, self.student_spec, self.render_spec = specs
        self.pool, self.blend_steps, self.length, self.seed = pool, blend_steps, options.length, seed
        batch = options.motion_batch
        theirs = {s.input: s for s in self.spec.states}
        self.shared = [s for s in self.student_spec.states if s.input in theirs and theirs[s.input].shape == s.shape]
        self.generator = generators(device, seed)
        self.captions = CaptionConditions(pool, batch, blend_steps, self.generator)
        self.draws = self.captions.draws
        self.stream_noises = self.draws.noises(self.spec.noises, "stream")
        self.step_noises = {n.input: self.draws.noise(n, self.length) for n in self.spec.noises if n.cadence == "step"}
        self.condition = self.captions.advance(self.length)
        self.theirs, self.mine = self.draws.start(self.spec), self.draws.start(self.student_spec)
        self.led = torch.ones(batch, 1, dtype=torch.bool, device=device)
        self.scale = self._scales()
        self.optimizer = adamw(student.parameters(), self.rate, device, betas=(0.9, 0.99))
        self.loss = torch.zeros((), device=device)
        self._replay = UpdateReplay(self._update, self._changed, device)

    def _scales(self) -> dict[str, Tensor]:
        """By output, how much each number changes in a step; at least a twentieth of its whole spread."""
        captions = CaptionConditions(self.pool, 64, self.blend_steps, generators(self.device, self.seed + 1))
        made = list(run_streams(self.teacher, self.spec, captions, 64))
        scales = {}
        for name in ("motion", *(s.output for s in self.shared)):
            values = torch.stack([step[name] for step in made])
            change, spread = values.diff(dim=0).flatten(0, 1).std(0), values.flatten(0, 1).std(0)
            scales[name] = (change + 0.05 * spread).clamp(min=1e-3)
        return scales

    def _changed(self) -> list[Tensor]:
        """The tensors that an update changes, without the optimizer's moments."""
        return [*self.student.parameters(), *self.theirs.values(), *self.mine.values()]

    def step(self, progress: float) -> Mapping[str, Tensor]:
        self._draw(progress)
        self._replay()
        return {"loss": self.loss.clone()}

    def _draw(self, progress: float) -> None:
        """Draw the next window: conditions, noises, which streams restart and which the teacher leads."""
        batch = len(self.led)

        def some(share: float) -> Tensor:
            return torch.rand(batch, generator=self.generator, device=self.device) < share

        restarted = some(self.length / STREAM_STEPS)
        self.captions.change(restarted, at_once=True)
        for states, spec in ((self.theirs, self.spec), (self.mine, self.student_spec)):
            for name, value in self.draws.start(spec).items():
                states[name].copy_(torch.where(_like(restarted, value), value, states[name]))
        for name, value in self.draws.noises(self.spec.noises, "stream").items():
            self.stream_noises[name].copy_(torch.where(_like(restarted, value), value, self.stream_noises[name]))
        for state in self.shared:  # where a start is drawn, both must start from the same
            self.mine[state.input].copy_(self.theirs[state.input])
        for noise in self.spec.noises:
            if noise.cadence == "step":
                self.step_noises[noise.input].copy_(self.draws.noise(noise, self.length))
        self.condition.copy_(self.captions.advance(self.length))
        share = LED_FIRST + (LED_LAST - LED_FIRST) * min(1.0, 2 * progress)
        self.led.copy_(some(share)[:, None])

    def _update(self) -> None:
        loss, theirs, mine = self._window()
        self.descend(loss)
        self.loss.copy_(loss.detach())
        for kept, made in ((self.theirs, theirs), (self.mine, mine)):
            for name, value in made.items():
                kept[name].copy_(value.detach())

    def _window(self) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        theirs, mine = dict(self.theirs), dict(self.mine)
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.scale}
        for t in range(self.length):
            noises = {**self.stream_noises, **{name: value[t] for name, value in self.step_noises.items()}}
            feeds = {"condition": self.condition[t], **noises}
            with torch.no_grad():
                wanted = run_motion(self.teacher, self.spec, {**feeds, **theirs})
            made = run_motion(self.student, self.student_spec, {**feeds, **mine})
            for name, seen in pairs.items():
                seen.append((made[name], wanted[name]))
            theirs = {s.input: wanted[s.output] for s in self.spec.states}
            mine = {s.input: made[s.output] for s in self.student_spec.states}
            for state in self.shared:
                old, new = wanted[state.output], made[state.output].detach()
                theirs[state.input] = mine[state.input] = torch.where(_like(self.led, old), old, new)
        losses = []
        for name, seen in pairs.items():
            made_all, wanted_all = (torch.stack(part) / self.scale[name] for part in zip(*seen))
            losses.append(functional.smooth_l1_loss(made_all, wanted_all))
        return torch.stack(losses).mean(), theirs, mine

    @torch.no_grad()
    def measure(self, student: nn.Module) -> Mapping[str, float]:
        """Free runs of both: `speed` and `spread` of the student's motion, relative to the teacher's.

        Speed is the mean change in a step, spread the standard deviation. 1 means equal.
        """
        streams = min(MEASURED_STREAMS, 2 * len(self.led))
        steps = MEASURED_STEPS if self.device.type == "cuda" else min(MEASURED_STEPS, 2 * self.length)
        made = []
        for module, spec in ((student, self.student_spec), (self.teacher, self.spec)):
            captions = CaptionConditions(self.pool, streams, self.blend_steps, generators(self.device, self.seed + 2))
            made.append(play(module, spec, self.render_spec, captions, steps).motion)
        speeds = [m[steps // 2 :].diff(dim=0).abs().mean() for m in made]
        spreads = [m[steps // 2 :].flatten(0, 1).std(0).mean() for m in made]
        return {"speed": float(speeds[0] / speeds[1]), "spread": float(spreads[0] / spreads[1])}

    def state(self) -> dict[str, Any]:
        played = {"theirs": self.theirs, "mine": self.mine, "stream_noises": self.stream_noises}
        return {**super().state(), "captions": self.captions.state(), **played}

    def resume(self, state: Mapping[str, Any]) -> None:
        super().resume(state)
        self.captions.resume(state["captions"])
        for name in ("theirs", "mine", "stream_noises"):
            for key, value in state[name].items():
                getattr(self, name)[key].copy_(value)


def _like(mask: Tensor, value: Tensor) -> Tensor:
    """A mask (streams,) with as many dimensions as `value` (streams, ...)."""
    return mask.reshape(-1, *[1] * (value.dim() - 1))
