"""ONNX Runtime, on the CPU or, where its GPU package is installed, on CUDA."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Optional, Union

import numpy.typing as npt
import onnxruntime as ort

from t2v_edge.bundle.onnx_edit import opset_of
from t2v_edge.engine.base import EngineOptions, check_feeds
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
"""The first opset whose Q and DQ take float16 scales; graphs that have those alone are exported in it. ONNX Runtime
(1.32) fuses Q and DQ as if scales were float32: a QLinearConcat did not load, and biases overflowed (frames at 27 dB
instead of 61). Left as they are they compute what they say."""


class OnnxRuntimeEngine:
    """A stage's graph in an ONNX Runtime session, on the CPU or on CUDA (`cuda`).

    The motion step, a handful of small matrix products, runs on the calling thread, and no pool spins while it waits:
    measured on two cores, a second spinning pool took a 256x256 renderer from 25 to 50 ms, and a pool that sleeps
    costs nothing that could be told from noise. (I/O binding gained nothing either: 23.8 against 23.9 ms.)

    `beside`: callers of the renderer that gain by running at the same time, as they may in one session: two made 530
    frames a second where one made 310 (INT8, 256x256, two cores), the same ones.

    Raises `EngineError` where the graph cannot be loaded or is not what `spec` says.
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
        # Without it, on x86 with AVX2 or AVX-512 but no VNNI, pairs of 8-bit products are summed in 16 bits and clip:
        # a Gemm of normal weights was 65 % off. Other processors do not look at it, and weights of 7 bits cost no time.
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
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load the {spec.stage} graph ({error}); "
                "upgrade onnxruntime or export for a lower opset"
            ) from error
        self.spec = spec
        self.beside = options.beside if spec.stage == "render" and not cuda else 1
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

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def _providers(cuda: bool) -> list[Any]:
    """With CUDA: FP32 is computed as such, not in TensorFloat-32; what it has no kernel for runs on the CPU."""
    if not cuda:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise RuntimeError("this build has no CUDA; pip uninstall onnxruntime && pip install onnxruntime-gpu")
    return [("CUDAExecutionProvider", {"use_tf32": 0}), "CPUExecutionProvider"]
