"""The distill pass, stage by stage: each stage's lesson needs the teacher and the student as it came, nothing else."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2v_edge.errors import UsageError
from t2v_export.checkpoint.checkpoint import Checkpoint
from t2v_export.checkpoint.tokenizer import caption_tokenizer
from t2v_export.compress.distill.motion import MotionTrainer
from t2v_export.compress.distill.render import RenderTrainer
from t2v_export.compress.distill.text import TextTrainer, conditions
from t2v_export.compress.distill.training import StageTrainer, teach
from t2v_export.compress.near import near_words
from t2v_export.recipe import Distill

LOSSES = ("pixel", "perceptual", "temporal", "contrast", "adversarial")


@dataclass(frozen=True)
class DistillOptions:
    """Who teaches whom, and how. `captions` to learn from; `device` a torch device; `progress` bars on stderr."""

    teacher: Checkpoint
    student: Checkpoint
    options: Distill
    captions: Sequence[str]
    seed: int = 0
    device: str = "cpu"
    progress: bool = False


def distill_stage(
    lessons: DistillOptions, stage: str, folder: Path | None = None
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Teach the student's `stage`; returns its module, on the CPU and in evaluation mode, and the training's log.

    Training states stand in `folder` while it runs, and one that is found there is gone on from. Neither checkpoint
    is changed. Raises `UsageError` where the two stages do not take and give the same, `TrainingError` where the
    training diverges.
    """
    _check_alike(lessons, stage)
    device = torch.device(lessons.device)
    torch.manual_seed(lessons.seed)
    _precision(device)
    lesson = _lesson(lessons, stage, device)
    steps = getattr(lessons.options, f"{stage}_steps")
    taught, log = teach(lesson, steps, folder, lessons.progress)
    module = copy.deepcopy(lessons.student.modules[stage])  # without the hooks of the lesson
    module.load_state_dict({n: t.contiguous() for n, t in taught.state_dict().items()})
    return module.eval().requires_grad_(False), log


def _precision(device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


def _check_alike(lessons: DistillOptions, stage: str) -> None:
    theirs, mine = lessons.teacher.specs[stage], lessons.student.specs[stage]
    if theirs.noises != mine.noises or theirs.results != mine.results:
        raise UsageError(
            f"distill: the {stage} stages of {lessons.teacher.config.name} and {lessons.student.config.name} differ in "
            "noises or outputs; change only what lies between them"
        )


def _lesson(lessons: DistillOptions, stage: str, device: torch.device) -> StageTrainer:
    teacher, options = lessons.teacher, lessons.options
    modules = {s: copy.deepcopy(m).to(device).requires_grad_(False) for s, m in teacher.modules.items()}
    student = copy.deepcopy(lessons.student.modules[stage]).to(device).requires_grad_(True)
    batch, rate = getattr(options, f"{stage}_batch"), getattr(options, f"{stage}_rate")
    reader = caption_tokenizer(teacher)
    if stage == "text":
        readers = reader, caption_tokenizer(lessons.student)
        near = near_words(teacher, lessons.captions, options.near)
        fixed = batch, rate, lessons.seed, device, near, options.precision
        return TextTrainer(modules["text"], student, readers, lessons.captions, *fixed)
    pool = conditions(modules["text"], reader, lessons.captions, device)
    specs, blend = teacher.specs, teacher.config.blend_steps
    if stage == "motion":
        contracts = specs["motion"], lessons.student.specs["motion"], specs["render"]
        return MotionTrainer(
            modules["motion"], student, contracts, pool, blend, batch, options.length, rate, lessons.seed, device
        )
    weights = {name: getattr(options, name) for name in LOSSES}
    return RenderTrainer(
        (modules["motion"], modules["render"]),
        student,
        (specs["motion"], specs["render"]),
        pool,
        blend,
        weights,
        batch,
        options.length,
        rate,
        lessons.seed,
        device,
        getattr(getattr(modules["text"], "head", None), "groups", None),
        options.quantization_aware,
        options.precision,
    )
