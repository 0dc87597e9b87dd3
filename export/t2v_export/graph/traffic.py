"""Memory traffic of a graph in one run: bytes of weights and of activations, and the number of fused kernels.

The graph is cut into kernels about as TensorRT does it, by these rules:

- A value that depends on constants alone is computed beforehand. Reshapes and slices move nothing.
- A kernel is each matrix product, convolution, reduction (softmax, norms, sums, pooling) and resizing. So is each
  operator that changes the order of elements or joins tensors.
- An operator that works element by element joins the kernel before it, if its other inputs come from earlier kernels.
  Else it joins a kernel of its like from which an input comes.

A tensor between kernels is written once, and read once by each kernel that needs it; in 8 bits if it is quantized on
the way. Inside a kernel nothing is moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from t2v_export.graph import view
from t2v_export.graph.operators import DQ, RECURRENT, WEIGHTED, Q

MATRIX = (*WEIGHTED, "Einsum", *RECURRENT)
ALONE = (
    *("Softmax", "LogSoftmax", "LayerNormalization", "BatchNormalization", "InstanceNormalization"),
    *("GroupNormalization", "LpNormalization", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"),
    *("ArgMax", "ArgMin", "TopK", "CumSum", "Resize", "Upsample", "GridSample"),
    *("Concat", "Split", "Gather", "Transpose", "Expand"),
)
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")

Kernel = tuple[int, str]
"""Step and name. Kernels of one step do not wait for each other."""

ELEMENTS = "elements "


@dataclass(frozen=True)
class Traffic:
    """The traffic of one run.

    `weight_bytes`: weights read; of an indexed table the rows taken. `activation_bytes`: inputs, outputs and tensors
    between kernels, written and read. `launches`: kernels.
    """

    weight_bytes: int
    activation_bytes: int
    launches: int


def graph_traffic(model: onnx.ModelProto) -> Traffic | None:
    """The traffic of a graph of static shapes. None if a shape or type is not known, or the graph has subgraphs."""
    try:
        return _Counter(view.read(model, typed=True).graph).count()
    except KeyError:
        return None


@dataclass
class _Counter:
    graph: ir.Graph
    constant: dict[ir.Value, int] = field(default_factory=dict)  # constants, and bytes of each number as it is read
    source: dict[ir.Value, ir.Value] = field(default_factory=dict)  # value -> the one whose bytes it is, through views
    made_in: dict[ir.Value, Kernel] = field(default_factory=dict)
    readers: dict[ir.Value, set[Kernel]] = field(default_factory=dict)
    weights: dict[ir.Value, int] = field(default_factory=dict)

    def count(self) -> Traffic:
        self.constant.update({value: _width(value) for value in self.graph.initializers.values()})
        self.made_in.update({value: (0, "input") for value in self.graph.inputs if not view.is_constant(value)})
        for node in self.graph:
            self._place(node)
        outputs = {self.source.get(value, value) for value in self.graph.outputs}
        moved = 0
        for value, kernel in self.made_in.items():
            reads = len(self.readers.get(value, set()) - {kernel})
            written = int(kernel[1] != "input" and (reads > 0 or value in outputs))
            moved += (reads + written) * view.elements(value) * _width(value)
        kernels = {kernel for kernel in self.made_in.values() if kernel[1] != "input"}
        return Traffic(sum(self.weights.values()), moved, len(kernels))

    def _place(self, node: ir.Node) -> None:
        """Choose the kernel of a node, and note its inputs."""
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise KeyError(node.name)
        given = [value for value in node.inputs if value is not None]
        flowing = [self.source.get(value, value) for value in given if value not in self.constant]
        made = [value for value in node.outputs if value.name]
        if not flowing:
            # Quantized weights are read as they are stored: the engine computes in 8 bits.
            quantized = node.op_type == DQ
            self.constant.update({value: self.constant[given[0]] if quantized else _width(value) for value in made})
            return
        if node.op_type in VIEWS or node.op_type == DQ:
            self.source.update(dict.fromkeys(made, flowing[0]))
            return
        kernel = self._kernel(node, flowing)
        for value in flowing:
            self.readers.setdefault(value, set()).add(kernel)
        for value in given:
            if value in self.constant and view.elements(value) > 1 and node.op_type != Q:
                self.weights[value] = max(self.weights.get(value, 0), self._weight_bytes(node, value))
        self.made_in.update(dict.fromkeys(made, kernel))

    def _kernel(self, node: ir.Node, flowing: list[ir.Value]) -> Kernel:
        before = [self.made_in[value] for value in flowing]
        step, name = max(kernel[0] for kernel in before), view.name_of(node.outputs[0])
        if node.op_type in MATRIX or node.op_type in ALONE or node.op_type.startswith("Reduce"):
            return (step + 1, name)
        latest = sorted({kernel for kernel in before if kernel[0] == step})
        if len(latest) == 1 and latest[0][1] != "input":
            return latest[0]
        like = [kernel for kernel in latest if kernel[1].startswith(ELEMENTS)]
        return like[0] if like else (step, ELEMENTS + name)

    def _weight_bytes(self, node: ir.Node, value: ir.Value) -> int:
        taken = node.outputs[0] if node.op_type == "Gather" and view.operand(node) is value else value
        return view.elements(taken) * self.constant[value]


def _width(value: ir.Value) -> int:
    """Bytes of one number. Raises `KeyError` where the type is not known."""
    if value.dtype is None:
        raise KeyError(view.name_of(value))
    return value.dtype.numpy().itemsize
