"""What a graph moves in one run: bytes of weights and of activations, and into how many kernels it can be fused.

The graph is cut into kernels about as TensorRT does it. Of the renderers' layers that its profiler showed (77 and 85,
TensorRT 8.6 on an H200) this finds 65 and 68, for it takes slices to be free:

- what depends on constants alone is computed beforehand, and reshapes move nothing;
- each matrix product and convolution is a kernel, and so is each reduction (softmax, norms, sums, pooling), resizing,
  and whatever puts elements into another order or joins tensors;
- what works element by element joins the kernel before it where its inputs come from that kernel and from earlier
  ones, and else a kernel of its like that one of its inputs comes from.

A tensor that passes from one kernel to others is written once and read once by each of them, in 8 bits where it is
quantized on the way. Within a kernel nothing is moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN")
ALONE = (
    "Softmax",
    "LogSoftmax",
    "LayerNormalization",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "AveragePool",
    "MaxPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ArgMax",
    "ArgMin",
    "TopK",
    "CumSum",
    "LpNormalization",
    "Resize",
    "Upsample",
    "GridSample",
    "Concat",
    "Split",
    "Gather",
    "Transpose",
    "Expand",
)
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")

Kernel = tuple[int, str]
"""Step and name: kernels of the same step wait for none of each other."""

ELEMENTS = "elements "


@dataclass(frozen=True)
class Traffic:
    """Of one run: `weight_bytes` read, a table that is indexed counting only for the rows taken;
    `activation_bytes` of inputs, outputs and what passes between kernels, written and read; `launches` of kernels.
    """

    weight_bytes: int
    activation_bytes: int
    launches: int


def graph_traffic(model: onnx.ModelProto) -> Traffic | None:
    """Count a graph of static shapes; None where a shape or a type is not known, or the graph has subgraphs."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        return _Counter(inferred.graph).count()
    except KeyError:
        return None


@dataclass
class _Counter:
    graph: onnx.GraphProto
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # elements, bytes each
    constant: dict[str, int] = field(default_factory=dict)  # name -> bytes each as they are read
    source: dict[str, str] = field(default_factory=dict)  # tensor -> the tensor whose bytes it is, through views
    made_in: dict[str, Kernel] = field(default_factory=dict)
    readers: dict[str, set[Kernel]] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)

    def count(self) -> Traffic:
        self._read_sizes()
        for value in self.graph.input:
            if value.name not in self.constant:
                self.made_in[value.name] = (0, "input")
        for node in self.graph.node:
            self._place(node)
        outputs = {self.source.get(o.name, o.name) for o in self.graph.output}
        moved = 0
        for name, kernel in self.made_in.items():
            reads = len(self.readers.get(name, set()) - {kernel})
            written = int(kernel[1] != "input" and (reads > 0 or name in outputs))
            moved += (reads + written) * self._bytes(name)
        kernels = {kernel for kernel in self.made_in.values() if kernel[1] != "input"}
        return Traffic(sum(self.weights.values()), moved, len(kernels))

    def _read_sizes(self) -> None:
        for tensor in self.graph.initializer:
            self.sizes[tensor.name] = (math.prod(tensor.dims), _width(tensor.data_type))
            self.constant[tensor.name] = _width(tensor.data_type)
        for value in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            typed = value.type.tensor_type
            if typed.HasField("shape") and all(d.HasField("dim_value") for d in typed.shape.dim):
                elements = math.prod(d.dim_value for d in typed.shape.dim)
                self.sizes.setdefault(value.name, (elements, _width(typed.elem_type)))

    def _bytes(self, name: str) -> int:
        elements, width = self.sizes[name]
        return elements * width

    def _place(self, node: onnx.NodeProto) -> None:
        """Decide in which kernel a node runs, and note what it reads."""
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise KeyError(node.name)
        inputs = [self.source.get(name, name) for name in node.input if name]
        flowing = [name for name in inputs if name not in self.constant]
        if not flowing:
            # Quantized weights are read as they are stored: the engine computes in 8 bits.
            quantized = node.op_type == "DequantizeLinear"
            for name in node.output:
                self.constant[name] = self.constant[inputs[0]] if quantized else self.sizes[name][1]
            return
        if node.op_type in VIEWS or node.op_type == "DequantizeLinear":
            for name in node.output:
                self.source[name] = flowing[0]
            return
        kernel = self._kernel(node, flowing)
        for name in flowing:
            self.readers.setdefault(name, set()).add(kernel)
        for name in node.input:
            if name in self.constant and self.sizes[name][0] > 1 and node.op_type != "QuantizeLinear":
                self.weights[name] = max(self.weights.get(name, 0), self._weight_bytes(node, name))
        for name in node.output:
            if name:
                self.made_in[name] = kernel

    def _kernel(self, node: onnx.NodeProto, flowing: list[str]) -> Kernel:
        before = [self.made_in[name] for name in flowing]
        step = max(kernel[0] for kernel in before)
        if node.op_type in MATRIX or node.op_type in ALONE or node.op_type.startswith("Reduce"):
            return (step + 1, node.output[0])
        latest = sorted({kernel for kernel in before if kernel[0] == step})
        if len(latest) == 1 and latest[0][1] != "input":
            return latest[0]
        like = [kernel for kernel in latest if kernel[1].startswith(ELEMENTS)]
        return like[0] if like else (step, ELEMENTS + node.output[0])

    def _weight_bytes(self, node: onnx.NodeProto, name: str) -> int:
        width = self.constant[name]
        if node.op_type == "Gather" and node.input[0] == name:
            return self.sizes[node.output[0]][0] * width
        return self.sizes[name][0] * width


def _width(data_type: int) -> int:
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize
