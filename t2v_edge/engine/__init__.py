"""Inference engines. One module a backend; each is imported only when it is asked for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Union

from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.spec import StageSpec

__all__ = ["AUTO", "ENGINES", "Engine", "EngineOptions", "available_engines", "check_engine", "open_engine"]

AUTO = "auto"
"""What stands for the engine that `t2v_edge.choice` finds the fastest here, stage by stage."""

ENGINES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
"""Engine name -> the module it needs, in order of preference."""

_REMEDIES = {"onnxruntime": "pip install 't2v-edge[cpu]'", "openvino": "pip install 't2v-edge[openvino]'"}


def available_engines() -> tuple[str, ...]:
    """Names of the engines whose library is installed here, the preferred first."""
    return tuple(name for name, module in ENGINES.items() if find_spec(module) is not None)


def check_engine(name: str) -> None:
    """Check that `name`, an engine or ``auto``, can be had here.

    Raises `UsageError` where it is unknown, `EngineError` with the remedy where it is not installed.
    """
    if name == AUTO:
        if not available_engines():
            raise EngineError(f"no inference engine is installed; {' or '.join(_REMEDIES.values())}")
    elif name not in ENGINES:
        raise UsageError(f"engine {name!r} is unknown; choose one of: {AUTO}, {', '.join(ENGINES)}")
    elif find_spec(ENGINES[name]) is None:
        raise EngineError(f"engine {name} is not installed; {_REMEDIES[name]}")


def open_engine(name: str, graph: Union[bytes, bytearray], spec: StageSpec, options: EngineOptions) -> Engine:
    """Load a checked graph into the engine `name`, one of `ENGINES`. Raises `EngineError` or `UsageError`."""
    check_engine(name)
    try:
        if name == "onnxruntime":
            from t2v_edge.engine.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(graph, spec, options)
        if name == "openvino":
            from t2v_edge.engine.openvino import OpenVinoEngine

            return OpenVinoEngine(graph, spec, options)
    except ImportError as error:
        raise EngineError(f"engine {name} is installed and cannot be imported ({error}); install it again: "
                          f"{_REMEDIES[name]}") from error
    raise EngineError(f"engine {name} has no module; t2v_edge.choice opens {AUTO}, the rest is a fault of t2v-edge")
