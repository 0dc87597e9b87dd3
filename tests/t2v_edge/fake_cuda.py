"""A GPU of plain memory: what is called of cuda-python, and no more.

Work in a stream is done when somebody waits for it and not before, that of several streams in any order that their
events allow. What is captured is kept and done at each launch. The real one is met in benchmarks/gpu.
"""

from __future__ import annotations

import ctypes
import enum
import random
import threading
import types
from collections import Counter, defaultdict, deque

import numpy as np


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1


class FakeCuda:
    """State of the fake device. `memory`: address -> what keeps it alive; `launches` counts graph launches. seed: of
    the order in which streams that need not wait for each other do their work; `streams` have had any."""

    def __init__(self, integrated=False, name="NVIDIA Fake", seed=0):
        self.integrated, self.name = integrated, name
        self.memory = {}
        self.capturing = None
        self.graphs = {}
        self.launches = 0
        self.frees = 0
        self.streams = set()
        self._queues = defaultdict(deque)  # stream -> triples: whether it may be done now, what, and where
        self._records, self._reached = Counter(), Counter()  # event -> how often, as enqueued and as done
        self._random, self._lock = random.Random(seed), threading.RLock()

    def enqueue(self, stream, work, touched=(), may=lambda: True):
        """touched: the addresses at which it reads and writes."""
        with self._lock:
            if self.capturing is None:
                self.streams.add(stream)
                self._queues[stream].append((may, work, touched))
            else:
                captured, kept = self.capturing
                assert stream == captured, "work in another stream than the one that is captured"
                kept.append((work, touched))
        return (Error.cudaSuccess,)

    def record(self, event, stream):
        with self._lock:
            self._records[event] += 1
            count = self._records[event]
        return self.enqueue(stream, lambda: self._reached.update({event: count - self._reached[event]}))

    def wait_for(self, stream, event):
        """Of an event that is recorded again later, the record that there is now counts."""
        count = self._records[event]
        return self.enqueue(stream, lambda: None, may=lambda: self._reached[event] >= count)

    def wait(self, stream=None, event=None):
        """Until a stream has nothing to do, or an event was reached; others get on with theirs meanwhile, or not."""
        with self._lock:
            count = self._records[event]
            while self._queues[stream] if event is None else self._reached[event] < count:
                ready = [queue for queue in self._queues.values() if queue and queue[0][0]()]
                self._random.choice(ready).popleft()[1]()
        return (Error.cudaSuccess,)

    def allocate(self, nbytes):
        block = np.full(nbytes + 256, 0xA5, np.uint8)  # poison: what is never written shows
        address = (block.ctypes.data + 255) // 256 * 256
        with self._lock:
            self.memory[address] = block
        return (Error.cudaSuccess, address)

    def free(self, address):
        with self._lock:
            block = self.memory.pop(int(address), None)
            if block is None:
                return (Error.cudaErrorInvalidValue,)
            waiting = [at for queue in self._queues.values() for _, _, touched in queue for at in touched]
            assert not any(0 <= at - address < block.size - 256 for at in waiting), "freed before its work is done"
            self.frees += 1
        return (Error.cudaSuccess,)


def runtime_module(gpu):
    """A stand-in for ``cuda.bindings.runtime``."""
    ok = (Error.cudaSuccess,)
    module = types.ModuleType("cuda.bindings.runtime")
    handles = iter(range(1, 10**9))

    def begin(stream, mode):
        gpu.capturing = (stream, [])
        return ok

    def end_capture(stream):
        (_, work), gpu.capturing = gpu.capturing, None
        graph = next(handles)
        gpu.graphs[graph] = work
        return (Error.cudaSuccess, graph)

    def launch(executable, stream):
        gpu.launches += 1
        for work, touched in gpu.graphs[executable]:
            gpu.enqueue(stream, work, touched)
        return ok

    def instantiate(graph, flags):
        executable = next(handles)
        gpu.graphs[executable] = gpu.graphs[graph]
        return (Error.cudaSuccess, executable)

    properties = types.SimpleNamespace(
        name=gpu.name.encode(),
        major=8,
        minor=7,
        integrated=int(gpu.integrated),
        totalGlobalMem=8 << 30,
        multiProcessorCount=8,
    )
    module.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    module.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    module.cudaHostAllocMapped, module.cudaStreamNonBlocking = 2, 1
    module.cudaEventDefault, module.cudaEventDisableTiming = 0, 2
    functions = {
        "cudaGetDeviceCount": lambda: (Error.cudaSuccess, 1),
        "cudaGetDevice": lambda: (Error.cudaSuccess, 0),
        "cudaSetDevice": lambda index: ok,
        "cudaGetDeviceProperties": lambda index: (Error.cudaSuccess, properties),
        "cudaDriverGetVersion": lambda: (Error.cudaSuccess, 12060),
        "cudaMemGetInfo": lambda: (Error.cudaSuccess, 4 << 30, 8 << 30),
        "cudaMalloc": gpu.allocate,
        "cudaMemset": lambda address, value, count: (ctypes.memset(address, value, count), ok)[1],
        "cudaFree": lambda address: ok if address == 0 else gpu.free(address),
        "cudaHostAlloc": lambda nbytes, flags: gpu.allocate(nbytes),
        "cudaHostGetDevicePointer": lambda address, flags: (Error.cudaSuccess, address),
        "cudaFreeHost": gpu.free,
        "cudaStreamCreateWithFlags": lambda flags: (Error.cudaSuccess, next(handles)),
        "cudaStreamDestroy": lambda stream: ok,
        "cudaStreamSynchronize": lambda stream: gpu.wait(stream),
        "cudaStreamWaitEvent": lambda stream, event, flags: gpu.wait_for(stream, event),
        "cudaStreamBeginCapture": begin,
        "cudaStreamEndCapture": end_capture,
        "cudaGraphInstantiate": instantiate,
        "cudaGraphDestroy": lambda graph: ok,
        "cudaGraphExecDestroy": lambda graph: (gpu.graphs.pop(graph), ok)[1],
        "cudaGraphLaunch": launch,
        "cudaMemcpyAsync": lambda to, of, count, kind, stream: gpu.enqueue(
            stream, lambda: ctypes.memmove(to, of, count), (to, of)
        ),
        "cudaEventCreateWithFlags": lambda flags: (Error.cudaSuccess, next(handles)),
        "cudaEventRecord": gpu.record,
        "cudaEventSynchronize": lambda event: gpu.wait(event=event),
        "cudaEventElapsedTime": lambda start, end: (Error.cudaSuccess, 0.5),
        "cudaEventDestroy": lambda event: ok,
    }
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def driver_module(gpu):
    """A stand-in for ``cuda.bindings.driver``: its one kernel is the mixing kernel."""
    module = types.ModuleType("cuda.bindings.driver")

    def mix(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
        (made, one, other, share, count), kinds = parameters
        assert len(kinds) == 5 and gx * bx >= count

        def work():
            to, before, after = (_floats(address, count) for address in (made, one, other))
            part = _floats(share, 1)[0]
            mixed = before + (after - before) * part
            to[:] = before if part <= 0 else after if part >= 1 else mixed

        return gpu.enqueue(stream, work, (made, one, other, share))

    module.cuModuleLoadData = lambda image: (Error.cudaSuccess, 1)
    module.cuModuleGetFunction = lambda loaded, name: (Error.cudaSuccess, 2)
    module.cuModuleUnload = lambda loaded: (Error.cudaSuccess,)
    module.cuLaunchKernel = mix
    return module


def _floats(address, count):
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(int(address)))
