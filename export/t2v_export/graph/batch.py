"""Graphs that a builder may give more frames at once: nothing in them depends on the batch being 1.

A bundle's shapes are static and its batch is 1. A runtime that looks ahead writes another batch over the inputs of a
parsed graph and builds an engine for it; what stands in the way are constants that hold the 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from t2v_edge.errors import SpecError
from t2v_edge.spec import StageSpec
from t2v_export.graph.clean import Array, check_graph, constants, static_shapes

BATCH = 3
APART = 0.01
"""Of the root mean square by which the outputs of different inputs differ: a batch mixed up is far above it, and a
number of an INT8 graph that rounds the other way, because a sum had another order, far below."""

_NAMED = re.compile(r"Name:'([^']+)'|node \(([^)]+)\)|Node \(([^)]+)\)")


def free_batch(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The graph with Reshape constants that leave the batch open; `model` is left as it is.

    Inputs and outputs are declared as before, with a batch of 1, and outputs are the same to the bit. Batch is taken to
    be what changes slowest in every tensor; whether that holds, `check_batch_free` finds out. Raises `SpecError` where
    the graph made is not valid.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    shapes, known = static_shapes(model), constants(graph)
    batched = {i.name for i in graph.input}
    made: dict[str, Array] = {}
    for node in graph.node:
        if not batched.intersection(node.input):
            continue
        batched.update(node.output)
        if node.op_type != "Reshape" or node.input[1] not in known:
            continue
        wanted, result = known[node.input[1]], shapes.get(node.output[0], ())
        if not result or min(result) < 1 or len(result) != wanted.size or _leaves_open(node, wanted):
            continue
        free = np.array([-1, *result[1:]], np.int64)
        name = "shape." + "x".join(str(size) for size in ("batch", *result[1:]))
        made[name] = free
        node.input[1] = name
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())
    used = {i for node in graph.node for i in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    check_graph(model, spec)
    return model


def _leaves_open(node: onnx.NodeProto, wanted: Array) -> bool:
    """Whether a Reshape takes its first size from the tensor that it is given."""
    zero_copies = not any(a.name == "allowzero" and a.i for a in node.attribute)
    return int(wanted[0]) == -1 or (int(wanted[0]) == 0 and zero_copies)


def check_batch_free(model: onnx.ModelProto, spec: StageSpec, seed: int = 0) -> None:
    """Run the graph on `BATCH` different random inputs at once and on each alone, in ONNX Runtime.

    Raises `SpecError` naming the first node that fails or gives something else.
    """
    random = np.random.default_rng(seed)
    feeds = [{t.name: _draw(random, t.shape, t.dtype) for t in spec.inputs} for _ in range(BATCH)]
    together = {t.name: np.concatenate([f[t.name] for f in feeds]) for t in spec.inputs}
    names = [t.name for t in spec.outputs]
    wanted = [_run(model, names, f) for f in feeds]
    try:
        made = _run(_any_batch(model), names, together)
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        found = _NAMED.search(str(error))
        node = next((g for g in found.groups() if g), "") if found else ""
        raise SpecError(f"{_where(spec, node)}: {' '.join(str(error).split())[:300]}") from error
    if all(_near(made[n], [w[n] for w in wanted]) for n in names):
        return
    raise SpecError(f"{_where(spec, _first_apart(model, feeds, together))}: it mixes the frames of a batch")


def _where(spec: StageSpec, node: str) -> str:
    return f"stage {spec.stage}: node {node or 'unknown'} takes one frame at a time and not a batch"


def _draw(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype == "int64":
        return random.integers(0, 2, shape)
    return random.standard_normal(shape).astype(dtype)


def _any_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    return model


def _run(model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    # fusions would hide what stands in the graph, and a builder reads the graph
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(feeds))))


def _near(made: NDArray[np.generic], wanted: Sequence[NDArray[np.generic]]) -> bool:
    """Whether each item of a batch is what it is alone."""
    alone = np.concatenate([np.atleast_1d(w) for w in wanted])
    if made.shape != alone.shape:
        return False
    if alone.dtype.kind not in "fui":
        return np.array_equal(made, alone)
    off, alone = made.astype(np.float64) - alone, alone.astype(np.float64)
    if not np.isfinite(off).all():
        return np.array_equal(made, alone, equal_nan=True)
    spread = float(np.sqrt(np.mean((alone - alone.mean(0)) ** 2)))
    size = float(np.abs(alone).max(initial=0.0))
    return bool(np.sqrt(np.mean(off**2)) <= APART * spread + 1e-6 * size)


def _first_apart(model: onnx.ModelProto, feeds: Sequence[Mapping[str, Array]], together: Mapping[str, Array]) -> str:
    """The first node whose result depends on what else is in the batch."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    outputs = {o.name for o in model.graph.output}
    batched = {i.name for i in model.graph.input}
    looked: dict[str, str] = {}
    for node in model.graph.node:
        if batched.intersection(node.input):
            batched.update(node.output)
            looked.update({o: node.name for o in node.output if o})
    free = _any_batch(model)
    for one in (model, free):
        one.graph.output.extend(onnx.ValueInfoProto(name=n) for n in looked if n not in outputs)
    alone = [_run(model, list(looked), f) for f in feeds]
    made = _run(free, list(looked), together)
    return next((node for n, node in looked.items() if not _near(made[n], [a[n] for a in alone])), "")
