"""Weights on a grid of 8 bits: rounded to it once, in the checkpoint, and stored in 8 bits without losing anything.

A recurrent stage forgets nothing: what rounding its weights changes, its state follows for ever, so a bundle whose
INT8 variant had other weights than FP32's would move otherwise. Rounding belongs to making the student, then, and what
is measured of it holds for every variant.
"""

from __future__ import annotations

import copy
import math
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
from t2v_export.graph.clean import check_graph
from t2v_export.graph.operators import along
from t2v_export.graph.view import add_constant, array, known_shape, make_node, name_of, read, write
from t2v_export.precision.float16 import SMALL
from t2v_export.recipe import Round

LEVELS = 127
STEP_BITS = 4
"""Significant bits of a row's step: its multiples, of 7 bits, then have the 11 bits of a float16 number."""

LEAST_STEP = 2.0**-20
"""So that multiples of a step are float16 numbers even where these lie furthest apart."""


def round_checkpoint(checkpoint: Checkpoint, options: Round) -> Checkpoint:
    """The checkpoint with the weight matrices of some stages on a grid. Raises `UsageError` where it has none."""
    modules = {}
    for stage in options.stages:
        weights = dict(checkpoint.modules[stage].state_dict())
        large = {n for n, p in checkpoint.modules[stage].named_parameters() if p.dim() > 1 and p.numel() > SMALL}
        if not large:
            raise UsageError(f"round: stage {stage} has no weight matrix of more than {SMALL} numbers; leave it out")
        modules[stage] = copy.deepcopy(checkpoint.modules[stage])
        modules[stage].load_state_dict({n: round_rows(w) if n in large else w for n, w in weights.items()})
    return with_stages(checkpoint, checkpoint.config, modules)


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
    """Weights (rows, ...) as int8 and a float32 step for each row, where their product is exactly the weights."""
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
    """The graph with large weights that are on a grid stored in 8 bits; it computes the very same. None without any.

    Each is cast and scaled where it is read, which engines do once, when they load. Raises `SpecError` where the
    graph made is not valid.
    """
    view = read(model)
    graph = view.graph
    found = []
    for name, value in list(graph.initializers.items()):  # all are put back, so that their order stays
        del graph.initializers[name]
        shape = known_shape(value)
        large = value.dtype == ir.DataType.FLOAT and len(shape) > 1 and math.prod(shape) > SMALL
        stored = _stored(array(value)) if large else None
        if stored is None:
            graph.register_initializer(value)
        else:
            found.append((value, add_constant(graph, f"{name}.int8", stored[0]), stored[1]))
    if not found:
        return None
    scaling = []
    for value, whole, steps in found:
        name = name_of(value)
        cast = make_node("Cast", [whole], f"{name}.whole", f"/cast/{name}", to=onnx.TensorProto.FLOAT)
        step = add_constant(graph, f"{name}.step", steps)
        scaling += [cast, make_node("Mul", [cast.outputs[0], step], name, f"/step/{name}")]
        value.replace_all_uses_with(scaling[-1].outputs[0])
    graph.insert_before(graph[0], scaling)
    made = write(view)
    check_graph(made, spec)
    return made


def _stored(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """A weight on a grid along one of its first axes, as whole numbers and steps; their product is the weight."""
    for axis in (0, 1):
        found = on_grid(np.ascontiguousarray(weight.swapaxes(0, axis)))
        if found is not None:
            return found[0].swapaxes(0, axis), along(found[1], axis, weight.ndim)
    return None
