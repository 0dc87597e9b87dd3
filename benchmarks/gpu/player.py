"""Stages as calls on tensors of the GPU, and a stream of frames made of three of them.

The stream is the same code for every method: tokens, draws, the settled condition, uploads, the copy of the frame to
pinned memory. There is one synchronisation a call. What differs is what runs a stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2v_edge.bundle.draws import Draws
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.play.condition import settle_condition
from t2v_edge.spec import StageSpec
from t2v_export.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Place:
    """A device and the stream all work is put on: None on a CPU."""

    device: torch.device
    stream: Any = None

    @classmethod
    def of(cls, name: str) -> Place:
        device = torch.device(name)
        return cls(device, torch.cuda.Stream(device) if device.type == "cuda" else None)

    @property
    def on_gpu(self) -> bool:
        return self.stream is not None

    def current(self) -> AbstractContextManager[Any]:
        """Within, everything is enqueued on `stream`."""
        return torch.cuda.stream(self.stream) if self.on_gpu else nullcontext()

    def synchronize(self) -> None:
        if self.on_gpu:
            self.stream.synchronize()

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self.on_gpu)


class Call(ABC):
    """One stage with its `inputs`, tensors of fixed shapes on the device in the contract's order.

    `run` returns the outputs, valid until the next `run`. Of a motion stage the last `states` inputs are its states.
    """

    def __init__(self, inputs: list[Tensor], states: int = 0) -> None:
        self.inputs = inputs
        self.states = states

    def feed(self, values: Sequence[Tensor]) -> None:
        """Take values, of the host or the device, by copying."""
        for mine, value in zip(self.inputs, values):
            mine.copy_(value, non_blocking=True)

    @abstractmethod
    def run(self) -> tuple[Tensor, ...]: ...

    def carry(self, outputs: tuple[Tensor, ...]) -> None:
        """Make the states that came out the states that go in."""
        if self.states:
            torch._foreach_copy_(self.inputs[-self.states :], list(outputs[1:]))

    def place(self, row: int, motion: Tensor) -> None:
        """Make `motion` (1, M) row `row` of a render stage's first input."""
        target = self.inputs[0][row : row + 1]
        if target.data_ptr() != motion.data_ptr():
            target.copy_(motion)


def blank_inputs(spec: StageSpec, batch: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Zeros of a stage's input shapes for a batch; integers stay what they are."""
    return [
        torch.zeros((batch, *t.shape[1:]), dtype=torch.int64 if t.dtype == "int64" else dtype, device=device)
        for t in spec.inputs
    ]


class Runner(Protocol):
    """A model made ready by one method. Each call and player is made when it is first asked for."""

    place: Place
    dtype: torch.dtype
    notes: dict[str, Any]

    def text(self) -> Call: ...

    def motion(self) -> Call: ...

    def render(self, batch: int) -> Call: ...

    def player(self, batch: int) -> Player: ...


class Player:
    """Frames of one stream, `batch` at a call: so many motion steps, a render, a copy to pinned memory, a wait."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: CaptionTokenizer, runner: Runner, batch: int) -> None:
        self.batch, self.place, self.dtype = batch, runner.place, runner.dtype
        self.specs = checkpoint.specs
        self._groups = checkpoint.config.condition_groups
        self._tokenizer = tokenizer
        self._text, self._motion, self._render = runner.text(), runner.motion(), runner.render(batch)
        steps = [n for n in self.specs["motion"].noises if n.cadence == "step"]
        names = [t.name for t in self.specs["motion"].inputs]
        self._slots = {n.input: names.index(n.input) for n in steps}
        self._staged = {n.input: self.place.pinned((batch, *n.shape[1:]), self.dtype) for n in steps}
        self._arrays: dict[str, NDArray[Any]] = {name: t.numpy() for name, t in self._staged.items()}
        self._frames = self.place.pinned((batch, *self.specs["render"].outputs[0].shape[1:]), torch.uint8)
        self._draws: Draws | None = None

    def start(self, caption: str, seed: int) -> None:
        """Begin a stream: draw its noises and start states, read its caption."""
        self._draws = Draws(self.specs["motion"], self.specs["render"], seed)
        drawn: Mapping[str, Any] = {**self._draws.motion, **self._draws.states}
        blank = blank_inputs(self.specs["motion"], 1, self.dtype, self.place.device)
        for tensor, spec in zip(blank, self.specs["motion"].inputs):
            if spec.name in drawn:
                tensor.copy_(torch.from_numpy(drawn[spec.name]))
        self._motion.feed(blank)
        blank = blank_inputs(self.specs["render"], self.batch, self.dtype, self.place.device)
        for tensor, spec in zip(blank, self.specs["render"].inputs):
            if spec.name in self._draws.render:
                tensor.copy_(torch.from_numpy(self._draws.render[spec.name]).expand_as(tensor))
        self._render.feed(blank)
        self.caption(caption)

    def caption(self, caption: str) -> None:
        """Change the caption at once: tokens, the text stage, the condition settled on the host as the runtime does."""
        tokens = self._tokenizer(caption)
        self._text.feed([torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)])
        vector = self._text.run()[0].float().cpu().numpy()
        settled = torch.from_numpy(settle_condition(vector, self._groups)).to(self.dtype)
        target = self._motion.inputs[0]
        target.copy_(settled)
        self._render.inputs[1].copy_(target.expand_as(self._render.inputs[1]))

    def advance(self) -> NDArray[np.uint8]:
        """The next frames, uint8 (batch, H, W, 3), in pinned memory that the next call overwrites."""
        frames = self._compute()
        self._frames.copy_(frames, non_blocking=True)
        self.place.synchronize()
        made: NDArray[np.uint8] = self._frames.numpy()
        return made

    def _draw(self, row: int) -> None:
        """The noises of the next base step into row `row` of pinned memory."""
        if self._draws is None:
            raise RuntimeError("a stream must be started before it is advanced")
        for name, noise in self._draws.step().items():
            self._arrays[name][row] = noise[0]

    def _compute(self) -> Tensor:
        for row in range(self.batch):
            self._draw(row)
            for name, slot in self._slots.items():
                self._motion.inputs[slot].copy_(self._staged[name][row : row + 1], non_blocking=True)
            outputs = self._motion.run()
            self._render.place(row, outputs[0])
            self._motion.carry(outputs)
        return self._render.run()[0]
