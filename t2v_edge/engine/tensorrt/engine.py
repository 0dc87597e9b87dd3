"""TensorRT and TensorRT-RTX: a stage's engine in GPU memory, run as a CUDA graph."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Callable, Optional

import numpy as np
import numpy.typing as npt

from t2v_edge.engine.base import check_feeds
from t2v_edge.engine.tensorrt.api import TensorRt
from t2v_edge.engine.tensorrt.cuda import CudaEvent, CudaGraph, CudaStream, DeviceBuffer, HostBuffer, MixKernel
from t2v_edge.errors import EngineError
from t2v_edge.spec import Arrays, StageSpec, TensorSpec

_LOG = logging.getLogger(__name__)


class GpuQueue:
    """What the engines and players of a pipeline enqueue their work in, and a lock for those who do.

    Engines keep scratch memory that two runs must not use at once, so each stage has its CUDA stream: text and motion
    are in `motion`, the renderer in `render`, and its frames are copied out in `copies`. A frame is so rendered beside
    the motion of the next and the copy of the last, where frames are made ahead or several streams play. Counts its
    users: the last to `release` it closes it.
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
        """Until all that was enqueued is done."""
        for stream in self._streams:
            stream.wait()


class TensorRtEngine:
    """A built engine, loaded. `batch`: frames it makes at once; `spec` stays that of one.

    `run` copies in, replays the engine as a CUDA graph, copies out and waits; `bind` and `enqueue` are for a player
    that keeps everything on the GPU. Raises `EngineError` where the engine is not what `spec` says.
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
        self.layers: int = self._engine.num_layers  # kernels, about: what the builder fused is one
        self.dtypes = self._check(api.module)
        self.queue = queue.acquire()
        self.stream = queue.render if spec.stage == "render" else queue.motion
        self._bound: Optional[_Buffers] = None

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
        # an input that the graph does not read is no input of the engine
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

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; threads take turns. The arrays returned are new ones, of batch 1 whatever `batch` is."""
        check_feeds(feeds, self.spec)
        with self.queue.lock:
            if self._bound is None:
                self._bound = _Buffers(self)
            return self._bound.run(feeds)

    def time_ms(self, runs: int) -> list[float]:
        """Milliseconds of each of `runs` runs on the GPU, without copies; after a `run`, on what it was fed."""
        with self.queue.lock:
            if self._bound is None:
                raise EngineError(f"the {self.spec.stage} engine has not run yet; run it before timing it")
            return self._bound.time_ms(runs)

    def close(self) -> None:
        with self.queue.lock:
            if self._context is None:
                return
            self.stream.wait()
            if self._bound is not None:
                self._bound.close()
            self._context = self._engine = self._runtime = self._bound = None
        self.queue.release()

    def __enter__(self) -> TensorRtEngine:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


class EngineReplay:
    """An engine's run on fixed addresses, with what else `work` enqueues around it; as one CUDA graph where that can be
    captured, else enqueued anew at each launch, which is slower.

    The engine runs once before, for it allocates some things lazily. Hold `queue.lock`.
    """

    def __init__(
        self, engine: TensorRtEngine, addresses: Mapping[str, int], work: Optional[Callable[[], None]] = None
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


class _Buffers:
    """Host and device memory of an engine's tensors, and the engine's run between them as a graph."""

    def __init__(self, engine: TensorRtEngine) -> None:
        self._engine = engine
        self._host = {
            t.name: self._pinned(t) for t in (*engine.spec.inputs, *engine.spec.outputs) if t.name in engine.dtypes
        }
        self._device = {name: DeviceBuffer(host.nbytes) for name, host in self._host.items()}
        self._addresses = {name: buffer.address for name, buffer in self._device.items()}
        self._replay = EngineReplay(engine, self._addresses)

    def _pinned(self, tensor: TensorSpec) -> HostBuffer:
        return HostBuffer((self._engine.batch, *tensor.shape[1:]), self._engine.dtypes[tensor.name])

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        stream, spec = self._engine.stream, self._engine.spec
        for tensor in spec.inputs:
            if tensor.name in self._host:
                host = self._host[tensor.name]
                host.array[...] = feeds[tensor.name]
                stream.copy_in(self._addresses[tensor.name], host)
        self._replay.launch()
        for tensor in spec.outputs:
            stream.copy_out(self._host[tensor.name], self._addresses[tensor.name])
        stream.wait()
        return {t.name: self._host[t.name].array[:1].astype(t.dtype) for t in spec.outputs}

    def time_ms(self, runs: int) -> list[float]:
        stream, (start, end) = self._engine.stream, (CudaEvent(timed=True), CudaEvent(timed=True))
        times = []
        for _ in range(runs):
            start.record(stream)
            self._replay.launch()
            end.record(stream)
            end.wait()
            times.append(end.since_ms(start))
        start.close()
        end.close()
        return times

    def close(self) -> None:
        self._replay.close()
        for device in self._device.values():
            device.close()
        for host in self._host.values():
            host.close()
