"""A module without some of its units: built smaller, with the weights that are left."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from t2v_calibration.calibration_set import Feeds
from t2v_edge.errors import UsageError
from t2v_export.checkpoint.config import StageConfig
from t2v_export.compress.prune.design import Design, Path, WidthOption
from t2v_export.compress.prune.importance import feed
from t2v_export.compress.prune.trace import Trace
from t2v_export.compress.prune.units import Place
from t2v_export.models.contract import spec_of

# rounding of sums in another order, relative to the largest output
TOLERANCE = 1e-3
Removed = Mapping[Place, Tensor]


def choose_units(widths: Sequence[WidthOption], scores: Sequence[Sequence[Tensor]], values: Sequence[int]) -> Removed:
    """The indices that leave each place when the widths take `values`. The units with the lowest scores leave."""
    leaving: dict[Place, list[Tensor]] = {}
    for width, of, value in zip(widths, scores, values):
        for (family, units), score in zip(width.families, of):
            order = score.argsort(descending=True, stable=True)
            gone = order[family.size - units * (width.value - value) :]
            for place, at in family.places.items():
                leaving.setdefault(place, []).append(at[gone].reshape(-1))
    found = {place: torch.cat(parts).sort().values for place, parts in leaving.items()}
    return {place: indices for place, indices in found.items() if len(indices)}


def cut(
    design: Design, widths: Sequence[WidthOption], values: Sequence[int], removed: Removed
) -> tuple[nn.Module, StageConfig]:
    """The smaller module and its config. Raises `UsageError` where the class cannot be built that small."""
    numbers = {p: value * s for width, value in zip(widths, values) for p, s in zip(width.paths, width.scale)}
    return load_cut(design, numbers, removed), design.stage_config(numbers)


def load_cut(design: Design, numbers: Mapping[Path, int], removed: Removed) -> nn.Module:
    """Build with these numbers and load the weights without the removed indices."""
    state = {name: keep(name, weight, removed) for name, weight in design.module.state_dict().items()}
    try:
        made = design.build(numbers)
        made.load_state_dict(state, strict=True)
    except Exception as error:  # a user's class may fail in any way
        shown = ", ".join(f"{'.'.join(map(str, path))} = {value}" for path, value in numbers.items())
        raise UsageError(
            f"stage {design.stage}: its class cannot be built with {shown}: {error}; leave "
            f"{design.stage}_keep at 1, or prune with another round_to"
        ) from error
    return made


def keep(name: str, tensor: Tensor, removed: Removed) -> Tensor:
    """The tensor `name` without the indices removed along each of its axes."""
    for axis in range(tensor.ndim):
        if (name, axis) in removed:
            stays = torch.ones(tensor.shape[axis], dtype=torch.bool)
            stays[removed[name, axis]] = False
            tensor = tensor.index_select(axis, stays.nonzero()[:, 0])
    return tensor


def check_cut(
    module: nn.Module, made: nn.Module, trace: Trace, removed: Removed, samples: Sequence[Feeds], stage: str
) -> None:
    """Prove a cut: the smaller module computes what the larger one does when readers of the lost units read zero.

    Outputs behind a normalisation over such units are not checked. Raises `UsageError`.
    """
    lost = [f for f in trace.families if any(place in removed for place in f.places)]
    if not all(family.exact for family in lost):
        return
    silenced = copy.deepcopy(module)
    state = silenced.state_dict()
    with torch.no_grad():
        for (name, axis), indices in removed.items():
            if (name, axis) in trace.readers and name in state:
                state[name].index_fill_(axis, indices, 0.0)
        old, new = spec_of(module), spec_of(made)
        inputs = feed(old, samples)
        full = silenced(*inputs)
        small = made(*(keep(t.name, value, removed) for t, value in zip(old.inputs, inputs)))
    outputs = full if isinstance(full, tuple) else (full,)
    names = {s.output: s.input for s in old.states}
    for spec, before, after in zip(new.outputs, outputs, small if isinstance(small, tuple) else (small,)):
        before = keep(names.get(spec.name, spec.name), before, removed)
        most = TOLERANCE * max(1.0, float(before.abs().max()))
        if before.shape != after.shape or float((before - after).abs().max()) > most:
            raise UsageError(
                f"stage {stage}: {spec.name} changes when unused units are taken out: the class computes with its "
                f"widths in a way that pruning does not follow; leave {stage}_keep at 1 and rebuild it smaller instead"
            )
