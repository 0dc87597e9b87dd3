"""What a GPU can do at best, measured through PyTorch: matrix products, copies, launches.

    python -m benchmarks.gpu.ceilings [--device cuda] [--seconds 8]

Prints one JSON object:

    matrix         precision (fp32 without TF32, fp16, int8) -> {"best": 10^12 operations a second, two a
                   multiply-accumulate, "size": of the square matrices, "all": {size: rate}}, or {"failed": why}
    copy_gb_s      device to device, bytes read and written
    pinned_gb_s    device to pinned host memory, a large block
    frame_copy     one 256x256x3 uint8 frame to pinned memory: {"gpu_us": between events, "wall_us": with the wait}
    launch_us      a kernel of one element: {"each": of many enqueued, "wait": one and the wait for it}
    graph_us       replays of CUDA graphs: {"each": of many of one kernel, "wait": one and the wait for it, "node": each
                   further kernel of a graph}
    wait_us        a synchronisation with nothing to wait for

What a CPU has not is null.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.player import Place
from benchmarks.gpu.pytorch import capture, exact_floats

SIZES = (2048, 4096, 8192)
FRAME = (256, 256, 3)
LAUNCHES = 1000
NODES = 64
GIGABYTE = 1 << 30


def measure_gpu_ceilings(
    place: Place, seconds: float = 8.0, sizes: tuple[int, ...] = SIZES, block: int = GIGABYTE
) -> dict[str, Any]:
    """Everything above; `block`: bytes of the copies."""
    exact_floats(tuned=False)
    share = seconds / (3 * len(sizes) + 2)
    with torch.inference_mode(), place.current():
        found: dict[str, Any] = {
            "matrix": {p: _tried(lambda p=p: matrix_rate(p, place, sizes, share)) for p in PRODUCTS},
            "copy_gb_s": _tried(lambda: copy_rate(place, block, share)),
        }
        gpu_only: dict[str, Callable[[], Any]] = {
            "pinned_gb_s": lambda: pinned_rate(place, block // 4, share),
            "frame_copy": lambda: frame_copy(place),
            "launch_us": lambda: launches(place),
            "graph_us": lambda: replays(place),
            "wait_us": lambda: wait(place),
        }
        return {**found, **{name: _tried(run) if place.on_gpu else None for name, run in gpu_only.items()}}


def _tried(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:  # noqa: BLE001 one that a card or a library lacks must not cost the others
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def elapsed_s(run: Callable[[], object], place: Place, times: int) -> float:
    """Seconds of `times` runs enqueued one after another: between events on a GPU, else of the host."""
    place.synchronize()
    if not place.on_gpu:
        start = time.perf_counter()
        for _ in range(times):
            run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(place.stream)
    for _ in range(times):
        run()
    end.record(place.stream)
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def fastest_s(run: Callable[[], object], place: Place, seconds: float, times: int = 4) -> float:
    """Seconds of one run, of the fastest of several rounds of `times`, within about `seconds`."""
    for _ in range(2):
        run()
    found, end = [elapsed_s(run, place, times)], time.perf_counter() + seconds
    while time.perf_counter() < end and len(found) < 50:
        found.append(elapsed_s(run, place, times))
    return min(found) / times


def _floats(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    made = torch.empty(size, size, dtype=dtype, device=device)
    return lambda: torch.mm(a, b, out=made)


def _integers(size: int, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
    # The second operand's columns lie together: tensor cores take INT8 in no other order.
    return lambda: torch._int_mm(a, b.t())


PRODUCTS: dict[str, Callable[[int, torch.device], Callable[[], Tensor]]] = {
    "fp32": lambda size, device: _floats(size, torch.float32, device),
    "fp16": lambda size, device: _floats(size, torch.float16, device),
    "int8": _integers,
}


def matrix_rate(precision: str, place: Place, sizes: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """The best rate of square products over `sizes`, in 10^12 operations a second."""
    rates = {}
    for size in sizes:
        taken = fastest_s(PRODUCTS[precision](size, place.device), place, seconds)
        rates[size] = 2 * size**3 / taken / 1e12
    best = max(rates, key=rates.__getitem__)
    return {"best": rates[best], "size": best, "all": {str(size): rate for size, rate in rates.items()}}


def copy_rate(place: Place, block: int, seconds: float) -> float:
    """10^9 bytes a second, read and written, of a copy of `block` bytes on the device."""
    source = torch.zeros(block, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    return 2 * block / fastest_s(lambda: target.copy_(source), place, seconds) / 1e9


def pinned_rate(place: Place, block: int, seconds: float) -> float:
    """10^9 bytes a second from the device to pinned memory of the host."""
    source = torch.zeros(block, dtype=torch.uint8, device=place.device)
    target = place.pinned((block,), torch.uint8)
    return block / fastest_s(lambda: target.copy_(source, non_blocking=True), place, seconds) / 1e9


def frame_copy(place: Place, times: int = 300) -> dict[str, float]:
    """Medians in microseconds of the copy of one frame to pinned memory."""
    source = torch.zeros(FRAME, dtype=torch.uint8, device=place.device)
    target = place.pinned(FRAME, torch.uint8)
    on_gpu, wall = [], []
    for _ in range(times):
        on_gpu.append(1e6 * elapsed_s(lambda: target.copy_(source, non_blocking=True), place, 1))
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        place.synchronize()
        wall.append(1e6 * (time.perf_counter() - start))
    size = source.numel()
    middle = statistics.median(on_gpu)
    return {"bytes": size, "gpu_us": middle, "wall_us": statistics.median(wall), "gb_s": size / middle / 1e3}


def launches(place: Place) -> dict[str, float]:
    """Microseconds of a launch from Python through PyTorch."""
    x = torch.zeros(1, device=place.device)
    return {"each": _each_us(lambda: x.add_(1), place), "wait": _waited_us(lambda: x.add_(1), place)}


def replays(place: Place) -> dict[str, float]:
    """Microseconds of a graph's replay, and of a kernel more in it."""
    x = torch.zeros(1, device=place.device)

    def several(count: int) -> Callable[[], tuple[Tensor, ...]]:
        def once() -> tuple[Tensor, ...]:
            for _ in range(count):
                x.add_(1)
            return (x,)

        return once

    one, many = (capture(several(count), place)[0] for count in (1, NODES))
    short, long = (_waited_us(graph.replay, place) for graph in (one, many))
    return {"each": _each_us(one.replay, place), "wait": short, "node": (long - short) / (NODES - 1)}


def wait(place: Place) -> float:
    return _waited_us(lambda: None, place)


def _each_us(run: Callable[[], object], place: Place) -> float:
    """Of the host for one of many, the wait for all at the end included."""
    rounds = []
    for _ in range(5):
        place.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            run()
        place.synchronize()
        rounds.append(1e6 * (time.perf_counter() - start) / LAUNCHES)
    return statistics.median(rounds)


def _waited_us(run: Callable[[], object], place: Place, times: int = 300) -> float:
    rounds = []
    for _ in range(times):
        place.synchronize()
        start = time.perf_counter()
        run()
        place.synchronize()
        rounds.append(1e6 * (time.perf_counter() - start))
    return statistics.median(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.ceilings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    print(json.dumps(measure_gpu_ceilings(Place.of(options.device), options.seconds), indent=1))


if __name__ == "__main__":
    main()
