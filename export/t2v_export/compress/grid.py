"""Weights on a grid of 8 bits: rounded once, in the checkpoint, and stored in 8 bits without loss.

The state of a recurrent stage follows the least change of its weights for ever. So the weights are rounded when the
student is made, and every variant has the same ones.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from t2v_edge.errors import UsageError
from t2v_edge.spec import StageSpec
from t2v_export.checkpoint.checkpoint import Checkpoint, with_stages
from t2v_export.graph.clean import check_graph
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
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    scaling = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or np.prod(tensor.dims) <= SMALL:
            continue
        weight, name = numpy_helper.to_array(tensor), tensor.name
        for axis in (0, 1):
            found = on_grid(np.ascontiguousarray(weight.swapaxes(0, axis)))
            if found is None:
                continue
            whole, steps = found
            shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(whole.swapaxes(0, axis)), f"{name}.int8"))
            graph.initializer.append(numpy_helper.from_array(steps.reshape(shape), f"{name}.step"))
            cast = [f"{name}.int8"], [f"{name}.whole"]
            scaling += [
                helper.make_node("Cast", *cast, name=f"/cast/{name}", to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.whole", f"{name}.step"], [name], name=f"/step/{name}"),
            ]
            break
    if not scaling:
        return None
    nodes = [*scaling, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    check_graph(model, spec)
    return model
