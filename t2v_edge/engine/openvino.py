"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from t2v_edge.engine.base import Engine, EngineOptions, check_feeds
from t2v_edge.engine.pool import BorrowPool
from t2v_edge.errors import EngineError
from t2v_edge.spec import Arrays, StageSpec, TensorSpec

# Importing openvino sends a usage event to its makers and writes an identifier into ~/intel. Without its telemetry
# package it takes a stub of its own. Nobody is told of a bundle that is played, so the package is hidden here.
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
"""The fewest bytes of which interleaving is worth two more nodes."""


class OpenVinoEngine(Engine):
    """A stage's graph compiled for OpenVINO's CPU plugin.

    The plugin computes in float32 wherever the graph says floating point. By default it takes bfloat16 on CPUs with AMX
    and float16 on Arm. Nor does it quantize activations where only weights are stored in 8 bits: a recurrent state
    would stray from the first step. Threads are not pinned to cores, because other processes may be on them. The motion
    step runs on one thread. Inputs are written into the request's own tensors, which costs less than `infer(feeds)`.

    Two changes of the graph give the same frames sooner: pixels become bytes before they are transposed, and rows of
    bytes are interleaved run by run.

    With `options.callers` the renderer has one request of all threads, for a caller that comes alone. It has another of
    one thread for each core, for callers that come while one runs: they finish more in all. With `options.ahead` it has
    two of one thread for each core and none of all threads, because compiling the graph twice takes as long as a short
    clip. `parallel`: callers that have a request.

    Raises `EngineError` for a graph that cannot be loaded or is not what `spec` says.
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
        parallel = options.parallel if spec.stage == "render" else 1
        several = {
            **settings,
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": parallel,
            "INFERENCE_NUM_THREADS": parallel,
        }
        try:
            core = ov.Core()
            model = core.read_model(bytes(graph))
            _round_before_transposing(model)
            _interleave_whole_runs(model)
            if options.ahead and parallel > 1:
                compiled = core.compile_model(model, "CPU", several)
                parallel *= 2  # while one is handed over another runs
                request, *others = _requests(compiled, parallel)
            else:
                compiled = core.compile_model(model, "CPU", settings)
                request = compiled.create_infer_request()
                others = _requests(core.compile_model(model, "CPU", several), parallel) if parallel > 1 else []
        except Exception as error:  # OpenVINO raises RuntimeError and whatever pybind11 makes of others
            raise EngineError(
                f"OpenVINO {_VERSION} cannot load the {spec.stage} graph ({_line(error)}); "
                "upgrade openvino or take --engine onnxruntime"
            ) from error
        self.spec = spec
        self._check("takes", compiled.inputs, spec.inputs)
        self._check("gives", compiled.outputs, spec.outputs)
        self.parallel = parallel
        self._pool: BorrowPool[Any] = BorrowPool(request, others)

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
        """Run once. Threads take turns, in the order in which they come. The arrays returned are new ones."""
        check_feeds(feeds, self.spec)
        with self._pool.borrow() as request:
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
                    f"({_line(error)}); check the bundle with t2v-edge inspect --verify"
                ) from error

    def close(self) -> None:
        self._pool.close()


def _requests(compiled: Any, count: int) -> list[Any]:
    return [compiled.create_infer_request() for _ in range(count)]


def _round_before_transposing(model: Any) -> None:
    """Change each output Convert(Round(Transpose(x))) to Transpose(Convert(Round(x))), in place.

    Graphs end the first way because TensorRT knows uint8 only at a graph's border. The second way transposes a quarter
    of the bytes, as one with a layout change that the plugin does anyway. Every element stays the same.
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
    """Change each Transpose of bytes (a, b, 2, c) to (a, 2, b, c) into a split and a join of the halves, in place.

    INT8 doublings in phases are laid out so. The plugin's Transpose moves 64 bytes of a run at a time with AVX-512, and
    the rest byte by byte. So it keeps runs of whole 64 bytes, and small tensors.
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
    """Whether a tensor is of bytes, or becomes so when the plugin moves the scale that it is dequantized by."""
    while value.get_element_type().size != 1:
        node = value.get_node()
        if node.get_type_name() not in ("Reshape", "Transpose", "Multiply", "Subtract", "Convert"):
            return False
        value = node.input_value(0)
    return True


def _line(error: Exception) -> str:
    """OpenVINO's message on one line, without places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return "; ".join(kept) or " ".join(lines)
