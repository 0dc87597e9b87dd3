"""Recurrent motion: one step of a stacked GRU or LSTM whose states are inputs and outputs.

Cells are written out as two matrix products and gates. The GRU and LSTM operators of ONNX would become loops in
TensorRT. A written-out step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2v_edge.spec import NoiseSpec, StageSpec, StateSpec
from t2v_export.models.contract import motion_spec


class GatedCell(nn.GRUCell):
    """A GRU cell (Cho et al., 2014) with the weights, names and equations of `torch.nn.GRUCell`."""

    states = 1

    def step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """x (batch, input), (h,) -> (h',), h (batch, hidden)."""
        (h,) = states
        from_x = functional.linear(x, self.weight_ih, self.bias_ih).chunk(3, dim=1)
        from_h = functional.linear(h, self.weight_hh, self.bias_hh).chunk(3, dim=1)
        reset = torch.sigmoid(from_x[0] + from_h[0])
        update = torch.sigmoid(from_x[1] + from_h[1])
        candidate = torch.tanh(from_x[2] + reset * from_h[2])
        return (candidate + update * (h - candidate),)


class MemoryCell(nn.LSTMCell):
    """An LSTM cell (Hochreiter and Schmidhuber, 1997) with the weights, names and equations of `torch.nn.LSTMCell`."""

    states = 2

    def step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """x (batch, input), (h, c) -> (h', c'), each (batch, hidden)."""
        h, c = states
        gates = functional.linear(x, self.weight_ih, self.bias_ih) + functional.linear(h, self.weight_hh, self.bias_hh)
        enter, forget, candidate, leave = gates.chunk(4, dim=1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(candidate)
        return torch.sigmoid(leave) * torch.tanh(c), c


CELLS: dict[str, type[GatedCell | MemoryCell]] = {"gru": GatedCell, "lstm": MemoryCell}


def make_cell(cell: str, inputs: int, hidden: int) -> GatedCell | MemoryCell:
    """A cell by name, `gru` or `lstm`; raises ValueError for another."""
    if cell not in CELLS:
        raise ValueError(f"cell {cell!r} is not one of {', '.join(CELLS)}")
    return CELLS[cell](inputs, hidden)


def run_cells(
    layers: nn.ModuleList, x: Tensor, states: Sequence[Tensor], fused: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """What a stack of cells makes, and its next states; `fused` by torch's kernels, else in plain operators."""
    following: list[Tensor] = []
    for cell in layers:
        assert isinstance(cell, (GatedCell, MemoryCell))
        first, last = len(following), len(following) + cell.states
        if fused:
            made = cell(x, states[first] if cell.states == 1 else states[first:last])
            following += (made,) if cell.states == 1 else made
        else:
            following += cell.step(x, tuple(states[first:last]))
        x = following[first]
    return x, following


class RecurrentMotion(nn.Module):
    """One motion step: condition, noises and states in, motion and next states out.

    Options: `cell` gru or lstm; `hidden` width; `layers` depth; `noise`, numbers of N(0, noise_scale) drawn at each
    step (MoCoGAN, Tulyakov et al., 2018); `content`, numbers of N(0, 1) drawn once a stream; `category`, values one of
    which is drawn once a stream and given to the cells as one-hot; `feedback`, the previous motion is fed back as
    `state.motion`; `output` linear, tanh, or state (the last layer's h is the motion); `start` of the states: zeros,
    normal, or stored (weights `start.NAME` hold them).

    States are `h0`, `h1`... and, for an LSTM, `c0`, `c1`..., each (1, hidden), in the order h0, c0, h1, c1.
    """

    def __init__(
        self,
        *,
        condition_size: int,
        motion_size: int,
        cell: str = "gru",
        hidden: int = 256,
        layers: int = 1,
        noise: int = 0,
        noise_scale: float = 1.0,
        content: int = 0,
        category: int = 0,
        feedback: bool = False,
        output: str = "linear",
        start: str = "zeros",
        **_: Any,
    ) -> None:
        super().__init__()
        if not 1 <= layers <= 64 or hidden < 1:
            raise ValueError(f"layers {layers} must be 1 to 64, and hidden {hidden} 1 or more")
        if output not in ("linear", "tanh", "state"):
            raise ValueError(f"output {output!r} is not one of linear, tanh, state")
        if output == "state" and hidden != motion_size:
            raise ValueError(f"output 'state' needs hidden {hidden} to equal motion_size {motion_size}")
        self.sizes = condition_size, motion_size
        self.output, self.start_kind, self.category, self.feedback = output, start, category, feedback
        noises = (
            NoiseSpec("step", (1, noise), "normal", "step", noise_scale) if noise else None,
            NoiseSpec("content", (1, content), "normal", "stream") if content else None,
            NoiseSpec("category", (1, category), "uniform", "stream") if category else None,
        )
        self.noises = tuple(n for n in noises if n is not None)
        width = condition_size + noise + content + category + (motion_size if feedback else 0)
        self.cells = nn.ModuleList(make_cell(cell, hidden if i else width, hidden) for i in range(layers))
        self.project = nn.Identity() if output == "state" else nn.Linear(hidden, motion_size)
        letters = "hc"[: CELLS[cell].states]
        self.state_shapes = {f"{letter}{i}": (1, hidden) for i in range(layers) for letter in letters}
        if feedback:
            self.state_shapes["motion"] = (1, motion_size)
        self.start = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name, shape in self.state_shapes.items()}
            if start == "stored"
            else {}
        )

    @property
    def spec(self) -> StageSpec:
        """The stage's contract; `stored` start values are those of the weights now loaded."""
        states = []
        for name, shape in self.state_shapes.items():
            stored = self.start_kind == "stored"
            value = tuple(self.start[name].detach().flatten().tolist()) if stored else ()
            states.append(StateSpec(name, shape, self.start_kind if name != "motion" or stored else "zeros", value))
        return motion_spec(*self.sizes, self.noises, states)

    def forward(self, condition: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """condition (batch, C), noises, states -> motion (batch, M), next states, in the order of `spec`."""
        noises, states = rest[: len(self.noises)], rest[len(self.noises) :]
        if self.category:  # the largest of K uniform numbers is equally likely to be any of the K
            code = noises[-1]
            noises = (*noises[:-1], (code == code.max(dim=1, keepdim=True).values).to(code.dtype))
        x = torch.cat([condition, *noises, *([states[-1]] if self.feedback else [])], dim=1)
        x, following = run_cells(self.cells, x, states)
        motion = self.project(x)
        if self.output == "tanh":
            motion = torch.tanh(motion)
        return (motion, *following, *([motion] if self.feedback else []))
