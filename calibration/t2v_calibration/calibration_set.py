"""Calibration sets: what each stage is fed when captions are played."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2v_edge.bundle.draws import Draws
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.errors import T2VError
from t2v_edge.play.clock import Blend, mix
from t2v_edge.spec import STAGES, StageSpec

Array = NDArray[Any]
Feeds = Mapping[str, Array]
RunStage = Callable[[str, Feeds], Mapping[str, Array]]
SWITCHES = 2  # caption changes in each stream, evenly spread


class CalibrationError(T2VError):
    """Calibration data is absent, or holds NaN or infinity."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How much to play and to keep: `steps` base steps a stream, at most so many samples of each stage; the seed."""

    text: int = 256
    motion: int = 512
    render: int = 256
    steps: int = 64
    seed: int = 0


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Feeds by stage, each sample the inputs of one run, and the SHA-256 of all of them, names and order included."""

    samples: Mapping[str, tuple[Feeds, ...]]
    sha256: str


def collect(
    run: RunStage,
    specs: Mapping[str, StageSpec],
    tokenizer: CaptionTokenizer,
    captions: Sequence[str],
    blend_steps: int,
    options: CalibrationOptions = CalibrationOptions(),
) -> CalibrationSet:
    """Play streams of the captions, as the runtime does, and keep what each stage is fed.

    `run` runs a stage once. Each stream plays `options.steps` base steps from its own draws. It changes its caption in
    mid-run, blending over `blend_steps` with the state carried on. Motion samples are spread evenly over all steps. So
    are render samples, each at a random place between its step and the next. The same seed gives the same set.

    Raises `CalibrationError` for no captions and for a stage that gives NaN or infinity, `CaptionError` for a caption
    that cannot be tokenized.
    """
    if not captions:
        raise CalibrationError("there are no captions to calibrate with; give a set of at least a few dozen")
    chooser = np.random.Generator(np.random.PCG64(options.seed))
    chosen = [captions[i] for i in chooser.permutation(len(captions))[: options.text]]
    tokens = [tokenizer(caption) for caption in chosen]
    text = [{"input_ids": t.ids, "attention_mask": t.mask} for t in tokens]
    conditions = [_finite("text", run("text", feeds))["condition"] for feeds in text]
    streams = max(1, -(-options.motion // (options.steps // 2 or 1)))
    motion: list[Feeds] = []
    render: list[Feeds] = []
    for index in range(streams):
        targets = [conditions[i] for i in chooser.integers(len(conditions), size=SWITCHES + 1)]
        steps = _play(run, specs, targets, blend_steps, options.seed + index, options.steps)
        motion += [steps[i][0] for i in _spread(len(steps), options.motion, index, streams)]
        between = _spread(len(steps) - 1, options.render, index, streams)
        render += [_between(steps[i], steps[i + 1], float(chooser.random())) for i in between]
    samples = {"text": tuple(text), "motion": tuple(motion), "render": tuple(render)}
    return CalibrationSet(samples, _sha256(samples))


_Step = tuple[Feeds, Feeds]  # what motion and render were fed


def _play(
    run: RunStage, specs: Mapping[str, StageSpec], targets: Sequence[Array], blend_steps: int, seed: int, steps: int
) -> list[_Step]:
    draws = Draws(specs["motion"], specs["render"], seed)
    states: Feeds = draws.states
    blend = Blend(blend_steps)
    played: list[_Step] = []
    length = -(-steps // len(targets))
    for step in range(steps):
        if step % length == 0:
            blend.retarget(targets[step // length])
        condition = blend.advance()
        feeds = {"condition": condition, **draws.motion, **draws.step(), **states}
        outputs = _finite("motion", run("motion", feeds))
        states = {s.input: outputs[s.output] for s in specs["motion"].states}
        played.append((feeds, {"motion": outputs["motion"], "condition": condition, **draws.render}))
    return played


def _between(before: _Step, after: _Step, share: float) -> Feeds:
    """What render is fed between two base steps; its noises belong to the stream and stay."""
    mixed = {name: mix(before[1][name], after[1][name], share) for name in ("motion", "condition")}
    return {**before[1], **mixed}


def _spread(available: int, limit: int, index: int, streams: int) -> list[int]:
    """The steps of stream `index` to keep, so that all streams together give at most `limit`."""
    wanted = limit * (index + 1) // streams - limit * index // streams
    count = min(wanted, available)
    return [i * available // count for i in range(count)]


def _finite(stage: str, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise CalibrationError(
                f"calibration: stage {stage} gives NaN or infinity in {name}; take an earlier checkpoint"
            )
    return outputs


def _sha256(samples: Mapping[str, tuple[Feeds, ...]]) -> str:
    digest = hashlib.sha256()
    for stage in STAGES:
        for index, feeds in enumerate(samples[stage]):
            for name in sorted(feeds):
                array = np.ascontiguousarray(feeds[name])
                digest.update(f"{stage} {index} {name} {array.dtype} {array.shape}\n".encode())
                digest.update(array.tobytes())
    return digest.hexdigest()
