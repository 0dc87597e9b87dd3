"""What the training scripts share: atomic state files, logs with curves, averaged weights, picture sheets."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from t2v_edge.util.files import atomic_file
from t2v_edge.util.targets import SCRIPT_FILE


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def save_state(state: Any, path: Path) -> None:
    """Write with torch.save; the file is whole or not there."""
    with atomic_file(path, SCRIPT_FILE) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> Any:
    """Read what `save_state` wrote; never runs code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)


class Ema:
    """The exponential average of a module's weights and buffers (BatchNorm's statistics among them)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.source, self.decay = module, decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        pairs = [
            (mine, its)
            for mine, its in zip(self._tensors(self.module), self._tensors(module))
            if its.is_floating_point()
        ]
        self.mine, self.its = [p[0] for p in pairs], [p[1] for p in pairs]

    @staticmethod
    def _tensors(module: nn.Module) -> list[Tensor]:
        return [*module.parameters(), *module.buffers()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average after a step; early steps weigh more, so that the start is forgotten."""
        torch._foreach_lerp_(self.mine, self.its, 1 - min(self.decay, (1 + step) / (10 + step)))


class TrainingLog:
    """A log of JSON lines and the curves of what is in it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, **figures: Any) -> None:
        """Append one line; floats are rounded to five digits."""
        line = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def plot(self, path: Path, names: tuple[str, ...], unit: str) -> None:
        """Draw the named figures over training seconds."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4))
        for name in names:
            points = [(line["seconds"], line[name]) for line in self.lines() if name in line]
            axes.plot(*zip(*points), label=name) if points else None
        axes.set(xlabel="training time, s", ylabel=unit)
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=110, bbox_inches="tight")
        pyplot.close(figure)


def save_sheet(frames: Tensor, path: Path, columns: int) -> None:
    """Save frames (n, 3, h, w) in [0, 1] as one PNG with so many columns; atomic."""
    pixels = (frames.detach().float().clamp(0, 1) * 255 + 0.5).byte().cpu().permute(0, 2, 3, 1).numpy()
    blank = np.zeros_like(pixels[:1]).repeat(-len(pixels) % columns, 0)
    grid = np.concatenate([pixels, blank]).reshape(-1, columns, *pixels.shape[1:])
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in grid], 0)
    with atomic_file(path, SCRIPT_FILE) as temporary:
        cv2.imwrite(str(temporary), sheet[..., ::-1])
