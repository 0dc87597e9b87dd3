"""Which widths to cut to, so that a budget is kept and as little importance as possible goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from t2v_edge.errors import UsageError
from t2v_export.compress.prune.design import WidthOption
from t2v_export.compress.prune.labels import TracedProduct
from t2v_export.compress.prune.units import Place


@dataclass(frozen=True, eq=False)
class Widths:
    """A stage's knobs and what its cost depends on.

    `products`: what is multiplied to the cost: a factor and the places whose sizes it is proportional to. `sizes`: of
    the places as they are. `scores`: of each knob's families, a score for each unit. No knob goes under the share
    `floor` of what it is.
    """

    stage: str
    knobs: tuple[WidthOption, ...]
    scores: tuple[tuple[Tensor, ...], ...]
    products: tuple[TracedProduct, ...]
    sizes: Mapping[Place, int]
    round_to: int
    floor: float = 0.0

    @cached_property
    def start(self) -> tuple[int, ...]:
        """The knobs as they are."""
        return tuple(knob.value for knob in self.knobs)

    @cached_property
    def _losses(self) -> tuple[tuple[Tensor, ...], ...]:
        """For each family, minus the logarithm of the share of importance that its best n units hold, by n."""
        return tuple(tuple(_losses(score) for score in of) for of in self.scores)

    def loss(self, knob: int, value: int) -> float:
        """What is lost of a knob at a value. Importance left is a product over the layers that a signal passes, so
        its logarithm is a sum, and the last units of a layer are dearer than the first.
        """
        found = 0.0
        for (family, units), losses in zip(self.knobs[knob].families, self._losses[knob]):
            found += float(losses[family.size - units * (self.knobs[knob].value - value)])
        return found

    def cost(self, values: Sequence[int]) -> float:
        """The budget's measure at these values."""
        lost: dict[Place, int] = {}
        for knob, value in zip(self.knobs, values):
            for place, each in knob.lost.items():
                lost[place] = lost.get(place, 0) + each * (knob.value - value)
        total = 0.0
        for call in self.products:
            share = 1.0
            for place in call.places:
                share *= 1 - lost.get(place, 0) / self.sizes[place]
            total += call.macs * share
        return total

    def lower(self, knob: int, value: int) -> int | None:
        """The next smaller value that is rounded as asked, or None at the smallest."""
        step = _step(self.knobs[knob], self.round_to)
        below = (value - 1) // step * step
        return below if below >= max(step, self.floor * self.knobs[knob].value) else None

    def higher(self, knob: int, value: int) -> int | None:
        """The next larger value, or None at what it was."""
        if value == self.knobs[knob].value:
            return None
        step = _step(self.knobs[knob], self.round_to)
        return min(value // step * step + step, self.knobs[knob].value)


def _losses(score: Tensor) -> Tensor:
    held = torch.cat([torch.zeros(1, dtype=score.dtype), score.sort(descending=True).values.cumsum(0)])
    return -held.clamp(1e-12, 1).log()


def asked_widths(stage: Widths, asked: Mapping[str, Any]) -> list[int]:
    """Values of a stage's knobs where options are asked for outright. Raises `UsageError` for one that is no width."""
    names = [knob.name for knob in stage.knobs]
    values = list(stage.start)
    for name, value in _flat(asked):
        if name not in names:
            raise UsageError(
                f"widths of stage {stage.stage}: {name} is no width that can be pruned; those are "
                f"{', '.join(names) or 'none'}"
            )
        now = values[names.index(name)]
        if type(value) is not int or not 1 <= value <= now:
            raise UsageError(f"widths of stage {stage.stage}: {name} is {value!r}, expected 1 to {now}")
        values[names.index(name)] = value
    return values


def _flat(options: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested options as the knobs are named: tables by dots, entries of lists by their index."""
    if isinstance(options, Mapping):
        return [x for k, v in options.items() for x in _flat(v, f"{name}.{k}" if name else k)]
    if isinstance(options, list):
        return [x for i, v in enumerate(options) for x in _flat(v, f"{name}[{i}]")]
    return [(name, options)]


def _step(knob: WidthOption, round_to: int) -> int:
    """By how much a knob moves so that the narrowest of its layers stays a multiple of `round_to`."""
    each = min(units * min(at.shape[1] for at in family.places.values()) for family, units in knob.families)
    return round_to // math.gcd(round_to, each)


def choose_widths(stages: Sequence[Widths], target: float, what: str) -> list[list[int]]:
    """Values of all knobs of all `stages` whose summed cost is at most `target`.

    Step by step the knob goes down that loses least for what it saves; at the end what still fits is given back, the
    most worth first. `what` names the budget in the `UsageError` for a target that is out of reach.
    """
    values = [list(stage.start) for stage in stages]
    costs = [stage.cost(v) for stage, v in zip(stages, values)]
    while sum(costs) > target:
        best: tuple[float, int, int, int] | None = None
        for s, stage in enumerate(stages):
            for k, value in enumerate(values[s]):
                below = stage.lower(k, value)
                if below is None:
                    continue
                saved = costs[s] - stage.cost([*values[s][:k], below, *values[s][k + 1 :]])
                lost = stage.loss(k, below) - stage.loss(k, value)
                ratio = lost / saved if saved > 0 else math.inf
                if best is None or ratio < best[0]:
                    best = (ratio, s, k, below)
        if best is None:
            raise UsageError(
                f"{what}: the smallest that widths of {stages[0].round_to} allow is {sum(costs):,.0f}, and "
                f"{target:,.0f} is asked; raise it, or lower round_to or floor"
            )
        _, s, k, below = best
        values[s][k] = below
        costs[s] = stages[s].cost(values[s])
    _give_back(stages, values, costs, target)
    return values


def _give_back(stages: Sequence[Widths], values: list[list[int]], costs: list[float], target: float) -> None:
    while True:
        best: tuple[float, int, int, int] | None = None
        for s, stage in enumerate(stages):
            for k, value in enumerate(values[s]):
                above = stage.higher(k, value)
                if above is None:
                    continue
                added = stage.cost([*values[s][:k], above, *values[s][k + 1 :]]) - costs[s]
                if sum(costs) + added > target:
                    continue
                worth = (stage.loss(k, value) - stage.loss(k, above)) / max(added, 1e-9)
                if best is None or worth > best[0]:
                    best = (worth, s, k, above)
        if best is None:
            return
        _, s, k, above = best
        values[s][k] = above
        costs[s] = stages[s].cost(values[s])
