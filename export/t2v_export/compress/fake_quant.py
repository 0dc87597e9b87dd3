"""Quantization-aware training: layers of a torch stage round as the INT8 graph will.

Weights have a symmetric grid for each output channel. Inputs have one grid for each tensor, and its range follows what
is seen. Gradients pass the rounding unchanged (straight-through estimator, Bengio et al., 2013; Jacob et al., CVPR
2018). A BatchNorm behind a layer may be folded later: a positive factor for each output channel changes only the scale
of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2v_calibration.ranges import WEIGHT_LEVELS
from t2v_export.checkpoint.cost import example_inputs
from t2v_export.models.contract import spec_of

Layer = Union[nn.Conv2d, nn.ConvTranspose2d, nn.Linear]
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
MOMENTUM = 0.05  # of the moving range
SAMPLED = 1 << 16  # elements of an input that its percentiles are read from


class QuantizeAware:
    """The rounding attached to a module: a context manager, or call `remove`.

    `layers`: names of the layers that round. Ranges of inputs are observed in training mode and kept in evaluation
    mode. `state_dict` and `load_state_dict` store and restore them.
    """

    def __init__(self, rounding: dict[str, _Rounding]) -> None:
        self._rounding = rounding

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self._rounding)

    def remove(self) -> None:
        """Leave the module as it was, with the weights it has learned."""
        for rounding in self._rounding.values():
            rounding.layer.__dict__.pop("forward", None)

    def state_dict(self) -> dict[str, Tensor]:
        """The (low, high) of each layer's input that has been seen."""
        return {name: r.range for name, r in self._rounding.items() if r.range is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self._rounding[name].range = value.to(self._rounding[name].layer.weight.device)

    def __enter__(self) -> QuantizeAware:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def quantize_aware(
    module: nn.Module,
    bits: int = 7,
    signed: bool = False,
    keep_first: bool = True,
    keep_last: bool = True,
    percentile: float = 99.99,
    example: Sequence[Tensor] | None = None,
) -> QuantizeAware:
    """Make the convolutions and linear layers of a stage round in `forward`, until the result is removed.

    bits: of weights, 7 or 8 (`Quantize.weight_bits`). signed: inputs have the grid of `int8`, else of `int8-u8`.
    keep_first, keep_last: as in the quantize pass, which layers stay in float. percentile: percent of an input's values
    that its range holds. example: inputs to trace the module with, by default made from its `spec`.

    Recurrent cells stay in float. It works on any device and under autocast. The rounding is computed in float32.
    """
    layers = {name: part for name, part in module.named_modules() if isinstance(part, LAYERS)}
    made_up = example_inputs(spec_of(module), next(module.parameters()).device) if example is None else example
    first, last = _ends(module, layers, made_up)
    skipped = (first if keep_first else set()) | (last if keep_last else set())
    rounding = {}
    for name, layer in layers.items():
        if name not in skipped:
            rounding[name] = _Rounding(layer, bits, signed, percentile)
            layer.forward = rounding[name]  # type: ignore[method-assign,assignment]
    return QuantizeAware(rounding)


class _Rounding:
    """A layer's forward pass with a rounded weight and a rounded input."""

    def __init__(self, layer: Layer, bits: int, signed: bool, percentile: float) -> None:
        self.layer, self.levels, self.signed, self.percentile = layer, WEIGHT_LEVELS[bits], signed, percentile
        self.axis = 1 if isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1 else 0
        self.range: Tensor | None = None
        self._tails: Tensor | None = None

    def __call__(self, value: Tensor, *rest: object) -> Tensor:
        layer = self.layer
        with torch.autocast(value.device.type, enabled=False):
            rounded = self._input(value.float()).to(value.dtype)
            weight = self._weight(layer.weight.float())
        if isinstance(layer, nn.Conv2d):
            made: Tensor = layer._conv_forward(rounded, weight, layer.bias)
            return made
        if isinstance(layer, nn.Linear):
            return F.linear(rounded, weight, layer.bias)
        assert not rest and isinstance(layer.padding, tuple)
        return F.conv_transpose2d(
            rounded, weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )

    def _weight(self, weight: Tensor) -> Tensor:
        largest = weight.detach().abs().amax([i for i in range(weight.dim()) if i != self.axis], keepdim=True)
        scale = torch.where(largest > 0, largest / self.levels, torch.ones_like(largest))
        return _rounded(weight, scale)

    def _input(self, value: Tensor) -> Tensor:
        if self.layer.training or self.range is None:
            self._observe(value.detach())
        assert self.range is not None
        low, high = self.range[0].clamp(max=0), self.range[1].clamp(min=0)
        if self.signed:
            scale = (torch.maximum(-low, high) / 127).clamp(min=1e-12)
            lowest, highest = -127 * scale, 127 * scale
        else:
            scale = ((high - low) / 255).clamp(min=1e-12)
            zero = (-low / scale).round().clamp(0, 255)
            lowest, highest = -zero * scale, (255 - zero) * scale
        return _rounded(value.clamp(lowest, highest), scale)

    def _observe(self, value: Tensor) -> None:
        flat = value.reshape(-1)
        if self.percentile < 100:
            if self._tails is None:
                tail = (100 - self.percentile) / 200
                self._tails = torch.tensor([tail, 1 - tail], dtype=torch.float32, device=value.device)
            seen = torch.quantile(flat[:: max(1, flat.numel() // SAMPLED)], self._tails)
        else:
            seen = torch.stack([flat.amin(), flat.amax()])
        if self.range is None:
            self.range = seen
        else:  # in place, for a recorded update runs again without this code
            self.range.lerp_(seen, MOMENTUM)


def _rounded(value: Tensor, scale: Tensor) -> Tensor:
    """`value` on the grid of `scale`; gradients pass as if it were not rounded."""
    return value + ((value / scale).round() * scale - value).detach()


def _ends(module: nn.Module, layers: Mapping[str, nn.Module], example: Sequence[Tensor]) -> tuple[set[str], set[str]]:
    """Names of the first dense layers and of the last layers, from the graph that autograd records of one run."""
    outputs: dict[object, str] = {}  # what made a layer's output -> the layer
    inputs: list[tuple[str, object]] = []

    def record(name: str, part: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if isinstance(part, nn.Linear):
            inputs.append((name, given[0].grad_fn if given[0].grad_fn is not None else given[0]))
        outputs[made.grad_fn] = name

    feeds = [v.detach().clone().requires_grad_() if v.is_floating_point() else v for v in example]
    with torch.enable_grad(), ExitStack() as restored:
        for name, layer in layers.items():
            restored.enter_context(layer.register_forward_hook(partial(record, name)))
        for parameter in (p for p in module.parameters() if not p.requires_grad):
            restored.callback(parameter.requires_grad_, False)
            parameter.requires_grad_(True)
        for part in module.modules():
            restored.callback(setattr, part, "training", part.training)
        module.eval()
        made = module(*feeds)
        ends = [t for t in (made if isinstance(made, (tuple, list)) else (made,)) if t.grad_fn is not None]
        last = {name for end in ends for name in _reached(end.grad_fn, outputs, feeds)[0]}
        first = {name for name, node in inputs if _reached(node, outputs, feeds)[1]}
    return first, last


def _reached(start: object, outputs: dict[object, str], feeds: Sequence[Tensor]) -> tuple[set[str], bool]:
    """Walking back from an autograd node or tensor: the layers met first, and whether a float input is."""
    waiting, seen = [start], set()
    layers, fed = set(), False
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in outputs:
            layers.add(outputs[node])
        elif isinstance(node, Tensor) or hasattr(node, "variable"):
            leaf = node if isinstance(node, Tensor) else node.variable
            fed = fed or any(leaf is feed and feed.requires_grad for feed in feeds)
        else:
            waiting += [after for after, _ in node.next_functions]  # type: ignore[attr-defined]
    return layers, fed
