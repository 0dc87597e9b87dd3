"""Inference engines. One module a backend; each is imported only when it is asked for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Union

from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.spec import StageSpec

__all__ = ["ENGINES", "Engine", "EngineOptions", "available_engines", "open_engine"]

ENGINES = {"onnxruntime": "onnxruntime"}
"""Engine name -> the module it needs, in order of preference."""

_REMEDIES = {"onnxruntime": "pip install 't2v-edge[cpu]'"}


def available_engines() -> tuple[str, ...]:
    """Names of the engines whose library is installed here, the preferred first."""
    return tuple(name for name, module in ENGINES.items() if find_spec(module) is not None)


def choose_engine(name: str) -> str:
    """`name`, or for ``auto`` the preferred engine installed; raises `UsageError` or `EngineError` with the remedy."""
    if name == "auto":
        available = available_engines()
        if not available:
            raise EngineError(f"no inference engine is installed; {_REMEDIES['onnxruntime']}")
        return available[0]
    if name not in ENGINES:
        raise UsageError(f"engine {name!r} is unknown; choose one of: auto, {', '.join(ENGINES)}")
    if find_spec(ENGINES[name]) is None:
        raise EngineError(f"engine {name} is not installed; {_REMEDIES[name]}")
    return name


def open_engine(name: str, graph: Union[bytes, bytearray], spec: StageSpec, options: EngineOptions) -> Engine:
    """Load a checked graph into an engine. `name` is one of `ENGINES` or ``auto``. Raises `EngineError`."""
    chosen = choose_engine(name)
    if chosen == "onnxruntime":
        from t2v_edge.engine.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(graph, spec, options)
    raise EngineError(f"engine {chosen} has no module; this is a fault of t2v-edge")
