"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from t2v_edge.engine.base import EngineOptions, check_feeds
from t2v_edge.engine.turns import BorrowPool
from t2v_edge.errors import EngineError
from t2v_edge.spec import Arrays, StageSpec, TensorSpec

# Importing openvino sends a usage event to its makers and writes an identifier into ~/intel, unless its telemetry
# package is absent: then it takes its own stub. Playing a bundle is nobody's business, so here it is absent.
_TELEMETRY = "openvino_telemetry"
_hidden = _TELEMETRY not in sys.modules
if _hidden:
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
try:
    import openvino as ov
finally:
    if _hidden:
        del sys.modules[_TELEMETRY]

_VERSION = ov.__version__.partition("-")[0]
WORTH_BYTES = 100_000
"""Fewer are transposed as they are: two more nodes take longer."""


class OpenVinoEngine:
    """A stage's graph compiled for OpenVINO's CPU plugin, with one inference request, and for several callers more.

    The graph is read from memory. The plugin is asked for low latency and for float32 wherever the graph says floating
    point: left to itself it computes in bfloat16 on CPUs with AMX and in float16 on Arm, and a bundle's FP32 would not
    be FP32. Nor does it quantize what a graph has in float32: it would where weights alone are stored in 8 bits, and a
    recurrent state strayed from the first step (0.4 % of it, 7 % after 1,000). Threads are not pinned to cores: with
    another process on the machine, pinning took a 256x256 renderer from 35 to 42 ms. The motion step runs on one
    thread, as in the other engine. Inputs are written into the request's own tensors: `infer(feeds)` does the same in
    six times the microseconds (133 against 22 for a tiny graph).
    Two rewritings give the same frames sooner. Pixels become bytes before they are transposed, not after: 1.29 instead
    of 1.46 ms for a small 256x256 renderer in INT8. And its rows of bytes are interleaved run by run.

    With `options.callers` the renderer has, besides the request that all threads work on, one for each core, of one
    thread: for callers that come while another one runs. They finish more in all (99 against 62 frames a second, four
    callers on two busy cores), and give the same frames. With `options.ahead` it has two for each core, and none for
    all: to compile the graph twice takes 0.3 s, as long as a short clip. `beside`: callers that it has requests for.

    Raises `EngineError` where the graph cannot be loaded or is not what `spec` says.
    """

    name = "openvino"

    def __init__(self, graph: Union[bytes, bytearray], spec: StageSpec, options: EngineOptions) -> None:
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "ENABLE_CPU_PINNING": False,
        }
        threads = 1 if spec.stage == "motion" else options.threads
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        beside = options.beside if spec.stage == "render" else 1
        several = {**settings, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": beside, "INFERENCE_NUM_THREADS": beside}
        try:
            core = ov.Core()
            model = core.read_model(bytes(graph))
            _round_before_transposing(model)
            _interleave_whole_runs(model)
            if options.ahead and beside > 1:
                compiled = core.compile_model(model, "CPU", several)
                beside *= 2  # while one is handed over another runs
                request, *crowd = _requests(compiled, beside)
            else:
                compiled = core.compile_model(model, "CPU", settings)
                request = compiled.create_infer_request()
                crowd = _requests(core.compile_model(model, "CPU", several), beside) if beside > 1 else []
        except Exception as error:  # OpenVINO raises RuntimeError and whatever pybind11 makes of others
            raise EngineError(
                f"OpenVINO {_VERSION} cannot load the {spec.stage} graph ({_said(error)}); "
                "upgrade openvino or take --engine onnxruntime"
            ) from error
        self.spec = spec
        self._check("takes", compiled.inputs, spec.inputs)
        self._check("gives", compiled.outputs, spec.outputs)
        self.beside = beside
        self._turns: BorrowPool[Any] = BorrowPool(request, crowd)

    def _check(self, verb: str, ports: Iterable[Any], wanted: tuple[TensorSpec, ...]) -> None:
        # An OpenVINO tensor carries every name that ONNX gave it on its way through nodes that do nothing.
        names = {tensor.name for tensor in wanted}
        found = {}
        for port in ports:
            name = min(port.get_names() & names, default=min(port.get_names(), default="?"))
            found[name] = (np.dtype(port.get_element_type().to_dtype()).name, str(port.get_partial_shape()))
        expected = {t.name: (t.dtype, str(ov.PartialShape(list(t.shape)))) for t in wanted}
        if found != expected:
            raise EngineError(
                f"the {self.spec.stage} graph {verb} {found}, its contract says {expected}; export the bundle again"
            )

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; threads take turns, in the order in which they come. The arrays returned are new ones."""
        check_feeds(feeds, self.spec)
        with self._turns.take() as request:
            if request is None:
                raise EngineError(f"the {self.spec.stage} engine is closed; open the pipeline again")
            try:
                for name, array in feeds.items():
                    request.get_tensor(name).data[:] = array
                request.infer()
                # A tensor's `data` is a view that the next run overwrites.
                return {tensor.name: request.get_tensor(tensor.name).data.copy() for tensor in self.spec.outputs}
            except Exception as error:
                raise EngineError(
                    f"OpenVINO {_VERSION} failed in the {self.spec.stage} stage "
                    f"({_said(error)}); check the bundle with t2v-edge inspect --verify"
                ) from error

    def close(self) -> None:
        self._turns.close()

    def __enter__(self) -> OpenVinoEngine:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def _requests(compiled: Any, count: int) -> list[Any]:
    return [compiled.create_infer_request() for _ in range(count)]


def _round_before_transposing(model: Any) -> None:
    """Where an output is Convert(Round(Transpose(x))), make it Transpose(Convert(Round(x))), in place.

    The graph ends the first way because TensorRT knows uint8 only at the border of a graph; here the transposition, of
    a quarter of the bytes, is then one with the layout change that the plugin does anyway. Element by element it is
    the same.
    """
    for result in model.get_results():
        convert = result.input_value(0).get_node()
        chain = [convert]
        while len(chain) < 3 and chain[-1].get_type_name() in ("Convert", "Round"):
            chain.append(chain[-1].input_value(0).get_node())
        if [node.get_type_name() for node in chain] != ["Convert", "Round", "Transpose"]:
            continue
        if any(len(node.output(0).get_target_inputs()) != 1 for node in chain):
            continue
        names = convert.output(0).get_names()
        transpose = chain[2]
        pixels = ov.opset13.convert(ov.opset13.round(transpose.input_value(0), "half_to_even"), "u8")
        made = ov.opset13.transpose(pixels, transpose.input_value(1)).output(0)
        convert.output(0).set_names(set())
        made.set_names(names)
        result.input(0).replace_source_output(made)
    model.validate_nodes_and_infer_types()


def _interleave_whole_runs(model: Any) -> None:
    """Where bytes (a, b, 2, c) become (a, 2, b, c) by Transpose, split them in two and join the halves, in place.

    INT8 doublings in phases are laid out so. The plugin's Transpose moves 64 bytes of a run at a time with AVX-512, and
    the rest of the run byte by byte, so runs of whole 64 bytes are left to it, as is what is small.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Transpose" or not _holds_bytes(node.input_value(0)):
            continue
        order, shape = node.input_value(1).get_node(), node.input_value(0).get_partial_shape()
        if order.get_type_name() != "Constant" or order.get_data().tolist() != [0, 2, 1, 3] or shape.is_dynamic:
            continue
        a, b, halves, run = shape.to_shape()
        if halves != 2 or run % 64 == 0 or a * b * halves * run < WORTH_BYTES:
            continue
        split = ov.opset13.split(node.input_value(0), ov.opset13.constant(np.int64(2)), 2)
        rows = ov.opset13.constant(np.array([a, 1, b, run], np.int64))
        joined = ov.opset13.concat([ov.opset13.reshape(split.output(half), rows, False) for half in (0, 1)], 1)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(joined.output(0))
    model.validate_nodes_and_infer_types()


def _holds_bytes(value: Any) -> bool:
    """Whether a tensor is of bytes, or will be once the plugin has moved the scale that it is dequantized by."""
    while value.get_element_type().size != 1:
        node = value.get_node()
        if node.get_type_name() not in ("Reshape", "Transpose", "Multiply", "Subtract", "Convert"):
            return False
        value = node.input_value(0)
    return True


def _said(error: Exception) -> str:
    """OpenVINO's message on one line, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return "; ".join(told) or " ".join(lines)
