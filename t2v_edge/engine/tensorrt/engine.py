"""TensorRT and TensorRT-RTX as an engine: a stage on the GPU, and players that stay there."""

from __future__ import annotations

from typing import Any, Optional

import numpy.typing as npt

from t2v_edge.bundle.draws import Draws
from t2v_edge.engine.base import Engine, Player, check_feeds
from t2v_edge.engine.tensorrt.cuda import CudaEvent, DeviceBuffer, HostBuffer
from t2v_edge.engine.tensorrt.loaded import EngineReplay, LoadedEngine
from t2v_edge.engine.tensorrt.player import ResidentPlayer
from t2v_edge.errors import EngineError
from t2v_edge.spec import Arrays, TensorSpec


class TensorRtEngine(LoadedEngine, Engine):
    """A built engine, loaded. `run` copies in, replays the engine as a CUDA graph, copies out and waits."""

    _buffers: Optional[_Buffers] = None

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; threads take turns. The arrays returned are new ones, of batch 1 for any `batch`."""
        check_feeds(feeds, self.spec)
        with self.queue.lock:
            if self._buffers is None:
                self._buffers = _Buffers(self)
            return self._buffers.run(feeds)

    def time_ms(self, runs: int) -> list[float]:
        """Milliseconds of each of `runs` runs on the GPU, without copies, on the inputs of the last `run`."""
        with self.queue.lock:
            if self._buffers is None:
                raise EngineError(f"the {self.spec.stage} engine has not run yet; run it before timing it")
            return self._buffers.time_ms(runs)

    def open_player(self, motion: Engine, draws: Draws, smoothing: float) -> Optional[Player]:
        """A player that keeps state and frames on the GPU, with a motion engine of the same queue."""
        if not isinstance(motion, TensorRtEngine) or motion.queue is not self.queue:
            return None
        return ResidentPlayer(motion, self, draws, smoothing)

    def close(self) -> None:
        with self.queue.lock:
            buffers, self._buffers = self._buffers, None
            if buffers is not None:
                self.stream.wait()
                buffers.close()
            super().close()


class _Buffers:
    """Memory of an engine's tensors on the host and on the GPU, and the run between them."""

    def __init__(self, engine: LoadedEngine) -> None:
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
