"""The parts of CUDA that GPU engines need, through cuda-python: memory, streams, graphs, events, one small kernel.

Every object has `close`, and every call's error code is checked.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

try:
    from cuda.bindings import driver
    from cuda.bindings import runtime as cudart
except ImportError:  # before cuda-python 12.6, as on JetPack 6.0
    from cuda import cuda as driver
    from cuda import cudart

from t2v_edge.errors import EngineError

ALIGNMENT = 256
"""TensorRT wants addresses that are multiples of this."""

THREADS = 256

MIX_PTX = b"""
.version 6.4
.target sm_70
.address_size 64
.visible .entry mix(.param .u64 made, .param .u64 one, .param .u64 other, .param .u64 share, .param .u32 count)
{
  .reg .pred %p<4>;
  .reg .f32 %f<7>;
  .reg .b32 %r<5>;
  .reg .b64 %rd<10>;
  ld.param.u64 %rd1, [made];
  ld.param.u64 %rd2, [one];
  ld.param.u64 %rd3, [other];
  ld.param.u64 %rd4, [share];
  ld.param.u32 %r1, [count];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.u32 %r2, %r2, %r3, %r4;
  setp.ge.u32 %p1, %r2, %r1;
  @%p1 bra done;
  ld.volatile.global.f32 %f1, [%rd4];
  mul.wide.u32 %rd5, %r2, 4;
  add.u64 %rd6, %rd2, %rd5;
  add.u64 %rd7, %rd3, %rd5;
  add.u64 %rd8, %rd1, %rd5;
  ld.global.f32 %f2, [%rd6];
  ld.global.f32 %f3, [%rd7];
  sub.rn.f32 %f4, %f3, %f2;
  mul.rn.f32 %f4, %f4, %f1;
  add.rn.f32 %f4, %f2, %f4;
  setp.le.f32 %p2, %f1, 0f00000000;
  setp.ge.f32 %p3, %f1, 0f3F800000;
  selp.f32 %f5, %f2, %f4, %p2;
  selp.f32 %f6, %f3, %f5, %p3;
  st.global.f32 [%rd8], %f6;
done:
  ret;
}
\0"""
"""A kernel: ``made[i] = mix(one[i], other[i], *share)``, rounded as `t2v_edge.play.clock.mix` rounds.

It has no fused multiply-add. It is PTX, which every driver compiles by itself, so a device needs no nvcc and no NVRTC.
"""


@dataclass(frozen=True)
class Gpu:
    """The GPU in use.

    `driver`: the version of NVIDIA's driver or L4T kernel module, or else CUDA's. `integrated`: it shares the
    processor's memory, as on a Jetson. `memory_bytes`: in all.
    """

    name: str
    compute_capability: str
    driver: str
    integrated: bool
    memory_bytes: int
    multiprocessors: int


def check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a cuda-python call, or the values. Raises `EngineError`, which names what failed."""
    error, *values = result
    if int(error) != 0:
        raise EngineError(f"CUDA cannot {what} ({getattr(error, 'name', error)}); see t2v-edge doctor")
    return values[0] if len(values) == 1 else tuple(values)


def find_gpu() -> Gpu:
    """The current device. Raises `EngineError` without a GPU or its driver."""
    count = check(cudart.cudaGetDeviceCount(), "find a GPU")
    if count < 1:
        raise EngineError("there is no NVIDIA GPU; take --engine onnxruntime")
    index = check(cudart.cudaGetDevice(), "choose a GPU")
    properties = check(cudart.cudaGetDeviceProperties(index), "read the GPU's properties")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(
        name.rstrip("\0"),
        f"{properties.major}.{properties.minor}",
        _driver_version(),
        bool(properties.integrated),
        int(properties.totalGlobalMem),
        int(properties.multiProcessorCount),
    )


def free_bytes() -> int:
    """Bytes of free GPU memory."""
    return int(check(cudart.cudaMemGetInfo(), "read the free memory")[0])


def _driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text("utf-8", "replace")
        found = re.search(r"\b(\d{3,}(?:\.\d+)+)\b", text)
        if found:
            return found[1]
    except OSError:
        pass
    return f"CUDA {check(cudart.cudaDriverGetVersion(), 'read the driver version')}"


class DeviceBuffer:
    """GPU memory, zeroed. `address` is a multiple of `ALIGNMENT`."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = max(nbytes, ALIGNMENT)
        self.address = int(check(cudart.cudaMalloc(self.nbytes), f"take {self.nbytes} bytes of GPU memory"))
        check(cudart.cudaMemset(self.address, 0, self.nbytes), "clear GPU memory")
        check(cudart.cudaStreamSynchronize(0), "clear GPU memory")  # our streams do not wait for that one

    def close(self) -> None:
        if self.address:
            cudart.cudaFree(self.address)
            self.address = 0


class HostBuffer:
    """Pinned host memory of a shape and type, which GPU and processor both reach.

    `array`: its view on the processor. `address`: for copies. `device_address`: for kernels; a GPU that shares the
    processor's memory then copies nothing.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        kind = np.dtype(dtype)
        self.nbytes = max(int(np.prod(shape, dtype=np.int64)) * kind.itemsize, 1)
        self.address = int(
            check(cudart.cudaHostAlloc(self.nbytes, cudart.cudaHostAllocMapped), f"pin {self.nbytes} bytes of memory")
        )
        self.device_address = int(check(cudart.cudaHostGetDevicePointer(self.address, 0), "map pinned memory"))
        block = (ctypes.c_uint8 * self.nbytes).from_address(self.address)
        self.array: npt.NDArray[Any] = np.ndarray(shape, kind, memoryview(block))
        self.array[...] = 0

    def close(self) -> None:
        if self.address:
            self.array = np.empty(0, self.array.dtype)
            cudart.cudaFreeHost(self.address)
            self.address = 0


class CudaEvent:
    """A point in a stream. Two `timed` events can be subtracted."""

    def __init__(self, timed: bool = False) -> None:
        flags = cudart.cudaEventDefault if timed else cudart.cudaEventDisableTiming
        self.handle = check(cudart.cudaEventCreateWithFlags(flags), "make an event")

    def record(self, stream: CudaStream) -> None:
        check(cudart.cudaEventRecord(self.handle, stream.handle), "record an event")

    def wait(self) -> None:
        """Wait until the stream reaches this event. Raises `EngineError` if the work before it failed."""
        check(cudart.cudaEventSynchronize(self.handle), "finish its work")

    def since_ms(self, start: CudaEvent) -> float:
        return float(check(cudart.cudaEventElapsedTime(start.handle, self.handle), "read a time"))

    def close(self) -> None:
        if self.handle is not None:
            cudart.cudaEventDestroy(self.handle)
            self.handle = None


class CudaGraph:
    """Work that is captured once and launched with one call. Its addresses are fixed."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def launch(self, stream: CudaStream) -> None:
        check(cudart.cudaGraphLaunch(self._executable, stream.handle), "launch a graph")

    def close(self) -> None:
        if self._executable is not None:
            cudart.cudaGraphExecDestroy(self._executable)
            self._executable = None


class CapturedGraph:
    """The result of `CudaStream.capture`. `graph` exists after the block."""

    graph: CudaGraph


class CudaStream:
    """A queue of GPU work, in order. `handle` is what TensorRT takes, as an integer."""

    def __init__(self) -> None:
        check(cudart.cudaSetDevice(0), "choose the GPU")
        self._stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "make a stream")
        self.handle = int(self._stream)

    def copy_in(self, target: int, source: HostBuffer) -> None:
        self._copy(target, source.address, source.nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def copy_out(self, target: HostBuffer, source: int) -> None:
        self._copy(target.address, source, target.nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, target: int, source: int, nbytes: int, kind: Any) -> None:
        check(cudart.cudaMemcpyAsync(target, source, nbytes, kind, self.handle), f"copy {nbytes} bytes")

    def wait(self) -> None:
        check(cudart.cudaStreamSynchronize(self.handle), "finish its work")

    def wait_for(self, event: CudaEvent) -> None:
        """Make work enqueued from now on wait for an event of another stream. Returns at once."""
        check(cudart.cudaStreamWaitEvent(self.handle, event.handle, 0), "order its work")

    @contextmanager
    def capture(self) -> Iterator[CapturedGraph]:
        """Turn what the block enqueues into a graph, instead of running it. An exception in the block drops it."""
        captured = CapturedGraph()
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self.handle, mode), "begin a capture")
        try:
            yield captured
        except BaseException:
            cudart.cudaStreamEndCapture(self.handle)
            raise
        graph = check(cudart.cudaStreamEndCapture(self.handle), "end a capture")
        try:
            captured.graph = CudaGraph(check(cudart.cudaGraphInstantiate(graph, 0), "make a graph"))
        finally:
            cudart.cudaGraphDestroy(graph)

    def close(self) -> None:
        if self._stream is not None:
            cudart.cudaStreamDestroy(self._stream)
            self._stream = None


class MixKernel:
    """The kernel of `MIX_PTX`, loaded."""

    def __init__(self) -> None:
        check(cudart.cudaFree(0), "start")
        self._module: Optional[Any] = check(driver.cuModuleLoadData(MIX_PTX), "compile its mixing kernel")
        self._function = check(driver.cuModuleGetFunction(self._module, b"mix"), "find its mixing kernel")

    def enqueue(self, stream: CudaStream, made: int, one: int, other: int, share: int, count: int) -> None:
        """Mix `count` float32 values at `one` and `other` into `made`, by the share at the address `share`."""
        values = (made, one, other, share, count)
        kinds = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
        blocks = (count + THREADS - 1) // THREADS
        check(
            driver.cuLaunchKernel(self._function, blocks, 1, 1, THREADS, 1, 1, 0, stream.handle, (values, kinds), 0),
            "launch its mixing kernel",
        )

    def close(self) -> None:
        if self._module is not None:
            driver.cuModuleUnload(self._module)
            self._module = None
