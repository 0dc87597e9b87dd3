"""Play captions through a bundle's stages as the runtime does, drawing only the frames that somebody looks at.

`t2v_edge.FrameStream` renders every frame it yields. Measuring needs a second of warm-up and 1,000-step runs whose
frames nobody sees, so the motion stage is stepped here by the same contract (docs/formats.md: order of the draws,
linear blend of conditions) and frames are rendered on demand; a test holds the two to the same pixels.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from t2v_edge.bundle import Bundle, Manifest
from t2v_edge.engine import Engine, EngineOptions, open_engine
from t2v_edge.errors import CheckpointError
from t2v_edge.spec import STAGES, NoiseSpec
from t2v_edge.tokenizer import CaptionTokenizer

WARM_UP_S = 1.0
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Take:
    """One stream's motion: `motion` (steps, M) and the blended `condition` (steps, C), and the renderer's noises."""

    motion: np.ndarray
    condition: np.ndarray
    noises: Mapping[str, np.ndarray]


def _draw(rng: np.random.Generator, noise: NoiseSpec) -> np.ndarray:
    draw = rng.standard_normal if noise.distribution == "normal" else rng.random
    return draw(noise.shape, dtype=np.float32) * np.float32(noise.scale)


class Studio:
    """A bundle's stages and an evaluator, each on one CPU thread. Opened on first use, so that it can be sent to workers.

    `variant` is one of the bundle's, or None for its default of every stage.
    """

    def __init__(self, bundle: Path, evaluator: Path, variant: str | None = None) -> None:
        self.bundle, self.evaluator, self.variant = Path(bundle), Path(evaluator), variant

    def __getstate__(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "evaluator": self.evaluator, "variant": self.variant}

    @cached_property
    def _opened(self) -> tuple[Manifest, CaptionTokenizer, dict[str, Engine]]:
        with Bundle.open(self.bundle) as bundle:
            manifest = bundle.manifest
            variants = {stage: self.variant or manifest.default[stage] for stage in STAGES}
            engines = {
                stage: open_engine("onnxruntime", bundle.graph(variants[stage], stage), manifest.stages[stage],
                                   EngineOptions(threads=1))
                for stage in STAGES
            }
            tokens = manifest.tokenizer
            tokenizer = CaptionTokenizer(bundle.tokenizer_json, tokens.tokens, tokens.pad_id)
        return manifest, tokenizer, engines

    @property
    def manifest(self) -> Manifest:
        return self._opened[0]

    def describe(self) -> dict[str, Any]:
        """Parsed `evaluator.json`; raises `CheckpointError` where it cannot be read."""
        path = self.evaluator / "evaluator.json"
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}; give a --checkpoint that holds evaluator/") from error

    @cached_property
    def _reader(self) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(self.evaluator / "evaluator.onnx"), options, providers=["CPUExecutionProvider"])
        return session, self.describe()

    def encode(self, caption: str) -> np.ndarray:
        """The condition (1, C) of a caption."""
        _, tokenizer, engines = self._opened
        tokens = tokenizer.encode(caption)
        return engines["text"].run({"input_ids": tokens.ids, "attention_mask": tokens.mask})["condition"]

    def take(self, script: Sequence[tuple[int, str]], seed: int, steps: int) -> Take:
        """Step the motion stage `steps` times through a script of (first step, caption), the first at step 0."""
        manifest, _, engines = self._opened
        motion, render = manifest.stages["motion"], manifest.stages["render"]
        rng = np.random.Generator(np.random.PCG64(seed))
        kept, shown = (
            {n.input: _draw(rng, n) for n in stage.noises if n.cadence == "stream"} for stage in (motion, render))
        states: Arrays = {}
        for state in motion.states:
            if state.start == "normal":
                states[state.input] = rng.standard_normal(state.shape, dtype=np.float32)
            elif state.start == "stored":
                states[state.input] = np.array(state.value, np.float32).reshape(state.shape)
            else:
                states[state.input] = np.zeros(state.shape, np.float32)
        changes = {step: self.encode(caption) for step, caption in script}
        condition = source = target = changes[0]
        since, motions, conditions = manifest.video.blend_steps, [], []
        for step in range(steps):
            if step and step in changes:
                source, target, since = condition, changes[step], 0
            since += 1
            share = np.float32(min(1.0, since / max(1, manifest.video.blend_steps)))
            condition = target if share >= 1 else source + (target - source) * share
            fresh = {n.input: _draw(rng, n) for n in motion.noises if n.cadence == "step"}
            out = engines["motion"].run({"condition": condition, **kept, **fresh, **states})
            states = {state.input: out[state.output] for state in motion.states}
            motions.append(out["motion"])
            conditions.append(condition)
        return Take(np.concatenate(motions), np.concatenate(conditions), shown)

    def frame(self, take: Take, position: float) -> np.ndarray:
        """The frame, uint8 (H, W, 3), at a position in base steps; motion is interpolated linearly."""
        before = int(position)
        mix = np.float32(position - before)
        motion = take.motion[before : before + 1]
        if mix:
            motion = motion + (take.motion[before + 1 : before + 2] - motion) * mix
        feeds = {"motion": motion, "condition": take.condition[before : before + 1], **take.noises}
        return self._opened[2]["render"].run(feeds)["frame"][0]

    def read(self, frames: Sequence[np.ndarray]) -> list[int]:
        """The value that the evaluator reads for each slot, as an index, from its number of frames (H, W, 3)."""
        session, described = self._reader
        size = (described["size"], described["size"])
        small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
        video = np.stack(small)[None].transpose(0, 1, 4, 2, 3)
        logits = session.run(None, {"video": np.ascontiguousarray(video)})[0][0]
        ends = np.cumsum([len(values) for values in described["slots"].values()])
        return [int(part.argmax()) for part in np.split(logits, ends[:-1])]

    def watch(self, take: Take, start_s: float) -> list[int]:
        """Read the take from `start_s` seconds on, at the evaluator's frame rate."""
        described = self._reader[1]
        rate = self.manifest.video.fps / described["fps"]
        first = start_s * self.manifest.video.fps
        return self.read([self.frame(take, first + k * rate) for k in range(described["frames"])])

    def steps_to(self, start_s: float) -> int:
        """Base steps that `watch` from `start_s` needs."""
        described = self.describe()
        fps = self.manifest.video.fps
        return int(np.ceil(start_s * fps + (described["frames"] - 1) * fps / described["fps"])) + 1


@dataclass(frozen=True)
class Job:
    """A video to read: captions by the base step at which they come, a seed, and where the reader starts, seconds."""

    script: tuple[tuple[int, str], ...]
    seed: int
    start_s: float = WARM_UP_S


def read_job(studio: Studio, job: Job) -> list[int]:
    """Play a job and read it."""
    take = studio.take(job.script, job.seed, studio.steps_to(job.start_s))
    return studio.watch(take, job.start_s)


_studio_of_worker: list[Studio] = []  # a pool hands its workers nothing else that lives from task to task


def _start_worker(studio: Studio) -> None:
    _studio_of_worker[:] = [studio]


def _work(job: Job) -> list[int]:
    return read_job(_studio_of_worker[0], job)


def read_jobs(studio: Studio, jobs: Sequence[Job], processes: int) -> Iterator[list[int]]:
    """Read every job, in order, in `processes` processes of one thread each."""
    if processes <= 1:
        yield from (read_job(studio, job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (studio,)) as pool:
        yield from pool.map(_work, jobs, chunksize=1)
