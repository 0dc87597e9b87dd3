"""What all methods of `benchmarks.gpu.peers` are given.

That is stage inputs from a rolled-out stream, and what torch in FP32 on the CPU makes of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from t2v_calibration.captions import load_captions
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.errors import UsageError
from t2v_edge.spec import STAGES
from t2v_export.checkpoint.checkpoint import MAX_CONFIG_BYTES, Checkpoint, load_checkpoint
from t2v_export.checkpoint.config import parse_config
from t2v_export.checkpoint.tokenizer import caption_tokenizer
from t2v_export.exporter.captions import DEFAULT_CAPTIONS
from t2v_export.graph.from_torch import PixelFrames
from t2v_export.verify.reference import FRAME_STEPS, ReferenceRollout, play_references
from t2v_export.weights.folder import needed_file

ROLLED = 4
"""Captions rolled out; four frames of each, so that 16 inputs of motion and render are rotated."""

Arrays = NDArray[Any]


@dataclass(frozen=True)
class Material:
    """A model and what its stages see.

    `samples`: stage -> inputs in the contract's order, batch 1. `wanted`: stage -> what FP32 on the CPU makes of each
    (text: condition, motion: motion, render: uint8 frame). `captions`: captions that no method sees before they are
    timed. `render_macs`: multiply-accumulates of convolutions and matrix products of one frame.
    """

    checkpoint: Checkpoint
    bundle: Path | None
    tokenizer: CaptionTokenizer
    samples: Mapping[str, Sequence[tuple[Arrays, ...]]]
    wanted: Mapping[str, Sequence[Arrays]]
    captions: tuple[str, ...]
    render_macs: int

    @property
    def name(self) -> str:
        return self.checkpoint.config.name


def gather(folder: Path, bundle: Path | None, captions: int, seed: int) -> Material:
    """Load a checkpoint and roll it out on the CPU in FP32. Raises `T2VError`."""
    checkpoint = load_checkpoint(folder)
    tokenizer = caption_tokenizer(checkpoint)
    rollouts = play_references(checkpoint, tokenizer, DEFAULT_CAPTIONS[:ROLLED], seed, lambda: None)
    samples, wanted = _samples(checkpoint, tokenizer, rollouts)
    chosen = np.random.default_rng(seed).permutation(np.array(load_captions("heldout")))[:captions]
    return Material(
        checkpoint, bundle, tokenizer, samples, wanted, tuple(str(c) for c in chosen), render_macs(checkpoint)
    )


def match_bundles(checkpoints: Sequence[Path], bundles: Sequence[Path]) -> list[Path | None]:
    """For each checkpoint the bundle of its name, or None; raises `UsageError` where a bundle belongs to none."""
    remedy = "is this a checkpoint folder?"
    configs = [needed_file(folder, "config.json", MAX_CONFIG_BYTES, remedy) for folder in checkpoints]
    names = [parse_config(path.read_bytes()).name for path in configs]
    found: dict[str, Path] = {}
    for path in bundles:
        with Bundle.open(path) as bundle:
            name = bundle.manifest.name
        if name not in names:
            raise UsageError(
                f"bundle {path} is of {name!r}, which is none of the checkpoints {', '.join(names)}; give "
                "its checkpoint as well, frames are compared with it"
            )
        found[name] = path
    return [found.get(name) for name in names]


def render_macs(checkpoint: Checkpoint) -> int:
    """Multiply-accumulates of the renderer's convolutions and matrix products, counted in one run on the CPU."""
    inputs = [torch.zeros(t.shape) for t in checkpoint.specs["render"].inputs]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        checkpoint.render(*inputs)
    return int(counter.get_total_flops()) // 2


def _samples(
    checkpoint: Checkpoint, tokenizer: CaptionTokenizer, rollouts: Sequence[ReferenceRollout]
) -> tuple[dict[str, list[tuple[Arrays, ...]]], dict[str, list[Arrays]]]:
    specs = checkpoint.specs
    samples: dict[str, list[tuple[Arrays, ...]]] = {stage: [] for stage in STAGES}
    wanted: dict[str, list[Arrays]] = {stage: [] for stage in STAGES}
    with torch.no_grad():
        for caption in DEFAULT_CAPTIONS:
            tokens = tokenizer(caption)
            samples["text"].append((tokens.ids, tokens.mask))
            condition = checkpoint.text(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask))
            wanted["text"].append(condition.numpy())
    for played in rollouts:
        draws, condition = played.draws, {"condition": played.condition}
        for number, step in enumerate(FRAME_STEPS):
            states = {s.input: played.outputs[s.output][step - 1 : step] for s in specs["motion"].states}
            feeds = {**condition, **draws.motion, **draws.steps[step], **(states if step else draws.states)}
            samples["motion"].append(tuple(feeds[t.name] for t in specs["motion"].inputs))
            motion = played.outputs["motion"][step : step + 1]
            wanted["motion"].append(motion)
            feeds = {"motion": motion, **condition, **draws.render}
            samples["render"].append(tuple(feeds[t.name] for t in specs["render"].inputs))
            # as PixelFrames rounds: half to even
            wanted["render"].append(np.rint(played.levels[number : number + 1]).astype(np.uint8))
    return samples, wanted


class HostOrder(nn.Module):
    """Frames as the host reads them: rows of pixels, one after another.

    PixelFrames gives a permuted view. The copy to the host would have to straighten it in a launch of its own. Here a
    compiler may fuse that, and a graph holds it.
    """

    def __init__(self, frames: nn.Module) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, *inputs: Tensor) -> Tensor:
        made: Tensor = self.frames(*inputs)
        return made.contiguous()


def gpu_modules(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, channels_last: bool
) -> dict[str, nn.Module]:
    """Copies of the three modules on `device`, floats in `dtype`, pixels folded into the renderer."""
    copies: dict[str, nn.Module] = {s: copy.deepcopy(module) for s, module in checkpoint.modules.items()}
    copies["render"] = HostOrder(PixelFrames(copies["render"]))
    made = {stage: module.to(device, dtype).eval() for stage, module in copies.items()}
    if channels_last:
        made["render"] = made["render"].to(memory_format=torch.channels_last)
    return made
