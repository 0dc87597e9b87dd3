"""What a module costs: multiply-accumulates of one run, and parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from t2v_edge.spec import StageSpec


def count_macs(module: nn.Module, spec: StageSpec) -> int:
    """Multiply-accumulates of one run with batch 1: convolutions, linear layers, recurrent cells and attention.

    `spec` gives the shapes of what the module is fed. Element-wise work (activations, norms, gates) is not counted.
    """
    inputs = example_inputs(spec, next((p.device for p in module.parameters()), torch.device("cpu")))
    with ExitStack() as restored:
        for part in module.modules():
            restored.callback(setattr, part, "training", part.training)
        module.eval()  # a count in training would move the running statistics
        with torch.no_grad(), plain_kernels(), FlopCounterMode(display=False) as counter:
            module(*inputs)
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """The number of weights that training changes; a weight used twice counts once."""
    return sum(p.numel() for p in module.parameters())


def example_inputs(spec: StageSpec, device: torch.device | str = "cpu") -> list[Tensor]:
    """Inputs of the stage's shapes: integers 1, floats in 0..1, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.ones(t.shape, dtype=torch.int64) if t.dtype == "int64" else torch.rand(t.shape, generator=generator)
        for t in spec.inputs
    ]
    return [tensor.to(device) for tensor in made]


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Without oneDNN, whose recurrent layers are one operator each; its setter warns of GPUs that are not asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.backends.mkldnn.flags(enabled=False):
            yield
