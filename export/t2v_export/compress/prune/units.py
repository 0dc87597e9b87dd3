"""Units: the index sets of a module's weights that are kept or removed together.

Every index along every axis of a weight is an atom. Two atoms that meet in one number of the computation are of one
unit: a channel of a convolution and of the BatchNorm behind it, the same unit of all gates of a recurrent cell, both
sides of a residual sum. `FIXED` is what cannot leave: a number of the stage's inputs or outputs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from t2v_export.compress.prune.tensors import core

NONE, FIXED = 0, 1
Place = tuple[str, int]
"""A weight's name and an axis of it; a state's input, such as ``state.h``, is named as in the stage's contract."""


class Atoms:
    """Atoms by place, and which are one unit (a union-find forest whose roots are the smallest of their trees)."""

    def __init__(self) -> None:
        self.parent = torch.arange(2)
        self.starts: list[int] = []
        self.sizes: dict[Place, int] = {}
        self.touched: set[Place] = set()
        self.inexact: set[int] = set()

    def add(self, place: Place, size: int) -> Tensor:
        """New atoms of a place, int64 (size,)."""
        first = len(self.parent)
        self.parent = torch.cat([self.parent, torch.arange(first, first + size)])
        self.starts.append(first)
        self.sizes[place] = size
        return torch.arange(first, first + size)

    def roots(self, labels: Tensor) -> Tensor:
        """The labels with every atom replaced by its unit's root; what was repeated stays so."""
        return self.parent[core(labels)].expand(labels.shape)

    def place_of(self, label: int) -> Place | None:
        """The place an atom was made for."""
        return list(self.sizes)[bisect_right(self.starts, label) - 1] if label > FIXED else None

    def unify(self, left: Tensor, right: Tensor) -> None:
        """Make one unit of the atoms at equal positions of two tensors of one shape; `NONE` joins nothing."""
        left, right = (self.parent[labels].reshape(-1) for labels in core(left, right))
        differ = (left != right) & (left != NONE) & (right != NONE)
        if not bool(differ.any()):
            return
        self._join(torch.unique(torch.stack([left[differ], right[differ]], 1), dim=0).tolist())

    def freeze(self, labels: Tensor) -> None:
        """Make the atoms of a tensor `FIXED`."""
        found = torch.unique(self.parent[core(labels)]).tolist()
        self._join([(FIXED, label) for label in found if label > FIXED])

    def merge(self, labels: Tensor) -> int:
        """Make all real atoms of a tensor one unit and return its root, or `NONE` without atoms."""
        found = [label for label in torch.unique(self.parent[core(labels)]).tolist() if label > FIXED]
        self._join([(found[0], label) for label in found[1:]])
        return min(found, default=NONE)

    def mark_inexact(self, labels: Tensor) -> None:
        """Note units over which something is normalised: without one of them the others change."""
        self.inexact.update(int(label) for label in torch.unique(core(labels)))

    def _join(self, pairs: Iterable[tuple[int, int]]) -> None:
        parent: dict[int, int] = {}

        def find(label: int) -> int:
            while label in parent:
                label = parent[label]
            return label

        for left, right in pairs:
            low, high = sorted((find(left), find(right)))
            if low != high:
                parent[high] = low
        moved = torch.arange(len(self.parent))
        for label in parent:
            moved[label] = find(label)
        self.parent = moved[self.parent]


@dataclass(frozen=True, eq=False)
class Family:
    """Units of one kind, such as the channels between two layers.

    `places`: int64 (units, count), the indices of each unit along that axis. `exact`: removing a unit equals setting
    its output to zero.
    """

    places: Mapping[Place, Tensor]
    exact: bool

    @property
    def size(self) -> int:
        """The number of units."""
        return next(iter(self.places.values())).shape[0]


def find_families(atoms: Atoms) -> tuple[Family, ...]:
    """The units that may be pruned, those that lie in the same places together."""
    units: dict[int, dict[Place, list[int]]] = {}
    for (place, size), first in zip(atoms.sizes.items(), atoms.starts):
        if place not in atoms.touched:
            continue
        for index, root in enumerate(atoms.parent[first : first + size].tolist()):
            if root > FIXED:
                units.setdefault(root, {}).setdefault(place, []).append(index)
    inexact = set(atoms.roots(torch.tensor(sorted(atoms.inexact), dtype=torch.int64)).tolist())
    kinds: dict[tuple[tuple[Place, int], ...], list[int]] = {}
    for root, places in units.items():
        kinds.setdefault(tuple((place, len(indices)) for place, indices in places.items()), []).append(root)
    return tuple(
        Family(
            {place: torch.tensor([units[root][place] for root in roots]) for place, _ in kind},
            exact=not inexact.intersection(roots),
        )
        for kind, roots in kinds.items()
    )
