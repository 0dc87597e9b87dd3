"""The rebuild pass: a stage built anew with other options, for what pruning alone cannot make."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import torch

from t2v_edge.errors import UsageError
from t2v_export.checkpoint import Checkpoint
from t2v_export.config import StageConfig
from t2v_export.models import build_stage
from t2v_export.recipe import Rebuild


def rebuild_checkpoint(
    checkpoint: Checkpoint, options: Rebuild, seed: int = 0, allow_code: bool = False
) -> Checkpoint:
    """A checkpoint whose `options.stage` has some options changed; the input stays as it is.

    Weights and statistics whose name and shape are the same before and after are carried over, the others start as
    `seed` draws them. Raises `UsageError` for the stage that transformers loads, whose sizes are no options, and
    `CheckpointError` for options that the class refuses.
    """
    stage, config = options.stage, checkpoint.config
    old = config.stages[stage]
    if old.class_name == "transformers":
        raise UsageError(f"rebuild: stage {stage} is a transformers encoder, whose sizes are no options; prune it")
    new = StageConfig(old.class_name, MappingProxyType({**old.options, **options.options}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_stage(
            stage,
            new.class_name,
            new.options,
            condition_size=config.condition_size,
            motion_size=config.motion_size,
            height=config.height,
            width=config.width,
            folder=checkpoint.folder / "encoder",
            code=checkpoint.folder if allow_code else None,
        )
    before = checkpoint.modules[stage].state_dict()
    fitting = {
        name: before[name]
        for name, tensor in module.state_dict().items()
        if name in before and before[name].shape == tensor.shape
    }
    module.load_state_dict(fitting, strict=False)
    stages = MappingProxyType({**config.stages, stage: new})
    made = {stage: module.float().eval().requires_grad_(False)}
    return replace(checkpoint, config=replace(config, stages=stages), **made)
