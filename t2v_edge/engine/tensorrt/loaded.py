"""An engine of TensorRT or TensorRT-RTX in GPU memory: bound to addresses, enqueued, replayed as a CUDA graph."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any, Callable, Optional

import numpy as np

from t2v_edge.engine.tensorrt.api import TensorRt
from t2v_edge.engine.tensorrt.cuda import CudaGraph, CudaStream, MixKernel
from t2v_edge.errors import EngineError
from t2v_edge.spec import StageSpec

_LOG = logging.getLogger(__name__)


class GpuQueue:
    """The CUDA streams that a model's engines and players share. `lock`: held by whoever enqueues.

    Two runs of an engine must not overlap, because it keeps scratch memory. So each stage has its own stream: text and
    motion run in `motion`, the renderer in `render`, and frames are copied out in `copies`. A frame is then rendered
    while the next one's motion runs and the last one is copied: of frames made ahead, or of several streams. The queue
    counts its users, and the last `release` closes it.
    """

    def __init__(self) -> None:
        self.motion, self.render, self.copies = self._streams = (CudaStream(), CudaStream(), CudaStream())
        self.mix = MixKernel()
        self.lock = threading.RLock()
        self._users = 0

    def acquire(self) -> GpuQueue:
        with self.lock:
            self._users += 1
        return self

    def release(self) -> None:
        with self.lock:
            self._users -= 1
            if self._users == 0:
                self.mix.close()
                for stream in self._streams:
                    stream.close()

    def wait(self) -> None:
        """Wait until all that was enqueued is done."""
        for stream in self._streams:
            stream.wait()


class LoadedEngine:
    """A built engine in GPU memory, which runs on addresses there.

    `batch`: frames that it makes at once; `spec` stays the contract of one. `layers`: about as many kernels as it has.
    `dtypes`: its own types by tensor name. `stream`: where it runs. Raises `EngineError` for an engine that is not what
    `spec` says.
    """

    def __init__(self, api: TensorRt, engine: bytes, spec: StageSpec, queue: GpuQueue, batch: int = 1) -> None:
        self.name = api.name
        self.spec = spec
        self.batch = batch
        self._runtime, self._engine = api.load(engine)
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{self.name} cannot make room for the {spec.stage} engine; free GPU memory, or export "
                "with --recipe small"
            )
        self.layers: int = self._engine.num_layers
        self.dtypes = self._check(api.module)
        self.queue = queue.acquire()
        self.stream = queue.render if spec.stage == "render" else queue.motion

    def _check(self, module: Any) -> dict[str, np.dtype[Any]]:
        """The engine's own types by tensor name: TensorRT before 10 has int32 where ONNX has int64."""
        found: dict[str, np.dtype[Any]] = {}
        for position in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(position)
            shape = tuple(self._engine.get_tensor_shape(name))
            wanted = next((t for t in (*self.spec.inputs, *self.spec.outputs) if t.name == name), None)
            if wanted is None or shape != (self.batch, *wanted.shape[1:]):
                raise EngineError(
                    f"the {self.spec.stage} engine has a tensor {name} {list(shape)}, its contract says "
                    f"{'nothing of it' if wanted is None else list(wanted.shape)}; export again"
                )
            found[name] = np.dtype(module.nptype(self._engine.get_tensor_dtype(name)))
        missing = [t.name for t in (*self.spec.inputs, *self.spec.outputs) if t.name not in found]
        # an engine has no input that its graph does not read
        if any(t.name in missing for t in self.spec.outputs):
            raise EngineError(f"the {self.spec.stage} engine lacks {', '.join(missing)}; export the bundle again")
        return found

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where the next `enqueue` reads and writes, for every tensor that the engine has. Hold `queue.lock`."""
        if self._context is None:
            raise EngineError(f"the {self.spec.stage} engine is closed; open the pipeline again")
        for name in self.dtypes:
            if not self._context.set_tensor_address(name, addresses[name]):
                raise EngineError(f"{self.name} does not take the address of {name} in the {self.spec.stage} stage")

    def enqueue(self) -> None:
        """One run, in the engine's stream; does not wait. Hold `queue.lock`."""
        if self._context is None or not self._context.execute_async_v3(self.stream.handle):
            raise EngineError(f"{self.name} failed in the {self.spec.stage} stage; see t2v-edge doctor")

    def close(self) -> None:
        with self.queue.lock:
            if self._context is None:
                return
            self.stream.wait()
            self._context = self._engine = self._runtime = None
        self.queue.release()


class EngineReplay:
    """An engine's run on fixed addresses, as one CUDA graph. Hold `queue.lock`.

    work: enqueues the run and what belongs to it; None for the run alone. Work that cannot be captured is enqueued at
    each launch, which is slower. The engine runs once before the capture, because it allocates some things lazily.
    """

    def __init__(
        self, engine: LoadedEngine, addresses: Mapping[str, int], work: Optional[Callable[[], None]] = None
    ) -> None:
        self._engine, self._addresses, self._work = engine, addresses, work or engine.enqueue
        self._graph: Optional[CudaGraph] = None
        engine.bind(addresses)
        engine.enqueue()
        engine.stream.wait()
        try:
            with engine.stream.capture() as captured:
                self._work()
            self._graph = captured.graph
        except EngineError as error:
            _LOG.warning("the %s engine runs without a CUDA graph: %s", engine.spec.stage, error)

    def launch(self) -> None:
        """One run, in the engine's stream; does not wait."""
        if self._graph is None:
            self._engine.bind(self._addresses)
            self._work()
        else:
            self._graph.launch(self._engine.stream)

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
