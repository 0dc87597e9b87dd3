"""ONNX Runtime's CUDA provider on a bundle's graphs, inputs and outputs bound to tensors on the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from benchmarks.gpu.material import Material
from benchmarks.gpu.methods import GpuMethod
from benchmarks.gpu.player import Call, Place, Player, blank_inputs
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.play.model import choose_variants
from t2v_edge.spec import StageSpec, TensorSpec

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64, "uint8": torch.uint8}


class NotInstalled(Exception):
    """What a method needs is not there; the message says what."""


class BoundCall(Call):
    """A session with its inputs and outputs bound once; a run waits until it is done, a session's default."""

    def __init__(self, session: Any, spec: StageSpec, batch: int, place: Place) -> None:
        super().__init__(blank_inputs(spec, batch, torch.float32, place.device), len(spec.states))
        self._session, self._binding = session, session.io_binding()
        self._outputs = tuple(
            torch.zeros((batch, *t.shape[1:]), dtype=TORCH_DTYPES[t.dtype], device=place.device) for t in spec.outputs
        )
        for tensor, known in zip(self.inputs, spec.inputs):
            self._binding.bind_input(*self._described(tensor, known))
        for tensor, known in zip(self._outputs, spec.outputs):
            self._binding.bind_output(*self._described(tensor, known))

    @staticmethod
    def _described(tensor: Tensor, spec: TensorSpec) -> tuple[Any, ...]:
        device = tensor.device
        return (
            spec.name,
            device.type,
            device.index or 0,
            np.dtype(spec.dtype).type,
            tuple(tensor.shape),
            tensor.data_ptr(),
        )

    def run(self) -> tuple[Tensor, ...]:
        self._session.run_with_iobinding(self._binding)
        return self._outputs


class OnnxRunner:
    """The stages of a bundle in sessions; see `Runner`. Raises `NotInstalled`, and what ONNX Runtime raises."""

    dtype = torch.float32

    def __init__(self, method: GpuMethod, material: Material, place: Place) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise NotInstalled("onnxruntime is not installed") from error
        wanted = CUDA if place.on_gpu else CPU
        if wanted not in onnxruntime.get_available_providers():
            version = onnxruntime.__version__
            raise NotInstalled(f"onnxruntime-gpu is not installed: onnxruntime {version} has no {wanted}")
        if material.bundle is None:
            raise NotInstalled(f"no --bundle of {material.name} was given")
        self.material, self.place = material, place
        self._runtime, self._provider = onnxruntime, wanted
        self._captures = method.captures
        with Bundle.open(material.bundle) as bundle:
            if method.precision not in bundle.manifest.variants:
                raise NotInstalled(
                    f"the bundle has no {method.precision} variant, only "
                    f"{', '.join(bundle.manifest.variants)}; export it with --ship all"
                )
            self.specs = bundle.manifest.stages
            variants = choose_variants(bundle.manifest, method.precision)
            self._graphs = {stage: bundle.graph(variant, stage) for stage, variant in variants.items()}
        self.notes: dict[str, Any] = {"variants": variants, "provider": wanted}
        self._calls: dict[tuple[str, int], Call] = {}

    def text(self) -> Call:
        return self._call("text", 1)

    def motion(self) -> Call:
        return self._call("motion", 1)

    def render(self, batch: int) -> Call:
        return self._call("render", batch)

    def player(self, batch: int) -> Player:
        return Player(self.material.checkpoint, self.material.tokenizer, self, batch)

    def _call(self, stage: str, batch: int) -> Call:
        if (stage, batch) not in self._calls:
            graph = self._graphs[stage] if batch == 1 else with_batch(self._graphs[stage], batch)
            session = self._runtime.InferenceSession(graph, self._options(), providers=[self._providing()])
            if session.get_providers()[0] != self._provider:
                raise NotInstalled(
                    f"ONNX Runtime fell back to {session.get_providers()[0]}: {self._provider} does not start here"
                )
            self._calls[stage, batch] = BoundCall(session, self.specs[stage], batch, self.place)
        return self._calls[stage, batch]

    def _options(self) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        return options

    def _providing(self) -> Any:
        if not self.place.on_gpu:
            return self._provider
        # Our stream, so that events around a run and copies after it are in order with it; no TF32, as elsewhere.
        return self._provider, {
            "device_id": self.place.device.index or 0,
            "use_tf32": "0",
            "enable_cuda_graph": str(int(self._captures)),
            "user_compute_stream": str(self.place.stream.cuda_stream),
        }


def with_batch(graph: bytes, batch: int) -> bytes:
    """The same graph for another batch: the first dimension of inputs and outputs, and no shapes noted in between.

    A graph that holds its batch in a constant then fails in the session or gives frames that the comparison shows.
    """
    model = onnx.load_from_string(graph)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    changed: bytes = model.SerializeToString()
    return changed
