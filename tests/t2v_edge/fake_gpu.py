"""A GPU of plain memory and a TensorRT that runs ONNX Runtime: what is called of cuda-python and tensorrt, and no more.

Work in a stream is done when somebody waits for it and not before, that of several streams in any order that their
events allow. What is captured is kept and done at each launch. The real libraries are met elsewhere: TensorRT-RTX's
builder in test_tensorrt_rtx.py, CUDA and TensorRT 8.6 in benchmarks/gpu.py.
"""

from __future__ import annotations

import ctypes
import enum
import random
import sys
import threading
import types
from collections import Counter, defaultdict, deque

import numpy as np
import onnx
import onnxruntime

HEADER = b"fake engine "


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

    properties = types.SimpleNamespace(name=gpu.name.encode(), major=8, minor=7, integrated=int(gpu.integrated),
                                       totalGlobalMem=8 << 30, multiProcessorCount=8)
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
            stream, lambda: ctypes.memmove(to, of, count), (to, of)),
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


class _Logger:
    def __init__(self):
        pass


class _Tensor:
    def __init__(self, info):
        self.name, self.shape = info.name, tuple(d.dim_value for d in info.type.tensor_type.shape.dim)


class _Layer:
    """A node, which remembers what it was told of its types."""

    def __init__(self, node, kinds, trt):
        self.name = node.name
        kind = {"Cast": "CAST", "QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "Conv": "CONVOLUTION",
                "Reshape": "SHUFFLE", "Constant": "CONSTANT"}
        self.type = trt.LayerType[kind.get(node.op_type, "ELEMENTWISE")]
        self.read = [types.SimpleNamespace(name=name) if name else None for name in node.input]
        # As TensorRT 8.6 has it: all that is floating is said to be float32.
        self.given = [types.SimpleNamespace(name=name, dtype=kinds.get(name, trt.DataType.INT32))
                      for name in node.output]
        self.precision, self.outputs = None, {}

    num_inputs = property(lambda self: len(self.read))
    num_outputs = property(lambda self: len(self.given))

    def get_input(self, position):
        return self.read[position]

    def get_output(self, position):
        return self.given[position]

    def set_output_type(self, position, kind):
        self.outputs[position] = kind


class _Network:
    def __init__(self, gpu, trt):
        self.gpu, self.trt, self.inputs, self.layers = gpu, trt, [], []

    num_inputs = property(lambda self: len(self.inputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, position):
        return self.inputs[position]

    def get_layer(self, position):
        return self.layers[position]


class _Parser:
    def __init__(self, network, logger):
        self.network = network

    num_errors = 0

    def parse(self, graph):
        if not self.network.trt.parses(self.network.flags):
            return False
        model = onnx.load_from_string(graph)
        self.network.model = model
        trt, graph = self.network.trt, onnx.shape_inference.infer_shapes(model).graph
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        kinds = {v.name: trt.DataType.FLOAT for v in (*graph.value_info, *graph.output)
                 if v.type.tensor_type.elem_type in floats}
        self.network.inputs = [_Tensor(info) for info in model.graph.input]
        self.network.layers = [_Layer(node, kinds, trt) for node in graph.node]
        return True


class _Config:
    def __init__(self):
        self.flags = set()

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def create_timing_cache(self, data):
        return types.SimpleNamespace(serialize=lambda: b"timing" if not data else bytes(data))

    def set_timing_cache(self, cache, ignore):
        return True

    def set_memory_pool_limit(self, pool, size):
        self.workspace = size

    def set_tactic_sources(self, mask):
        self.tactics = mask


class _Engine:
    def __init__(self, batch, model):
        self.batch, self.model = batch, model
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(model).graph
        self.num_layers = len(graph.node)
        self.tensors = {i.name: i for i in (*graph.input, *graph.output)}
        self.inputs = [i.name for i in graph.input]
        self.outputs = [o.name for o in graph.output]

    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, position):
        return list(self.tensors)[position]

    def get_tensor_shape(self, name):
        return (self.batch, *(d.dim_value for d in self.tensors[name].type.tensor_type.shape.dim[1:]))

    def get_tensor_dtype(self, name):
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.tensors[name].type.tensor_type.elem_type)
        return np.dtype(np.int32) if kind == np.int64 else kind  # as TensorRT before 10 has it

    def create_execution_context(self):
        return _Context(self)


class _Context:
    def __init__(self, engine):
        self.engine, self.addresses = engine, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream):
        addresses = dict(self.addresses)
        return self.engine.gpu.enqueue(stream, lambda: self._work(addresses), addresses.values())[0] == 0

    def _work(self, addresses):
        engine = self.engine

        def view(name):
            shape, kind = engine.get_tensor_shape(name), np.dtype(engine.get_tensor_dtype(name))
            size = int(np.prod(shape)) * kind.itemsize
            return np.frombuffer((ctypes.c_uint8 * size).from_address(addresses[name]), kind).reshape(shape)

        for row in range(engine.batch):
            feeds = {}
            for name in engine.inputs:
                kind = onnx.helper.tensor_dtype_to_np_dtype(engine.tensors[name].type.tensor_type.elem_type)
                feeds[name] = view(name)[row : row + 1].astype(kind)
            for name, made in zip(engine.outputs, engine.session.run(engine.outputs, feeds)):
                view(name)[row] = made[0]


def tensorrt_module(gpu, version="8.6.2"):
    """A stand-in for ``tensorrt`` of a version, whose engines are ONNX files. `spoil` changes a graph as it is built,
    `parses` says of a network's flags whether graphs can be parsed into it; `builds` lists what was built, `layers` has
    those of the last.
    """
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    module.spoil = lambda graph: graph
    module.parses = lambda flags: True
    module.builds = []
    module.ILogger = _Logger
    module.nptype = np.dtype
    weak = {"FP16": 1, "INT8": 2, "TF32": 4, "PREFER_PRECISION_CONSTRAINTS": 5}
    module.BuilderFlag = enum.IntEnum("BuilderFlag", weak if int(version.split(".")[0]) < 11 else {"TF32": 4})
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag",
                                                        {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1})
    module.LayerType = enum.Enum("LayerType", ["CONSTANT", "CAST", "SHAPE", "ELEMENTWISE", "UNARY", "REDUCE",
                                                 "QUANTIZE", "DEQUANTIZE", "CONVOLUTION", "SHUFFLE"])
    module.DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT32"])
    module.MemoryPoolType = enum.IntEnum("MemoryPoolType", {"WORKSPACE": 0})
    module.TacticSource = enum.IntEnum("TacticSource", {"CUBLAS": 0, "EDGE_MASK_CONVOLUTIONS": 3})
    module.OnnxParser = _Parser

    class Builder:
        def __init__(self, logger):
            pass

        def create_network(self, flags):
            self.flags = flags
            network = _Network(gpu, module)
            network.flags = flags
            return network

        def create_builder_config(self):
            return _Config()

        def build_serialized_network(self, network, config):
            batch = network.inputs[0].shape[0]
            for info in (*network.model.graph.input, *network.model.graph.output):
                info.type.tensor_type.shape.dim[0].dim_value = 1  # its engines run row by row
            graph = module.spoil(network.model.SerializeToString())
            module.layers = network.layers
            module.builds.append((sorted(flag.name for flag in config.flags), self.flags))
            if graph is None:
                return None
            return HEADER + bytes([batch]) + graph

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, data):
            if not data.startswith(HEADER):
                return None
            engine = _Engine(data[len(HEADER)], data[len(HEADER) + 1 :])
            engine.gpu = gpu
            return engine

    module.Builder, module.Runtime = Builder, Runtime
    return module


def install(monkeypatch, gpu, version="8.6.2"):
    """Put the stand-ins where the runtime looks, and have its modules imported anew; returns the fake tensorrt."""
    runtime, driver, tensorrt = runtime_module(gpu), driver_module(gpu), tensorrt_module(gpu, version)
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    package.__path__ = bindings.__path__ = []
    bindings.runtime, bindings.driver, package.bindings = runtime, driver, bindings
    fakes = {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.runtime": runtime,
             "cuda.bindings.driver": driver, "tensorrt": tensorrt}
    for name, module in fakes.items():
        module.__spec__ = types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("engine.cuda", "engine.tensorrt", "engine.resident", "build"):
        monkeypatch.delitem(sys.modules, f"t2v_edge.{name}", raising=False)
    return tensorrt
