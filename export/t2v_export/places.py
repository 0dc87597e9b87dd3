"""Reshapes of vectors taken into the gathers before and behind them.

TensorRT 8.6 may move numbers in float16 wherever a graph has float16 at all, and finds no engine where it is told not
to: with reshapes rounded so, frames of the reference are off by up to 24 levels of 255, not by 1, for limbs are drawn
from coordinates that a reshape moves. A Gather is held to float32 without harm, and indices of any shape give its
result that shape.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from t2v_export.graph import constants, drop_unused, static_shapes

RESHAPES = ("Reshape", "Unsqueeze", "Flatten")
ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def gather_in_place(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which vectors (1, N) are gathered in the shape that they are wanted in; its numbers are the same.

    A Gather of constant places behind a reshape of a vector reads the vector itself, and one before a reshape gives
    what that would make; arithmetic with a single number steps over the reshape between.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    while _Folding(model).run():
        drop_unused(model.graph)
    return model


class _Folding:
    """One round: what nodes make, and how often it is read, is as it was at its start."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.known = constants(model.graph)
        self.shapes = static_shapes(model)
        self.made_by = {output: node for node in model.graph.node for output in node.output}
        self.reads = Counter(name for node in model.graph.node for name in node.input)
        self.reads.update(output.name for output in model.graph.output)

    def run(self) -> bool:
        """Fold one thing, if there is one."""
        return any(self._fold(node) for node in self.graph.node)

    def _fold(self, node: onnx.NodeProto) -> bool:
        if self._places(node) is not None:
            return self._behind(node) or self._over(self.made_by.get(node.input[0]))
        return self._before(node)

    def _places(self, node: onnx.NodeProto | None) -> NDArray[np.int64] | None:
        """The places of a Gather along an axis behind the batch; None of anything else."""
        if node is None or node.op_type != "Gather" or node.input[1] not in self.known or _axis(node) < 1:
            return None
        return self.known[node.input[1]]

    def _behind(self, node: onnx.NodeProto) -> bool:
        """A Gather of a reshaped vector reads the vector."""
        reshape = self.made_by.get(node.input[0])
        shape = self.shapes.get(node.input[0], ())
        if reshape is None or not self._reshapes_vector(reshape) or 0 in shape:
            return False
        flat = np.arange(int(np.prod(shape[1:]))).reshape(shape[1:])
        self._gather(node, reshape.input[0], np.take(flat, self._places(node), _axis(node) - 1), node.name)
        return True

    def _before(self, node: onnx.NodeProto) -> bool:
        """A reshape of what was gathered from a vector is a Gather from it."""
        if node.op_type not in RESHAPES:
            return False
        gather = self.made_by.get(node.input[0])
        places, shape = self._places(gather), self.shapes.get(node.output[0], ())
        if gather is None or places is None or len(self.shapes.get(gather.input[0], ())) != 2:
            return False
        if not self._keeps_batch(node) or int(np.prod(shape[1:])) != places.size:
            return False
        self._gather(node, gather.input[0], places.reshape(shape[1:]), node.name)
        return True

    def _over(self, node: onnx.NodeProto | None) -> bool:
        """Arithmetic with one number behind a reshape of a vector comes before it."""
        if node is None or node.op_type not in ARITHMETIC:
            return False
        single = [i for i, name in enumerate(node.input) if name in self.known and self.known[name].size == 1]
        if len(single) != 1 or self.known[node.input[single[0]]].ndim > 2:
            return False
        other = 1 - single[0]
        reshape = self.made_by.get(node.input[other])
        if reshape is None or not self._reshapes_vector(reshape) or self.reads[reshape.output[0]] != 1:
            return False
        made, flat = node.output[0], f"{node.output[0]}.flat"
        node.input[other], node.output[0] = reshape.input[0], flat
        after = onnx.NodeProto.FromString(reshape.SerializeToString())
        after.input[0], after.output[0] = flat, made
        self.graph.node.remove(reshape)
        self.graph.node.insert(list(self.graph.node).index(node) + 1, after)
        return True

    def _reshapes_vector(self, node: onnx.NodeProto) -> bool:
        return node.op_type in RESHAPES and self._keeps_batch(node) and len(self.shapes.get(node.input[0], ())) == 2

    def _keeps_batch(self, node: onnx.NodeProto) -> bool:
        """Whether a reshape leaves the first size alone, of whatever batch."""
        if node.op_type == "Flatten":
            return _axis(node, 1) == 1
        sizes = self.known.get(node.input[1]) if len(node.input) > 1 else None
        if sizes is None:
            return False
        return int(sizes.min()) >= 1 if node.op_type == "Unsqueeze" else int(sizes.flat[0]) in (-1, 0)

    def _gather(self, node: onnx.NodeProto, vector: str, places: NDArray[np.int64], name: str) -> None:
        """Make of `node` a Gather of `places` from a vector."""
        index = f"{name}.places"
        while index in self.known:
            index += "_"
        self.graph.initializer.append(numpy_helper.from_array(places.astype(np.int64), index))
        node.CopyFrom(helper.make_node("Gather", [vector, index], list(node.output), name=name, axis=1))


def _axis(node: onnx.NodeProto, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), default)
