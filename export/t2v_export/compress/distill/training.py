"""The training loop of all stages: averaged weights, learning rate, saved states, logs."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from t2v_edge.util.files import atomic_file
from t2v_edge.util.targets import CACHE_FILE
from t2v_export.errors import TrainingError

SAVE_EVERY_S = 30.0
LOG_POINTS = 50
AVERAGE = 0.999
WARM_UP = 200


class StageTrainer:
    """One stage's training: `step` does one update of `student`, `measure` compares it with the teacher."""

    name: str
    student: nn.Module
    rate: float
    optimizer: torch.optim.Optimizer
    generator: torch.Generator

    def step(self, progress: float) -> Mapping[str, Tensor]:
        """One update at `progress` 0 to 1 of the training; losses by name."""
        raise NotImplementedError

    def measure(self, student: nn.Module) -> Mapping[str, float]:
        """How near `student` is to the teacher, on inputs that are never trained on."""
        raise NotImplementedError

    def set_rate(self, rate: float) -> None:
        set_rate(self.optimizer, rate)

    def descend(self, loss: Tensor) -> None:
        """Change the weights by the gradient of a loss."""
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """All that changes while it trains, but for the student and its average."""
        return {"optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}

    def resume(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])


class Average:
    """The exponential average of a module's weights and statistics."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._mine, self._its = (
            [t for t in (*part.parameters(), *part.buffers()) if t.is_floating_point()]
            for part in (self.module, module)
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average after a step. Early steps weigh more, so that the start is forgotten."""
        torch._foreach_lerp_(self._mine, self._its, 1 - min(AVERAGE, (1 + step) / (10 + step)))


def rate_at(progress: float, step: int) -> float:
    """The learning rate's share of its peak: a linear rise over 200 steps, then a cosine down to a fiftieth."""
    return min(1.0, (step + 1) / WARM_UP) * max(0.02, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(
    trainer: StageTrainer, steps: int, folder: Path | None, progress: bool
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train for `steps` updates; returns the averaged student and the log.

    With a `folder` the state is saved there every half minute. A state that is found there is continued: on a CPU it
    ends with the same weights as without the stop. Raises `TrainingError` if a loss is not finite.
    """
    average, done = Average(trainer.student), 0
    log: list[dict[str, Any]] = []
    file = folder / f"{trainer.name}.state.pt" if folder else None
    if file is not None and file.exists():
        done, log = _resume(trainer, average, file)
    spent = log[-1]["seconds"] if log else 0.0
    began = saved = time.monotonic()
    every = max(1, steps // LOG_POINTS)
    title, hidden = f"distill {trainer.name}", None if progress else True
    with tqdm(total=steps, initial=done, desc=title, unit="step", file=sys.stderr, disable=hidden, leave=False) as bar:
        while done < steps:
            trainer.student.train()
            trainer.set_rate(trainer.rate * rate_at(done / steps, done))
            losses = trainer.step(done / steps)
            average.update(done)
            done += 1
            bar.update()
            if done % every == 0 or done == steps:
                log.append(_figures(trainer, average.module, losses, done, spent + time.monotonic() - began))
                bar.set_postfix({k: f"{v:.4g}" for k, v in log[-1].items() if k not in ("step", "seconds")})
            if file is not None and time.monotonic() - saved >= SAVE_EVERY_S:
                saved = time.monotonic()
                _save(trainer, average, log, done, file)
    return average.module, log


def _figures(
    trainer: StageTrainer, student: nn.Module, losses: Mapping[str, Tensor], step: int, seconds: float
) -> dict[str, Any]:
    figures = {name: float(value) for name, value in losses.items()}
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"distill {trainer.name}: the loss {bad[0]} is not finite at step {step}; lower {trainer.name}_rate"
        )
    figures |= trainer.measure(student)
    return {"step": step, "seconds": round(seconds, 1), **{k: float(f"{v:.5g}") for k, v in figures.items()}}


def _save(trainer: StageTrainer, average: Average, log: list[dict[str, Any]], done: int, file: Path) -> None:
    student, averaged = trainer.student.state_dict(), average.module.state_dict()
    state = {"done": done, "log": json.dumps(log), "student": student, "average": averaged, "lesson": trainer.state()}
    with atomic_file(file, CACHE_FILE) as temporary:
        torch.save(state, temporary)


def _resume(trainer: StageTrainer, average: Average, file: Path) -> tuple[int, list[dict[str, Any]]]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        trainer.student.load_state_dict(state["student"])
        average.module.load_state_dict(state["average"])
        trainer.resume(state["lesson"])
        return int(state["done"]), list(json.loads(state["log"]))
    except Exception as error:  # torch.load raises many kinds; each means that the file is not what was saved
        said = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise TrainingError(f"{file} is damaged ({said}); remove it, and the training starts again") from error


class UpdateReplay:
    """An update that a GPU replays as a CUDA graph, as it is thousands of small kernels. A CPU runs it directly.

    `update` reads and writes tensors at fixed addresses. It is recorded at the first call, after a few runs. What these
    runs change in the tensors that `keep` gives is put back. Optimizers must be `capturable`.
    """

    def __init__(self, update: Callable[[], None], keep: Callable[[], Sequence[Tensor]], device: torch.device) -> None:
        self._update, self._keep = update, keep
        self._run: Callable[[], None] | None = None if device.type == "cuda" else update

    def __call__(self) -> None:
        if self._run is None:
            self._run = self._record()
        self._run()

    def _record(self) -> Callable[[], None]:
        tensors = self._keep()
        kept = [t.detach().clone() for t in tensors]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._update()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(recorded):
                self._update()
            run: Callable[[], None] = recorded.replay
        except RuntimeError as error:
            torch.cuda.synchronize()
            run = self._update
            warnings.warn(f"no CUDA graph, the training is slower: {str(error)[:200]}", stacklevel=2)
        with torch.no_grad():
            for tensor, old in zip(tensors, kept):
                tensor.copy_(old)
        return run


def adamw(parameters: Iterable[Tensor], rate: float, device: torch.device, **options: Any) -> torch.optim.AdamW:
    """AdamW for an update inside a CUDA graph, which sees the learning rate change."""
    on_gpu = device.type == "cuda"
    given = torch.tensor(rate, device=device) if on_gpu else rate
    return torch.optim.AdamW(parameters, lr=given, capturable=on_gpu, **options)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        old, device = group["lr"], group["params"][0].device  # a rate that was read from a file is not on a GPU yet
        group["lr"] = old.to(device).fill_(rate) if isinstance(old, Tensor) else rate


def generators(device: torch.device, seed: int) -> torch.Generator:
    """A generator on `device`, seeded."""
    return torch.Generator(device).manual_seed(seed)


def autocast(device: torch.device, precision: str = "bfloat16") -> torch.autocast:
    """bfloat16 on a GPU, where that is the `precision` asked for; nothing on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and precision == "bfloat16")
