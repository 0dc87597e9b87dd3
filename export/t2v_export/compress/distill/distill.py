"""The distill pass, stage by stage. A stage is trained from the teacher and the untrained student alone."""

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
from t2v_export.compress.distill.training import StageTrainer, train
from t2v_export.compress.near import near_words
from t2v_export.recipe import Distill


@dataclass(frozen=True)
class DistillOptions:
    """Teacher and student, and how to train.

    `captions` to learn from; `device` a torch device; `progress` shows bars on stderr.
    """

    teacher: Checkpoint
    student: Checkpoint
    options: Distill
    captions: Sequence[str]
    seed: int = 0
    device: str = "cpu"
    progress: bool = False


def distill_stage(
    setup: DistillOptions, stage: str, folder: Path | None = None
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train the student's `stage`; returns its module, on the CPU and in evaluation mode, and the training's log.

    The state of the training is saved in `folder` while it runs. A state that is found there is continued. Neither
    checkpoint is changed. Raises `UsageError` if the two stages differ in inputs or outputs, `TrainingError` if the
    training diverges.
    """
    theirs, mine = setup.teacher.specs[stage], setup.student.specs[stage]
    if theirs.noises != mine.noises or theirs.results != mine.results:
        raise UsageError(
            f"distill: the {stage} stages of {setup.teacher.config.name} and {setup.student.config.name} differ in "
            "noises or outputs; change only what lies between them"
        )
    device = torch.device(setup.device)
    torch.manual_seed(setup.seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    steps = getattr(setup.options, f"{stage}_steps")
    trained, log = train(_trainer(setup, stage, device), steps, folder, setup.progress)
    module = copy.deepcopy(setup.student.modules[stage])  # without the hooks of the trainer
    module.load_state_dict({n: t.contiguous() for n, t in trained.state_dict().items()})
    return module.eval().requires_grad_(False), log


def _trainer(setup: DistillOptions, stage: str, device: torch.device) -> StageTrainer:
    teacher, options = setup.teacher, setup.options
    modules = {s: copy.deepcopy(m).to(device).requires_grad_(False) for s, m in teacher.modules.items()}
    student = copy.deepcopy(setup.student.modules[stage]).to(device).requires_grad_(True)
    reader = caption_tokenizer(teacher)
    if stage == "text":
        readers = reader, caption_tokenizer(setup.student)
        near = near_words(teacher, setup.captions, options.near)
        return TextTrainer(modules["text"], student, readers, setup.captions, options, setup.seed, device, near)
    pool = conditions(modules["text"], reader, setup.captions, device)
    specs, blend = teacher.specs, teacher.config.blend_steps
    if stage == "motion":
        three = specs["motion"], setup.student.specs["motion"], specs["render"]
        return MotionTrainer(modules["motion"], student, three, pool, blend, options, setup.seed, device)
    both, contracts = (modules["motion"], modules["render"]), (specs["motion"], specs["render"])
    groups = getattr(getattr(modules["text"], "head", None), "groups", None)
    return RenderTrainer(both, student, contracts, pool, blend, options, setup.seed, device, groups)
