"""How fast this machine multiplies matrices, in float32 and in 8 bits: ``python -m benchmarks.cpu.ceiling``.

Each library that is installed multiplies square matrices; the best of all is the ceiling that renderers are held
against. Prints one JSON object.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common.process import without_telemetry

SIZES = (512, 1024, 2048)
SECONDS = 0.4  # for each library and size


def best_rate(run: Callable[[], object], size: int, seconds: float = SECONDS) -> float:
    """Operations a second, in units of 10^9, of the fastest run: two a multiply-accumulate."""
    run()
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest / 1e9


def float_graph(size: int) -> onnx.ModelProto:
    """y = x w in float32."""
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return _model(nodes, {"w": weight}, TensorProto.FLOAT, TensorProto.FLOAT, size)


def integer_graph(size: int) -> onnx.ModelProto:
    """y = x w of uint8 and int8 with int32 sums."""
    weight = np.random.default_rng(0).integers(-63, 64, (size, size)).astype(np.int8)
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    return _model(nodes, {"w": weight}, TensorProto.UINT8, TensorProto.INT32, size)


def quantized_graph(size: int) -> onnx.ModelProto:
    """y = x w as a Q/DQ graph: uint8 in and out, int8 weights, as engines fuse it."""
    weight = np.random.default_rng(0).integers(-63, 64, (size, size)).astype(np.int8)
    constants = {
        "w": weight,
        "one": np.float32(0.02),
        "zero": np.uint8(128),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "out": np.float32(1.0),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["yf"]),
        helper.make_node("QuantizeLinear", ["yf", "out", "zero"], ["y"]),
    ]
    return _model(nodes, constants, TensorProto.UINT8, TensorProto.UINT8, size)


def _model(nodes: list[Any], constants: dict[str, Any], taken: int, given: int, size: int) -> onnx.ModelProto:
    shape = [size, size]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", taken, shape)],
        [helper.make_tensor_value_info("y", given, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def runners(size: int) -> dict[str, dict[str, Callable[[], object]]]:
    """precision -> library -> a function that multiplies once."""
    import onnxruntime
    import torch

    generator = np.random.default_rng(1)
    x = generator.standard_normal((size, size)).astype(np.float32)
    bytes_ = generator.integers(0, 256, (size, size)).astype(np.uint8)
    made = np.empty((size, size), np.float32)
    tensor = torch.from_numpy(x)

    def session(model: onnx.ModelProto, feed: Any) -> Callable[[], object]:
        opened = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda: opened.run(None, {"x": feed})

    found: dict[str, dict[str, Callable[[], object]]] = {
        "fp32": {
            "numpy": lambda: np.matmul(x, x, out=made),
            "torch": lambda: torch.mm(tensor, tensor),
            "onnxruntime": session(float_graph(size), x),
        },
        "int8": {
            "onnxruntime MatMulInteger": session(integer_graph(size), bytes_),
            "onnxruntime Q/DQ": session(quantized_graph(size), bytes_),
        },
    }
    try:
        import openvino
    except ImportError:
        return found

    def compiled(model: onnx.ModelProto, feed: Any) -> Callable[[], object]:
        core = openvino.Core()
        request = core.compile_model(core.read_model(model.SerializeToString()), "CPU").create_infer_request()
        request.get_tensor("x").data[:] = feed
        return request.infer  # type: ignore[no-any-return]

    found["fp32"]["openvino"] = compiled(float_graph(size), x)
    found["int8"]["openvino Q/DQ"] = compiled(quantized_graph(size), bytes_)
    return found


def measure_ceilings(sizes: tuple[int, ...] = SIZES, seconds: float = SECONDS) -> dict[str, Any]:
    """precision -> {"best": Gop/s, "by": library and size, "all": {library: best Gop/s}}."""
    rates: dict[str, dict[str, tuple[float, int]]] = {"fp32": {}, "int8": {}}
    for size in sizes:
        for precision, libraries in runners(size).items():
            for library, run in libraries.items():
                rate = (best_rate(run, size, seconds), size)
                rates[precision][library] = max(rate, rates[precision].get(library, rate))
    ceilings = {}
    for precision, found in rates.items():
        winner = max(found, key=found.__getitem__)
        ceilings[precision] = {
            "best": found[winner][0],
            "by": f"{winner}, {found[winner][1]}",
            "all": {library: rate for library, (rate, _) in found.items()},
        }
    return ceilings


if __name__ == "__main__":
    without_telemetry()
    print(json.dumps(measure_ceilings()))
