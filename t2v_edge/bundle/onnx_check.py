"""A checker of ONNX files that needs no onnx package: a summary of the graph, and whether its weights are sound.

An engine runs NaN weights without complaint, and older engines had memory faults on crafted models. So every graph is
checked here first. What parsers read differently is refused. Weights are read in place and hardly ever copied.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle import onnx_schema
from t2v_edge.bundle.wire import Fields, WireError, WireReader, one
from t2v_edge.errors import BundleError, SpecError
from t2v_edge.spec import MAX_ELEMENTS, TensorSpec

DOMAINS = ("", "ai.onnx", "com.microsoft")
OPSETS = (11, 25)
MAX_NODES = 50_000
MAX_TENSORS = 50_000
MAX_DEPTH = 8
MAX_RANK = 32
"""Sizes of a shape. NumPy 1 has no more."""

_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8"}
_BFLOAT16 = 16
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}
_DTYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
_LISTS = range(6, 11)
"""The types of attributes that may be empty. The value of an attribute of type N is in the field N + 1."""
_RAW = 9
_TYPED = {1: 4, 7: 7, 11: 10, 12: 11, 13: 11}
"""The field of a data type's values if they are not raw, 5 for all others."""


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

    Refused are damaged, repeated or unknown fields, names given twice, external data, operators outside `DOMAINS`,
    local functions, sparse or misshapen weights, dynamic shapes, opsets outside `OPSETS`, and more nodes, elements or
    nesting than the limits. NaN is refused anywhere. Infinity is allowed in a tensor of one element, because attention
    masks are filled with it.
    """
    try:
        return _GraphReader(where).model(memoryview(data))
    except WireError as error:
        raise BundleError(f"{where}: {error}") from error


class _Value(NamedTuple):
    """An input, an output or a typed name. sizes: None where the size or the whole shape is open."""

    name: str
    type: int
    sizes: Optional[list[Optional[int]]]


class _GraphReader:
    def __init__(self, where: str) -> None:
        self.where = where
        self.reader = WireReader()
        self.nodes = 0
        self.tensors = 0
        self.weight_bytes = 0
        self.operators: Counter[str] = Counter()
        self.scopes: list[set[str]] = []

    def fail(self, problem: str, remedy: str = "export the bundle again") -> BundleError:
        return BundleError(f"{self.where}: {problem}; {remedy}")

    def model(self, view: memoryview) -> GraphSummary:
        fields = self.reader.message(view, onnx_schema.MODEL)
        if 25 in fields or 20 in fields:
            raise self.fail("it holds local functions or training graphs", "inline or drop them before the export")
        opset = onnx_schema.opset_version(self.reader, fields)
        if not OPSETS[0] <= opset <= OPSETS[1]:
            raise self.fail(f"opset {opset} is outside {OPSETS[0]} to {OPSETS[1]}", "export with another --opset")
        if 7 not in fields:
            raise self.fail("the ONNX file holds no graph")
        inputs, outputs = self.graph(one(fields, 7), 0)
        specs = tuple(map(self.spec, inputs)), tuple(map(self.spec, outputs))
        if sum(math.prod(spec.shape) for spec in specs[0] + specs[1]) > MAX_ELEMENTS:
            raise self.fail(f"its inputs and outputs have more than {MAX_ELEMENTS} elements", "export a smaller size")
        return GraphSummary(opset, *specs, dict(self.operators), self.weight_bytes)

    def graph(self, view: memoryview, depth: int) -> tuple[list[_Value], list[_Value]]:
        """Check a graph. Returns its inputs that are no weights, and its outputs."""
        if depth > MAX_DEPTH:
            raise self.fail(f"graphs are nested deeper than {MAX_DEPTH}", "unroll the loops")
        fields = self.reader.message(view, onnx_schema.GRAPH)
        if 15 in fields:
            raise self.fail("it holds sparse weights", "store them dense")
        self.scopes.append(set())
        for tensor in fields.get(5, []):
            self.define(self.tensor(tensor))
        weights = frozenset(self.scopes[-1])
        inputs, outputs, typed = (list(map(self.value, fields.get(number, []))) for number in (11, 12, 13))
        for values in (inputs, outputs, typed):
            self.distinct([value.name for value in values], "inputs, outputs or typed tensors")
        inputs = [value for value in inputs if value.name not in weights]
        for value in inputs:
            self.define(value.name)
        for node in fields.get(1, []):
            self.node(node, depth)
        self.scopes.pop()
        return inputs, outputs

    def define(self, name: str) -> None:
        """Note the name of a tensor. Raises if this graph or one around it has another of that name."""
        if any(name in scope for scope in self.scopes):
            raise self.fail(f"two tensors are named {name!r}")
        self.scopes[-1].add(name)

    def node(self, view: memoryview, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.fail(f"the graph has more than {MAX_NODES} nodes", "simplify it")
        fields = self.reader.message(view, onnx_schema.NODE)
        operator, domain = one(fields, 4, ""), one(fields, 7, "")
        if domain not in DOMAINS:
            raise self.fail(f"operator {operator} is of the custom domain {domain!r}", "express it in standard ONNX")
        self.operators[operator] += 1
        attributes = [self.reader.message(entry, onnx_schema.ATTRIBUTE) for entry in fields.get(5, [])]
        self.distinct([one(attribute, 1, "") for attribute in attributes], f"attributes of a {operator}")
        for attribute in attributes:
            self.attribute(attribute, operator, depth)
        for name in filter(None, fields.get(2, [])):
            self.define(name)

    def distinct(self, names: list[str], what: str) -> None:
        if len(set(names)) < len(names):
            raise self.fail(f"two {what} are named {Counter(names).most_common(1)[0][0]!r}")

    def attribute(self, fields: Fields, operator: str, depth: int) -> None:
        name = f"{operator}.{one(fields, 1, '')}"
        if 22 in fields or 23 in fields:
            raise self.fail(f"attribute {name} holds sparse weights", "store them dense")
        kind, held = one(fields, 20, 0), [number for number in range(2, 12) if number in fields]
        if held != [kind + 1] and (held or kind not in _LISTS):
            raise self.fail(f"attribute {name} is of type {kind} and has its value in {held or 'no field'}")
        if kind in (1, 6):
            self.check_floats(fields.get(kind + 1, []), "<f4", f"attribute {name}")
        for tensor in fields.get(5, []) + fields.get(10, []):
            self.tensor(tensor, f"attribute {name}")
        for graph in fields.get(6, []) + fields.get(11, []):
            self.graph(graph, depth + 1)

    def tensor(self, view: memoryview, label: str = "") -> str:
        """Check a TensorProto. Returns its name."""
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            raise self.fail(f"the graph has more than {MAX_TENSORS} weights", "simplify it")
        fields = self.reader.message(view, onnx_schema.TENSOR)
        name: str = one(fields, 8, "")
        label = label or f"weight {name!r}"
        if 13 in fields or one(fields, 14, 0) != 0:
            raise self.fail(f"{label} lies outside the file (external data)", "export a single-file ONNX")
        kind = one(fields, 2, 0)
        if kind not in _BITS:
            raise self.fail(f"{label} has the unsupported data type {kind}", "use float, integer or bool weights")
        elements = self.elements(fields.get(1, []), label, len(view) * 64 // _BITS[kind], "the file holds")
        typed, held = _TYPED.get(kind, 5), [number for number in (4, 5, 7, _RAW, 10, 11) if number in fields]
        if held not in ([], [_RAW], [typed]):
            raise self.fail(f"{label} has its values in the fields {held}, not only in {_RAW} or {typed}")
        size = (elements * _BITS[kind] + 7) // 8
        if held == [_RAW]:
            data = one(fields, _RAW)
            if len(data) != size:
                raise self.fail(f"{label} has {len(data)} bytes, its shape needs {size}")
            self.check_raw(data, kind, label)
        else:
            self.check_typed(fields.get(typed, []), kind, elements, label)
        self.weight_bytes += size
        return name

    def elements(self, sizes: list[int], label: str, most: int, limit: str) -> int:
        """How many elements a shape has. No product of its sizes is over `most`, in any order."""
        product = 1
        for size in sizes:
            product *= max(size, 1)
            if size < 0 or product > most or len(sizes) > MAX_RANK:
                raise self.fail(f"{label} claims more than {limit}, a size below 0 or more than {MAX_RANK} sizes")
        return 0 if 0 in sizes else product

    def check_raw(self, data: memoryview, kind: int, label: str) -> None:
        if kind in _FLOATS:
            self.check_finite(np.frombuffer(data, _FLOATS[kind]), label)
        elif kind == _BFLOAT16:
            self.check_finite((np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32), label)

    def check_typed(self, values: list[Any], kind: int, elements: int, label: str) -> None:
        """Check weights in a typed field: numbers, or views of floats."""
        count, expected = len(values), (elements + 1) // 2 if _BITS[kind] == 4 else elements
        if kind in (1, 11):
            count = self.check_floats(values, _FLOATS[kind], label)
        elif kind in (10, _BFLOAT16):
            self.check_raw(memoryview(np.array([item & 0xFFFF for item in values], "<u2").tobytes()), kind, label)
        if count != expected:
            raise self.fail(f"{label} has {count} values, its shape needs {expected}")

    def check_floats(self, views: list[memoryview], layout: str, label: str) -> int:
        """Check the floats of a repeated field, packed or not. Returns how many there are."""
        data = views[0] if len(views) == 1 else b"".join(views)
        if len(data) % np.dtype(layout).itemsize:
            raise self.fail(f"{label} is damaged (ragged floats)")
        self.check_finite(np.frombuffer(data, layout), label)
        return len(data) // np.dtype(layout).itemsize

    def check_finite(self, values: npt.NDArray[np.floating], label: str) -> None:
        if np.isfinite(values).all():
            return
        if np.isnan(values).any():
            raise self.fail(f"{label} holds NaN", "train or export again; the checkpoint is broken")
        if values.size > 1:
            raise self.fail(f"{label} holds infinite values", "train or export again; the checkpoint is broken")

    def value(self, view: memoryview) -> _Value:
        fields = self.reader.message(view, onnx_schema.VALUE)
        name, typed = one(fields, 1, ""), Fields()
        if 2 in fields:
            kind = self.reader.message(one(fields, 2), onnx_schema.TYPE)
            typed = self.reader.message(one(kind, 1, memoryview(b"")), onnx_schema.TENSOR_TYPE)
        if 2 not in typed:
            return _Value(name, one(typed, 1, 0), None)
        shape = self.reader.message(one(typed, 2), onnx_schema.SHAPE).get(1, [])
        sizes = [one(self.reader.message(entry, onnx_schema.DIMENSION), 1) for entry in shape]
        known = [0 if size is None else size for size in sizes]
        self.elements(known, f"graph tensor {name!r}", MAX_ELEMENTS, f"{MAX_ELEMENTS} elements")
        return _Value(name, one(typed, 1, 0), sizes)

    def spec(self, value: _Value) -> TensorSpec:
        dtype = _DTYPES.get(value.type)
        if dtype is None or value.sizes is None:
            raise self.fail(f"graph tensor {value.name!r} has no supported dtype and static shape")
        if None in value.sizes:
            raise self.fail(f"graph tensor {value.name!r} has a dynamic shape", "export with static shapes")
        try:
            return TensorSpec(value.name, tuple(size for size in value.sizes if size is not None), dtype)
        except SpecError as error:
            raise self.fail(str(error)) from error
