"""Train the frame generator: python -m examples.reference.train_renderer --data DIR --out DIR --minutes 15

Frames are drawn on the GPU while training runs, into a bank that is always renewed. The first phase has reconstruction
only: L1 with the person weighted, and L1 at an eighth of the size. The second phase adds feature matching and a hinge
GAN, and halves the generator's learning rate. The exponential average of the weights is kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from t2v_export.models.pose import PoseRenderer

from .discriminator import Discriminator, critic_loss, feature_loss
from .drawing import draw, random_looks, rasterize
from .model import SIZE, render_options
from .motion_data import PoseBank, load_clips
from .training import Ema, TrainingLog, load_state, save_sheet, save_state, seed_everything
from .vocabulary import CONDITION_SIZE, LOOK_SIZE, MOTION_SIZE

PERSON_WEIGHT, L1_WEIGHT, HINGE_WEIGHT = 3.0, 10.0, 0.08
GAN_START, DECAY_START = 0.35, 0.55  # shares of the training time


class FrameBank:
    """Drawn frames on the device, renewed a batch at a time: frames uint8 with the person's mask as fourth channel."""

    def __init__(self, poses: PoseBank, count: int, device: torch.device, compiled: bool) -> None:
        self.poses, self.device = poses, device
        self.rasterizer = torch.compile(rasterize, dynamic=False) if compiled else rasterize
        self.at_once = 64 if device.type == "cuda" else 4
        count = max(count // self.at_once, 1) * self.at_once
        self.frames = torch.empty(count, 4, SIZE, SIZE, dtype=torch.uint8, device=device).to(
            memory_format=torch.channels_last
        )
        self.motion = torch.empty(count, MOTION_SIZE, device=device)
        self.look = torch.empty(count, LOOK_SIZE, device=device)
        self.rolled_out: Tensor | None = None
        self.next = 0

    def draw(self, motion: Tensor, look: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (n, 3, S, S) and masks (n, 1, S, S) in [0, 1], in batches of one shape; n divides by the batch."""
        parts = [
            draw(m, k, SIZE, 2, self.rasterizer) for m, k in zip(motion.split(self.at_once), look.split(self.at_once))
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def poses_to_draw(self) -> Tensor:
        """Poses of the clips; where the motion stage's own rollouts are given, half of the batches are theirs."""
        if self.rolled_out is None or torch.rand(()) < 0.5:
            return self.poses.sample(self.at_once)
        return self.rolled_out[torch.randint(len(self.rolled_out), (self.at_once,), device=self.device)]

    @torch.no_grad()
    def renew(self) -> None:
        rows = slice(self.next, self.next + self.at_once)
        motion, look = self.poses_to_draw(), random_looks(self.at_once, device=self.device, mixed=0.1)
        frames, mask = self.draw(motion, look)
        self.frames[rows] = (torch.cat([frames, mask], 1) * 255 + 0.5).byte()
        self.motion[rows], self.look[rows] = motion, look
        self.next = rows.stop % len(self.frames)

    def fill(self) -> None:
        for _ in tqdm(range(len(self.frames) // self.at_once), "drawing frames", disable=None):
            self.renew()

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames and masks in [0, 1], motion, look."""
        rows = torch.randint(len(self.frames), (count,), device=self.device)
        pixels = self.frames[rows].float().div(255)
        return (
            pixels[:, :3].contiguous(memory_format=torch.channels_last),
            pixels[:, 3:],
            self.motion[rows],
            self.look[rows],
        )


class FrameModule(nn.Module):
    """`PoseRenderer.frame` as a module's forward, so that it can be compiled."""

    def __init__(self, renderer: PoseRenderer) -> None:
        super().__init__()
        self.renderer = renderer

    def forward(self, motion: Tensor, look: Tensor) -> Tensor:
        return self.renderer.frame(motion, look)


class RendererTraining:
    """All that training needs, and one step of it."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        cuda = device.type == "cuda"
        self.generator = PoseRenderer(
            condition_size=CONDITION_SIZE,
            motion_size=MOTION_SIZE,
            height=SIZE,
            width=SIZE,
            **render_options(args.channels),
        ).to(device, memory_format=torch.channels_last)
        self.critic = Discriminator(args.critic_width).to(device, memory_format=torch.channels_last)
        self.g_optimizer = torch.optim.Adam(self.generator.parameters(), args.lr, betas=(0.5, 0.99), fused=cuda)
        self.d_optimizer = torch.optim.Adam(self.critic.parameters(), 4e-4, betas=(0.5, 0.99), fused=cuda)
        self.ema = Ema(self.generator, 0.998)
        self.make = (
            torch.compile(FrameModule(self.generator), dynamic=False) if args.compile else FrameModule(self.generator)
        )
        self.judge = torch.compile(self.critic, dynamic=False) if args.compile else self.critic
        self.step_index = self.gan_steps = 0
        self.elapsed = 0.0

    def state(self) -> dict[str, object]:
        return {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "ema": self.ema.module.state_dict(),
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "step": self.step_index,
            "gan_steps": self.gan_steps,
            "elapsed": self.elapsed,
        }

    def resume(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        self.ema.module.load_state_dict(state["ema"])
        self.g_optimizer.load_state_dict(state["g_optimizer"])
        self.d_optimizer.load_state_dict(state["d_optimizer"])
        self.step_index, self.gan_steps, self.elapsed = state["step"], state["gan_steps"], state["elapsed"]

    def set_rates(self, progress: float, gan: bool) -> None:
        warm = min(1.0, (self.step_index + 1) / 100)
        decay = 1.0 if progress < DECAY_START else max(0.02, (1 - progress) / (1 - DECAY_START))
        for group in self.g_optimizer.param_groups:
            group["lr"] = self.args.lr * warm * decay * (0.5 if gan else 1.0)
        for group in self.d_optimizer.param_groups:
            group["lr"] = 4e-4 * decay

    def step(self, bank: FrameBank, progress: float) -> dict[str, Tensor]:
        """One step of the generator, and every second step one of the critic; returns the losses, on the device."""
        gan = progress >= GAN_START
        self.set_rates(progress, gan)
        real, mask, motion, look = bank.sample(self.args.batch)
        weight = 1 + PERSON_WEIGHT * F.max_pool2d(mask, 9, 1, 4)
        half = torch.autocast(self.device.type, torch.bfloat16)
        with half:
            fake = self.make(motion, look)
        fake = fake.float()
        difference = (fake - real).abs()
        coarse = (F.avg_pool2d(fake, 8) - F.avg_pool2d(real, 8)).abs().mean()
        losses = {"l1": difference.mean(), "weighted": (difference * weight).mean() + coarse}
        loss = L1_WEIGHT * losses["weighted"]
        if gan:
            if self.gan_steps % 2 == 0:
                losses["critic"] = self.critic_step(real, fake.detach(), look, half)
            self.critic.requires_grad_(False)
            with half:
                scores, features = self.judge(torch.cat([real, fake]), torch.cat([look, look]))
            self.critic.requires_grad_(True)
            count = len(real)
            losses["matching"] = feature_loss([f[:count] for f in features], [f[count:] for f in features])
            losses["hinge"] = -torch.stack([s[count:].float().mean() for s in scores]).mean()
            loss = loss + losses["matching"] + HINGE_WEIGHT * min(1.0, self.gan_steps / 300) * losses["hinge"]
            self.gan_steps += 1
        self.g_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 5.0, foreach=True)
        self.g_optimizer.step()
        self.ema.update(self.step_index)
        self.step_index += 1
        return losses

    def critic_step(self, real: Tensor, fake: Tensor, look: Tensor, half: torch.autocast) -> Tensor:
        count = len(real)
        with half:
            scores, _ = self.judge(torch.cat([real, fake, real]), torch.cat([look, look, look.roll(1, 0)]))
        loss = critic_loss(*([s[i * count : (i + 1) * count] for s in scores] for i in range(3)))
        self.d_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.d_optimizer.step()
        return loss.detach()


class HeldOut:
    """Poses of held-out clips, drawn once: what quality is watched on."""

    def __init__(self, poses: PoseBank, bank: FrameBank, count: int) -> None:
        generator = torch.Generator(bank.device).manual_seed(7)
        count = max(count // bank.at_once, 1) * bank.at_once
        self.motion = poses.sample(count, generator)
        self.look = random_looks(count, generator, bank.device)
        with torch.no_grad():
            self.frames, mask = bank.draw(self.motion, self.look)
        self.near_person = (F.max_pool2d(mask, 9, 1, 4) > 0).float()

    @torch.no_grad()
    def measure(self, renderer: PoseRenderer) -> tuple[dict[str, float], Tensor]:
        """PSNR in dB of whole frames and near the person, gradient energy against the drawing's; and the frames."""
        made = torch.cat([renderer.frame(m, k) for m, k in zip(self.motion.split(64), self.look.split(64))])
        error = (made - self.frames).square().mean(1, keepdim=True)
        near = self.near_person
        person = (error * near).sum((1, 2, 3)) / near.sum((1, 2, 3)).clamp(min=1)

        def edges(frames: Tensor) -> Tensor:
            return ((frames[..., 1:] - frames[..., :-1]).abs().mean(1, keepdim=True) * near[..., 1:]).sum()

        return {
            "psnr": (-10 * error.mean((1, 2, 3)).log10()).mean().item(),
            "psnr_person": (-10 * person.log10()).mean().item(),
            "sharpness": (edges(made) / edges(self.frames)).item(),
        }, made

    def sheet(self, made: Tensor, path: Path, columns: int = 12) -> None:
        rows = torch.linspace(0, len(made) - 1, columns * 2).long()
        pairs = [part for some in rows.split(columns) for part in (self.frames[some], made[some])]
        save_sheet(torch.cat(pairs), path, columns)


def train(args: argparse.Namespace) -> Path:
    """Run or go on with the training; returns the file with the averaged weights."""
    device = torch.device(args.device)
    seed_everything(args.seed)
    out = Path(args.out)
    clips = load_clips(args.data, mirrored=True)
    bank = FrameBank(PoseBank([c for c in clips if c.split == "train"], device), args.frames, device, args.compile)
    held_out = HeldOut(PoseBank([c for c in clips if c.split != "train"], device), bank, args.held_out)
    training = RendererTraining(args, device)
    log = TrainingLog(out / "renderer.jsonl")
    state_file, weights = out / "renderer.state.pt", out / "renderer.pt"
    if args.resume and state_file.exists():
        training.resume(load_state(state_file))
    bank.fill()
    if args.compile:
        for progress in (0.0, GAN_START):
            training.step(bank, progress)  # compiled before the clock starts
    seconds, began, saved = args.minutes * 60, time.monotonic() - training.elapsed, training.elapsed
    measured, sheets = training.elapsed, 0
    bar = tqdm(total=round(seconds), unit="s", desc="renderer", disable=None, initial=round(training.elapsed))
    while training.elapsed < seconds and (not args.steps or training.step_index < args.steps):
        if training.step_index % 8 == 0:
            bank.renew()
        losses = training.step(bank, training.elapsed / seconds)
        if training.step_index % 20 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            if bank.rolled_out is None and args.rollouts and Path(args.rollouts).exists():
                bank.rolled_out = torch.from_numpy(np.load(args.rollouts)).to(device)
        training.elapsed = time.monotonic() - began
        bar.update(round(training.elapsed) - bar.n)
        if training.elapsed - measured >= args.every:
            measured = training.elapsed
            figures, made = held_out.measure(training.ema.module)
            log.write(
                step=training.step_index,
                seconds=training.elapsed,
                rollouts=bank.rolled_out is not None,
                **{k: v.item() for k, v in losses.items()},
                **figures,
            )
            held_out.sheet(made, out / f"renderer_{sheets % 4}.png")
            sheets += 1
            save_state(
                {k: v.half() for k, v in training.ema.module.state_dict().items() if v.is_floating_point()}, weights
            )
        if training.elapsed - saved >= 120:
            saved = training.elapsed
            save_state(training.state(), state_file)
    figures, made = held_out.measure(training.ema.module)
    if not all(math.isfinite(v) for v in figures.values()):
        raise RuntimeError(f"training diverged: {figures}; resume from {state_file} with a lower --lr")
    log.write(step=training.step_index, seconds=training.elapsed, final=True, **figures)
    log.plot(out / "renderer_curve.png", ("psnr", "psnr_person"), "dB")
    held_out.sheet(made, out / "renderer_final.png")
    save_state(training.state(), state_file)
    save_state(copy.deepcopy(training.ema.module).half().state_dict(), weights)
    print(json.dumps({"weights": str(weights), "steps": training.step_index, **figures}))
    return weights


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with motions.npz and index.csv")
    parser.add_argument("--out", required=True, help="folder for weights, log and sample sheets")
    parser.add_argument("--minutes", type=float, default=15.0, help="training time; schedules follow it")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps; 0: only time counts")
    parser.add_argument("--frames", type=int, default=120_000, help="frames in the bank, 260 kB of device memory each")
    parser.add_argument("--held-out", type=int, default=512, help="held-out frames that quality is watched on")
    parser.add_argument("--batch", type=int, default=64, help="frames a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="the generator's learning rate")
    parser.add_argument("--critic-width", type=int, default=48, help="channels of the critics' first layer")
    parser.add_argument(
        "--channels",
        type=lambda s: tuple(map(int, s.split(","))),
        default=(256, 320, 256, 160, 96, 48, 32),
        help="the generator's widths, comma-separated",
    )
    parser.add_argument("--rollouts", help="npy of motion vectors (n, 75) from the motion stage; used once it exists")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between measurements")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="do not use torch.compile")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    train(parse_arguments())
