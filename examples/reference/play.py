"""Play captions through a bundle's stages as the runtime does, drawing only the frames that somebody looks at.

`t2v_edge.FrameStream` renders every frame it yields. Measuring needs a second of warm-up and 1,000-step runs whose
frames nobody sees, so the pipeline's stages are stepped here with the stream's own draws and blend, and frames are
rendered on demand; a test holds the two to the same pixels.
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

from t2v_edge import Pipeline
from t2v_edge.clock import Blend, mix
from t2v_edge.draws import Draws
from t2v_edge.errors import CheckpointError

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Take:
    """One stream's motion: `motion` (steps, M) and the blended `condition` (steps, C), and the renderer's noises."""

    motion: np.ndarray
    condition: np.ndarray
    noises: Mapping[str, np.ndarray]


class Studio:
    """A pipeline and an evaluator, on one CPU thread each; opened on first use, so that workers can be sent one.

    `variant` is one of the bundle's, or None for its default of every stage.
    """

    def __init__(self, bundle: Path, evaluator: Path, variant: str | None = None) -> None:
        self.bundle, self.evaluator, self.variant = Path(bundle), Path(evaluator), variant

    def __getstate__(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "evaluator": self.evaluator, "variant": self.variant}

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline.open(self.bundle, engine="onnxruntime", variant=self.variant, threads=1)

    @property
    def fps(self) -> int:
        """Base frames a second."""
        return int(self.pipeline.manifest.video.fps)

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

    def take(self, script: Sequence[tuple[int, str]], seed: int, steps: int) -> Take:
        """Step the motion stage `steps` times through a script of (base step, caption), the first at step 0."""
        pipeline = self.pipeline
        stages = pipeline.manifest.stages
        draws, blend = Draws(stages["motion"], stages["render"], seed), Blend(pipeline.manifest.video.blend_steps)
        changes = {step: pipeline.encode(caption).vector for step, caption in script}
        states = dict(draws.states)
        motions, conditions = [], []
        for step in range(steps):
            if step in changes:
                blend.retarget(changes[step])
            condition = blend.advance()
            out = pipeline.run("motion", {"condition": condition, **draws.motion, **draws.step(), **states})
            states = {state.input: out[state.output] for state in stages["motion"].states}
            motions.append(out["motion"])
            conditions.append(condition)
        return Take(np.concatenate(motions), np.concatenate(conditions), draws.render)

    def frame(self, take: Take, position: float) -> np.ndarray:
        """The frame, uint8 (H, W, 3), at a position in base steps; motion is interpolated linearly."""
        before, share = int(position), position % 1
        after = before + 1 if share else before
        motion, condition = (
            mix(values[before : before + 1], values[after : after + 1], share)
            for values in (take.motion, take.condition)
        )
        feeds = {"motion": motion, "condition": condition, **take.noises}
        return np.asarray(self.pipeline.run("render", feeds)["frame"][0])

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
        rate = self.fps / described["fps"]
        first = start_s * self.fps
        return self.read([self.frame(take, first + k * rate) for k in range(described["frames"])])

    def steps_to(self, start_s: float) -> int:
        """Base steps that `watch` from `start_s` needs."""
        described = self.describe()
        last_s = start_s + (described["frames"] - 1) / described["fps"]
        return int(np.ceil(last_s * self.fps)) + 1


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
