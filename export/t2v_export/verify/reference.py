"""Reference rollouts: what the torch modules make of captions. Every graph is compared with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from t2v_edge.bundle.draws import Draws
from t2v_edge.bundle.tokenizer import CaptionTokenizer, TokenizedCaption
from t2v_edge.errors import CheckpointError
from t2v_edge.spec import StageSpec
from t2v_export.checkpoint.checkpoint import Checkpoint
from t2v_export.graph.from_torch import PixelFrames, run_torch

Floats = NDArray[np.float32]
STEPS = 64
FRAME_STEPS = (0, 21, 42, 63)


@dataclass(frozen=True)
class StreamDraws:
    """All random numbers of a stream, by graph input name: once for the stream, and for each of its `steps`."""

    motion: Mapping[str, Floats]
    render: Mapping[str, Floats]
    states: Mapping[str, Floats]
    steps: tuple[Mapping[str, Floats], ...]


@dataclass(frozen=True)
class ReferenceRollout:
    """One caption played for `STEPS` base steps, free-running.

    `ids` and `mask` are int64 (1, tokens), `condition` is (1, C). `outputs` are the motion stage's by name, each
    (steps, ...). `levels` are float (frames, H, W, 3), 0 to 255 before rounding, of the steps `FRAME_STEPS`.
    """

    caption: str
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    condition: Floats
    draws: StreamDraws
    outputs: Mapping[str, Floats]
    levels: Floats


def draw(specs: Mapping[str, StageSpec], seed: int, steps: int = STEPS) -> StreamDraws:
    """The random numbers of a stream with this seed, from the runtime's own generator."""
    draws = Draws(specs["motion"], specs["render"], seed)
    return StreamDraws(draws.motion, draws.render, draws.states, tuple(draws.step() for _ in range(steps)))


def roll_motion(
    spec: StageSpec, step: Callable[[dict[str, Floats]], Mapping[str, Floats]], condition: Floats, draws: StreamDraws
) -> dict[str, Floats]:
    """Run a motion step for each drawn step, each on the states of the one before. Outputs by name, (steps, ...)."""
    states = dict(draws.states)
    made = []
    for noises in draws.steps:
        outputs = step({"condition": condition, **draws.motion, **noises, **states})
        states = {s.input: outputs[s.output] for s in spec.states}
        made.append(outputs)
    return {t.name: np.concatenate([outputs[t.name] for outputs in made]) for t in spec.outputs}


def play_references(
    checkpoint: Checkpoint,
    tokenizer: CaptionTokenizer,
    captions: Sequence[str],
    seed: int,
    advance: Callable[[], object],
) -> tuple[ReferenceRollout, ...]:
    """Play each caption through the torch modules. The stream of caption i has seed `seed` + i.

    `advance` is called after each caption. Raises `CheckpointError` for NaN or infinity.
    """
    played = []
    for index, caption in enumerate(captions):
        played.append(_play(checkpoint, tokenizer(caption), caption, draw(checkpoint.specs, seed + index)))
        advance()
    return tuple(played)


def _play(checkpoint: Checkpoint, tokens: TokenizedCaption, caption: str, draws: StreamDraws) -> ReferenceRollout:
    specs = checkpoint.specs

    def run(stage: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
        return _run(checkpoint.modules[stage], specs[stage], feeds, caption)

    condition = run("text", {"input_ids": tokens.ids, "attention_mask": tokens.mask})["condition"]
    outputs = roll_motion(specs["motion"], lambda feeds: run("motion", feeds), condition, draws)
    levels = PixelFrames(checkpoint.render).eval()
    frames = []
    for step in FRAME_STEPS:
        feeds = {"motion": outputs["motion"][step : step + 1], "condition": condition, **draws.render}
        with torch.no_grad():
            image = levels.levels(*(torch.from_numpy(feeds[t.name]) for t in specs["render"].inputs)).numpy()
        _check_finite("render", "frame", image, caption)
        frames.append(image)
    return ReferenceRollout(caption, tokens.ids, tokens.mask, condition, draws, outputs, np.concatenate(frames))


def _run(
    module: torch.nn.Module, spec: StageSpec, feeds: Mapping[str, NDArray[Any]], caption: str
) -> dict[str, Floats]:
    made = run_torch(module, [torch.from_numpy(feeds[t.name]) for t in spec.inputs])
    outputs = {t.name: tensor.numpy() for t, tensor in zip(spec.outputs, made)}
    for name, value in outputs.items():
        _check_finite(spec.stage, name, value, caption)
    return outputs


def _check_finite(stage: str, name: str, value: Floats, caption: str) -> None:
    if not np.isfinite(value).all():
        raise CheckpointError(
            f"stage {stage}: {name} is NaN or infinite for {caption!r}; training diverged, take an earlier checkpoint"
        )
