"""The rebuild pass: a stage of other options, with the weights that still fit."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from t2v_edge.errors import UsageError
from t2v_export.checkpoint.checkpoint import Checkpoint, with_stages
from t2v_export.checkpoint.config import StageConfig
from t2v_export.models import build_stage
from t2v_export.models.text import TransformersText
from t2v_export.recipe import Rebuild

SEED = 0  # of weights that start fresh


def rebuild_checkpoint(checkpoint: Checkpoint, options: Rebuild, allow_code: bool = False) -> Checkpoint:
    """The checkpoint with one stage built again, some of its options changed.

    Weights whose name and shape fit keep their values. The others start as the class starts them, with a fixed seed. Of
    a transformers encoder only the stage's own options can change. `allow_code` permits to import `module:Class` from
    the checkpoint's folder. Raises `CheckpointError` for an option that the class refuses, `UsageError` for one of the
    encoder's.
    """
    stage, config = options.stage, checkpoint.config
    before = config.stages[stage]
    after = StageConfig(before.class_name, MappingProxyType({**before.options, **options.options}))
    old = checkpoint.modules[stage]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if isinstance(old, TransformersText):
            made = _encoder(old, after.options)
        else:
            folder, code = checkpoint.folder / "encoder", checkpoint.folder if allow_code else None
            made = build_stage(stage, after.class_name, after.options, **config.sizes, folder=folder, code=code)
    new = made.state_dict()
    fitting = {n: t for n, t in old.state_dict().items() if n in new and new[n].shape == t.shape}
    made.load_state_dict(fitting, strict=False)
    made = made.float().eval().requires_grad_(False)
    return with_stages(checkpoint, {stage: made}, {stage: after})


def _encoder(old: TransformersText, changed: Mapping[str, Any]) -> nn.Module:
    full = {"tokens": 32, "pooling": "mean", "queries": 1, "groups": None, **changed}
    unknown = sorted(set(full) - {"tokens", "pooling", "queries", "groups"})
    if unknown:
        raise UsageError(f"rebuild of stage text: class 'transformers' has no option {unknown[0]!r}; use a prune pass")
    return old.resized({}, full)
