"""TensorRT 8.6, 10 and 11 and TensorRT-RTX, as one: an ONNX graph in, a serialized engine out, and back into memory.

What differs among them is kept here. In 8.6 precision is a set of builder flags; from 10.12 on, and in TensorRT-RTX,
the graph's own types decide (strong typing), and the flags are gone in 11. Those between know both: graphs with float16
are built by their types there, and an INT8 graph with float32 between, of which the rest may be float16, by flags.
The parser takes opsets up to 17 in 8.6, 20 in 10 and 25 in 11: 8.6 was measured to parse opset 18 without complaint and
to compute it wrongly, so the cap is kept here and not left to the parser.
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
"""Engine name -> the modules that may hold it, the first found is taken."""

REMEDIES = {
    "tensorrt": "it comes with JetPack or NVIDIA's packages: on a Jetson make the environment with python3 -m venv "
    "--system-site-packages",
    "tensorrt-rtx": "pip install 't2v-edge[rtx]'",
}

OLDEST = (8, 6)
TYPED_SINCE, FLAGS_UNTIL = (10, 0), (10, 12)
"""The version that first builds a graph by its types, and the first in which flags are deprecated."""

OPSET_CAPS = ((11, 25), (10, 20), (8, 17))
"""(major version, newest opset its parser reads right), newest first; TensorRT-RTX is of the generation of 11."""

RUNS = ("fp32", "fp16", "int8", "int8-fp16")
"""Precisions of graphs that TensorRT takes. `int8-u8` has unsigned activations, which it refuses or misreads."""

MAX_SAID = 3
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built; part of its key in the cache.

    batch: frames at once, written over the graph's own batch of 1. workspace_bytes: the most that a layer may use, None
    for TensorRT's choice. optimization_level: 0 (quick build) to 5 (quick engine), None for TensorRT's choice.
    tactic_sources: names of those that may be used, such as ``edge_mask_convolutions``; empty for none beside
    TensorRT's own kernels, None for TensorRT's choice.
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
        """What `to_json` made; raises `KeyError`, `TypeError` or `UsageError` for anything else."""
        sources = data["tactic_sources"]
        return cls(
            data["batch"],
            data["workspace_bytes"],
            data["optimization_level"],
            None if sources is None else tuple(map(str, sources)),
        )


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine, and the timing cache with what this build measured (empty where there is none)."""

    engine: bytes
    timing_cache: bytes


@dataclass(frozen=True)
class BuildStrategy:
    """How to build. typed: by the graph's types, and not by flags; held: with flags, layers held to the graph's types;
    loosely: but for what only moves numbers, see `TensorRt._keep_types`."""

    typed: bool = False
    held: bool = False
    loosely: bool = False


class TensorRt:
    """One installed TensorRT. `name`: the engine's; `version`: as a tuple; `module`: the Python module."""

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
        """Whether the types of a graph of that precision decide, and not builder flags."""
        return not self._flags or (self.version >= TYPED_SINCE and precision.endswith("fp16"))

    @property
    def _flags(self) -> bool:
        """Whether flags may say what a network computes in."""
        return not self.rtx and self.version < FLAGS_UNTIL

    @property
    def opset_cap(self) -> int:
        """The newest ONNX opset that this parser reads right."""
        if self.rtx:
            return OPSET_CAPS[0][1]
        return next(cap for major, cap in OPSET_CAPS if self.version >= (major,))

    def build(
        self, graph: bytes, precision: str, opset: int, settings: BuildSettings, timing_cache: bytes = b""
    ) -> BuiltEngine:
        """Parse and build; needs a GPU, but for TensorRT-RTX. Raises `EngineError` naming the node where it fails."""
        if precision not in RUNS:
            raise EngineError(f"{self.name} runs no {precision} graphs, but {', '.join(RUNS)}; export int8 for it")
        if opset > self.opset_cap:
            raise EngineError(
                f"the graph has opset {opset}, {self.name} {self.version_text} reads up to "
                f"{self.opset_cap}; export for this device (--device) to have it capped"
            )
        ways = self._ways(precision)
        for way in ways:
            self.log.start()
            try:
                made = self._attempt(graph, precision, settings, timing_cache, way)
            except EngineError as error:
                if not way.typed or way is ways[-1]:
                    raise
                _LOG.info("%s; by flags then", error)
                continue
            if made is not None:
                return made
        raise EngineError(self._failed(f"cannot build the {precision} engine"))

    def _ways(self, precision: str) -> tuple[BuildStrategy, ...]:
        """How to build a graph of that precision; each is tried where those before it fail."""
        ways = [BuildStrategy(typed=True)] if self.types(precision) else []
        if self._flags:
            ways.append(BuildStrategy(held=precision != "fp32"))
            if precision == "fp16":  # in INT8 no reshape is held
                ways.append(BuildStrategy(held=True, loosely=True))
        return tuple(ways)

    def _attempt(
        self, graph: bytes, precision: str, settings: BuildSettings, timing_cache: bytes, way: BuildStrategy
    ) -> Optional[BuiltEngine]:
        """One build; None where TensorRT finds no engine."""
        trt = self.module
        builder = trt.Builder(self.log)
        if builder is None:
            raise EngineError(self._failed("cannot make a builder"))
        flags = 0
        if way.typed:
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        elif hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse(with_batch(graph, settings.batch)):
            raise EngineError(self._parse_error(parser))
        config = builder.create_builder_config()
        self._configure(config, precision, settings, way.typed)
        if way.held:
            config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
            self._keep_types(network, float16_tensors(graph), precision, way.loosely)
        cache = None if self.rtx else config.create_timing_cache(timing_cache)
        if cache is not None and not config.set_timing_cache(cache, False):
            # of another GPU or version: measured anew
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            return None
        return BuiltEngine(bytes(serialized), b"" if cache is None else bytes(cache.serialize()))

    def load(self, engine: bytes) -> tuple[Any, Any]:
        """A runtime, which must outlive what it made, and the engine in GPU memory.

        Only for bytes that were built here: loading an engine runs what it holds. Raises `EngineError`.
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
            # FP32 is what the others are compared with; TensorFloat-32 has float16's mantissa.
            config.clear_flag(trt.BuilderFlag.TF32)
        if not typed and precision != "fp32":
            # What INT8 leaves over would run in FP32 without FP16.
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
        """Hold layers to the types that the graph gives them: what the export left in float32, it left for a reason.

        TensorRT 8.6 took float16 for the limb maps of the reference model's renderer, and frames were off by 82 levels
        of 255. A graph that quantizes has all the rest in float32: of that the arithmetic is held which limb maps are
        made of, but what stands next to a quantization becomes one with it. halves: which of the graph's tensors are
        float16. loosely: not what only moves numbers, for with reshapes held in float32 TensorRT 8.6 found no way to
        build; with those of constants it did. What it compiles as a whole may be in float16 even so, see
        docs/decisions.md: whether an engine is right is for its proof to say.
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
        """Tensor -> its type in the graph. Before strong typing TensorRT says float32 of all that is floating, so it is
        not asked; of what the parser put in between, all that is made of float16 is float16."""
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
    """The module that holds the engine `name`, one of `MODULES`, without importing it; None where there is none."""
    return next((module for module in MODULES[name] if find_spec(module) is not None), None)


def find_api(name: str) -> TensorRt:
    """The installed `tensorrt` or `tensorrt-rtx`; raises `EngineError` with the remedy where it cannot be had."""
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
        """Hands TensorRT's messages to Python's logging and keeps the errors for the exception that follows."""

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
    """What a layer reads, without inputs that are left out, and what it gives."""
    read = [layer.get_input(position) for position in range(layer.num_inputs)]
    given = [layer.get_output(position) for position in range(layer.num_outputs)]
    return [tensor for tensor in read if tensor is not None], [tensor for tensor in given if tensor is not None]


def _names(layer: Any) -> set[str]:
    read, given = _tensors(layer)
    return {tensor.name for tensor in read + given}


def _line(text: str) -> str:
    """A message on one line, without its tail beyond 400 characters."""
    return " ".join(text.split())[:400]
