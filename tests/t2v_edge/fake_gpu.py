"""A TensorRT that runs ONNX Runtime, on the GPU of `fake_cuda`: what is called of tensorrt, and no more.

The real libraries are met elsewhere: TensorRT-RTX's builder in test_tensorrt_rtx.py, TensorRT 8.6 in benchmarks/gpu.
"""

from __future__ import annotations

import ctypes
import enum
import sys
import types

import numpy as np
import onnx
import onnxruntime

from tests.t2v_edge.fake_cuda import FakeCuda, driver_module, runtime_module

__all__ = ["FakeCuda", "install", "tensorrt_module"]

HEADER = b"fake engine "


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
        kind = {
            "Cast": "CAST",
            "QuantizeLinear": "QUANTIZE",
            "DequantizeLinear": "DEQUANTIZE",
            "Conv": "CONVOLUTION",
            "Reshape": "SHUFFLE",
            "Constant": "CONSTANT",
        }
        self.type = trt.LayerType[kind.get(node.op_type, "ELEMENTWISE")]
        self.read = [types.SimpleNamespace(name=name) if name else None for name in node.input]
        # As TensorRT 8.6 has it: all that is floating is said to be float32.
        self.given = [
            types.SimpleNamespace(name=name, dtype=kinds.get(name, trt.DataType.INT32)) for name in node.output
        ]
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
        kinds = {
            v.name: trt.DataType.FLOAT
            for v in (*graph.value_info, *graph.output)
            if v.type.tensor_type.elem_type in floats
        }
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
    module.NetworkDefinitionCreationFlag = enum.IntEnum(
        "NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    )
    module.LayerType = enum.Enum(
        "LayerType",
        [
            "CONSTANT",
            "CAST",
            "SHAPE",
            "ELEMENTWISE",
            "UNARY",
            "REDUCE",
            "QUANTIZE",
            "DEQUANTIZE",
            "CONVOLUTION",
            "SHUFFLE",
        ],
    )
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
    """Put the stand-ins where the runtime looks, and have its modules imported again; returns the fake tensorrt."""
    runtime, driver, tensorrt = runtime_module(gpu), driver_module(gpu), tensorrt_module(gpu, version)
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    package.__path__ = bindings.__path__ = []
    bindings.runtime, bindings.driver, package.bindings = runtime, driver, bindings
    fakes = {
        "cuda": package,
        "cuda.bindings": bindings,
        "cuda.bindings.runtime": runtime,
        "cuda.bindings.driver": driver,
        "tensorrt": tensorrt,
    }
    for name, module in fakes.items():
        module.__spec__ = types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("cuda", "loaded", "player", "engine", "build"):
        monkeypatch.delitem(sys.modules, f"t2v_edge.engine.tensorrt.{name}", raising=False)
    return tensorrt
