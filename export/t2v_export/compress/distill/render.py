"""The trainer of the render stage: the student draws what the teacher draws of the same motion, condition and noise.

It learns from the frames themselves, from how they change in time, and from what another caption changes in them. It
also learns from the teacher's features, through 1x1 convolutions that exist in training alone (Romero et al., FitNets,
ICLR 2015; Ren et al., OMGD, ICCV 2021). A critic of pairs of frames can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2v_edge.spec import StageSpec
from t2v_export.compress.distill.critic import PairCritic
from t2v_export.compress.distill.streams import CaptionConditions, Trajectories, play
from t2v_export.compress.distill.training import StageTrainer, UpdateReplay, adamw, autocast, generators
from t2v_export.compress.fake_quant import QuantizeAware, quantize_aware
from t2v_export.recipe import Distill

LOSSES = ("pixel", "perceptual", "temporal", "contrast", "adversarial")
"""Names of the losses; the options of these names are their weights."""

RENEW = 500
"""Updates after which the teacher plays other motion."""

STREAMS_PER_PAIR = 8
EDGE_WEIGHT = 4.0
"""How much more a pixel counts near an edge of the teacher's frame, where all the difficulty is."""

EDGE = 0.04
CONTRAST_FLOOR = 0.001
"""The share of a frame, wholly changed, that a smaller change between captions counts as."""

CRITIC_START = 0.25
MEASURED = {"cuda": 256, "cpu": 16}


class Features:
    """What some modules of a network made in its last run, kept by forward hooks."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        self.made: dict[str, Tensor] = {}
        parts = dict(module.named_modules())
        for name in names:
            parts[name].register_forward_hook(lambda _, __, output, name=name: self.made.__setitem__(name, output))


def image_modules(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, tuple[int, int, int]]:
    """Names of the modules that make images (batch, channels, h, w), with (channels, h, w), in the order they run."""
    found: dict[str, tuple[int, int, int]] = {}

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            channels, height, width = output.shape[1:]
            found[name] = channels, height, width

    handles = [
        part.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, part in module.named_modules()
        if name
    ]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    return found


def alike(teacher: Mapping[str, tuple[int, int, int]], student: Mapping[str, tuple[int, int, int]]) -> tuple[str, ...]:
    """Modules of the same name that make images of the same size in both networks, the last one of each size.

    Not those of 256 and more: they cost more than all others, and the frames themselves are compared.
    """
    last: dict[tuple[int, int], str] = {}
    for name, (channels, height, width) in teacher.items():
        if name in student and student[name][1:] == (height, width) and channels > 3 and 8 <= height < 256:
            last[height, width] = name
    return tuple(last.values())


class RenderTrainer(StageTrainer):
    """One update learns from `render_batch` frames in pairs: two moments of a stream, up to a base step apart.

    With a weight of `contrast`, every second pair shows one moment as two captions describe it. If the condition has
    `groups` of probabilities, these captions differ in one group. The pixels that differ then count as much as a whole
    frame, however few they are.
    """

    name = "render"

    def __init__(
        self,
        teachers: tuple[nn.Module, nn.Module],
        student: nn.Module,
        specs: tuple[StageSpec, StageSpec],
        pool: Tensor,
        blend_steps: int,
        options: Distill,
        seed: int,
        device: torch.device,
        groups: Sequence[int] | None = None,
    ) -> None:
        """`teachers`: motion and render modules, with their `specs`. `pool`: conditions (captions, C) with `groups`."""
        self.motion, self.teacher = teachers
        self.student, self.rate, self.device = student, options.render_rate, device
        self.specs, self.pool, self.blend_steps, self.length = specs, pool, blend_steps, options.length
        self.weights = {name: getattr(options, name) for name in LOSSES}
        self.pairs, self.seed = options.render_batch // 2, seed
        self.generator = generators(device, seed)
        self.quantization_aware, self.precision = options.quantization_aware, options.precision
        self.rounding: QuantizeAware | None = None
        self.groups = Groups(groups, device) if groups and max(groups) > 1 else None
        if device.type == "cuda":
            for module in (self.teacher, student):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.low = 0.0 if getattr(self.teacher, "pixel_range", "-1..1") == "0..1" else -1.0
        held = generators(device, seed + 1)
        pairs = MEASURED[device.type] // 2
        played = self._play(pairs, held)
        if self.groups is not None:
            self.groups = self.groups.those_that(lambda pair: self._differ(played, pair))
        self.held = self._draw_pairs(played, pairs, held)
        with torch.no_grad(), autocast(device, self.precision):
            self.held_frames = self.teacher(*self.held).float()
        some = tuple(t[:2] for t in self.held)
        made, mine = image_modules(self.teacher, some), image_modules(student.eval(), some)
        names = alike(made, mine) if self.weights["perceptual"] else ()
        self.theirs, self.ours = Features(self.teacher, names), Features(student, names)
        self.bridges = nn.ModuleDict(
            {name.replace(".", "/"): nn.Conv2d(mine[name][0], made[name][0], 1) for name in names}
        ).to(device)
        weights = [*student.parameters(), *self.bridges.parameters()]
        self.optimizer = adamw(weights, self.rate, device, betas=(0.9, 0.99), weight_decay=1e-4)
        self.critic = PairCritic(device, *self.held_frames.shape[2:]) if self.weights["adversarial"] else None
        self.trajectories: Trajectories | None = None
        self.number = 0
        self._played_from = self.generator.get_state()
        self.inputs = tuple(t[: 2 * self.pairs].clone() for t in self._draw_pairs(played, self.pairs, held))
        self.losses: dict[str, Tensor] = {}
        self._replays: dict[tuple[bool, bool], UpdateReplay] = {}

    def set_rate(self, rate: float) -> None:
        super().set_rate(rate)
        if self.critic is not None:
            self.critic.set_rate(0.3 * rate)

    def _changed(self) -> list[Tensor]:
        """The tensors that an update changes, without the optimizers' moments."""
        critic = self.critic.network.state_dict().values() if self.critic is not None else ()
        return [*self.student.state_dict().values(), *self.bridges.parameters(), *critic]

    def _play(self, pairs: int, generator: torch.Generator) -> Trajectories:
        streams = pairs * STREAMS_PER_PAIR if self.device.type == "cuda" else pairs
        captions = CaptionConditions(self.pool, streams, self.blend_steps, generator)
        return play(self.motion, *self.specs, captions, self.length)

    def _contrasts(self, pairs: int) -> int:
        """How many of `pairs`, the last ones, are of one moment and two captions."""
        return pairs // 2 if self.weights["contrast"] else 0

    def _differ(self, played: Trajectories, pair: Tensor) -> bool:
        """Whether the teacher draws two conditions, `pair` (2, C), differently."""
        motion = played.motion[-1, :1].expand(2, -1)
        fed = {"motion": motion, "condition": pair, **{n: v[:1].expand(2, -1) for n, v in played.noises.items()}}
        with torch.no_grad():
            one, other = self.teacher(*(fed[t.name] for t in self.specs[1].inputs)).float()
        return bool((one - other).abs().max() > EDGE)

    def _draw_pairs(self, played: Trajectories, pairs: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Inputs of the render stage for `pairs` pairs: all first moments, then all second moments.

        Motion, condition and noises are interpolated as in a stream at a high frame rate.
        """
        steps, streams = played.motion.shape[:2]
        device = played.motion.device
        stream = torch.randint(streams, (pairs,), generator=generator, device=device)
        first = torch.rand(pairs, generator=generator, device=device) * (steps - 2)
        second = first + 0.1 + 0.9 * torch.rand(pairs, generator=generator, device=device)
        contrasts = self._contrasts(pairs)
        second[pairs - contrasts :] = first[pairs - contrasts :]
        place, stream = torch.cat([first, second]), stream.repeat(2)
        before, share = place.long(), (place % 1)[:, None]
        between = (
            values[before, stream] + (values[before + 1, stream] - values[before, stream]) * share
            for values in (played.motion, played.condition)
        )
        named = dict(zip(("motion", "condition"), between))
        if contrasts:
            rows = named["condition"]
            ends = slice(pairs - contrasts, pairs), slice(2 * pairs - contrasts, 2 * pairs)
            if self.groups is not None:
                rows[ends[0]], rows[ends[1]] = self.groups.apart(rows[ends[0]], generator)
            else:
                other = torch.randint(len(self.pool), (contrasts,), generator=generator, device=device)
                rows[ends[1]] = self.pool[other]
        named |= {name: noise[stream] for name, noise in played.noises.items()}
        return tuple(named[t.name] for t in self.specs[1].inputs)

    def step(self, progress: float) -> Mapping[str, Tensor]:
        if self.trajectories is None or self.number % RENEW == 0:
            self._played_from = self.generator.get_state()
            self.trajectories = self._play(self.pairs, self.generator)
        self.number += 1
        for held, drawn in zip(self.inputs, self._draw_pairs(self.trajectories, self.pairs, self.generator)):
            held.copy_(drawn)
        judged = self.critic is not None and progress >= CRITIC_START
        if self.critic is not None and judged:
            self.critic.move(self.generator)
        if self.rounding is None and progress >= 1 - self.quantization_aware:
            self.rounding = quantize_aware(self.student)
        form = judged, self.rounding is not None
        if form not in self._replays:
            self._replays[form] = UpdateReplay(lambda: self._update(judged), self._changed, self.device)
        self._replays[form]()
        return {name: loss.clone() for name, loss in self.losses.items()}

    def _update(self, judged: bool) -> None:
        with autocast(self.device, self.precision):
            with torch.no_grad():
                wanted = self.teacher(*self.inputs)
            made = self.student(*self.inputs)
        made, wanted = made.float(), wanted.float()
        losses = self._losses(made, wanted)
        critic = self.critic if judged else None
        if critic is not None:
            losses["adversarial"] = critic.judge(made)
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        self.descend(total)
        if critic is not None:
            losses["critic"] = critic.learn(made.detach(), wanted)
        self.losses = {name: loss.detach() for name, loss in losses.items()}

    def _losses(self, made: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        near = near_edges(wanted)
        losses = {"pixel": ((made - wanted).abs() * near).mean()}
        for axis in (2, 3):
            losses["pixel"] = losses["pixel"] + 0.5 * (made.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean()
        (a, b), (x, y), moments = made.chunk(2), wanted.chunk(2), self.pairs - self._contrasts(self.pairs)
        if self.weights["temporal"]:
            change = (b[:moments] - a[:moments]) - (y[:moments] - x[:moments])
            losses["temporal"] = (change.abs() * near[:moments]).mean()
        if moments < self.pairs:
            losses["contrast"] = contrast(*(t[moments:] for t in (a, b, x, y)))
        if self.bridges:
            with autocast(self.device, self.precision):
                apart = []
                for key, bridge in self.bridges.items():
                    mine, feature = (features.made[key.replace("/", ".")] for features in (self.ours, self.theirs))
                    apart.append((bridge(mine) - feature).abs().mean() / feature.abs().mean().clamp(min=1e-3))
            losses["perceptual"] = 0.1 * torch.stack([x.float() for x in apart]).mean()
        return losses

    @torch.no_grad()
    def measure(self, student: nn.Module) -> Mapping[str, float]:
        """Figures on streams that are not trained on.

        `psnr`: of frames in dB; `psnr_low`: its 5th percentile. `temporal_error`: mean error of a pair's change,
        relative to the teacher's mean change. `contrast_error`: mean difference from the teacher where two captions
        differ, in the range of pixels.
        """
        parts = [student(*rows) for rows in zip(*(t.split(32) for t in self.held))]
        made, wanted = torch.cat(parts).float(), self.held_frames
        error = ((made - wanted) / (1.0 - self.low)).square().mean((1, 2, 3)).clamp(min=1e-10)
        psnr = -10 * error.log10()
        (a, b), (x, y) = made.chunk(2), wanted.chunk(2)
        moments = len(a) - self._contrasts(len(a))
        moved = y[:moments] - x[:moments]
        change = (b[:moments] - a[:moments] - moved).abs().mean() / moved.abs().mean().clamp(min=1e-6)
        figures = {"psnr": float(psnr.mean()), "psnr_low": float(psnr.quantile(0.05)), "temporal_error": float(change)}
        if moments < len(a):
            figures["contrast_error"] = float(contrast(*(t[moments:] for t in (a, b, x, y))))
        return figures

    def state(self) -> dict[str, Any]:
        critic = self.critic.state() if self.critic else None
        rounding = self.rounding.state_dict() if self.rounding else None
        parts = {"bridges": self.bridges.state_dict(), "critic": critic, "rounding": rounding}
        return {**super().state(), **parts, "number": self.number, "played_from": self._played_from}

    def resume(self, state: Mapping[str, Any]) -> None:
        super().resume(state)
        self.bridges.load_state_dict(state["bridges"])
        if self.critic is not None:
            self.critic.resume(state["critic"])
        if state["rounding"] is not None:
            self.rounding = quantize_aware(self.student)
            self.rounding.load_state_dict(state["rounding"])
        self.number, self._played_from = state["number"], state["played_from"]
        self.generator.set_state(self._played_from)
        self.trajectories = self._play(self.pairs, self.generator)
        self.generator.set_state(state["generator"])


class Groups:
    """The groups of probabilities in a condition. A caption may name one value of each."""

    def __init__(self, sizes: Sequence[int], device: torch.device, used: Sequence[int] | None = None) -> None:
        self.sizes = tuple(sizes)
        self.used = torch.tensor([g for g, n in enumerate(sizes) if n > 1] if used is None else used, device=device)
        self._counts = torch.tensor(sizes, device=device)
        self._group = torch.cat([torch.full((n,), g) for g, n in enumerate(sizes)]).to(device)
        self._value = torch.cat([torch.arange(n) for n in sizes]).to(device)

    def those_that(self, differ: Callable[[Tensor], bool]) -> Groups | None:
        """The groups whose first two values make a difference; None where none does. `differ` takes a pair (2, C)."""
        even = (1 / self._counts)[self._group]
        zero, one = (torch.full((1,), v, device=even.device) for v in (0, 1))

        def drawn(group: int) -> bool:
            return differ(torch.cat([self._named(even[None], torch.full_like(zero, group), v) for v in (zero, one)]))

        used = [group for group in self.used.tolist() if drawn(group)]
        return Groups(self.sizes, even.device, used) if used else None

    def apart(self, conditions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two variants of conditions (n, C) that name different values of one random group in each row."""
        count, device = len(conditions), conditions.device
        share, first, step = torch.rand((3, count), generator=generator, device=device)
        group = self.used[(share * len(self.used)).long()]
        size = self._counts[group]
        value = (first * size).long()
        other = (value + 1 + (step * (size - 1)).long()) % size
        return self._named(conditions, group, value), self._named(conditions, group, other)

    def _named(self, conditions: Tensor, group: Tensor, value: Tensor) -> Tensor:
        """With `value` (n,) of `group` (n,) named for certain."""
        here = self._group[None] == group[:, None]
        return torch.where(here, (self._value[None] == value[:, None]).to(conditions), conditions)


def contrast(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """How far frames a, b (pairs, 3, h, w) are from x, y where these two differ, weighed by how much they do."""
    where = (x - y).abs().amax(1, keepdim=True)
    apart = 0.5 * ((a - x).abs() + (b - y).abs()).mean(1, keepdim=True)
    least = CONTRAST_FLOOR * where[0].numel()
    return ((where * apart).sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp(min=least)).mean()


def near_edges(frames: Tensor) -> Tensor:
    """Weights (batch, 1, h, w) of frames (batch, 3, h, w): 1, and 1 + `EDGE_WEIGHT` within some 4 pixels of an edge."""
    along, down = (frames.diff(dim=axis).abs().amax(1, keepdim=True) for axis in (3, 2))
    edges = functional.pad(along, (0, 1)) + functional.pad(down, (0, 0, 0, 1))
    coarse = functional.max_pool2d((edges > EDGE).float(), 4, ceil_mode=True)
    wide = functional.interpolate(functional.max_pool2d(coarse, 3, 1, 1), scale_factor=4.0, mode="nearest")
    return 1.0 + EDGE_WEIGHT * wide[..., : frames.shape[2], : frames.shape[3]]
