"""A checker of ONNX files that needs no onnx package: a summary of the graph, and whether its weights are sound.

An engine runs NaN weights without complaint, and older engines had memory faults on crafted models. So every graph is
checked here first. Field numbers are those of onnx.proto3 of ONNX 1.17. Weights are read in place and never copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle.wire import Fields, Value, WireError, WireReader, integer, integers, one, text, view_of
from t2v_edge.errors import BundleError, SpecError
from t2v_edge.spec import TensorSpec

DOMAINS = ("", "ai.onnx", "com.microsoft")
OPSETS = (11, 25)
MAX_NODES = 50_000
MAX_TENSORS = 50_000
MAX_DEPTH = 8

_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8"}
_BFLOAT16 = 16
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}
_DTYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
_TYPED_DATA = {4: "<f4", 10: "<f8"}


@dataclass(frozen=True)
class GraphSummary:
    """A summary of a graph. opset: of the default domain. operators: how many there are of each."""

    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[str, int]
    weight_bytes: int


def read_graph(data: Union[bytes, memoryview], where: str) -> GraphSummary:
    """Check the ONNX model in `data`. Raises `BundleError` naming `where`, the tensor or node, and the remedy.

    Refused are damaged or repeated fields, external data, operators outside `DOMAINS`, local functions, sparse or
    misshapen weights, dynamic shapes, opsets outside `OPSETS`, and more nodes or nesting than the limits. NaN is
    refused anywhere. Infinity is allowed in a tensor of one element, because attention masks are filled with it.
    """
    try:
        return _GraphReader(where).model(memoryview(data))
    except WireError as error:
        raise BundleError(f"{where}: {error}") from error


class _GraphReader:
    def __init__(self, where: str) -> None:
        self.where = where
        self.reader = WireReader()
        self.nodes = 0
        self.tensors = 0
        self.weight_bytes = 0
        self.operators: Counter[str] = Counter()

    def fail(self, problem: str, remedy: str = "export the bundle again") -> BundleError:
        return BundleError(f"{self.where}: {problem}; {remedy}")

    def model(self, view: memoryview) -> GraphSummary:
        fields = self.reader.message(view)
        if 25 in fields or 20 in fields:
            raise self.fail("it holds local functions or training graphs", "inline or drop them before the export")
        opset = 0
        for entry in fields.get(8, []):
            imported = self.reader.message(entry)
            if text(imported, 1) in ("", "ai.onnx"):
                opset = max(opset, integer(imported, 2))
        if not OPSETS[0] <= opset <= OPSETS[1]:
            raise self.fail(f"opset {opset} is outside {OPSETS[0]} to {OPSETS[1]}", "export with another --opset")
        graph = one(fields, 7)
        if graph is None:
            raise self.fail("the ONNX file holds no graph")
        inputs, outputs = self.graph(view_of(graph), 0)
        return GraphSummary(opset, inputs, outputs, dict(self.operators), self.weight_bytes)

    def graph(self, view: memoryview, depth: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if depth > MAX_DEPTH:
            raise self.fail(f"graphs are nested deeper than {MAX_DEPTH}", "unroll the loops")
        fields = self.reader.message(view)
        if 15 in fields:
            raise self.fail("it holds sparse weights", "store them dense")
        weights = {self.tensor(tensor) for tensor in fields.get(5, [])}
        for node in fields.get(1, []):
            self.node(node, depth)
        if depth:
            return (), ()
        inputs = tuple(self.value_info(entry) for entry in fields.get(11, []) if self.value_name(entry) not in weights)
        return inputs, tuple(self.value_info(entry) for entry in fields.get(12, []))

    def node(self, value: Value, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.fail(f"the graph has more than {MAX_NODES} nodes", "simplify it")
        fields = self.reader.message(value)
        operator, domain = text(fields, 4), text(fields, 7)
        if domain not in DOMAINS:
            raise self.fail(f"operator {operator} is of the custom domain {domain!r}", "express it in standard ONNX")
        self.operators[operator] += 1
        for entry in fields.get(5, []):
            self.attribute(self.reader.message(entry), operator, depth)

    def attribute(self, fields: Fields, operator: str, depth: int) -> None:
        name = f"{operator}.{text(fields, 1)}"
        for number in (22, 23):
            if number in fields:
                raise self.fail(f"attribute {name} holds sparse weights", "store them dense")
        for number in (2, 7):
            for value in fields.get(number, []):
                if len(view_of(value)) % 4:
                    raise self.fail("the ONNX file is damaged (ragged floats)")
                self.check_finite(np.frombuffer(view_of(value), "<f4"), f"attribute {name}")
        tensor, graph = one(fields, 5), one(fields, 6)
        for value in ([] if tensor is None else [tensor]) + fields.get(10, []):
            self.tensor(value, f"attribute {name}")
        for value in ([] if graph is None else [graph]) + fields.get(11, []):
            self.graph(view_of(value), depth + 1)

    def tensor(self, value: Value, label: str = "") -> str:
        """Check a TensorProto. Returns its name."""
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            raise self.fail(f"the graph has more than {MAX_TENSORS} weights", "simplify it")
        fields = self.reader.message(value)
        name = text(fields, 8)
        label = label or f"weight {name!r}"
        if 13 in fields or integer(fields, 14) != 0:
            raise self.fail(f"{label} lies outside the file (external data)", "export a single-file ONNX")
        kind = integer(fields, 2)
        if kind not in _BITS or 3 in fields or 6 in fields:
            raise self.fail(f"{label} has the unsupported data type {kind}", "use float, integer or bool weights")
        elements = 1
        for size in integers(fields, 1):
            elements *= size
        bits = elements * _BITS[kind]
        if elements < 0 or bits > len(view_of(value)) * 64:
            raise self.fail(f"{label} claims {elements} elements, more than the file holds")
        raw = one(fields, 9)
        if raw is not None:
            data = view_of(raw)
            if len(data) != (bits + 7) // 8:
                raise self.fail(f"{label} has {len(data)} bytes, its shape needs {(bits + 7) // 8}")
            self.weight_bytes += len(data)
            self.check_raw(data, kind, label)
        else:
            self.check_typed(fields, kind, elements, label)
        return name

    def check_raw(self, data: memoryview, kind: int, label: str) -> None:
        if kind in _FLOATS:
            self.check_finite(np.frombuffer(data, _FLOATS[kind]), label)
        elif kind == _BFLOAT16:
            self.check_finite((np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32), label)

    def check_typed(self, fields: Fields, kind: int, elements: int, label: str) -> None:
        """Check weights in typed fields: float in 4, double in 10, 16-bit floats and integers in 5, 7 and 11."""
        count = 0
        for number, layout in _TYPED_DATA.items():
            for value in fields.get(number, []):
                data = view_of(value)
                if len(data) % np.dtype(layout).itemsize:
                    raise self.fail(f"{label} is damaged (ragged floats)")
                values = np.frombuffer(data, layout)
                self.check_finite(values, label, elements)
                count += values.size
        for number in (5, 7, 11):
            items = integers(fields, number)
            count += len(items)
            if number == 5 and kind in (10, _BFLOAT16):
                halves = np.array([item & 0xFFFF for item in items], "<u2")
                self.check_raw(memoryview(halves.tobytes()), kind, label)
        expected = (elements + 1) // 2 if _BITS[kind] == 4 else elements
        if count != expected:
            raise self.fail(f"{label} has {count} values, its shape needs {expected}")
        self.weight_bytes += (elements * _BITS[kind] + 7) // 8

    def check_finite(self, values: npt.NDArray[np.floating], label: str, elements: int = 0) -> None:
        if np.isfinite(values).all():
            return
        if np.isnan(values).any():
            raise self.fail(f"{label} holds NaN", "train or export again; the checkpoint is broken")
        if max(values.size, elements) > 1:
            raise self.fail(f"{label} holds infinite values", "train or export again; the checkpoint is broken")

    def value_name(self, value: Value) -> str:
        return text(self.reader.message(value), 1)

    def value_info(self, value: Value) -> TensorSpec:
        fields = self.reader.message(value)
        name = text(fields, 1)
        kind = one(fields, 2)
        tensor = None if kind is None else one(self.reader.message(kind), 1)
        if tensor is None:
            raise self.fail(f"graph tensor {name!r} has no tensor type")
        typed = self.reader.message(tensor)
        dtype = _DTYPES.get(integer(typed, 1))
        shape = one(typed, 2)
        if dtype is None or shape is None:
            raise self.fail(f"graph tensor {name!r} has no supported dtype and static shape")
        sizes = []
        for entry in self.reader.message(shape).get(1, []):
            dimension = self.reader.message(entry)
            if 1 not in dimension:
                raise self.fail(f"graph tensor {name!r} has a dynamic shape", "export with static shapes")
            sizes.append(integer(dimension, 1))
        try:
            return TensorSpec(name, tuple(sizes), dtype)
        except SpecError as error:
            raise self.fail(str(error)) from error
