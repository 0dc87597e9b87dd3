"""The choice of an engine for a stage: measured once on a machine, and remembered."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import numpy as np

from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.engine.registry import AUTO, ENGINES, available_engines, check_engine, open_engine
from t2v_edge.errors import BundleError, EngineError
from t2v_edge.spec import Arrays, StageSpec
from t2v_edge.util.cache import cache_folder
from t2v_edge.util.files import write_atomic
from t2v_edge.util.machine import machine
from t2v_edge.util.strict_json import dumps, loads
from t2v_edge.util.targets import CACHE_FILE

FOLDER = "engine-choice"
FORMAT = 1
WARM_RUNS = 2
MIN_RUNS = 3
MAX_RUNS = 50
BUDGET_S = 0.3
"""Seconds for the timed runs of one stage, all engines together. Three stages take about a second."""

MARGIN = 0.95
"""The share of the preferred engine's median that another engine must stay below to replace it.

A smaller gain may be noise, and another engine rounds frames differently.
"""

TOLERANCE = 0.1
"""The largest difference from the preferred engine's output that an engine may have to be chosen.

It is a root mean square, as a share of the output's own. Rounding is far below it, and a misread operator far above.
"""

MAX_ENTRY_BYTES = 4096


def open_stage(name: str, graph: bytes, spec: StageSpec, options: EngineOptions, feeds: Arrays) -> Engine:
    """Load a checked graph into the engine `name`, or for ``auto`` into the fastest one installed.

    feeds: inputs like those the stage will get. The first time a graph, a set of engine versions, a machine and a
    thread count meet, every engine is loaded and timed on them. The user's cache keeps the outcome. An entry of the
    cache must be the name of an installed engine; any other is measured again. Raises `EngineError` or `UsageError`.
    """
    check_engine(name)
    if name != AUTO:
        return open_engine(name, graph, spec, options)
    available = available_engines()
    if not available:
        raise EngineError(
            f"nothing here runs the {spec.stage} graph as it is: pip install 't2v-edge[cpu]', or build "
            "TensorRT's engines with t2v-edge build BUNDLE"
        )
    if len(available) == 1:
        return open_engine(available[0], graph, spec, options)
    key = choice_key(graph, available, options)
    folder = cache_folder(FOLDER)
    known = None if folder is None else read_choice(_entry(folder, key), available)
    if known is not None:
        try:
            return open_engine(known, graph, spec, options)
        except EngineError:  # another engine may load the graph
            pass
    plain = EngineOptions(options.threads)  # frames one by one
    engine, medians_ms = _open_fastest(available, graph, spec, plain, feeds)
    if folder is not None:
        _write(_entry(folder, key), {"engine": engine.name, "stage": spec.stage, "median_ms": medians_ms, **key})
    if options == plain:
        return engine
    engine.close()
    return open_engine(engine.name, graph, spec, options)


def choice_key(graph: bytes, available: tuple[str, ...], options: EngineOptions) -> dict[str, Any]:
    """The key of a choice: the graph's SHA-256, engine versions, the machine, threads."""
    return {
        "format": FORMAT,
        "graph_sha256": hashlib.sha256(graph).hexdigest(),
        "engines": {name: _version(ENGINES[name]) for name in available},
        "machine": machine(),
        "threads": options.threads,
    }


def read_choice(path: Path, available: tuple[str, ...]) -> Optional[str]:
    """The engine that a cache entry names, one of `available`; None without an entry or for a damaged one."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            entry = loads(file.read(MAX_ENTRY_BYTES), path.name)
    except (OSError, BundleError):
        return None
    name = entry.get("engine") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and name in available else None


def _entry(folder: Path, key: Mapping[str, Any]) -> Path:
    return folder / f"{hashlib.sha256(dumps(key)).hexdigest()[:32]}.json"


def _write(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        write_atomic(path, dumps(entry), CACHE_FILE)
    except OSError:  # without a cache the next opening measures again
        pass


def _version(module: str) -> str:
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:  # a build of another name, such as onnxruntime-gpu
        return "unknown"


def _open_fastest(
    names: tuple[str, ...], graph: bytes, spec: StageSpec, options: EngineOptions, feeds: Arrays
) -> tuple[Engine, dict[str, float]]:
    """The fastest engine that agrees with the most preferred one, and medians in ms; the others are closed again."""
    with ExitStack() as opened:
        engines: dict[str, Engine] = {}
        outputs: dict[str, Arrays] = {}
        first_error: Optional[EngineError] = None
        for name in names:
            try:
                engine = opened.enter_context(open_engine(name, graph, spec, options))
                for _ in range(WARM_RUNS):
                    outputs[name] = engine.run(feeds)
                engines[name] = engine
            except EngineError as error:
                first_error = first_error or error
        if not engines:
            raise first_error or EngineError("no inference engine is installed")
        medians_ms = time_engines(engines, feeds)
        preferred = next(iter(engines))
        agreeing = {name: ms for name, ms in medians_ms.items() if agree(outputs[preferred], outputs[name])}
        agreeing[preferred] = medians_ms[preferred] * MARGIN
        winner = engines.pop(min(agreeing, key=agreeing.__getitem__))
        opened.pop_all()
        for loser in engines.values():
            loser.close()
        return winner, medians_ms


def time_engines(engines: Mapping[str, Engine], feeds: Arrays) -> dict[str, float]:
    """Median milliseconds of a run, by engine. Engines take turns, so that other load hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    end = time.perf_counter() + BUDGET_S
    for done in range(MAX_RUNS):
        if done >= MIN_RUNS and time.perf_counter() > end:
            break
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(feeds)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(taken)) for name, taken in times.items()}


def agree(wanted: Arrays, found: Arrays) -> bool:
    """Whether every output is within `TOLERANCE` of the wanted one. A NaN never is."""
    for name, array in wanted.items():
        expected = np.asarray(array, np.float64)
        off = np.asarray(found[name], np.float64) - expected
        if not np.sqrt(np.mean(off**2)) <= TOLERANCE * np.sqrt(np.mean(expected**2)):
            return False
    return True
