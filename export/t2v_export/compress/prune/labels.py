"""Which unit every number of a run belongs to: a dispatch mode that follows torch's operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from t2v_export.compress.prune.tensors import along, core, flat, replay, varies
from t2v_export.compress.prune.units import FIXED, NONE, Atoms, Place

MOVES = frozenset(
    "view _unsafe_view reshape transpose t permute expand unsqueeze squeeze slice select split split_with_sizes chunk "
    "unsafe_chunk unsafe_split unsafe_split_with_sizes unbind clone contiguous detach alias _to_copy to cat stack "
    "repeat flip roll pixel_shuffle pixel_unshuffle constant_pad_nd "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d lift_fresh narrow unfold movedim "
    "_reshape_alias view_as flatten unflatten".split()
)
POOLS = frozenset(
    "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d max_pool1d max_pool2d "
    "max_pool2d_with_indices avg_pool1d avg_pool2d "
    "adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d".split()
)
REDUCTIONS = frozenset("sum mean amax amin max min var std var_mean std_mean logsumexp norm linalg_vector_norm".split())
NORMS = frozenset("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm".split())
ELEMENTWISE = frozenset("where copy masked_fill clamp".split())  # and those that torch tags so
PRODUCTS = {"mm": (0, 1, None), "addmm": (1, 2, 0), "bmm": (0, 1, None), "baddbmm": (1, 2, 0), "linear": (0, 1, 2)}


@dataclass(frozen=True)
class TracedProduct:
    """One product of the traced run: its multiply-accumulates, and the places whose sizes they are proportional to."""

    macs: int
    places: tuple[Place, ...]


@dataclass(frozen=True, eq=False)
class Tag:
    """Labels of a tensor's elements. A weight of two or more axes has one label tensor for each of its axes."""

    axes: tuple[Tensor, ...]
    weight: bool = False
    name: str = ""


@dataclass
class Labels(TorchDispatchMode):
    """A dispatch mode in which every operator of torch hands labels from its inputs to its results.

    It also collects `readers`, the axes by which weights read; `calls`, the products; and `tables` looked up by `ids`.
    """

    atoms: Atoms
    tags: Any = field(default_factory=WeakTensorKeyDictionary)
    readers: set[Place] = field(default_factory=set)
    calls: list[TracedProduct] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def add_weight(self, name: str, tensor: Tensor) -> None:
        """Make the atoms of a parameter or stored buffer."""
        vectors = [self.atoms.add((name, axis), size) for axis, size in enumerate(tensor.shape)]
        shape = tuple(tensor.shape)
        axes = [along(vector, axis, shape) for axis, vector in enumerate(vectors)]
        self.tags[tensor] = Tag(tuple(axes) or (torch.zeros((), dtype=torch.int64),), tensor.ndim > 1, name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        results = [made] if isinstance(made, Tensor) else [m for m in flat(made) if isinstance(m, Tensor)]
        if results:
            name = func.overloadpacket.__name__
            self._label(func, name.rstrip("_") if not name.startswith("_") else name, args, kwargs, results)
        return made

    # labels of tensors

    def labels(self, tensor: Tensor) -> Tensor:
        """One label an element. Of a weight's axes the feature axis counts; the others become `FIXED`."""
        tag = self.tags.get(tensor)
        if tag is None:
            return torch.full((), FIXED).expand(tensor.shape)  # a constant or a buffer that is not stored
        if not tag.weight:
            self._touch(tag.axes[0])
            return self.atoms.roots(tag.axes[0])
        axis = 1 if len(tag.axes) == 4 else len(tag.axes) - 1
        for i, labels in enumerate(tag.axes):
            if i != axis and tensor.shape[i] > 1:
                self.atoms.freeze(labels)
        self._touch(tag.axes[axis])
        return self.atoms.roots(tag.axes[axis])

    def _touch(self, labels: Tensor) -> None:
        place = self.atoms.place_of(int(labels.reshape(-1)[0])) if labels.numel() else None
        if place is not None:
            self.atoms.touched.add(place)

    def meet(self, all_labels: list[Tensor], shape: Any) -> Tensor:
        """Labels of numbers computed from tensors of these labels, element by element, broadcast to `shape`."""
        bare = [self._bare(labels, all_labels, shape) for labels in all_labels]
        real = [labels.expand(shape) for labels in bare if labels is not None]
        if not real:
            return torch.zeros((), dtype=torch.int64).expand(shape)
        kept = real[0]
        for other in real[1:]:
            self.atoms.unify(kept, other)
            kept = torch.where(kept == NONE, other, kept) if bool((kept == NONE).any()) else kept
        return self.atoms.roots(kept)

    def _bare(self, labels: Tensor, others: list[Tensor], shape: Any) -> Tensor | None:
        """The labels, or None if they do not label the result: all `NONE`, or repeated along another's units."""
        if not bool((core(labels) != NONE).any()):
            return None
        padded = (1,) * (len(shape) - labels.ndim) + tuple(labels.shape)
        others = [other for other in others if other is not labels]
        repeated = [i - len(shape) for i, size in enumerate(padded) if size == 1 and shape[i] > 1]
        if not any(varies(other, axis) for other in others for axis in repeated):
            return labels
        self.atoms.freeze(labels)
        for other in others:  # its own axes keep their sizes, so the others' units lie along the rest
            for axis in (i - len(shape) for i, size in enumerate(padded) if size > 1):
                if varies(other, axis):
                    self.atoms.unify(other, other.narrow(axis, 0, 1).expand(other.shape))
        return None

    # operators

    def _label(self, func: Any, name: str, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        tensors = [a for a in flat([args, kwargs]) if isinstance(a, Tensor)]
        if name in MOVES:
            self._move(func, args, kwargs, tensors, results)
        elif name in ("index", "index_select"):
            self._pick(name, func, args, kwargs, results[0])
        elif name == "embedding":
            self._look_up(args[0], args[1], results[0])
        elif name in PRODUCTS and len(tensors) >= 2:
            self._multiply(name, args, results[0])
        elif name in ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"):
            self._convolve(args, results[0])
        elif name in NORMS:
            self._set(results[0], self._scaled(args[0], args[1:5], results[0], 1))
        elif name in ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm"):
            self._normalise(args, results[0])
        elif name in ("native_group_norm", "group_norm"):
            self._normalise_groups(args, results[0])
        elif name in ("_softmax", "softmax", "_log_softmax"):
            labels = self.labels(args[0])
            if varies(labels, args[1]):  # choices compete, so none may leave
                self.atoms.freeze(labels)
            self._set(results[0], labels)
        elif name in REDUCTIONS:
            self._reduce(name, args, kwargs, results)
        elif name in POOLS:
            self._pool(args[0], results)
        elif name.startswith("new_") or not tensors:
            for result in results:
                self._set(result, torch.full((), NONE).expand(result.shape))
        elif torch.Tag.pointwise in func.tags or name.endswith("_like") or name in ELEMENTWISE:
            self._compute(tensors, results)
        else:
            for tensor in tensors:
                self.atoms.freeze(self.labels(tensor))
            self._fix(*results)

    def _fix(self, *results: Tensor) -> None:
        for result in results:
            self._set(result, torch.full((), FIXED).expand(result.shape))

    def _set(self, tensor: Tensor, labels: Tensor) -> None:
        for axis in range(labels.ndim):  # repetitions are kept as such, which makes everything after them cheap
            if labels.shape[axis] > 1 and labels.stride(axis) != 0 and not varies(labels, axis):
                labels = labels.narrow(axis, 0, 1).expand(labels.shape)
        self.tags[tensor] = Tag((labels,))

    def _move(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], results: list[Tensor]) -> None:
        tags = [self.tags.get(t) for t in tensors]
        if len(tensors) == 1 and tags[0] is not None and tags[0].weight:
            by_axis = [flat(replay(func, args, kwargs, {id(tensors[0]): labels})) for labels in tags[0].axes]
            for i, result in enumerate(results):
                self.tags[result] = Tag(tuple(moved[i] for moved in by_axis), True, tags[0].name)
            return
        moved = flat(replay(func, args, kwargs, {id(t): self.labels(t) for t in tensors}))
        for labels, result in zip(moved, results):
            self._set(result, labels)

    def _pick(self, name: str, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        """Elements picked by computed indices: along an axis of units they would not be the same ones afterwards."""
        labels = self.labels(args[0])
        axes = [args[1]] if name == "index_select" else [i for i, index in enumerate(args[1]) if index is not None]
        if any(varies(labels, axis) for axis in axes):
            self.atoms.freeze(labels)
        self._set(result, flat(replay(func, args, kwargs, {id(args[0]): labels}))[0])

    def _compute(self, tensors: list[Tensor], results: list[Tensor]) -> None:
        weights = [t for t in tensors if (tag := self.tags.get(t)) is not None and tag.weight]
        if len(weights) == 1 and all(t.numel() == 1 for t in tensors if t is not weights[0]):
            for result in results:  # a weight times a number is still a weight
                self.tags[result] = self.tags[weights[0]]
            return
        for result in results:
            self._set(result, self.meet([self.labels(t) for t in tensors], result.shape))

    def _look_up(self, table: Tensor, ids: Tensor, result: Tensor) -> None:
        tag = self.tags.get(table)
        if tag is None or not tag.weight:
            self._fix(result)
            return
        if self.ids is not None and ids.untyped_storage().data_ptr() == self.ids.untyped_storage().data_ptr():
            self.tables.append(tag.name)
        self._touch(tag.axes[-1])
        self._set(result, along(tag.axes[-1][0], result.ndim - 1, tuple(result.shape)))

    def _read(self, weight: Tag, axis: int, labels: Tensor) -> Place | None:
        """Note that `labels` (one a channel) are read along `axis` of a weight, and join them; the weight's place."""
        vector = _vector(weight.axes, axis)
        place = self.atoms.place_of(int(vector[0]))
        self.atoms.unify(vector, labels)
        if place is not None:
            self.readers.add(place)
            self.atoms.touched.add(place)
        return place

    def _make(self, weight: Tag, axis: int, bias: Tensor | None) -> tuple[Tensor, Place | None]:
        """The labels (one a channel) that `axis` of a weight gives its results, joined with the bias's."""
        vector = _vector(weight.axes, axis)
        if bias is not None:
            vector = self.meet([vector, self.labels(bias)], vector.shape)
        self._touch(vector)
        return vector, self.atoms.place_of(int(_vector(weight.axes, axis)[0]))

    def _multiply(self, name: str, args: Any, result: Tensor) -> None:
        left, right, add = PRODUCTS[name]
        a, b = args[left], args[right]
        bias = args[add] if add is not None and len(args) > add else None
        tag = self.tags.get(b)
        macs = result.numel() * a.shape[-1]
        if tag is not None and tag.weight and b.ndim == 2:
            rows = (1, 0) if name == "linear" else (0, 1)
            read = self._read(tag, rows[0], self._channels(self.labels(a), a.ndim - 1))
            made, place = self._make(tag, rows[1], bias if bias is not None and bias.ndim == 1 else None)
            labels = along(made, result.ndim - 1, tuple(result.shape))
            self.calls.append(TracedProduct(macs, tuple(p for p in (read, place) if p is not None)))
        else:
            la, lb = self.labels(a), self.labels(b.t() if name == "linear" else b)
            labels, unit = self._contract(la, lb, result)
            place = self.atoms.place_of(unit)
            self.calls.append(TracedProduct(macs, (place,) if place is not None else ()))
        if bias is not None and (bias.ndim != 1 or tag is None or not tag.weight):
            labels = self.meet([labels, self.labels(bias)], result.shape)
        self._set(result, labels)

    def _contract(self, a: Tensor, b: Tensor, result: Tensor) -> tuple[Tensor, int]:
        """Labels of a product of two computed tensors (..., m, k) @ (..., k, n), and one of the units in it.

        Where the batch tells units apart (the heads of attention), all of a batch entry is one unit.
        """
        a, b = (labels if labels.ndim == 3 else labels[None] for labels in (self.atoms.roots(a), self.atoms.roots(b)))
        real = torch.unique(torch.cat([a.reshape(-1), b.reshape(-1)]))
        real = real[real > FIXED]
        if not len(real):
            return torch.full((), FIXED).expand(result.shape), NONE
        if len(a) > 1 and (varies(a, 0) or varies(b, 0)):
            heads = torch.tensor([self.atoms.merge(torch.cat([x.reshape(-1), y.reshape(-1)])) for x, y in zip(a, b)])
            return along(heads, 0, tuple(result.shape)), int(heads.max())
        if varies(a, 2) or varies(b, 1):
            rows, columns = self._channels(a, 2), self._channels(b, 1)
            self.atoms.unify(torch.where(rows == NONE, FIXED, rows), torch.where(columns == NONE, FIXED, columns))
            return torch.full((), FIXED).expand(result.shape), int(real[0])
        if bool((b > FIXED).any()):
            self.atoms.freeze(a)
            return b[:, :1].expand(b.shape[0], result.shape[-2], b.shape[2]).reshape(result.shape), int(real[0])
        return a[:, :, :1].expand(a.shape[0], a.shape[1], result.shape[-1]).reshape(result.shape), int(real[0])

    def _convolve(self, args: Any, result: Tensor) -> None:
        x, weight, bias = args[:3]
        transposed, groups = bool(args[6]), int(args[8])
        tag = self.tags.get(weight)
        channels = self._channels(self.labels(x), 1)
        if tag is None or not tag.weight or (groups > 1 and groups != x.shape[1]):
            self.atoms.freeze(channels)
            for axis in tag.axes if tag is not None else ():
                self.atoms.freeze(axis)
            self._fix(result)
            self.calls.append(TracedProduct(_convolution_macs(x, weight, result, transposed), ()))
            return
        enter, leave = (0, 1) if transposed else (1, 0)
        if groups > 1:  # one filter a channel: its units are those of the input
            made, place = self._make(tag, 0, bias)
            read = place
            if weight.shape[1] == 1 and result.shape[1] == x.shape[1]:
                self.atoms.unify(made, torch.where(channels == NONE, FIXED, channels))
            else:
                self.atoms.freeze(torch.cat([made, channels]))
                made = torch.full((result.shape[1],), FIXED)
        else:
            read = self._read(tag, enter, channels)
            made, place = self._make(tag, leave, bias)
        places = tuple(dict.fromkeys(p for p in (read, place) if p is not None))
        self.calls.append(TracedProduct(_convolution_macs(x, weight, result, transposed), places))
        self._set(result, along(made, 1, tuple(result.shape)))

    def _channels(self, labels: Tensor, axis: int) -> Tensor:
        """One label for each index of `axis`, whose elements become one unit (a stem's numbers that are a channel)."""
        kept = core(labels).expand([labels.shape[i] if i == axis else -1 for i in range(labels.ndim)])
        rows = kept.movedim(axis, 0).reshape(labels.shape[axis], -1)
        self.atoms.unify(rows, rows.amax(1, keepdim=True).expand(rows.shape))
        return rows.amax(1)

    def _scaled(self, x: Tensor, others: Any, result: Tensor, axis: int | None = None) -> Tensor:
        """The labels of `x` joined with those of what scales or shifts it: vectors along `axis` where that is given."""
        labels, shape = self.labels(x), tuple(result.shape)
        for other in (self.labels(tensor) for tensor in others if isinstance(tensor, Tensor)):
            labels = self.meet([labels, other if axis is None else along(other, axis, shape)], shape)
        return labels

    def _normalise(self, args: Any, result: Tensor) -> None:
        labels = self._scaled(args[0], args[2:4], result)
        self._over(labels, list(range(-len(args[1]), 0)))
        self._set(result, labels)

    def _normalise_groups(self, args: Any, result: Tensor) -> None:
        x, groups = args[0], args[6] if len(args) > 6 else args[1]
        labels = self._scaled(x, args[1:3], result, 1)
        if groups == 1:
            self._over(labels, list(range(1, labels.ndim)))
        elif groups != x.shape[1]:
            self.atoms.freeze(labels)
        self._set(result, labels)

    def _over(self, labels: Tensor, axes: list[int]) -> bool:
        """Whether units differ along `axes`; they are then noted as normalised over."""
        varied = any(varies(labels, axis) for axis in axes)
        if varied:
            self.atoms.mark_inexact(labels)
        return varied

    def _reduce(self, name: str, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        labels = self.labels(args[0])
        dims = args[1] if len(args) > 1 and name not in ("norm", "linalg_vector_norm") else kwargs.get("dim")
        axes = list(range(labels.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
        if isinstance(dims, Tensor):  # max(a, b) of two tensors
            self._compute([args[0], args[1]], results)
            return
        varied = self._over(labels, axes) if name != "sum" else any(varies(labels, axis) for axis in axes)
        if varied or not axes:
            self._fix(*results)
            return
        for axis in axes:
            labels = labels.narrow(axis, 0, 1)
        for result in results:
            self._set(result, labels.reshape(result.shape))

    def _pool(self, x: Tensor, results: list[Tensor]) -> None:
        axis = 1 if x.ndim == results[0].ndim and x.ndim > 2 else 0
        channels = self._channels(self.labels(x), axis)
        for result in results:
            self._set(result, along(channels, axis, tuple(result.shape)))


def _vector(axes: tuple[Tensor, ...], dim: int) -> Tensor:
    """The labels along `dim` of a weight, from that one of its axes' label tensors which runs along it."""
    for labels in axes:
        others = [i for i in range(labels.ndim) if i != dim]
        if all(not varies(labels, i) for i in others) and (varies(labels, dim) or labels.shape[dim] == 1):
            index: list[Any] = [0] * labels.ndim
            index[dim] = slice(None)
            return labels[tuple(index)]
    return torch.full((axes[0].shape[dim],), FIXED)


def _convolution_macs(x: Tensor, weight: Tensor, result: Tensor, transposed: bool) -> int:
    positions = (x if transposed else result)[0, 0].numel() * x.shape[0]
    return int(weight.numel() * positions)
