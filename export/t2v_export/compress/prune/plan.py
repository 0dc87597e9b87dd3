"""The plan of a pruning: widths that keep a budget and lose the least importance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from t2v_edge.errors import UsageError
from t2v_export.compress.prune.design import WidthOption
from t2v_export.compress.prune.labels import TracedProduct
from t2v_export.compress.prune.units import Place


@dataclass(frozen=True, eq=False)
class Widths:
    """The widths of a stage that may shrink, and what its cost depends on.

    `scores`: for each option's families, a score for each unit. `products`: terms of the cost, each with the places
    whose sizes it is proportional to. `sizes`: of the places as they are. No option goes below `floor` times itself.
    """

    stage: str
    options: tuple[WidthOption, ...]
    scores: tuple[tuple[Tensor, ...], ...]
    products: Sequence[TracedProduct]
    sizes: Mapping[Place, int]
    round_to: int
    floor: float = 0.0

    @cached_property
    def start(self) -> tuple[int, ...]:
        """The values of the options as they are."""
        return tuple(option.value for option in self.options)

    @cached_property
    def _losses(self) -> tuple[tuple[Tensor, ...], ...]:
        """For each family, minus the logarithm of the share of importance that its best n units hold, by n."""

        def by_count(score: Tensor) -> Tensor:
            held = torch.cat([torch.zeros(1, dtype=score.dtype), score.sort(descending=True).values.cumsum(0)])
            return -held.clamp(1e-12, 1).log()

        return tuple(tuple(by_count(score) for score in of) for of in self.scores)

    def loss(self, index: int, value: int) -> float:
        """What an option loses at a value: minus the logarithm of the importance that is left.

        Importance is a product over the layers that a signal passes, so losses add up.
        """
        found = 0.0
        for (family, units), losses in zip(self.options[index].families, self._losses[index]):
            found += float(losses[family.size - units * (self.options[index].value - value)])
        return found

    def cost(self, values: Sequence[int]) -> float:
        """The budget's measure at these values."""
        lost: dict[Place, int] = {}
        for option, value in zip(self.options, values):
            for place, each in option.lost.items():
                lost[place] = lost.get(place, 0) + each * (option.value - value)
        total = 0.0
        for call in self.products:
            total += call.macs * math.prod(1 - lost.get(place, 0) / self.sizes[place] for place in call.places)
        return total

    def lower(self, index: int, value: int) -> int | None:
        """The next smaller value that is rounded as asked, or None at the smallest."""
        step = _step(self.options[index], self.round_to)
        below = (value - 1) // step * step
        return below if below >= max(step, self.floor * self.options[index].value) else None

    def higher(self, index: int, value: int) -> int | None:
        """The next larger value, or None at the original one."""
        if value == self.options[index].value:
            return None
        step = _step(self.options[index], self.round_to)
        return min(value // step * step + step, self.options[index].value)


def asked_widths(stage: Widths, asked: Mapping[str, Any]) -> list[int]:
    """A stage's values with the widths that a recipe names. Raises `UsageError` for a name that is not a width."""
    names = [option.name for option in stage.options]
    values = list(stage.start)
    for name, value in _flat(asked):
        if name not in names:
            raise UsageError(
                f"widths of stage {stage.stage}: {name} is not a width that can be pruned; those are "
                f"{', '.join(names) or 'none'}"
            )
        now = values[names.index(name)]
        if type(value) is not int or not 1 <= value <= now:
            raise UsageError(f"widths of stage {stage.stage}: {name} is {value!r}, expected 1 to {now}")
        values[names.index(name)] = value
    return values


def _flat(options: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested options by name: tables by dots, entries of lists by their index."""
    if isinstance(options, Mapping):
        return [x for k, v in options.items() for x in _flat(v, f"{name}.{k}" if name else k)]
    if isinstance(options, list):
        return [x for i, v in enumerate(options) for x in _flat(v, f"{name}[{i}]")]
    return [(name, options)]


def _step(option: WidthOption, round_to: int) -> int:
    """By how much an option moves so that the narrowest of its layers stays a multiple of `round_to`."""
    each = min(units * min(at.shape[1] for at in family.places.values()) for family, units in option.families)
    return round_to // math.gcd(round_to, each)


def choose_widths(stages: Sequence[Widths], target: float, what: str) -> list[list[int]]:
    """Values of the options of all `stages` whose summed cost is at most `target`.

    Step by step the option goes down that loses least for what it saves. At the end options go up again as far as the
    target allows, the most worth first. Raises `UsageError` for a target out of reach; `what` names the budget in it.
    """
    values = [list(stage.start) for stage in stages]
    costs = [stage.cost(v) for stage, v in zip(stages, values)]

    def take(change: _Change) -> None:
        values[change.stage][change.place] = change.value
        costs[change.stage] = stages[change.stage].cost(values[change.stage])

    while sum(costs) > target:
        down = _changes(stages, values, costs, Widths.lower)
        if not down:
            raise UsageError(
                f"{what}: the smallest that widths of {stages[0].round_to} allow is {sum(costs):,.0f}, and "
                f"{target:,.0f} is asked; raise it, or lower round_to or floor"
            )
        take(min(down, key=lambda c: c.loss / -c.cost if c.cost < 0 else math.inf))
    while up := [c for c in _changes(stages, values, costs, Widths.higher) if sum(costs) + c.cost <= target]:
        take(max(up, key=lambda c: -c.loss / max(c.cost, 1e-9)))
    return values


class _Change(NamedTuple):
    """One option of a stage at its next `value`: by how much cost and loss change."""

    stage: int
    place: int
    value: int
    cost: float
    loss: float


def _changes(
    stages: Sequence[Widths],
    values: Sequence[Sequence[int]],
    costs: Sequence[float],
    following: Callable[[Widths, int, int], int | None],
) -> list[_Change]:
    """What each option may change to by `following`, in order."""
    found = []
    for s, stage in enumerate(stages):
        for index, value in enumerate(values[s]):
            after = following(stage, index, value)
            if after is not None:
                cost = stage.cost([*values[s][:index], after, *values[s][index + 1 :]]) - costs[s]
                found.append(_Change(s, index, after, cost, stage.loss(index, after) - stage.loss(index, value)))
    return found
