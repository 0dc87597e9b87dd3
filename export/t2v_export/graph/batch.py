"""Graphs that take several frames at once: nothing in them depends on a batch of 1.

A bundle's shapes are static and its batch is 1. A runtime that looks ahead parses the graph, writes another batch over
its inputs and builds an engine. Constants that hold the 1 stand in its way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from t2v_edge.errors import SpecError
from t2v_edge.spec import StageSpec
from t2v_export.graph import view
from t2v_export.graph.clean import finished

BATCH = 3
APART = 0.01
"""The allowed difference, as a share of the root mean square by which outputs of different inputs differ.

A mixed batch is far above it. A number of an INT8 graph that rounds the other way is far below.
"""

_NAMED = re.compile(r"Name:'([^']+)'|node \(([^)]+)\)|Node \(([^)]+)\)")


def free_batch(model: onnx.ModelProto, spec: StageSpec) -> onnx.ModelProto:
    """The graph with Reshape constants that leave the batch open; `model` stays as it is.

    Inputs and outputs keep their batch of 1, and outputs are the same to the bit. The batch is taken to be the slowest
    axis of every tensor, which `check_batch_free` verifies. Raises `SpecError` if the new graph is not valid.
    """
    opened = view.read(model, typed=True)
    graph = opened.graph
    for node in _batched_nodes(graph):
        result = view.static_shape(node.outputs[0])
        if node.op_type != "Reshape" or not view.is_constant(view.operand(node, 1)) or not result or min(result) < 1:
            continue
        wanted = view.constant(node, 1)
        if len(result) == wanted.size and not _leaves_open(node, wanted):
            name = "shape." + "x".join(str(size) for size in ("batch", *result[1:]))
            node.replace_input_with(1, view.add_constant(graph, name, np.array([-1, *result[1:]], np.int64)))
    return finished(opened, spec)


def _batched_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that depend on an input of the graph, in order."""
    batched = set(graph.inputs)
    nodes = []
    for node in graph:
        if batched.intersection(node.inputs):
            batched.update(node.outputs)
            nodes.append(node)
    return nodes


def _leaves_open(node: ir.Node, wanted: view.Array) -> bool:
    """Whether a Reshape takes its first size from its input."""
    zero_copies = not node.attributes.get_int("allowzero", 0)
    return int(wanted[0]) == -1 or (int(wanted[0]) == 0 and zero_copies)


def check_batch_free(model: onnx.ModelProto, spec: StageSpec, seed: int = 0) -> None:
    """Run the graph on `BATCH` random inputs at once and on each alone, in ONNX Runtime.

    Raises `SpecError`, which names the first node that fails or gives another result.
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


def _draw(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> view.Array:
    if dtype == "int64":
        return random.integers(0, 2, shape)
    return random.standard_normal(shape).astype(dtype)


def _any_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    made = view.with_outputs(model, ())
    for value in [*made.graph.input, *made.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del made.graph.value_info[:]
    return made


def _run(model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, view.Array]) -> dict[str, view.Array]:
    # fusions would hide what stands in the graph, and a builder reads the graph
    return view.run(view.open_session(model, optimized=False), names, feeds)


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


def _first_apart(
    model: onnx.ModelProto, feeds: Sequence[Mapping[str, view.Array]], together: Mapping[str, view.Array]
) -> str:
    """The first node whose result depends on what else is in the batch."""
    looked = {
        view.name_of(o): node.name or ""
        for node in _batched_nodes(view.read(model).graph)
        for o in node.outputs
        if o.name
    }
    watched, names = view.with_outputs(model, looked), list(looked)
    alone = [_run(watched, names, f) for f in feeds]
    made = _run(view.with_outputs(_any_batch(model), looked), names, together)
    return next((node for n, node in looked.items() if not _near(made[n], [a[n] for a in alone])), "")
