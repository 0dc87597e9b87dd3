"""A stream's player that lives on the GPU: condition, recurrent state, motion and frames stay there.

A base step is one CUDA graph, rendering is another. States and motions alternate between two places. Each parity has a
graph of its own, so nothing is copied from one place to the other. On a GPU that shares the processor's memory the
renderer writes frames there directly. Other GPUs copy them out as bytes.

Steps run in one CUDA stream, with the mixing of the two newest motions into a frame's own. Rendering is in another
stream and copying in a third. Events order them: a group of frames is rendered after all were mixed, and copied after
they were rendered. A group's place is free again only when its frames are collected, so the groups share nothing else
and the next one may already be on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any, Callable, Optional, TypeVar

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle.draws import Draws
from t2v_edge.engine.base import Vector
from t2v_edge.engine.tensorrt.cuda import ALIGNMENT, CudaEvent, CudaStream, DeviceBuffer, HostBuffer, find_gpu
from t2v_edge.engine.tensorrt.loaded import EngineReplay, LoadedEngine
from t2v_edge.errors import EngineError

FLOAT = 4
UPLOADS = 4
"""Base steps whose condition and noise may wait for their copy at once."""

_Closable = TypeVar("_Closable", DeviceBuffer, HostBuffer, CudaEvent, EngineReplay)


class ResidentPlayer:
    """A `Player` of a motion engine and a renderer in one queue. `rows`: the renderer's batch."""

    slots = 2

    def __init__(self, motion: LoadedEngine, render: LoadedEngine, draws: Draws, smoothing: float) -> None:
        self.rows = render.batch
        self._motion, self._render, self._queue = motion, render, motion.queue.acquire()
        self._stack = ExitStack()
        self._stack.callback(self._queue.release)
        self._closed = False
        self._steps = 0
        self._placed: list[float] = []
        self._flying: deque[tuple[_Slot, int]] = deque()
        self._floats = {t.name: int(np.prod(t.shape)) for t in (*motion.spec.inputs, *motion.spec.outputs)}
        self._apart = _aligned(self._floats["motion"] * FLOAT)
        try:
            with self._queue.lock:
                self._prepare(draws, smoothing)
        except BaseException:
            self.close()
            raise

    def _prepare(self, draws: Draws, smoothing: float) -> None:
        spec, stream = self._motion.spec, self._queue.motion
        pair = self._apart + _aligned(self._floats["condition"] * FLOAT)
        # motion and condition of the newest two steps
        self._ring = [self._own(DeviceBuffer(pair)) for _ in range(2)]
        self._raw = self._own(DeviceBuffer(self._apart)) if smoothing else None
        self._gain = self._own(HostBuffer((1,), np.float32))
        self._states = {
            s.name: [self._own(DeviceBuffer(self._floats[s.input] * FLOAT)) for _ in range(2)] for s in spec.states
        }
        noises = {n.input: self._own(DeviceBuffer(self._floats[n.input] * FLOAT)) for n in spec.noises}
        self._uploads = [_Upload(self, noises) for _ in range(UPLOADS)]
        self._uploaded: list[Optional[Vector]] = [None, None]
        self._replays = [self._replay_of(parity, noises) for parity in range(2)]
        drawn = {name: self._own(DeviceBuffer(self.rows * value.nbytes)) for name, value in draws.render.items()}
        self._slots = deque(_Slot(self, drawn) for _ in range(self.slots))
        # The warm-up runs above have changed the states.
        starts = [(noises[name].address, value) for name, value in draws.motion.items()]
        starts += [(self._states[s.name][0].address, draws.states[s.input]) for s in spec.states]
        starts += [(drawn[name].address, np.repeat(value, self.rows, 0)) for name, value in draws.render.items()]
        for address, value in starts:
            with _Pinned(value) as host:
                stream.copy_in(address, host)
                stream.wait()
        self._gain.array[0] = 1.0
        self._next_gain = np.float32(1.0 - smoothing)

    def _own(self, thing: _Closable) -> _Closable:
        self._stack.callback(thing.close)
        return thing

    def _addresses_of(self, parity: int, noises: Mapping[str, DeviceBuffer]) -> dict[str, int]:
        made = self._ring[parity].address
        addresses = {"condition": made + self._apart, "motion": made if self._raw is None else self._raw.address}
        addresses.update({name: buffer.address for name, buffer in noises.items()})
        for state in self._motion.spec.states:
            addresses[state.input] = self._states[state.name][parity].address
            addresses[state.output] = self._states[state.name][1 - parity].address
        return addresses

    def _replay_of(self, parity: int, noises: Mapping[str, DeviceBuffer]) -> EngineReplay:
        """A base step and its smoothing: a one-pole low-pass of the motion, as `play.clock.Smoother` computes it."""
        # No part of a player refers to the player. So it is freed when it is dropped, and not by a garbage collector,
        # which may run in the middle of a capture.
        engine, queue, raw, gain = self._motion, self._queue, self._raw, self._gain
        newest, last, count = self._ring[parity], self._ring[1 - parity], self._floats["motion"]

        def work() -> None:
            engine.enqueue()
            if raw is not None:
                queue.mix.enqueue(queue.motion, newest.address, last.address, raw.address, gain.device_address, count)

        return self._own(EngineReplay(engine, self._addresses_of(parity, noises), work))

    def step(self, condition: Vector, noises: Mapping[str, Vector]) -> None:
        parity = self._steps % 2
        with self._queue.lock:
            self._check_open()
            if noises or self._uploaded[parity] is not condition:
                upload = self._uploads[self._steps % UPLOADS]
                upload.send(self._ring[parity].address + self._apart, condition, noises)
                self._uploaded[parity] = condition
            self._replays[parity].launch()
            if self._steps == 0 and self._raw is not None:
                self._queue.motion.wait()  # the first motion is taken whole
                self._gain.array[0] = self._next_gain
            self._steps += 1

    def place(self, share: float) -> None:
        slot, row = self._slots[0], len(self._placed)
        if share < 1.0 and self._steps < 2:
            raise RuntimeError("a frame was placed before its motion step")
        if len(self._flying) == self.slots or row == self.rows:
            raise RuntimeError("a frame was placed before its group was rendered and collected")
        slot.shares.array[row] = share
        self._placed.append(share)
        with self._queue.lock:
            self._check_open()
            slot.mix(row, newest=(self._steps - 1) % 2)

    def render(self) -> None:
        slot = self._slots[0]
        with self._queue.lock:
            self._check_open()
            slot.launch()
        self._flying.append((slot, len(self._placed)))
        self._placed = []
        self._slots.rotate(-1)

    def collect(self) -> list[npt.NDArray[Any]]:
        slot, frames = self._flying.popleft()
        slot.done.wait()
        return [slot.pixels.array[row].copy() for row in range(frames)]

    def time_ms(self, runs: int) -> tuple[float, float, float]:
        """Milliseconds on the GPU: of a base step, of rendering a group of frames, and of its copy. For measurements.

        Each is the mean of `runs` that are launched back to back. The stream's state is lost.
        """
        start, end = self._own(CudaEvent(timed=True)), self._own(CudaEvent(timed=True))
        slot = self._slots[0]

        def timed(stream: CudaStream, launch: Callable[[int], None]) -> float:
            start.record(stream)
            for run in range(runs):
                launch(run)
            end.record(stream)
            end.wait()
            return end.since_ms(start) / runs

        with self._queue.lock:
            self._check_open()
            queue = self._queue
            return (
                timed(queue.motion, lambda run: self._replays[run % 2].launch()),
                timed(queue.render, lambda _: slot.replay.launch()),
                timed(queue.copies, lambda _: slot.copy_out()),
            )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the stream is closed; make another")

    def close(self) -> None:
        """Free the GPU memory, after the work that is on its way."""
        with self._queue.lock:
            if self._closed:
                return
            self._closed = True
            self._queue.wait()
            self._stack.close()

    def __del__(self) -> None:
        # A stream may be dropped in the middle, without close. Nobody is there to receive an error.
        with suppress(Exception):
            if not self._closed:  # a closed one needs no lock
                self.close()


class _Upload:
    """Pinned memory from which a step's condition and noises are copied in. Its next user waits for that copy."""

    def __init__(self, player: ResidentPlayer, noises: Mapping[str, DeviceBuffer]) -> None:
        spec = player._motion.spec
        at_steps = [n for n in spec.noises if n.cadence == "step"]
        self._stream = player._queue.motion
        self._condition = player._own(HostBuffer((1, player._floats["condition"]), np.float32))
        self._noises = {
            n.input: (noises[n.input].address, player._own(HostBuffer(n.shape, np.float32))) for n in at_steps
        }
        self._done = player._own(CudaEvent())
        self._sent = False

    def send(self, address: int, condition: Vector, noises: Mapping[str, Vector]) -> None:
        if self._sent:
            self._done.wait()
        self._condition.array[...] = condition
        self._stream.copy_in(address, self._condition)
        for name, (target, host) in self._noises.items():
            host.array[...] = noises[name]
            self._stream.copy_in(target, host)
        self._done.record(self._stream)
        self._sent = True


class _Slot:
    """A group of frames: its inputs, its pixels, and the renderer's run from one to the other."""

    def __init__(self, player: ResidentPlayer, drawn: Mapping[str, DeviceBuffer]) -> None:
        rows, self._queue, self._ring = player.rows, player._queue, player._ring
        sizes = [player._floats[name] for name in ("motion", "condition")]
        apart = player._apart if rows == 1 else _aligned(rows * sizes[0] * FLOAT)
        self._inputs = player._own(DeviceBuffer(apart + _aligned(rows * sizes[1] * FLOAT)))
        self._starts = (self._inputs.address, self._inputs.address + apart)
        # What is mixed: how many numbers, and where in the ring. One row lies here as it does there: one piece.
        self._pieces = [(player._apart // FLOAT + sizes[1], 0)] if rows == 1 else list(zip(sizes, (0, player._apart)))
        self.shares = player._own(HostBuffer((rows,), np.float32))
        frame = player._render.spec.results[0]
        self.pixels = player._own(HostBuffer((rows, *frame.shape[1:]), np.uint8))
        self._shared = find_gpu().integrated
        self._frame = self.pixels.device_address
        if not self._shared:
            self._frame = player._own(DeviceBuffer(self.pixels.nbytes)).address
        self._mixed, self._rendered, self.done = (player._own(CudaEvent()) for _ in range(3))
        addresses = {
            "motion": self._starts[0],
            "condition": self._starts[1],
            "frame": self._frame,
            **{name: buffer.address for name, buffer in drawn.items()},
        }
        self.replay = player._own(EngineReplay(player._render, addresses))

    def mix(self, row: int, newest: int) -> None:
        """Mix the two newest steps into a row."""
        one, other = self._ring[1 - newest].address, self._ring[newest].address
        for start, (count, offset) in zip(self._starts, self._pieces):
            self._queue.mix.enqueue(
                self._queue.motion,
                start + row * count * FLOAT,
                one + offset,
                other + offset,
                self.shares.device_address + row * FLOAT,
                count,
            )

    def launch(self) -> None:
        """Render the group after it is mixed, and copy it after it is rendered."""
        queue = self._queue
        self._mixed.record(queue.motion)
        queue.render.wait_for(self._mixed)
        self.replay.launch()
        self._rendered.record(queue.render)
        queue.copies.wait_for(self._rendered)
        self.copy_out()
        self.done.record(queue.copies)

    def copy_out(self) -> None:
        if not self._shared:
            self._queue.copies.copy_out(self.pixels, self._frame)


class _Pinned:
    """A short-lived pinned copy of an array."""

    def __init__(self, value: npt.NDArray[Any]) -> None:
        self._host = HostBuffer(value.shape, np.float32)
        self._host.array[...] = value

    def __enter__(self) -> HostBuffer:
        return self._host

    def __exit__(self, *_: object) -> None:
        self._host.close()


def _aligned(nbytes: int) -> int:
    return (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
