"""One interface to TensorRT 8.6, 10, 11 and TensorRT-RTX: an ONNX graph becomes a serialized engine, and is loaded.

This file holds what differs among them. TensorRT 8.6 takes the precision as builder flags. From 10.12 on, and in
TensorRT-RTX, the graph's own types decide (strong typing); 11 has no such flags. The versions between know both. They
build graphs with float16 by their types. They build INT8 graphs by flags, because the float32 rest may be float16.

The parser reads opsets up to 17 in 8.6, 20 in 10 and 25 in 11. 8.6 parses opset 18 without an error and computes it
wrongly, so the limit stands here.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Optional

from t2v_edge.bundle.onnx_edit import float16_tensors, with_batch
from t2v_edge.errors import EngineError, UsageError

MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Engine name -> the modules that may hold it. The first one found counts."""

REMEDIES = {
    "tensorrt": "it comes with JetPack or NVIDIA's packages: on a Jetson make the environment with python3 -m venv "
    "--system-site-packages",
    "tensorrt-rtx": "pip install 't2v-edge[rtx]'",
}

OLDEST = (8, 6)
TYPED_SINCE, FLAGS_UNTIL = (10, 0), (10, 12)
"""The version that first builds a graph by its types, and the first in which flags are deprecated."""

OPSET_CAPS = ((11, 25), (10, 20), (8, 17))
"""(major version, newest opset that its parser reads correctly), newest first. TensorRT-RTX is like 11."""

RUNS = ("fp32", "fp16", "int8", "int8-fp16")
"""Precisions of graphs that TensorRT takes. It refuses or misreads the unsigned activations of `int8-u8`."""

MAX_SAID = 3
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built. They are part of its key in the cache.

    batch: frames at once, 1 to 64, in place of the graph's batch of 1. workspace_bytes: the most that a layer may use,
    at least 1 MiB. optimization_level: 0 (quick build) to 5 (quick engine). tactic_sources: names of those allowed,
    such as ``edge_mask_convolutions``; empty for TensorRT's own kernels only. None leaves each to TensorRT. Raises
    `UsageError` for values out of range.
    """

    batch: int = 1
    workspace_bytes: Optional[int] = None
    optimization_level: Optional[int] = None
    tactic_sources: Optional[tuple[str, ...]] = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 64:
            raise UsageError(f"batch is {self.batch}, expected 1 to 64")
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise UsageError(f"workspace is {self.workspace_bytes} bytes, expected at least a megabyte")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization level is {self.optimization_level}, expected 0 to 5")

    def to_json(self) -> dict[str, Any]:
        sources = None if self.tactic_sources is None else sorted(self.tactic_sources)
        return {**vars(self), "tactic_sources": sources}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BuildSettings:
        """The settings that `to_json` wrote. Raises `KeyError`, `TypeError` or `UsageError` for anything else."""
        sources = data["tactic_sources"]
        return cls(
            data["batch"],
            data["workspace_bytes"],
            data["optimization_level"],
            None if sources is None else tuple(map(str, sources)),
        )


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine, and the timing cache with this build's measurements; empty for an API without one."""

    engine: bytes
    timing_cache: bytes


@dataclass(frozen=True)
class BuildStrategy:
    """How to build.

    typed: by the graph's types and not by flags. held: by flags, with layers held to the graph's types. loosely:
    held, except layers that only move numbers, see `TensorRt._keep_types`.
    """

    typed: bool = False
    held: bool = False
    loosely: bool = False


class TensorRt:
    """An installed TensorRT. `name`: the engine's. `version`: as a tuple. `module`: the Python module."""

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.module = module
        self.version_text = str(getattr(module, "__version__", "0"))
        self.version = _version(self.version_text)
        self.rtx = name == "tensorrt-rtx"
        self.log = _make_logger(module)
        if not self.rtx and self.version < OLDEST:
            raise EngineError(
                f"TensorRT {self.version_text} is older than 8.6, the oldest that is supported; "
                "upgrade JetPack to 6.0 or later, or take --engine onnxruntime"
            )

    def types(self, precision: str) -> bool:
        """Whether a graph of that precision is built by its types, and not by flags."""
        return not self._flags or (self.version >= TYPED_SINCE and precision.endswith("fp16"))

    @property
    def _flags(self) -> bool:
        """Whether builder flags for precision exist."""
        return not self.rtx and self.version < FLAGS_UNTIL

    @property
    def opset_cap(self) -> int:
        """The newest ONNX opset that this parser reads correctly."""
        if self.rtx:
            return OPSET_CAPS[0][1]
        return next(cap for major, cap in OPSET_CAPS if self.version >= (major,))

    def build(
        self, graph: bytes, precision: str, opset: int, settings: BuildSettings, timing_cache: bytes = b""
    ) -> BuiltEngine:
        """Parse and build. Only TensorRT-RTX builds without a GPU. Raises `EngineError` naming the failed node."""
        if precision not in RUNS:
            raise EngineError(f"{self.name} runs no {precision} graphs, but {', '.join(RUNS)}; export int8 for it")
        if opset > self.opset_cap:
            raise EngineError(
                f"the graph has opset {opset}, {self.name} {self.version_text} reads up to "
                f"{self.opset_cap}; export for this device (--device) to have it capped"
            )
        strategies = self._strategies(precision)
        for strategy in strategies:
            self.log.start()
            try:
                made = self._attempt(graph, precision, settings, timing_cache, strategy)
            except EngineError as error:
                if not strategy.typed or strategy is strategies[-1]:
                    raise
                _LOG.info("%s; building by flags instead", error)
                continue
            if made is not None:
                return made
        raise EngineError(self._failed(f"cannot build the {precision} engine"))

    def _strategies(self, precision: str) -> tuple[BuildStrategy, ...]:
        """How to build a graph of that precision, in the order to try."""
        strategies = [BuildStrategy(typed=True)] if self.types(precision) else []
        if self._flags:
            strategies.append(BuildStrategy(held=precision != "fp32"))
            if precision == "fp16":  # in INT8 no reshape is held
                strategies.append(BuildStrategy(held=True, loosely=True))
        return tuple(strategies)

    def _attempt(
        self, graph: bytes, precision: str, settings: BuildSettings, timing_cache: bytes, strategy: BuildStrategy
    ) -> Optional[BuiltEngine]:
        """One build; None if TensorRT finds no engine."""
        trt = self.module
        builder = trt.Builder(self.log)
        if builder is None:
            raise EngineError(self._failed("cannot make a builder"))
        flags = 0
        if strategy.typed:
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        elif hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse(with_batch(graph, settings.batch)):
            raise EngineError(self._parse_error(parser))
        config = builder.create_builder_config()
        self._configure(config, precision, settings, strategy.typed)
        if strategy.held:
            config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
            self._keep_types(network, float16_tensors(graph), precision, strategy.loosely)
        cache = None if self.rtx else config.create_timing_cache(timing_cache)
        if cache is not None and not config.set_timing_cache(cache, False):
            # a cache of another GPU or version: measure again
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            return None
        return BuiltEngine(bytes(serialized), b"" if cache is None else bytes(cache.serialize()))

    def load(self, engine: bytes) -> tuple[Any, Any]:
        """A runtime and its engine in GPU memory. The runtime must outlive the engine.

        Only for bytes that were built here: loading an engine runs its code. Raises `EngineError`.
        """
        self.log.start()
        runtime = self.module.Runtime(self.log)
        loaded = runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            raise EngineError(self._failed("cannot load an engine it built"))
        return runtime, loaded

    def _configure(self, config: Any, precision: str, settings: BuildSettings, typed: bool) -> None:
        trt = self.module
        if hasattr(trt.BuilderFlag, "TF32"):
            # Other precisions are compared with FP32, and TensorFloat-32 has float16's mantissa.
            config.clear_flag(trt.BuilderFlag.TF32)
        if not typed and precision != "fp32":
            # Without FP16, what INT8 leaves over would run in FP32.
            config.set_flag(trt.BuilderFlag.FP16)
            if precision.startswith("int8"):
                config.set_flag(trt.BuilderFlag.INT8)
        if settings.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
        if settings.optimization_level is not None:
            config.builder_optimization_level = settings.optimization_level
        if settings.tactic_sources is not None and not self.rtx:
            config.set_tactic_sources(_mask(trt.TacticSource, settings.tactic_sources))

    def _keep_types(self, network: Any, halves: Mapping[str, bool], precision: str, loosely: bool) -> None:
        """Hold layers to the types that the graph gives them, because the export leaves float32 where it is needed.

        Left to itself, TensorRT 8.6 takes float16 for layers that float16 spoils. A graph that quantizes has all the
        rest in float32. Of that rest only arithmetic away from quantizations is held; layers next to a quantization
        fuse with it. halves: which of the graph's tensors are float16. loosely: do not hold layers that only move
        numbers, except constants' reshapes, because TensorRT 8.6 cannot build with all of them held. What it compiles
        as a whole may still be in float16, see docs/decisions.md. The check of each engine finds that.
        """
        trt = self.module
        kind = trt.LayerType
        layers = [network.get_layer(position) for position in range(network.num_layers)]
        types = self._types(layers, halves)
        ends = {
            tensor for layer in layers if layer.type in (kind.QUANTIZE, kind.DEQUANTIZE) for tensor in _names(layer)
        }
        fixed = {layer.get_output(0).name for layer in layers if layer.type == kind.CONSTANT}
        for layer in layers:
            made = types[layer.get_output(0).name]
            if layer.type in (kind.CONSTANT, kind.CAST, kind.SHAPE) or made not in (
                trt.DataType.FLOAT,
                trt.DataType.HALF,
            ):
                continue
            if loosely and layer.type == kind.SHUFFLE and fixed.isdisjoint(_names(layer)):
                continue
            if precision == "fp16" or (
                layer.type in (kind.ELEMENTWISE, kind.UNARY, kind.REDUCE) and ends.isdisjoint(_names(layer))
            ):
                layer.precision = made
                layer.set_output_type(0, made)

    def _types(self, layers: Sequence[Any], halves: Mapping[str, bool]) -> dict[str, Any]:
        """Tensor -> its type in the graph. A layer that the parser added gives float16 if it reads float16.

        Before strong typing TensorRT itself calls every floating tensor float32.
        """
        kind, data = self.module.LayerType, self.module.DataType
        types: dict[str, Any] = {}
        for layer in layers:
            read, given = _tensors(layer)
            mixed = any(halves.get(tensor.name, types.get(tensor.name) == data.HALF) for tensor in read)
            for tensor in given:
                half = halves.get(layer.name if layer.type == kind.CONSTANT else tensor.name, mixed)
                floating = tensor.dtype in (data.FLOAT, data.HALF)
                types[tensor.name] = (data.HALF if half else data.FLOAT) if floating else tensor.dtype
        return types

    def _parse_error(self, parser: Any) -> str:
        said = []
        for position in range(min(parser.num_errors, MAX_SAID)):
            error = parser.get_error(position)
            name = error.node_name() if hasattr(error, "node_name") else ""
            operator = error.node_operator() if hasattr(error, "node_operator") else ""
            where = f"{operator} {name}".strip() or f"node number {error.node()}"
            said.append(f"{where}: {_line(error.desc())}")
        return self._failed(f"cannot parse the graph at {'; '.join(said) or 'an unknown node'}", with_log=not said)

    def _failed(self, what: str, with_log: bool = True) -> str:
        said = "; ".join(self.log.errors[:MAX_SAID]) if with_log else ""
        return f"{self.name} {self.version_text} {what}" + (f" ({said})" if said else "")


def installed(name: str) -> Optional[str]:
    """The module that holds the engine `name`, one of `MODULES`; None if none is installed. Imports nothing."""
    return next((module for module in MODULES[name] if find_spec(module) is not None), None)


def find_api(name: str) -> TensorRt:
    """The installed `tensorrt` or `tensorrt-rtx`. Raises `EngineError` with the remedy."""
    module = installed(name)
    if module is None:
        raise EngineError(f"{name} is not installed: {REMEDIES[name]}")
    try:
        return TensorRt(name, importlib.import_module(module))
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{name} is installed and cannot be imported ({_line(str(error))}): {REMEDIES[name]}"
        ) from error


def _make_logger(module: Any) -> Any:
    class BuildLog(module.ILogger):  # type: ignore[misc]
        """A logger that passes TensorRT's messages to Python's logging and keeps errors for the next exception."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def start(self) -> None:
            self.errors = []

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)  # 0 internal error, 1 error, 2 warning, 3 info, 4 verbose
            line = _line(message)
            if level <= 1 and not any(known in line or line in known for known in self.errors):
                self.errors.append(line)
            _LOG.log(logging.INFO if level <= 2 else logging.DEBUG, "%s", message)

    return BuildLog()


def _mask(sources: Any, names: Sequence[str]) -> int:
    known = {name.lower(): int(value) for name, value in sources.__members__.items()}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(f"tactic source {unknown[0]!r} is unknown here; choose from {', '.join(sorted(known))}")
    return sum(1 << known[name] for name in set(names))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _tensors(layer: Any) -> tuple[list[Any], list[Any]]:
    """The tensors that a layer reads and those that it gives, without those left out."""
    read = [layer.get_input(position) for position in range(layer.num_inputs)]
    given = [layer.get_output(position) for position in range(layer.num_outputs)]
    return [tensor for tensor in read if tensor is not None], [tensor for tensor in given if tensor is not None]


def _names(layer: Any) -> set[str]:
    read, given = _tensors(layer)
    return {tensor.name for tensor in read + given}


def _line(text: str) -> str:
    """The first 400 characters of a message, on one line."""
    return " ".join(text.split())[:400]
