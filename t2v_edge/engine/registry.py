"""The engines by name. Each has a module of its own, which is imported only when the engine is opened."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import Union

from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.engine.tensorrt.api import MODULES, REMEDIES, installed
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.spec import StageSpec

AUTO = "auto"
"""The name for the engine that `t2v_edge.engine.choice` finds fastest here, stage by stage."""

ENGINES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "onnxruntime-cuda": "onnxruntime"}
"""Name of an engine that loads a graph as it is -> the module it needs, in order of preference."""

BUILT = tuple(MODULES)
"""Engines that are built from a whole bundle, on the machine and for it, see `t2v_edge.engine.tensorrt.build`."""

_CUDA_PACKAGE = "onnxruntime-gpu"
_REMEDIES = {
    "onnxruntime": "pip install 't2v-edge[cpu]'",
    "openvino": "pip install 't2v-edge[openvino]'",
    "onnxruntime-cuda": "pip uninstall onnxruntime && pip install 't2v-edge[gpu]'",
    **REMEDIES,
}


def is_installed(name: str) -> bool:
    """Whether an engine's library is installed. The library is not imported."""
    if name in BUILT:
        return installed(name) is not None
    if name == "onnxruntime-cuda":
        try:
            metadata.version(_CUDA_PACKAGE)
        except metadata.PackageNotFoundError:
            return False
    return find_spec(ENGINES[name]) is not None


def available_engines() -> tuple[str, ...]:
    """The engines of `ENGINES` that are installed here, the preferred first."""
    return tuple(name for name in ENGINES if is_installed(name))


def fallback_engines() -> tuple[str, ...]:
    """The installed engines for a stage that TensorRT does not run, those on the GPU first."""
    return tuple(sorted(available_engines(), key=lambda name: name != "onnxruntime-cuda"))


def check_engine(name: str) -> None:
    """Check that `name`, an engine or ``auto``, is available here.

    Raises `UsageError` for an unknown engine, `EngineError` with the remedy for one that is not installed.
    """
    if name == AUTO:
        if not available_engines() and not any(map(is_installed, BUILT)):
            raise EngineError(f"no inference engine is installed; {' or '.join(_REMEDIES.values())}")
    elif name not in ENGINES and name not in BUILT:
        raise UsageError(f"engine {name!r} is unknown; choose one of: {', '.join((AUTO, *ENGINES, *BUILT))}")
    elif not is_installed(name):
        raise EngineError(f"engine {name} is not installed; {_REMEDIES[name]}")


def open_engine(name: str, graph: Union[bytes, bytearray], spec: StageSpec, options: EngineOptions) -> Engine:
    """Load a checked graph into the engine `name`, one of `ENGINES`. Raises `EngineError` or `UsageError`."""
    check_engine(name)
    try:
        if name in ("onnxruntime", "onnxruntime-cuda"):
            from t2v_edge.engine.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(graph, spec, options, cuda=name != "onnxruntime")
        if name == "openvino":
            from t2v_edge.engine.openvino import OpenVinoEngine

            return OpenVinoEngine(graph, spec, options)
    except ImportError as error:
        raise EngineError(
            f"engine {name} is installed and cannot be imported ({error}); install it again: {_REMEDIES[name]}"
        ) from error
    raise EngineError(
        f"{name} is not opened graph by graph: engine.choice opens {AUTO}, engine.tensorrt.build the others"
    )
