"""Weights on a grid of 8 bits: rounded once, in the checkpoint, and stored in 8 bits without loss.

The state of a recurrent stage follows the least change of its weights for ever. So the weights are rounded when the
student is made, and every variant has the same ones.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2v_edge.errors import UsageError
from t2v_edge.spec import StageSpec
from t2v_export.checkpoint.checkpoint import Checkpoint, with_stages
from t2v_export.graph import view
from t2v_export.graph.clean import finished
from t2v_export.graph.operators import along, is_weight
from t2v_export.precision.float16 import SMALL
from t2v_export.recipe import Round

LEVELS = 127
STEP_BITS = 4
"""Significant bits of a row's step. With the 7 bits of a multiple they are the 11 bits of a float16 number."""

LEAST_STEP = 2.0**-20
"""The least step: its multiples are float16 numbers even where these lie furthest apart."""


def round_checkpoint(checkpoint: Checkpoint, options: Round) -> Checkpoint:
    """The checkpoint with the weight matrices of some stages on a grid. Raises `UsageError` if a stage has none."""
    modules = {}
    for stage in options.stages:
        weights = dict(checkpoint.modules[stage].state_dict())
        large = {n for n, p in checkpoint.modules[stage].named_parameters() if p.dim() > 1 and p.numel() > SMALL}
        if not large:
            raise UsageError(f"round: stage {stage} has no weight matrix of more than {SMALL} numbers; leave it out")
        modules[stage] = copy.deepcopy(checkpoint.modules[stage])
        modules[stage].load_state_dict({n: round_rows(w) if n in large else w for n, w in weights.items()})
    return with_stages(checkpoint, modules)


def round_rows(weight: Tensor) -> Tensor:
    """The nearest weights (rows, ...) whose rows are -127 to 127 times a step of 4 significant bits.

    Weights that are on a grid stay as they are.
    """
    if on_grid(weight.detach().float().numpy()) is not None:
        return weight
    rows = weight.detach().double().flatten(1)
    mantissa, exponent = torch.frexp(rows.abs().amax(1, keepdim=True) / LEVELS)
    step = torch.ldexp(torch.ceil(mantissa * 2**STEP_BITS) / 2**STEP_BITS, exponent).clamp(min=LEAST_STEP)
    return (torch.round(rows / step) * step).reshape(weight.shape).to(weight.dtype)


def on_grid(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Weights (rows, ...) as int8 and a float32 step for each row. None if their product is not exactly the weights."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    most = np.abs(rows).max(1)
    steps = np.where(most == 0, 1.0, 0.0)
    for level in range(LEVELS, LEVELS // 2, -1):
        step = np.where(steps == 0, most / level, 1.0)
        whole = rows / step[:, None]
        fits = (steps == 0) & (whole == np.rint(whole)).all(1) & (step == step.astype(np.float32))
        steps[fits] = step[fits]
    if not steps.all():
        return None
    return np.rint(rows / steps[:, None]).astype(np.int8).reshape(weight.shape), steps.astype(np.float32)


def store_grid(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto | None:
    """The graph with large weights on a grid stored in 8 bits; it computes the very same. None without such a weight.

    A Cast and a Mul give each weight back. Engines run them once, when they load. Raises `SpecError` if the new graph
    is not valid.
    """
    opened = view.read(model)
    graph = opened.graph
    steps: dict[str, NDArray[np.float32]] = {}

    def stored(value: ir.Value) -> tuple[str, view.Array] | None:
        weight, name = view.array(value), view.name_of(value)
        large = is_weight(value) and weight.ndim > 1 and weight.size > SMALL
        found = _stored(weight) if large else None
        if found is None:
            return None
        steps[name] = found[1]
        return f"{name}.int8", found[0]

    scaling = []
    for value, whole in view.exchange_constants(graph, stored):
        name = view.name_of(value)
        cast = view.make_node("Cast", [whole], f"{name}.whole", f"/cast/{name}", to=onnx.TensorProto.FLOAT)
        step = view.add_constant(graph, f"{name}.step", steps[name])
        scaling += [cast, view.make_node("Mul", [cast.outputs[0], step], name, f"/step/{name}")]
        value.replace_all_uses_with(scaling[-1].outputs[0])
    if not scaling:
        return None
    graph.insert_before(graph[0], scaling)
    return finished(opened, spec)


def _stored(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """A weight as whole numbers and steps along its first or second axis. None if it is on no grid."""
    for axis in (0, 1):
        found = on_grid(np.ascontiguousarray(weight.swapaxes(0, axis)))
        if found is not None:
            return found[0].swapaxes(0, axis), along(found[1], axis, weight.ndim)
    return None
