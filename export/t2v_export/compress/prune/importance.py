"""How much each unit matters to what reads it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from t2v_calibration.calibration_set import Feeds
from t2v_edge.spec import StageSpec
from t2v_export.checkpoint.cost import plain_kernels
from t2v_export.compress.prune.labels import PRODUCTS
from t2v_export.compress.prune.trace import Trace
from t2v_export.compress.prune.units import Family, Place

BATCH = 8


def score_families(
    module: nn.Module, spec: StageSpec, trace: Trace, criterion: str, samples: Sequence[Feeds], seed: int
) -> list[Tensor]:
    """A score, 0 or more, for each unit of each family of `trace`, float64; each family's scores sum to 1.

    magnitude: the squares of a unit's weights, each weight's as a share of the family's (Fang et al., 2023).

    taylor: the squared first-order change of the outputs, along random directions, if readers of the unit read zero
    (Molchanov et al., 2019).

    activation: the energy that the unit brings into each weight that reads it. It is the mean square of its activation
    times the squares of the weights that it meets (a structured form of Sun et al., 2023). A family that no weight
    reads falls back to magnitude.
    """
    weights = {k: v.double() for k, v in module.state_dict().items() if v.is_floating_point() and v.ndim > 0}
    if criterion == "taylor":
        changes = _changes(module, spec, trace, samples, seed)
        return [_or_magnitude(change, family, weights) for change, family in zip(changes, trace.families)]
    shares = _energies(module, spec, trace, weights, samples) if criterion == "activation" else {}
    scores = []
    for family in trace.families:
        read = [shares[place][at].sum(1) for place, at in family.places.items() if place in shares]
        scores.append(_or_magnitude(torch.stack(read).sum(0) if read else None, family, weights))
    return scores


def feed(spec: StageSpec, samples: Sequence[Feeds]) -> list[Tensor]:
    """Samples as one batch of inputs, in the order of the contract."""
    return [torch.from_numpy(np.concatenate([s[t.name] for s in samples])) for t in spec.inputs]


def _or_magnitude(score: Tensor | None, family: Family, weights: Mapping[str, Tensor]) -> Tensor:
    if score is None or not bool(score.sum() > 0):
        score = torch.zeros(family.size, dtype=torch.float64)
        for (name, axis), at in family.places.items():
            if name in weights and not name.endswith(("bias", "running_mean", "running_var")):
                squares = _squares(weights[name], axis)[at].sum(1)
                score += squares / squares.sum().clamp(min=1e-30)
    return score / score.sum().clamp(min=1e-30)


def _squares(weight: Tensor, axis: int) -> Tensor:
    """Sum of squares at each index of an axis."""
    return weight.square().movedim(axis, 0).reshape(weight.shape[axis], -1).sum(1)


def _energies(
    module: nn.Module, spec: StageSpec, trace: Trace, weights: Mapping[str, Tensor], samples: Sequence[Feeds]
) -> dict[Place, Tensor]:
    """For each reading axis of a weight, each index's share of the energy that the weight takes in."""
    mode = _Energies(module, {name: axis for name, axis in trace.readers if name in weights})
    with torch.no_grad(), plain_kernels(), mode:
        for first in range(0, len(samples), BATCH):
            module(*feed(spec, samples[first : first + BATCH]))
    shares = {}
    for name, energy in mode.sums.items():
        brought = energy * _squares(weights[name], mode.axes[name])
        if bool(brought.sum() > 0):
            shares[name, mode.axes[name]] = brought / brought.sum()
    return shares


class _Energies(TorchDispatchMode):
    """Sums the squares of what each weight reads, channel by channel."""

    def __init__(self, module: nn.Module, axes: Mapping[str, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes = axes
        self.names = {t.untyped_storage().data_ptr(): n for n, t in module.state_dict().items() if n in axes}
        self.sums: dict[str, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            left, right, _ = PRODUCTS[name]
            self._add(args[right], args[left], -1)
        elif "convolution" in name:
            self._add(args[1], args[0], 1)
        return func(*args, **(kwargs or {}))

    def _add(self, weight: Tensor, x: Tensor, axis: int) -> None:
        name = self.names.get(weight.untyped_storage().data_ptr())
        if name is None or x.shape[axis] not in weight.shape:
            return
        squares = x.double().square().movedim(axis, 0).flatten(1).sum(1)
        before = self.sums.get(name)
        if before is None or before.shape == squares.shape:
            self.sums[name] = squares if before is None else before + squares


def _changes(
    module: nn.Module, spec: StageSpec, trace: Trace, samples: Sequence[Feeds], seed: int
) -> list[Tensor | None]:
    module = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    weights = {n: p for n, p in module.named_parameters() if any(n == name for name, _ in trace.readers)}
    for weight in weights.values():
        weight.requires_grad_(True)
    reading = [
        {place: at for place, at in f.places.items() if place in trace.readers and place[0] in weights}
        for f in trace.families
    ]
    scores: list[Tensor | None] = [
        torch.zeros(f.size, dtype=torch.float64) if r else None for f, r in zip(trace.families, reading)
    ]
    for sample in samples:
        outputs = module(*feed(spec, [sample]))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        signs = [torch.randint(0, 2, o.shape, generator=generator).to(o) * 2 - 1 for o in outputs]
        loss = sum(((o * s).sum() for o, s in zip(outputs, signs)), torch.zeros(()))
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True)))
        for score, places in zip(scores, reading):
            if score is None:
                continue
            change = torch.zeros_like(score)
            for (name, axis), at in places.items():
                if grads[name] is not None:
                    moved = (weights[name].detach().double() * grads[name]).movedim(axis, 0)
                    change += moved.reshape(moved.shape[0], -1).sum(1)[at].sum(1)
            score += change.square()
    return scores
