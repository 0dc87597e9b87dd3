"""Train the evaluator on renders of the training clips, and measure it on renders of the held-out ones.

    python -m examples.reference.train_evaluator --data DIR --out DIR --minutes 4

Videos are drawn on the device while training runs. Each has a window of a training clip, a random camera yaw and a
random look. The windows are balanced over actions, mirrored half of the time, and varied in speed.

Videos are kept in a ring of clips and degraded like a generator's output: blur, blotches, noise, brightness, small
shifts and scales, jitter, missing patches, missing props. The hue is never changed, because colours are what the
evaluator must read.

Held-out clips are only measured. Nothing is chosen by them, and the last weights are the ones kept. Training resumes
with ``--resume``. The budget is time in training, without compilation.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from examples.reference.drawing import draw, random_looks, rasterize
from examples.reference.evaluator import VideoEvaluator, save_evaluator, write_onnx, write_plots
from examples.reference.motion_data import Clip, features, load_clips, to_motion_vectors
from examples.reference.vocabulary import ACTIONS, FPS, LOOK_SLOTS, PRESENCE_SLICE, SLOTS, slot_slices
from t2v_edge.util.files import write_atomic
from t2v_edge.util.targets import SCRIPT_FILE
from t2v_export.evaluate.readings import proportion

WINDOW = 44  # base frames a window is cut from: 31 are shown at normal speed, the rest allow 1.3 times that
SEAM = 5  # base frames over which a looped clip blends into itself
SHORTEST_LOOP = 10  # base frames: a running stride
SPEEDS = (0.85, 1.2)
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """How to train: `minutes` of training, `batch` videos a step of which about `fresh` are newly drawn."""

    minutes: float = 4.0
    batch: int = 48
    fresh: int = 16
    ring: int = 4096
    rate: float = 2e-3
    decay: float = 0.05
    supersample: int = 2
    windows: int = 100
    save_s: float = 45.0
    seed: int = 0
    compile: bool = True


def extend(poses: np.ndarray, length: int) -> np.ndarray:
    """A clip's poses (T, D), looped where shorter than `length`: from near its end to the nearest pose before."""
    if len(poses) >= length:
        return poses
    latest = len(poses) - SEAM
    period = min(SHORTEST_LOOP, latest)
    speed = np.gradient(poses[:, :60], axis=0)
    key = np.concatenate([poses[:, :60], 4 * speed], 1)[: latest + 1]
    cost = np.square(key[:, None] - key[None]).sum(-1)
    leave, enter = np.indices(cost.shape)
    cost[(leave - enter < period) | (leave < latest * 2 // 3)] = np.inf
    out, back = (int(v) for v in np.unravel_index(cost.argmin(), cost.shape))
    mix = (np.arange(1, SEAM + 1, dtype=np.float32) / (SEAM + 1))[:, None]
    seam = poses[out : out + SEAM] * (1 - mix) + poses[back : back + SEAM] * mix
    loop = np.concatenate([seam, poses[back + SEAM : out]])
    return np.concatenate([poses[:out], *[loop] * (-(-length // len(loop)))])[:length]


class ClipWindows:
    """Two-second videos' motion, cut from clips at random and balanced over the actions they show."""

    def __init__(self, clips: Sequence[Clip], device: torch.device) -> None:
        parts = [extend(features(clip), WINDOW) for clip in clips]
        lengths = np.array([len(p) for p in parts])
        self.poses = torch.from_numpy(np.concatenate(parts)).float().to(device)
        self.first = torch.from_numpy(np.cumsum(lengths) - lengths).to(device)
        self.room = torch.from_numpy(lengths - WINDOW + 1).to(device)
        actions = np.array([ACTIONS.index(clip.action) for clip in clips])
        self.actions = torch.from_numpy(actions).to(device)
        weights = np.zeros((len(ACTIONS), len(clips)), np.float32)
        weights[actions, np.arange(len(clips))] = np.sqrt(lengths)
        self.present = torch.from_numpy(np.flatnonzero(weights.sum(1) > 0)).to(device)
        self.weights = torch.from_numpy(weights).to(device)
        self.clips_of_action = Counter(ACTIONS[a] for a in actions)

    def sample(self, action: Tensor, frames: int, fps: int, generator: torch.Generator, varied: bool) -> Tensor:
        """Motion vectors (n, frames, 75) of clips of `action` (n,), yaw random; `varied`: in speed, props and noise."""
        n, device = len(action), self.poses.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        clip = torch.multinomial(self.weights[action], 1, generator=generator)[:, 0]
        start = self.first[clip] + (uniform(n) * self.room[clip]).long()
        poses = self.poses[start[:, None] + torch.arange(WINDOW, device=device)]
        motion = to_motion_vectors(poses, uniform(n) * (2 * torch.pi))
        speed = SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * uniform(n, 1) if varied else torch.ones(n, 1, device=device)
        times = torch.arange(frames, device=device) * speed * (FPS / fps)
        if varied:
            inner = (motion[:, :-2] + 2 * motion[:, 1:-1] + motion[:, 2:]) / 4
            smooth = torch.cat([motion[:, :1], inner, motion[:, -1:]], 1)
            motion = torch.where(uniform(n, 1, 1) < 0.4, smooth, motion)
            times = times + (uniform(n, frames) - 0.5) * (uniform(n, 1) < 0.3) + 0.5
        times = times.clamp(0, WINDOW - 1.001)
        before, mix = times.long()[..., None].expand(-1, -1, motion.shape[2]), times.frac()[..., None]
        motion = motion.gather(1, before) * (1 - mix) + motion.gather(1, before + 1) * mix
        if varied:
            offset = torch.randn(n, 1, 60, generator=generator, device=device) * (0.03 * uniform(n, 1, 1))
            fade = torch.where(uniform(n, 1, 1) < 0.1, uniform(n, 1, 1), torch.ones(n, 1, 1, device=device))
            presence = motion[..., PRESENCE_SLICE] * fade
            motion = torch.cat([motion[..., :60] + offset, motion[..., 60:70], presence], -1)
        return motion


class VideoRenderer:
    """Draws videos, `chunk` frames at a time: one compiled kernel on a GPU, what fits the caches on a CPU."""

    def __init__(self, device: torch.device, supersample: int = 2, compiled: bool = True) -> None:
        self.device, self.supersample = device, supersample
        compiled = compiled and device.type == "cuda"
        self._rasterizer = torch.compile(rasterize, dynamic=False) if compiled else rasterize
        self.chunk = 128 if compiled else 32 if device.type == "cuda" else 4

    @torch.no_grad()
    def paint(self, motion: Tensor, look: Tensor, size: int) -> Tensor:
        """Motion (n, frames, 75) in looks (n, 29) -> videos uint8 (n, frames, 3, size, size)."""
        n, frames = motion.shape[:2]
        flat, looks = motion.flatten(0, 1), look.repeat_interleave(frames, 0)
        missing = -len(flat) % min(self.chunk, len(flat))
        flat, looks = (torch.cat([v, v[:1].expand(missing, -1)]) for v in (flat, looks))
        images = [
            draw(m, k, size, self.supersample, self._rasterizer)[0].mul(255).round().byte()
            for m, k in zip(flat.split(self.chunk), looks.split(self.chunk))
        ]
        return torch.cat(images)[: n * frames].unflatten(0, (n, frames))


def labels_of(action: Tensor, look: Tensor) -> Tensor:
    """Indices (n, slots) of the values shown."""
    slices = slot_slices(LOOK_SLOTS)
    return torch.stack([action, *(look[:, slices[slot]].argmax(1) for slot in LOOK_SLOTS)], 1)


def degrade(video: Tensor, generator: torch.Generator) -> Tensor:
    """Videos uint8 (n, frames, 3, S, S) -> float 0..1 with the faults a generator makes; the hue stays."""
    n, frames, _, size, _ = video.shape
    device = video.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    pixels = video.float().div(255).flatten(0, 1)
    scale = 0.93 + 0.14 * uniform(n, 1)
    shift = 0.08 * (uniform(n, 1, 2) - 0.5) + 0.01 * normal(n, frames, 2)
    theta = torch.zeros(n, frames, 2, 3, device=device)
    theta[..., 0, 0], theta[..., 1, 1], theta[..., 2] = scale, scale, shift
    grid = F.affine_grid(theta.flatten(0, 1), list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    blurred = F.interpolate(F.avg_pool2d(pixels, 2), size=size, mode="bilinear", align_corners=False)
    softness = (uniform(n, 1, 1, 1, 1) * (uniform(n, 1, 1, 1, 1) < 0.6)).expand(-1, frames, -1, -1, -1).flatten(0, 1)
    pixels = torch.lerp(pixels, blurred, softness).unflatten(0, (n, frames))
    blotches = F.interpolate(normal(n * frames, 1, 8, 8), size=size, mode="bilinear").unflatten(0, (n, frames))
    gain = (1 + 0.16 * (uniform(n, 1, 1, 1, 1) - 0.5)) * (1 + 0.01 * normal(n, frames, 1, 1, 1))
    pixels = pixels * gain + 0.03 * uniform(n, 1, 1, 1, 1) * blotches
    pixels = pixels + 0.04 * uniform(n, 1, 1, 1, 1) * normal(*pixels.shape)
    place = torch.arange(size, device=device) / size
    corner, extent = uniform(n, 2, 1), 0.05 + 0.12 * uniform(n, 2, 1)
    inside = (place >= corner) & (place < corner + extent)
    patch = (inside[:, 0, :, None] & inside[:, 1, None, :]) & (uniform(n, 1, 1) < 0.3)
    mean = pixels.mean((1, 3, 4), keepdim=True)
    return torch.where(patch[:, None, None], mean, pixels).clamp(0, 1)


@torch.no_grad()
def validate(
    model: VideoEvaluator,
    clips: Sequence[Clip],
    renderer: VideoRenderer,
    windows: int,
    seed: int,
    props: bool = True,
) -> dict[str, Any]:
    """Accuracy on renders of held-out real clips, `windows` of each action, drawn at twice the evaluator's size.

    Returns accuracy with a 95 % interval for each slot and for all slots together, and accuracy of each action. It also
    returns how many clips each action has, and the confusion counts [shown][read]. Windows of one clip are alike: the
    intervals are for windows, not for new performers. Without `props` the action must be read from the body alone.
    """
    device, config = renderer.device, model.config
    held = ClipWindows(clips, device)
    generator = torch.Generator(device).manual_seed(seed)
    shown, read = [], []
    was_training = model.training
    model.eval()
    for action in held.present.repeat_interleave(windows).split(8):
        motion = held.sample(action, config.frames, config.fps, generator, varied=False)
        motion[..., PRESENCE_SLICE] *= props
        look = random_looks(len(action), generator, device)
        video = renderer.paint(motion, look, 2 * config.size)
        small = F.avg_pool2d(video.flatten(0, 1).float(), 2).round().byte().unflatten(0, video.shape[:2])
        shown.append(labels_of(action, look))
        read.append(model.read(small))
    model.train(was_training)
    labels, found = torch.cat(shown).cpu(), torch.cat(read).cpu()
    right = labels == found
    confusion = torch.zeros(len(ACTIONS), len(ACTIONS), dtype=torch.long)
    confusion.index_put_((labels[:, 0], found[:, 0]), torch.ones(len(labels), dtype=torch.long), accumulate=True)
    return {
        "what": "renders of held-out real clips (val, test, and the last quarter of single takes), random yaw and look",
        "windows": len(labels),
        "clips": dict(held.clips_of_action),
        "slots": {slot: proportion(int(right[:, i].sum()), len(right)) for i, slot in enumerate(SLOTS)},
        "all": proportion(int(right.all(1).sum()), len(right)),
        "actions": {
            name: round(float(confusion[i, i] / confusion[i].sum()), 4)
            for i, name in enumerate(ACTIONS)
            if confusion[i].sum()
        },
        "confusion": confusion.tolist(),
        "seed": seed,
    }


class Trainer:
    """One training run: owns the model, its optimiser, the ring of videos, and how long it has trained."""

    def __init__(self, clips: Sequence[Clip], options: Options, device: torch.device, model: VideoEvaluator) -> None:
        self.options, self.device, self.model = options, device, model.to(device)
        self.windows = ClipWindows(clips, device)
        self.renderer = VideoRenderer(device, options.supersample, options.compile)
        self.generator = torch.Generator(device).manual_seed(options.seed)
        self.optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=options.decay)
        config = model.config
        shape = (options.ring, config.frames, 3, config.size, config.size)
        self.videos = torch.empty(shape, dtype=torch.uint8, device=device)
        self.labels = torch.empty(options.ring, len(SLOTS), dtype=torch.long, device=device)
        self.drawn, self.step, self.elapsed_s = 0, 0, 0.0

    def refill(self) -> None:
        """Draw `fresh` new videos over the oldest ones of the ring."""
        count, config = self.options.fresh, self.model.config
        present = self.windows.present
        action = present[torch.randint(len(present), (count,), generator=self.generator, device=self.device)]
        motion = self.windows.sample(action, config.frames, config.fps, self.generator, varied=True)
        look = random_looks(count, self.generator, self.device)
        place = (self.drawn + torch.arange(count, device=self.device)) % self.options.ring
        self.videos[place] = self.renderer.paint(motion, look, config.size)
        self.labels[place] = labels_of(action, look)
        self.drawn += count

    def train_step(self) -> Tensor:
        """One step on `batch` videos of the ring; returns the loss, not yet awaited."""
        self.refill()
        options, filled = self.options, min(self.drawn, self.options.ring)
        done = min(1.0, self.elapsed_s / (60 * options.minutes))
        for group in self.optimizer.param_groups:
            falling = max(0.01, 0.5 * (1 + math.cos(math.pi * done)))
            group["lr"] = options.rate * min(1.0, (self.step + 1) / 100) * falling
        chosen = torch.randint(filled, (options.batch,), generator=self.generator, device=self.device)
        video = degrade(self.videos[chosen], self.generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            parts = self.model.split(self.model(video))
        losses = [
            F.cross_entropy(part, self.labels[chosen, i], label_smoothing=0.05) for i, part in enumerate(parts.values())
        ]
        loss = 2 * losses[0] + torch.stack(losses[1:]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed_s": self.elapsed_s,
                "generator": self.generator.get_state(),
            },
            buffer,
        )
        write_atomic(path, buffer.getvalue(), SCRIPT_FILE)

    def load(self, path: Path) -> None:
        """Go on where `save` left off. The ring of videos is drawn again."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]

    def fit(self, folder: Path, log: Log, heldout: Sequence[Clip]) -> None:
        """Train until the time is over, logging about every 2 s and saving every `save_s`."""
        self.model.train().to(memory_format=torch.channels_last)
        while self.drawn < min(2 * self.options.batch, self.options.ring):
            self.refill()
        budget, last_log, last_save = 60 * self.options.minutes, self.elapsed_s, self.elapsed_s
        began, before, steps_then = time.monotonic(), self.elapsed_s, self.step
        with tqdm(total=round(budget), initial=round(before), unit="s", disable=not sys.stderr.isatty()) as bar:
            while self.elapsed_s < budget:
                loss = self.train_step()
                if self.step % 10 == 0 and self.device.type == "cuda":
                    torch.cuda.synchronize()
                self.elapsed_s = before + time.monotonic() - began
                if self.elapsed_s - last_log >= 2:
                    rate = (self.step - steps_then) / (self.elapsed_s - last_log)
                    log(
                        {
                            "step": self.step,
                            "elapsed_s": round(self.elapsed_s, 1),
                            "loss": round(loss.item(), 4),
                            "steps_per_s": round(rate, 2),
                            "lr": self.optimizer.param_groups[0]["lr"],
                        }
                    )
                    bar.update(min(round(self.elapsed_s), bar.total) - bar.n)
                    last_log, steps_then = self.elapsed_s, self.step
                if self.elapsed_s - last_save >= self.options.save_s:
                    last_save = self.elapsed_s
                    self.save(folder / "state.pt")
                    pause = time.monotonic()
                    seen = validate(self.model, heldout, self.renderer, max(1, self.options.windows // 8), 1)
                    log({"step": self.step, "heldout": {s: v["rate"] for s, v in seen["slots"].items()}})
                    began += time.monotonic() - pause


def train(
    data: Path,
    out: Path,
    options: Options,
    device: torch.device,
    resume: bool,
    model: VideoEvaluator,
) -> dict[str, Any]:
    """Train, measure on held-out clips, write `out`: weights, JSON, log; ONNX and plots where they can be made."""
    clips = load_clips(data, mirrored=True)
    learned = [clip for clip in clips if clip.split == "train"]
    heldout = [clip for clip in clips if clip.split != "train" and not clip.mirrored]
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(learned, options, device, model)
    state = out / "state.pt"
    if resume and state.exists():
        trainer.load(state)
    with open(out / "train.jsonl", "a" if resume else "w", encoding="utf-8") as file:

        def log(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        trainer.fit(out, log, heldout)
        trainer.save(state)
        final = model.cpu().half().float().to(device).to(memory_format=torch.channels_last)
        validation = validate(final, heldout, trainer.renderer, options.windows, 0)
        bare = validate(final, heldout, trainer.renderer, options.windows, 0, props=False)
        validation["without_props"] = {"action": bare["slots"]["action"], "actions": bare["actions"]}
        log({"step": trainer.step, "heldout": {s: v["rate"] for s, v in validation["slots"].items()}})
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    training = {
        "steps": trainer.step,
        "seconds": round(trainer.elapsed_s),
        "videos_drawn": trainer.drawn,
        "batch": options.batch,
        "seed": options.seed,
        "device": name,
        "torch": torch.__version__,
    }
    save_evaluator(out, final.eval(), validation=validation, training=training)
    for make in (write_onnx, write_plots):
        try:
            make(out)
        except (ImportError, RuntimeError) as error:  # torch raises the latter where onnx is absent
            print(f"{error}: run `python -m examples.reference.evaluator {out}` where it is installed", file=sys.stderr)
    return validation


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of motions.npz and index.csv")
    parser.add_argument("--out", type=Path, required=True, help="the evaluator folder to write")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    parser.add_argument("--no-compile", action="store_true", help="draw without torch.compile")
    for name in ("minutes", "batch", "fresh", "ring", "windows", "seed"):
        value = getattr(Options, name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = parser.parse_args(arguments)
    device = given.device if given.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    options = Options(
        minutes=given.minutes,
        batch=given.batch,
        fresh=given.fresh,
        ring=given.ring,
        windows=given.windows,
        seed=given.seed,
        compile=not given.no_compile,
    )
    result = train(given.data, given.out, options, torch.device(device), given.resume, VideoEvaluator())
    print(json.dumps({"action": result["slots"]["action"]["rate"], "all": result["all"]["rate"], **result["actions"]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
