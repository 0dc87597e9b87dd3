"""Small operations on tensors of labels. Most of these tensors repeat along most axes (stride 0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

from torch import Tensor


@overload
def core(first: Tensor, /) -> Tensor: ...
@overload
def core(first: Tensor, second: Tensor, /) -> tuple[Tensor, ...]: ...
def core(*labels: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Tensors of one shape without the repetitions that they share: axes along which all have stride 0, cut to 1."""
    for axis in range(labels[0].ndim):
        if all(t.stride(axis) == 0 or t.shape[axis] == 1 for t in labels):
            labels = tuple(t.narrow(axis, 0, min(1, t.shape[axis])) for t in labels)
    return labels if len(labels) > 1 else labels[0]


def along(vector: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """A vector laid along `axis` of a tensor of `shape`, without copies."""
    return vector.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


def varies(labels: Tensor, axis: int) -> bool:
    """Whether elements differ along an axis; an axis that is not there is one of size 1."""
    if -axis > labels.ndim or labels.ndim == 0 or labels.shape[axis] < 2 or labels.stride(axis) == 0:
        return False
    labels = core(labels)
    return bool((labels != labels.narrow(axis, 0, 1)).any())


def flat(value: Any) -> list[Any]:
    """The leaves of nested lists, tuples and dicts, in order."""
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in flat(part)]
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in flat(part)]
    return [value]


def replay(func: Any, args: Any, kwargs: Any, labels: Mapping[int, Tensor]) -> Any:
    """Run a moving operator on labels; as float64, in which every label is exact and every operator defined."""

    def swap(value: Any) -> Any:
        if isinstance(value, Tensor):
            return labels[id(value)].double() if id(value) in labels else value
        if isinstance(value, (list, tuple)):
            return type(value)(swap(v) for v in value)
        return value

    options = {k: swap(v) for k, v in kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory")}
    moved = func(*swap(args), **options)
    return [m.long() for m in flat(moved)] if not isinstance(moved, Tensor) else moved.long()
