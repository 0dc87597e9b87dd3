"""ONNX Runtime on the CPU, or on CUDA with its GPU package."""

from __future__ import annotations

from typing import Any, Union

import numpy.typing as npt
import onnxruntime as ort

from t2v_edge.bundle.onnx_edit import opset_of
from t2v_edge.engine.base import Engine, EngineOptions, check_feeds
from t2v_edge.errors import EngineError
from t2v_edge.spec import Arrays, StageSpec, TensorSpec

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

HALF_SCALES = 19
"""The first opset whose Q and DQ take float16 scales; only graphs with such scales are exported in it.

ONNX Runtime 1.32 fuses Q and DQ as if their scales were float32: a QLinearConcat does not load, and biases overflow.
Without that fusion they compute what they say.
"""


class OnnxRuntimeEngine(Engine):
    """A stage's graph in an ONNX Runtime session, on the CPU or on CUDA (`cuda`).

    The motion step is a handful of small matrix products and runs on the calling thread. No thread pool spins while it
    waits: two spinning pools slow each other down. `parallel`: callers that may run the renderer at the same time, in
    one session. Raises `EngineError` for a graph that cannot be loaded or is not what `spec` says.
    """

    def __init__(
        self, graph: Union[bytes, bytearray], spec: StageSpec, options: EngineOptions, cuda: bool = False
    ) -> None:
        self.name = "onnxruntime-cuda" if cuda else "onnxruntime"
        settings = ort.SessionOptions()
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.inter_op_num_threads = 1
        settings.intra_op_num_threads = 1 if spec.stage == "motion" else options.threads or 0
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Unless this is set, x86 with AVX2 or AVX-512 but no VNNI sums pairs of 8-bit products in 16 bits, which clips.
        # Other processors ignore it. It costs no time for weights of 7 bits.
        settings.add_session_config_entry("session.x64quantprecision", "1")
        if opset_of(bytes(graph)) >= HALF_SCALES:
            settings.add_session_config_entry("session.disable_quant_qdq", "1")
        settings.log_severity_level = 3
        try:
            session = ort.InferenceSession(
                bytes(graph),
                settings,
                providers=_providers(cuda),
            )
        except Exception as error:  # ONNX Runtime's exceptions have no other base
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load the {spec.stage} graph ({error}); "
                "upgrade onnxruntime or export for a lower opset"
            ) from error
        self.spec = spec
        self.parallel = options.parallel if spec.stage == "render" and not cuda else 1
        self._session: Any = session
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._check("takes", session.get_inputs(), spec.inputs)
        self._check("gives", session.get_outputs(), spec.outputs)

    def _check(self, verb: str, nodes: Any, wanted: tuple[TensorSpec, ...]) -> None:
        found = {node.name: (_DTYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes}
        expected = {tensor.name: (tensor.dtype, tensor.shape) for tensor in wanted}
        if found != expected:
            raise EngineError(
                f"the {self.spec.stage} graph {verb} {found}, its contract says {expected}; export the bundle again"
            )

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; thread-safe. The arrays returned are new ones."""
        if self._session is None:
            raise EngineError(f"the {self.spec.stage} engine is closed; open the pipeline again")
        check_feeds(feeds, self.spec)
        try:
            results = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime {ort.__version__} failed in the {self.spec.stage} stage ({error}); "
                "check the bundle with t2v-edge inspect --verify"
            ) from error
        return dict(zip(self._outputs, results))

    def close(self) -> None:
        self._session = None


def _providers(cuda: bool) -> list[Any]:
    """Where the graph runs. CUDA computes in FP32, not in TensorFloat-32. Nodes without a kernel run on the CPU."""
    if not cuda:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise RuntimeError("this build has no CUDA; pip uninstall onnxruntime && pip install onnxruntime-gpu")
    return [("CUDAExecutionProvider", {"use_tf32": 0}), "CPUExecutionProvider"]
