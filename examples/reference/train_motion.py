"""Train the motion stage of the reference model on motion capture clips.

    python -m examples.reference.train_motion --data DIR --out DIR --minutes 6

The sequences are endless and come from a motion graph. Training is auto-conditioned (Zhou et al., ICLR 2018): after a
few frames of truth the network runs on its own output. These stretches grow to nine tenths of the sequence.

It writes `motion.pt` (averaged weights), `motion.jsonl`, `motion_curve.png`, `motion_sheet.png` and
`motion_vectors.npy`. The last holds motion vectors of free runs, for the renderer's training. `--resume` goes on from
`motion.state.pt`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.reference import rollout
from examples.reference.model import BLEND_STEPS, motion_options
from examples.reference.motion_data import load_clips
from examples.reference.motion_graph import MotionGraph, Sequences
from examples.reference.training import Ema, TrainingLog, load_state, save_state, seed_everything
from examples.reference.vocabulary import ACTIONS, CONDITION_SIZE, MOTION_SIZE
from t2v_edge.util.files import atomic_file
from t2v_edge.util.targets import SCRIPT_FILE
from t2v_export.models.skeletal import POSE_SIZE, PRESENCE, PROP, SPIN, STEP, SkeletalMotion

SWITCH_RATE = 1 / 80
TEACHER_FRAMES = 6
JOINT_DELTA_WEIGHT = 8.0
SOFTEST = 0.1
"""The largest share of a condition that is spread over all actions: the text stage is never wholly sure."""


def build_sequences(graph: MotionGraph, count: int, length: int, seed: int) -> Sequences:
    """`count` sequences: half keep their action, half change it at random moments."""
    rates = (0.0, SWITCH_RATE)
    parts = [graph.sequences(count // 2, length, switch=rate, seed=seed + k) for k, rate in enumerate(rates)]
    return Sequences(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("poses", "actions", "styles")))


def fresh_module(graph: MotionGraph, hidden: int) -> SkeletalMotion:
    """A motion stage with the clips' statistics and random weights."""
    module = SkeletalMotion(condition_size=CONDITION_SIZE, motion_size=MOTION_SIZE, **motion_options(hidden=hidden))
    mean, deviation = graph.poses.mean(0), graph.poses.std(0)
    mean[[0, 2]] = 0
    least = np.full(POSE_SIZE, 1e-3, np.float32)
    least[:60], least[PROP], least[PRESENCE] = 0.03, 0.05, 0.2
    deviation = np.maximum(deviation, least)
    deviation[[0, 2]] = 0.1
    figures = (mean, deviation, graph.lengths, graph.neutral)
    module.set_statistics(*(torch.from_numpy(np.asarray(f, np.float32)) for f in figures))
    module.set_styles(torch.from_numpy(graph.codes), torch.from_numpy(graph.unused))
    return module


class MotionTraining:
    """The module, its optimizer and average, and one training step: a CUDA graph where there is a GPU."""

    def __init__(self, args: argparse.Namespace, graph: MotionGraph, data: Sequences) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.module = fresh_module(graph, args.hidden).to(self.device).train()
        self.ema = Ema(self.module, 0.998)
        on_gpu = self.device.type == "cuda"
        self.rate = torch.tensor(args.lr, device=self.device)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=self.rate if on_gpu else args.lr,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            capturable=on_gpu,
        )
        self.poses = self.module.normal(torch.from_numpy(data.poses).to(self.device))
        self.actions = torch.from_numpy(data.actions).to(self.device)
        self.styles = torch.from_numpy(data.styles).to(self.device)
        self.step_index, self.elapsed, self.loss = 0, 0.0, torch.zeros((), device=self.device)
        self.weight = torch.ones(POSE_SIZE, device=self.device)
        self.weight[STEP], self.weight[SPIN], self.weight[PRESENCE] = 4.0, 2.0, 2.0
        batch, steps = args.batch, args.steps
        self.truth = torch.zeros(batch, steps + 1, POSE_SIZE, device=self.device)
        self.condition = torch.zeros(batch, steps + 1, len(ACTIONS), device=self.device)
        self.style = torch.zeros(batch, self.module.style_size, device=self.device)
        self.taught = torch.ones(steps, batch, 1, device=self.device)
        self.jitter = torch.zeros(steps, batch, POSE_SIZE, device=self.device)
        self._replay: Callable[[], None] | None = None

    def draw(self, progress: float) -> None:
        """Fill the batch with windows, one in six from a sequence's start; `progress` sets the free stretch."""
        batch, steps, device = self.args.batch, self.args.steps, self.device
        pick = torch.randint(len(self.poses), (batch,), device=device)
        first = torch.randint(self.poses.shape[1] - steps, (batch,), device=device)
        opening = torch.rand(batch, device=device) < 1 / 6
        first = torch.where(opening, 0, first)
        frames = first[:, None] + torch.arange(steps + 1, device=device)
        self.truth.copy_(self.poses[pick[:, None], frames])
        earlier = (first[:, None] + torch.arange(-BLEND_STEPS, 0, device=device)).clamp(min=0)
        labels = self.actions[pick[:, None], torch.cat([earlier, frames], 1)]
        soft = SOFTEST * torch.rand(batch, 1, 1, device=device)
        self.condition.copy_(rollout.conditions_of(labels)[:, BLEND_STEPS:] * (1 - soft) + soft / len(ACTIONS))
        self.style.copy_(self.styles[pick])
        self.jitter.normal_(0, self.module.jitter)
        free = int(5 + min(1.0, progress / 0.6) * (0.9 * steps - 5))
        period = free + TEACHER_FRAMES
        time_index = torch.arange(steps, device=device)[:, None]
        phase = torch.randint(period, (batch,), device=device)
        taught = ((time_index + phase) % period) < TEACHER_FRAMES
        taught[:TEACHER_FRAMES] = True
        alone = opening & (torch.rand(batch, device=device) < min(1.0, progress / 0.3))
        taught[1:] &= ~alone
        self.taught.copy_(taught[..., None])

    def losses(self) -> Tensor:
        """Play the batch and compare with the truth: pose, and the change of joints from frame to frame."""
        module, made = self.module, []
        states = tuple(torch.zeros(len(self.truth), module.hidden, device=self.device) for _ in module.cell_states())
        last = self.truth[:, 0]
        for t in range(self.args.steps):
            given = self.taught[t] * self.truth[:, t] + (1 - self.taught[t]) * last + self.jitter[t]
            plain, states = module.advance(given, self.condition[:, t + 1], self.style, states)
            last = module.normal(module.settle(plain))
            made.append(plain)
        poses, truth = module.normal(torch.stack(made, 1)), self.truth[:, 1:]
        close = ((poses - truth).square() * self.weight).mean()
        delta = (poses.diff(dim=1) - truth.diff(dim=1))[..., :60].square().mean()
        return close + JOINT_DELTA_WEIGHT * delta

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.losses()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def capture(self) -> bool:
        """Record the step as a CUDA graph; plain steps stay where that fails. True where it was recorded.

        The warm-up steps run with learning rate 0 and leave only the optimizer's moments.
        """
        self._replay = self._step
        if self.device.type != "cuda" or not self.args.graph:
            return False
        self.draw(0.0)
        self.rate.fill_(0.0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        try:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                self._step()
        except RuntimeError as error:
            tqdm.write(f"motion: no CUDA graph ({str(error)[:200]}); plain steps instead, slower")
            torch.cuda.synchronize()
            return False
        self._replay = recorded.replay
        return True

    def step(self, progress: float) -> None:
        """One step at `progress` 0..1 of the time: learning rate flat to a half, then falling as a cosine."""
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, (progress - 0.5) / 0.5))))
        rate = self.args.lr * min(1.0, (self.step_index + 1) / 100) * max(0.02, falling)
        if self.device.type == "cuda":
            self.rate.fill_(rate)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        self.draw(progress)
        assert self._replay is not None, "call capture() first"
        self._replay()
        self.ema.update(self.step_index)
        self.step_index += 1

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_index,
            "elapsed": self.elapsed,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`; call before `capture`."""
        self.module.load_state_dict(state["module"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.device.type == "cuda":
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
        self.step_index, self.elapsed = state["step"], state["elapsed"]


def train(args: argparse.Namespace) -> Path:
    """Run or go on with the training; returns the file with the averaged weights."""
    seed_everything(args.seed)
    out = Path(args.out)
    log = TrainingLog(out / "motion.jsonl")
    clips = [c for c in load_clips(args.data, mirrored=args.mirrored) if c.split == "train"]
    began = time.monotonic()
    graph = MotionGraph(clips)  # the reader and the speeds measured against are of the clips it plays
    clips = graph.clips
    data = build_sequences(graph, args.sequences, args.length, args.seed)
    training = MotionTraining(args, graph, data)
    log.write(built=len(data.poses), build_seconds=time.monotonic() - began)
    state_file, weights = out / "motion.state.pt", out / "motion.pt"
    if args.resume and state_file.exists():
        training.resume(load_state(state_file))
    recorded = training.capture()
    speeds, reader = rollout.data_speeds(clips), rollout.train_reader(training.ema.module, clips, args.reader_steps)
    seconds, start = args.minutes * 60, time.monotonic() - training.elapsed
    measured = saved = training.elapsed
    bar = tqdm(total=round(seconds), unit="s", desc="motion", disable=None, initial=round(training.elapsed))
    while training.elapsed < seconds and (not args.limit or training.step_index < args.limit):
        training.step(training.elapsed / seconds)
        if training.step_index % 10 == 0 and training.device.type == "cuda":
            torch.cuda.synchronize()
        training.elapsed = time.monotonic() - start
        bar.update(round(training.elapsed) - bar.n)
        if training.elapsed - measured >= args.every:
            measured = training.elapsed
            figures, _ = rollout.free_run(training.ema.module, reader, speeds, streams=args.streams, steps=args.rollout)
            log.write(
                step=training.step_index,
                seconds=training.elapsed,
                loss=training.loss.item(),
                graph=recorded,
                **_flat(figures),
            )
            save_weights(training, weights)
        if training.elapsed - saved >= 60:
            saved = training.elapsed
            save_state(training.state(), state_file)
    bar.close()
    save_state(training.state(), state_file)
    save_weights(training, weights)
    finish(args, training, reader, speeds, log)
    return weights


def finish(
    args: argparse.Namespace, training: MotionTraining, reader: rollout.ActionReader, speeds: Tensor, log: TrainingLog
) -> None:
    """The last measurement, the curve, the sheet, and motion vectors of free runs for the renderer."""
    out, module = Path(args.out), training.ema.module
    loss = training.loss.item()
    if not math.isfinite(loss):
        raise RuntimeError(f"training diverged: loss {loss}; start again without --resume, with --lr below {args.lr}")
    figures, played = rollout.free_run(module, reader, speeds, streams=2 * args.streams, steps=args.rollout)
    figures["switches"] = rollout.switch_run(module, reader, streams=24 * args.streams, stay=160)
    log.write(step=training.step_index, seconds=training.elapsed, loss=loss, final=True, **figures)
    log.plot(out / "motion_curve.png", ("loss", "speed_ratio_min", "speed_ratio_max", "read"), "loss and ratios")
    first = slice(None, None, 2 * args.streams)
    rollout.save_figures(played.poses[first, args.rollout // 2 :], played.actions[first], out / "motion_sheet.png")
    vectors = played.motions[:, 1::3].flatten(0, 1).half().cpu().numpy()
    with atomic_file(out / "motion_vectors.npy", SCRIPT_FILE) as temporary:
        np.save(temporary, vectors.astype(np.float32))
    print(json.dumps({"weights": str(out / "motion.pt"), "steps": training.step_index, **figures}, indent=1))


def save_weights(training: MotionTraining, path: Path) -> None:
    """The averaged weights in half precision, as the checkpoint holds them."""
    save_state({name: value.half() for name, value in training.ema.module.state_dict().items()}, path)


def _flat(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if not isinstance(value, dict)}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with motions.npz and index.csv")
    parser.add_argument("--out", required=True, help="folder for weights, log, curve and sheet")
    parser.add_argument("--minutes", type=float, default=6.0, help="training time; schedules follow it")
    parser.add_argument("--limit", type=int, default=0, help="stop after so many steps; 0: only time counts")
    parser.add_argument("--hidden", type=int, default=512, help="width of the recurrent cell")
    parser.add_argument("--batch", type=int, default=256, help="sequences a step")
    parser.add_argument("--steps", type=int, default=112, help="frames a sequence")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--sequences", type=int, default=3000, help="sequences in memory")
    parser.add_argument("--length", type=int, default=480, help="frames of each")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between measurements")
    parser.add_argument("--rollout", type=int, default=1000, help="free-running steps measured")
    parser.add_argument("--streams", type=int, default=4, help="streams an action measured")
    parser.add_argument("--reader-steps", type=int, default=400, help="training steps of the action reader")
    parser.add_argument("--device", default="auto", help="torch device; auto: a GPU where there is one")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--no-graph", dest="graph", action="store_false", help="do not record the step as a CUDA graph")
    parser.add_argument("--no-mirrored", dest="mirrored", action="store_false", help="leave out the mirrored clips")
    args = parser.parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    train(parse_arguments())
