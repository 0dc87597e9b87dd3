"""Play captions through a bundle's stages as the runtime does, drawing only the frames that somebody looks at.

The toolchain's own parts (`t2v_export.evaluate`), put together for judging the reference model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from t2v_edge import Pipeline
from t2v_export.evaluate import play
from t2v_export.evaluate.evaluator import Evaluator, read_spec
from t2v_export.evaluate.play import Script, Take
from t2v_export.evaluate.tasks import WARM_UP_S
from t2v_export.evaluate.workers import perform


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
        return read_spec(self.evaluator)[1]

    @cached_property
    def _reader(self) -> Evaluator:
        return Evaluator(self.evaluator)

    def take(self, script: Script, seed: int, steps: int) -> Take:
        """Step the motion stage `steps` times through a script of (base step, caption), the first at step 0."""
        return play.take(self.pipeline, script, seed, steps)

    def frame(self, take: Take, position: float) -> np.ndarray:
        """The frame, uint8 (H, W, 3), at a position in base steps; motion is interpolated linearly."""
        return play.render_at(self.pipeline, take, position)

    def read(self, frames: Sequence[np.ndarray]) -> list[int]:
        """The value that the evaluator reads for each slot, as an index, from its number of frames (H, W, 3)."""
        return self._reader.read(frames)[0]

    def watch(self, take: Take, start_s: float) -> list[int]:
        """Read the take from `start_s` seconds on, at the evaluator's frame rate."""
        return self.read([self.frame(take, at) for at in self._reader.spec.positions(self.fps, start_s)])

    def steps_to(self, start_s: float) -> int:
        """Base steps that `watch` from `start_s` needs."""
        return int(np.ceil(read_spec(self.evaluator)[0].positions(self.fps, start_s)[-1])) + 1


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


def read_jobs(studio: Studio, jobs: Sequence[Job], processes: int) -> Iterator[list[int]]:
    """Read every job, in order, in `processes` processes of one thread each."""
    return perform(studio, [(read_job, job) for job in jobs], processes)
