"""PyTorch's ways to run the stages on a GPU: eager, torch.compile, CUDA graphs by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.material import Material, gpu_modules
from benchmarks.gpu.methods import COMPILE, FP16, FRAME_GRAPH, GRAPH, GpuMethod
from benchmarks.gpu.player import Call, Place, Player, blank_inputs
from t2v_export.models.text import TransformersText

WARM_RUNS = 3
"""Before a capture: libraries make their workspaces and cuDNN chooses its algorithms outside the graph."""
TEXT_TOLERANCE = 1e-2  # of the captured text stage against the same modules called: another form of the same mask

Outputs = tuple[Tensor, ...]


def exact_floats(tuned: bool) -> None:
    """No TF32 in FP32 products and convolutions; cuDNN's own search for `tuned` methods. For the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = tuned


class ModuleCall(Call):
    """A module, or what torch.compile made of it, called on tensors. Inputs are handed over, not copied.

    `static`: outputs lie in memory of torch.compile's CUDA graphs, and the next run overwrites them. So they are copied
    out, and each run is marked as a new step.
    """

    def __init__(self, module: Callable[..., Any], inputs: list[Tensor], states: int = 0, static: bool = False) -> None:
        super().__init__(inputs, states)
        self._module, self._static = module, static
        self._device = inputs[0].device

    def feed(self, values: Sequence[Tensor]) -> None:
        self.inputs = [value.to(self._device, non_blocking=True) for value in values]

    def run(self) -> Outputs:
        if self._static:
            torch.compiler.cudagraph_mark_step_begin()
        return as_tuple(self._module(*self.inputs))

    def carry(self, outputs: Outputs) -> None:
        if self._static:
            super().carry(outputs)
        elif self.states:
            self.inputs[-self.states :] = outputs[1:]

    def place(self, row: int, motion: Tensor) -> None:
        if self._static or len(self.inputs[0]) > 1:
            super().place(row, motion)
        else:
            self.inputs[0] = motion


class GraphCall(Call):
    """A stage captured as one CUDA graph; a motion stage's graph also writes the new states over the old ones."""

    def __init__(self, module: Callable[..., Any], inputs: list[Tensor], place: Place, states: int = 0) -> None:
        super().__init__(inputs, states)

        def once() -> Outputs:
            made = as_tuple(module(*inputs))
            if states:
                torch._foreach_copy_(inputs[-states:], list(made[1:]))
            return made

        self._graph, self._outputs = capture(once, place)

    @property
    def outputs(self) -> Outputs:
        return self._outputs

    def run(self) -> Outputs:
        self._graph.replay()
        return self._outputs

    def carry(self, outputs: Outputs) -> None:
        """The graph has done it."""


def capture(once: Callable[[], Outputs], place: Place) -> tuple[Any, Outputs]:
    """Record what `once` puts on the stream; the outputs are the graph's own memory."""
    with place.current():
        for _ in range(WARM_RUNS):
            once()
    place.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=place.stream):
        outputs = once()
    return graph, outputs


class ReadyMaskText(nn.Module):
    """A transformers text stage that is given its additive mask, made on the GPU.

    transformers makes the mask of eager attention with a tensor of the host at each call, which no CUDA graph can hold.
    A mask of four dimensions it takes as it is.
    """

    def __init__(self, text: TransformersText) -> None:
        super().__init__()
        self.text = text

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        dtype = self.text.head.linear.weight.dtype
        hidden = (1 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        ready = hidden.expand(-1, -1, attention_mask.shape[1], -1)
        states = self.text.encoder(input_ids=input_ids, attention_mask=ready).last_hidden_state
        condition: Tensor = self.text.head(self.text.pooling(states, attention_mask))
        return condition


class TorchRunner:
    """A checkpoint's stages by one of PyTorch's ways; see `Runner`."""

    def __init__(self, method: GpuMethod, material: Material, place: Place) -> None:
        exact_floats(method.tuned)
        self.method, self.material, self.place = method, material, place
        self.dtype = torch.float16 if method.precision == FP16 else torch.float32
        self.notes: dict[str, Any] = {}
        self.graphs = method.runner in (GRAPH, FRAME_GRAPH)
        self.modules: dict[str, Any] = dict(
            gpu_modules(material.checkpoint, place.device, self.dtype, method.tuned and method.precision == FP16)
        )
        if method.runner == COMPILE:
            mode = None if method.mode == "default" else method.mode
            self.modules = {s: torch.compile(m, mode=mode, dynamic=False) for s, m in self.modules.items()}
        self._static = method.runner == COMPILE and method.mode != "default" and place.on_gpu
        self._calls: dict[tuple[str, int], Call] = {}

    def text(self) -> Call:
        return self._call("text", 1, self._make_text)

    def motion(self) -> Call:
        return self._call("motion", 1, lambda: self._make("motion", 1))

    def render(self, batch: int) -> Call:
        return self._call("render", batch, lambda: self._make("render", batch))

    def player(self, batch: int) -> Player:
        kind = FrameGraphPlayer if self.method.runner == FRAME_GRAPH else Player
        return kind(self.material.checkpoint, self.material.tokenizer, self, batch)

    def _call(self, stage: str, batch: int, make: Callable[[], Call]) -> Call:
        if (stage, batch) not in self._calls:
            self._calls[stage, batch] = make()
        return self._calls[stage, batch]

    def _make(self, stage: str, batch: int) -> Call:
        spec = self.material.checkpoint.specs[stage]
        inputs = blank_inputs(spec, batch, self.dtype, self.place.device)
        if not self.graphs:
            return ModuleCall(self.modules[stage], inputs, len(spec.states), self._static)
        if stage == "render" and batch == 1:  # reads where the motion graph writes
            motion = self.motion()
            inputs[0] = motion.outputs[0] if isinstance(motion, GraphCall) else inputs[0]
        return GraphCall(self.modules[stage], inputs, self.place, len(spec.states))

    def _make_text(self) -> Call:
        """The text stage, captured if that works and gives what calling it gives. The notes say which."""
        spec, module = self.material.checkpoint.specs["text"], self.modules["text"]
        plain = ModuleCall(module, blank_inputs(spec, 1, self.dtype, self.place.device), 0, self._static)
        if not self.graphs:
            return plain
        # Before the text stage, whose capture may fail and leave the stream in an error.
        self.render(1)
        # Captured on one caption and compared on another: a graph that holds what it saw is found out.
        seen, other = ([torch.from_numpy(array) for array in self.material.samples["text"][i]] for i in (0, -1))
        try:
            ready = ReadyMaskText(module) if isinstance(module, TransformersText) else module
            captured = GraphCall(ready, [t.to(self.place.device, copy=True) for t in seen], self.place)
            with self.place.current():
                plain.feed(other)
                captured.feed(other)
                off = float((plain.run()[0] - captured.run()[0]).abs().max())
            self.place.synchronize()
        except Exception as error:  # noqa: BLE001 a capture fails in many ways, and the stage can still be called
            self.notes["text"] = f"called, not captured: {type(error).__name__}: {error}"[:500]
            return plain
        if not off <= TEXT_TOLERANCE:
            self.notes["text"] = f"called, not captured: the graph's condition is {off:.3g} off"
            return plain
        self.notes["text"] = f"captured, its mask made on the GPU; {off:.2g} off the same modules called"
        return captured


class FrameGraphPlayer(Player):
    """All motion steps of a call and its render as one CUDA graph; noises go in and frames out around it."""

    def __init__(self, checkpoint: Any, tokenizer: Any, runner: TorchRunner, batch: int) -> None:
        super().__init__(checkpoint, tokenizer, runner, batch)
        motion, render = runner.modules["motion"], runner.modules["render"]
        noises = {name: torch.zeros_like(staged, device=self.place.device) for name, staged in self._staged.items()}
        self._noises = noises
        # Inputs of the stages' own graphs, so that starting a stream and changing its caption reach this graph too.
        fixed, drawn, states = self._motion.inputs, self._render.inputs, self._motion.states

        def once() -> Outputs:
            made, current = [], list(fixed)
            for row in range(batch):
                for name, slot in self._slots.items():
                    current[slot] = noises[name][row : row + 1]
                outputs = as_tuple(motion(*current))
                if states:
                    current[-states:] = outputs[1:]
                made.append(outputs[0])
            if states:
                torch._foreach_copy_(fixed[-states:], current[-states:])
            return as_tuple(render(torch.cat(made), *drawn[1:]))

        self._graph, self._made = capture(once, self.place)

    def _compute(self) -> Tensor:
        for row in range(self.batch):
            self._draw(row)
        for name, staged in self._staged.items():
            self._noises[name].copy_(staged, non_blocking=True)
        self._graph.replay()
        return self._made[0]


def as_tuple(made: Any) -> Outputs:
    return made if isinstance(made, tuple) else (made,)
